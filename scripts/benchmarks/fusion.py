"""What a training step costs above its floor, at each site.

The measured side is the whole step: encode the windows, forward, loss, backward, optimizer step (fused AdamW on encoder
and fusion), gradients set to None. The floor is what no method of this kind can avoid: the bare backbone's forward with
the same tokens, without a graph below the site, the same loss at the same labeled positions over the whole vocabulary,
and the backward pass from it down to the hidden states at the site. It is written here with nothing of climafuse but
the name of the module at a site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from climafuse.backbones import LoadedBackbone, Site, find_blocks
from climafuse.model import ClimateTextForCausalLM, PrefixStore
from climafuse.training.config import TrainingConfig
from climafuse.training.optim import make_optimizer
from climafuse.training.precision import products
from scripts.benchmarks.inputs import backbone, climate, random_texts, store
from scripts.benchmarks.measure import Comparison, Row, Size, compare, quartiles

AIMS = {"gated_addition": 1.10, "cross_attention": 1.20}
MEANING = (
    "seconds of a fused training step ÷ seconds of the floor: bare forward, and backward down to the site"
)


def rows(size: Size) -> Iterator[Row]:
    """Measure both fusions at four sites."""
    loaded = backbone(size.backbone)
    num_blocks = find_blocks(loaded.model).num_blocks
    batch = {
        **climate(size.texts),
        **random_texts(int(loaded.model.config.vocab_size), size.texts, size.tokens),
    }
    num_tokens = size.texts * size.tokens
    sites: tuple[Site, ...] = ("input", num_blocks // 2, num_blocks - 1, "output")
    for site in sites:
        for fusion, aim in AIMS.items():
            step = fused_step(loaded, fusion, site, batch)
            found = compare(step, floor(loaded, site, batch), repeats=size.repeats, warmup=size.warmup)
            yield _row(f"{fusion} at {site_name(site)}", found, num_tokens, aim)


def fused_step(
    loaded: LoadedBackbone, fusion: str, site: Site, batch: dict[str, Tensor], *, reuse: bool = False
) -> Callable[[], Tensor]:
    """Make a fusion at a site; return its training step."""
    torch.manual_seed(0)
    model = ClimateTextForCausalLM.from_backbone(
        loaded, statistics=store().statistics, fusion=fusion, sites=[site]
    ).train()
    open_gates(model)
    if reuse:
        model.prefix_store = PrefixStore(model.backbone, model.prefix_site)
    optimizer = make_optimizer(model, TrainingConfig())

    def step() -> Tensor:
        with products("auto", torch.device("cpu")):  # as training does
            loss = cast("Tensor", model(**batch).loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def floor(loaded: LoadedBackbone, site: Site, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
    """Return the bare backbone's forward, and backward down to the hidden states at the site."""
    model = loaded.model
    head: Any = model.get_output_embeddings()
    entrance = find_blocks(model).entrance(site)
    labels = batch["labels"]
    positions = functional.pad(labels[:, 1:] != -100, (0, 1))  # [N, S], whose next token is a label
    targets = labels[:, 1:][positions[:, :-1]]

    entered: list[Tensor] = []

    def leaf(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        (hidden, *rest), named = (args, kwargs) if args else ([kwargs["hidden_states"]], kwargs)
        start = hidden.detach().requires_grad_()
        entered.append(start)
        return ((start, *rest), named) if args else (args, {**kwargs, "hidden_states": start})

    def step() -> Tensor:
        handle = entrance.register_forward_pre_hook(leaf, with_kwargs=True)
        try:
            hidden = model.base_model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).last_hidden_state
            logits = head(hidden[positions])  # [P, V]
        finally:
            handle.remove()
        loss = functional.cross_entropy(logits.float(), targets)
        loss.backward()
        if len(entered) != 1 or entered.pop().grad is None:
            raise RuntimeError("the floor did not run from its site to the loss and back once")
        return loss.detach()

    return step


def open_gates(model: ClimateTextForCausalLM, size: float = 0.01) -> None:
    """Open the gates a little, as after the first steps of training: no gradient is then zero for want of a gate."""
    with torch.no_grad():
        for name, parameter in model.fusions.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(size)


def _row(case: str, found: Comparison, num_tokens: int, aim: float) -> Row:
    return Row(
        section="fusion",
        case=case,
        ratio=found.ratio,
        spread=quartiles(found.ratios),
        aim=f"<= {aim:.2f}",
        reached=found.ratio <= aim,
        seconds=found.seconds,
        reference_seconds=found.reference_seconds,
        rate=num_tokens / found.seconds,
        unit="text tokens/s",
        peak_gb=found.peak_gb,
        repeats=len(found.ratios),
        meaning=MEANING,
    )


def site_name(site: Site) -> str:
    """Return a site in words."""
    return str(site) if isinstance(site, str) else f"block {site}"
