"""A fusion of your own in one file: FiLM, which scales and shifts the text states by the climate.

    python examples/own_fusion.py                        # in runs/own_fusion; a few minutes on two cores
    python examples/own_fusion.py --steps 20 --windows 64

A fusion is a subclass of `Fusion` with one method, from text states and climate tokens to text states. In Python the
class itself is passed to `ClimateTextForCausalLM.from_backbone`. For configuration files it is registered under a
name; here it is then trained as `climafuse train` trains the built-in ones, and the loss falls.

Reference:
    Perez et al. 2018, FiLM: Visual Reasoning with a General Conditioning Layer, arXiv:1709.07871, equation 2.
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


class FiLMFusion(Fusion):
    """Scales and shifts each channel of the text states by what the climate says: text + s * gate * (γ x + β).

    x is the normed text state and s its size, so the change is in units of what it is added to. γ and β come from
    the mean of the climate tokens: one vector for the whole window, the same for every word.

    Args:
        hidden_size: D, the width of the text states.
        climate_width: C, the width of the climate tokens.
        hidden: Width of the hidden layer between climate and γ, β.
    """

    def __init__(self, hidden_size: int, climate_width: int, hidden: int = 256) -> None:
        super().__init__(hidden_size, climate_width)
        self.norm = nn.LayerNorm(hidden_size)
        self.film = nn.Sequential(
            nn.Linear(climate_width, hidden), nn.GELU(), nn.Linear(hidden, 2 * hidden_size)
        )
        # Named "gate": starts at zero, so that an untrained model is the bare backbone, and learns at its own rate.
        self.gate = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, text: Tensor, climate: ClimateTokens) -> Tensor:
        """Fuse; text [B, S, D] of the backbone's type, B rows of climate tokens."""
        states = at_least_float32(text)
        # What depends on the climate alone is made once while text is generated.
        gamma, beta = self.once(climate, lambda: self._modulation(climate)).chunk(2, dim=-1)  # [B, 1, D] each
        change = self.gate * (gamma * self.norm(states) + beta)
        # A row without any valid token must leave its text as it is.
        change = change * climate.mask.any(dim=1)[:, None, None]
        return (states + text_scale(text) * change).to(text.dtype)

    def _modulation(self, climate: ClimateTokens) -> Tensor:
        weight = climate.mask.unsqueeze(-1).to(climate.states.dtype)  # [B, M, 1]
        mean = (climate.states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)  # [B, C]
        return self.film(mean).unsqueeze(1)  # [B, 1, 2D]


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

    # A registered name can stand in a configuration: `fusion: {name: film, options: {hidden: 128}}`.
    FUSIONS.register("film", FiLMFusion)
    settings = [
        "fusion.name=film",
        "fusion.options.hidden=128",
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
        fusion=FiLMFusion,
        fusion_options={"hidden": 128},
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
