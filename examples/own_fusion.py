"""A fusion of your own in one file: low-rank bilinear, where text and climate meet as a product.

    python examples/own_fusion.py                        # in runs/own_fusion; a few minutes on two cores
    python examples/own_fusion.py --steps 20 --windows 64

A fusion is a subclass of `Fusion` with one method, from text states and climate tokens to text states. In Python the
class itself is passed to `ClimateTextForCausalLM.from_backbone`. For configuration files it is registered under a
name; here it is then trained as `climafuse train` trains the built-in ones, and the loss falls.

Reference:
    Kim et al. 2017, Hadamard Product for Low-rank Bilinear Pooling, arXiv:1610.04325, section 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from climafuse import ClimateTextForCausalLM, ClimateTextProcessor, load_backbone
from climafuse.climate_tokens import ClimateTokens
from climafuse.fusion import Fusion
from climafuse.fusion.base import at_least_float32, text_scale
from climafuse.registry import FUSIONS
from climafuse.training import load_config, read_log
from climafuse.training.dataset import ExampleCollator, make_examples, open_store
from climafuse.training.pipeline import run


class BilinearFusion(Fusion):
    """Lets text and climate meet as a product: text + s * gate * V(U x * W c).

    x is the normed text state and s its size, so the change is in units of what it is added to. c is the mean of the
    climate tokens. Each of the hidden channels is a question (U) times an answer (W): what a word does not ask for
    stays zero, whatever the climate says.

    Args:
        hidden_size: D, the width of the text states.
        climate_width: C, the width of the climate tokens.
        rank: Number of hidden channels.
    """

    def __init__(self, hidden_size: int, climate_width: int, rank: int = 256) -> None:
        super().__init__(hidden_size, climate_width)
        self.norm = nn.LayerNorm(hidden_size)
        self.text = nn.Linear(hidden_size, rank)
        self.climate = nn.Linear(climate_width, rank)
        self.output = nn.Linear(rank, hidden_size)
        # Named "gate": starts at zero, so that an untrained model is the bare backbone, and learns at its own rate.
        self.gate = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, text: Tensor, climate: ClimateTokens) -> Tensor:
        """Fuse; text [B, S, D] of the backbone's type, B rows of climate tokens."""
        states = at_least_float32(text)
        asked = self.text(self.norm(states))  # [B, S, rank]
        # What depends on the climate alone is made once while text is generated.
        answered = self.once(climate, lambda: self._answers(climate))  # [B, 1, rank]
        change = self.gate * self.output(asked * answered)
        # A row without any valid token must leave its text as it is.
        change = change * climate.mask.any(dim=1)[:, None, None]
        return (states + text_scale(text) * change).to(text.dtype)

    def _answers(self, climate: ClimateTokens) -> Tensor:
        weight = climate.mask.unsqueeze(-1).to(climate.states.dtype)  # [B, M, 1]
        mean = (climate.states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)  # [B, C]
        return self.climate(mean).unsqueeze(1)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the example.

    Returns:
        `bare_equal`: whether the untrained model gave the bare backbone's logits bit for bit; `losses`: of
        each training step; `model`: folder of the trained model.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/own_fusion"), help="folder of the run")
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--windows", type=int, default=400, help="training windows")
    parser.add_argument("--backbone", default=None, help="another backbone: name or folder")
    options = parser.parse_args(arguments)

    # A registered name can stand in a configuration: `fusion: {name: bilinear, options: {rank: 128}}`.
    FUSIONS.register("bilinear", BilinearFusion)
    settings = [
        "fusion.name=bilinear",
        "fusion.options.rank=128",
        "facts.kinds=[mean/t2m, direction]",
        f"data.train_windows={options.windows}",
        "data.validation_windows=16",
        f"training.steps={options.steps}",
        f"training.evaluation_interval={options.steps}",
        "training.logging_interval=1",
        "training.windows_per_step=16",
        f"output.directory={options.output}",
        "output.overwrite=true",
    ]
    if options.backbone is not None:
        settings.append(f"backbone.name={options.backbone}")
    config = load_config(None, settings)

    # In Python no name is needed: the class is passed, and its options beside it.
    store = open_store(config)
    model = ClimateTextForCausalLM.from_backbone(
        load_backbone(config.backbone.name),
        statistics=store.statistics,
        fusion=BilinearFusion,
        fusion_options={"rank": 128},
        sites={"last": 2},  # any site will do: "input", "output", numbers of blocks
        history=config.data.history,
    ).eval()
    processor = ClimateTextProcessor.of(model.config, model.tokenizer)
    batch = ExampleCollator(processor)(make_examples(store, "validation", config)[:4])
    batch = {name: tensor for name, tensor in batch.items() if name not in ("sample", "labels")}
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        bare_equal = torch.equal(model(**batch).logits, model.backbone(**text).logits)
    print(f"untrained, at sites {model.sites}: the bare backbone bit for bit: {bare_equal}")

    trained = run(config)
    losses = [line["loss"] for line in read_log(options.output / "log.jsonl") if "loss" in line]
    print(f"training loss {losses[0]:.3f} -> {losses[-1]:.3f} in {options.steps} steps")
    return {"bare_equal": bare_equal, "losses": losses, "model": trained["model"]}


if __name__ == "__main__":
    main()
