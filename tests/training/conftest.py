"""A climate-text model small enough to train in milliseconds, with the surface of the real one."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from climafuse.training.config import RunConfig, read_dataclass

VOCABULARY, WIDTH, TOKENS = 17, 8, 6


class Fusion(nn.Module):
    """Gated addition with dropout, so that a resumed run must restore the random generator."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.2)
        self.gate = nn.Parameter(torch.full((1,), 0.1))

    def forward(self, text: Tensor, climate: Tensor) -> Tensor:
        return text + self.gate * self.dropout(self.project(self.norm(climate)))


class StandIn(nn.Module):
    """Frozen embedding and head; trainable encoder and two fusion sites."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for part in (self.backbone, self.head):
            part.requires_grad_(False)
        self.encoder = nn.Linear(4, WIDTH)
        self.fusions = nn.ModuleDict({"0": Fusion(), "3": Fusion()})

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        climate_fields: Tensor,
        climate_index: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> SimpleNamespace:
        climate = torch.tanh(self.encoder(climate_fields))[climate_index].unsqueeze(1)  # [N, 1, D]
        states = self.backbone(input_ids)
        for fusion in self.fusions.values():
            states = fusion(states, climate)
        logits = self.head(states)
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        count = num_items_in_batch if num_items_in_batch is not None else labels[:, 1:].ne(-100).sum()
        return _Output(loss=loss / count, logits=logits, num_climate_tokens=len(climate_fields))

    def gate_values(self) -> dict[str, float]:
        return {site: fusion.gate.abs().mean().item() for site, fusion in self.fusions.items()}

    def trainable_state_dict(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def save_pretrained(self, folder: str) -> None:
        save_file(
            {n: t.contiguous() for n, t in self.trainable_state_dict().items()}, f"{folder}/model.safetensors"
        )
        Path(folder, "config.json").write_text(json.dumps({"model_type": "stand_in"}))

    def load_trainable(self, folder: str) -> None:
        weights = load_file(f"{folder}/model.safetensors")
        own = self.trainable_state_dict()
        assert weights.keys() == own.keys()
        for name, value in weights.items():
            own[name].copy_(value)


class _Output(dict[str, Any]):
    """A ModelOutput in miniature: keys and attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Windows(Dataset[dict[str, Any]]):
    """Two texts a window; everything is a pure function of the sample number."""

    def __init__(self, length: int, first: int = 0) -> None:
        self.length, self.first = length, first

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Any]:
        number += self.first
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(0, VOCABULARY, (2, TOKENS), generator=generator)
        labels = ids.clone()
        labels[:, : number % 3] = -100  # answers of unequal length; one in three begins the text
        return {"sample": number, "ids": ids, "labels": labels, "fields": torch.randn(4, generator=generator)}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    ids = torch.cat([sample["ids"] for sample in samples])
    return {
        "sample": torch.tensor([sample["sample"] for sample in samples]),
        "input_ids": ids,  # [N, S]
        "attention_mask": torch.ones_like(ids),
        "labels": torch.cat([sample["labels"] for sample in samples]),
        "climate_fields": torch.stack([sample["fields"] for sample in samples]),  # [B, 4]
        "climate_index": torch.arange(len(samples)).repeat_interleave(2),  # [N]
    }


class Shuffled(Sampler[int]):
    """The order is a pure function of seed and epoch."""

    def __init__(self, length: int, seed: int = 0) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
        yield from torch.randperm(self.length, generator=generator).tolist()


@pytest.fixture(scope="session", autouse=True)
def _fast() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Every train() collects garbage, which walks all imported modules unless they are set aside.
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """Builds a configuration from training settings and, by `output=`, output settings."""

    def make(output: dict[str, Any] | None = None, **training: Any) -> RunConfig:
        out = {"directory": str(tmp_path / "run"), "save_interval": 1000, "tensorboard": False} | (
            output or {}
        )
        base = {
            "steps": 6,
            "windows_per_step": 4,
            "warmup_steps": 0,
            "learning_rate": 0.05,
            "gate_learning_rate_scale": 10.0,
            "betas": [0.9, 0.95],
            "logging_interval": 1,
            "precision": "float32",  # the oracles of these tests are in float32
        }
        return read_dataclass(RunConfig, {"training": base | training, "output": out})

    return make


@pytest.fixture
def make_trainer(make_config: Callable[..., RunConfig]) -> Callable[..., Any]:
    """Builds a trainer over the stand-in, always from the same initial weights."""
    from climafuse.training.trainer import ClimateTextTrainer

    def make(
        config: RunConfig | None = None, *, model: nn.Module | None = None, length: int = 11, **kwargs: Any
    ) -> Any:
        if model is None:
            torch.manual_seed(5)
            model = StandIn()
        kwargs.setdefault("train_dataset", Windows(length))
        kwargs.setdefault("sampler", Shuffled(length))
        return ClimateTextTrainer(
            model, config or make_config(), data_collator=collate, progress=False, **kwargs
        )

    return make


@pytest.fixture
def toolbox() -> SimpleNamespace:
    """The classes above, for tests that build their own."""
    return SimpleNamespace(StandIn=StandIn, Windows=Windows, Shuffled=Shuffled, collate=collate)
