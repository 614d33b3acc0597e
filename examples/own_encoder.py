"""An encoder of your own in one file: one climate token for each row of the grid.

    python examples/own_encoder.py                       # in runs/own_encoder; a few minutes on two cores
    python examples/own_encoder.py --steps 20 --windows 64

An encoder is a subclass of `ClimateEncoder` with one method, from fields on a grid to climate tokens. In Python an
instance is passed to `ClimateTextForCausalLM.from_backbone`. The model is an ordinary torch module: here a loop of ten
lines trains it, the loss falls, and it is saved and loaded again.

Whoever wants it in configuration files adds `ENCODERS.register("zonal_mean", ZonalMeanEncoder)`, as
`examples/own_fusion.py` does for a fusion.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from climafuse import ClimateTextForCausalLM, ClimateTextProcessor, load_backbone
from climafuse.climate_tokens import ClimateTokens
from climafuse.data.batch import data_order
from climafuse.encoders import Channels, ClimateEncoder
from climafuse.encoders.numbers import NUM_FEATURES, number_features
from climafuse.model import PrefixStore, channels_of
from climafuse.training import load_config
from climafuse.training.dataset import Example, ExampleCollator, make_examples, open_store
from climafuse.training.optim import parameter_groups


class ZonalMeanEncoder(ClimateEncoder):
    """The mean of each variable along each row of the grid, one token for a row and a time step.

    Args:
        channels: What the fields hold, and how to get from normalized to natural units.
        width: C, the width of a climate token.
    """

    def __init__(self, channels: Channels, width: int = 96) -> None:
        super().__init__(channels, width)
        # Constants of the configuration, not weights: not in the checkpoint.
        self.register_buffer("scale", torch.tensor(channels.scale), persistent=False)  # [V]
        self.register_buffer("offset", torch.tensor(channels.offset), persistent=False)  # [V]
        self.values = nn.Linear(len(channels.names) * (NUM_FEATURES + 1), width)
        self.latitude = nn.Linear(2, width)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, fields: Tensor, mask: Tensor, latitude: Tensor, longitude: Tensor, time: Tensor
    ) -> ClimateTokens:
        """Encode windows; the shapes stand in `ClimateEncoder.forward`."""
        self.check(fields, mask, latitude, longitude, time)
        # Missing values and padding are masked: they must not count, whatever number stands there.
        known = mask.sum(dim=-1)  # [B, T, V, H] number of valid cells
        mean = fields.masked_fill(~mask, 0.0).sum(dim=-1) / known.clamp(min=1)
        natural = mean * self.scale[:, None] + self.offset[:, None]  # °C, hPa, m/s, mm
        # Numbers as features whose decimal digits can be read, beside whether there is a number at all.
        features = torch.cat([number_features(natural), torch.ones_like(natural).unsqueeze(-1)], dim=-1)
        features = features * (known > 0).unsqueeze(-1)  # [B, T, V, H, F]
        states = self.values(rearrange(features, "b t v h f -> b t h (v f)"))  # [B, T, H, C]
        angle = torch.deg2rad(latitude)
        states = states + self.latitude(torch.stack([angle.sin(), angle.cos()], dim=-1)).unsqueeze(1)
        steps, rows = time.shape[1], latitude.shape[1]
        return ClimateTokens(
            states=rearrange(self.norm(states), "b t h c -> b (t h) c"),
            mask=rearrange((known > 0).any(dim=2), "b t h -> b (t h)"),
            latitude=latitude.repeat(1, steps),
            longitude=torch.full_like(latitude, torch.nan).repeat(1, steps),  # of a whole row: no one place
            time=time.repeat_interleave(rows, dim=1),
            labels=tuple(
                f"row {row} at step {step - steps + 1}" for step in range(steps) for row in range(rows)
            ),
        )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the example.

    Returns:
        `losses`: validation loss before and after training; `answers`: of the trained model and of the same model
        saved and loaded; `model`: its folder.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/own_encoder"), help="folder of the model")
    parser.add_argument("--steps", type=int, default=60, help="training steps")
    parser.add_argument("--windows", type=int, default=400, help="training windows")
    parser.add_argument("--backbone", default=None, help="another backbone: name or folder")
    options = parser.parse_args(arguments)
    config = load_config(
        None,
        [
            "facts.kinds=[mean/t2m, direction]",
            f"data.train_windows={options.windows}",
            "data.validation_windows=16",
        ],
    )
    store = open_store(config)
    train, validation = (make_examples(store, split, config) for split in ("train", "validation"))

    torch.manual_seed(0)
    encoder = ZonalMeanEncoder(channels_of(store.statistics), width=64)
    model = ClimateTextForCausalLM.from_backbone(
        load_backbone(options.backbone or config.backbone.name),
        statistics=store.statistics,
        encoder=encoder,
        history=config.data.history,
        box_degrees=config.data.box_degrees,
    )
    # The frozen blocks below the fusion see only text: they run once for each text, not once for each step.
    model.prefix_store = PrefixStore(model.backbone, model.prefix_site)
    processor = ClimateTextProcessor.of(model.config, model.tokenizer)
    collate = ExampleCollator(processor)

    def loss_of(examples: Sequence[Example]) -> Tensor:
        batch = collate(examples)
        del batch["sample"]  # for error messages of the trainer, not for the model
        return model(**batch).loss

    def validation_loss() -> float:
        model.eval()
        with torch.no_grad():
            return float(loss_of(validation))

    before = validation_loss()
    # Gates start at zero and learn at a higher rate; only matrices decay.
    optimizer = torch.optim.AdamW(parameter_groups(model, config.training))
    model.train()
    for step in range(options.steps):
        epoch, position = divmod(step * 16, len(train))
        chosen = data_order(len(train), seed=0, epoch=epoch)[position : position + 16]
        loss = loss_of([train[index] for index in chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step + 1} of {options.steps}, loss {loss.item():.3f}")
    losses = (before, validation_loss())
    print(f"validation loss {losses[0]:.3f} -> {losses[1]:.3f}")

    # Only encoder and fusions are saved. The class is in no registry, so loading is given an instance.
    model.save_pretrained(options.output)
    loaded = ClimateTextForCausalLM.from_pretrained(
        options.output, encoder=ZonalMeanEncoder(channels_of(store.statistics), width=64)
    )
    example = validation[0]
    inputs = processor([example.window], [example.pairs[0].prompt])
    answers = [
        processor.decode_answers(
            one.eval().generate(**inputs, max_new_tokens=24, do_sample=False), inputs["input_ids"].shape[1]
        )[0]
        for one in (model, loaded)
    ]
    print(f"{example.pairs[0].prompt} {answers[1]} (right: {example.pairs[0].text})")
    return {"losses": losses, "answers": answers, "model": options.output}


if __name__ == "__main__":
    main()
