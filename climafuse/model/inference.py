"""Ask a trained model about fields: the way of `climafuse infer`, in two functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from climafuse.backbones import LoadedBackbone
from climafuse.climate_tokens import ClimateTokens
from climafuse.data.anomalies import rebase_as
from climafuse.data.places import Place, find_place
from climafuse.data.sources import open_climate
from climafuse.data.window import Box, Grid, Window, select_window
from climafuse.errors import MissingValuesError, UsageError
from climafuse.facts.phrasing import overview_questions
from climafuse.fusion import CrossAttentionFusion
from climafuse.model.configuration import ClimateTextConfig
from climafuse.model.modeling import ClimateTextForCausalLM
from climafuse.model.objective import IGNORED
from climafuse.model.processing import ClimateTextProcessor

MUCH_LARGER = 1.5  # than a box of training


@dataclass(frozen=True)
class Reader:
    """A model with its processor: fields and prompts in, text out.

    Args:
        model: The model.
        processor: Its processor.
        max_new_tokens: Longest answer, in text tokens.
    """

    model: ClimateTextForCausalLM
    processor: ClimateTextProcessor
    max_new_tokens: int = 64

    def answer(
        self, windows: Sequence[Window], prompts: Sequence[str], *, index: Sequence[int] | None = None
    ) -> list[str]:
        """Answer prompts about windows, greedily.

        Args:
            windows: B windows.
            prompts: N prompts.
            index: Which window each prompt is about; None where prompt n is about window n.

        Returns:
            N answers.
        """
        batch = self._on_device(self.processor(windows, prompts, climate_index=index))
        self.model.eval()
        generated = self.model.generate(**batch, max_new_tokens=self.max_new_tokens, do_sample=False)
        return self.processor.decode_answers(generated, batch["input_ids"].shape[1])

    def _on_device(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.model.backbone.device) for name, tensor in batch.items()}


@dataclass(frozen=True)
class Answer:
    """An answer and what it is about.

    Args:
        prompt: What was asked.
        text: What the model said.
        window: The fields it was shown.
        place: The place asked about; None for the whole file.
        attention: Latitude [M], longitude [M] and weight [M] of the climate tokens the words attended to, NaN
            for those about the whole box; None if not asked for, or if the fusion does not attend.
        attended: (description, weight) of the climate tokens with the largest weights.
    """

    prompt: str
    text: str
    window: Window
    place: Place | None
    attention: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    attended: tuple[tuple[str, float], ...] = ()


def load_model(
    checkpoint: str | Path,
    *,
    backbone: LoadedBackbone | str | Path | None = None,
    max_new_tokens: int = 64,
    verify: bool = False,
) -> Reader:
    """Load a saved model and its processor.

    Args:
        checkpoint: Folder that `climafuse train` wrote.
        backbone: Where its backbone is, if not where its recorded id says.
        max_new_tokens: Longest answer, in text tokens.
        verify: Hash all weights of the backbone again.

    Raises:
        CheckpointError: The folder is incomplete or altered.
        BackboneError: The backbone is not there, or another one.
    """
    # Not from the hub unless it is in its cache: most names that lead nowhere are misspelled folders.
    model = ClimateTextForCausalLM.from_pretrained(
        checkpoint, backbone=backbone, verify=verify, local_files_only=True
    )
    return Reader(model, ClimateTextProcessor.of(model.config, model.tokenizer), max_new_tokens)


def answer(
    reader: Reader,
    source: Any,
    *,
    time: Any,
    location: str | None = None,
    prompt: str | None = None,
    attention: bool = False,
    whole_grid: bool = False,
) -> Answer:
    """Ask about a file.

    Args:
        reader: From `load_model`.
        source: What `open_climate` takes.
        time: Valid time, matched exactly.
        location: "latitude,longitude" or a place name; None for all of the file, if that is about as large as the
            boxes the model was trained on.
        prompt: The question; None for an overview: the mean of each variable and the wind, asked one by one.
        attention: Whether to say where the model attended.
        whole_grid: Ask about all of the file however large it is: for models that were trained on pairs without a
            place.

    Raises:
        UsageError: No location, and the file is far larger than what the model was trained on.
        DataError: The file, the time, the place or a variable is at fault.
        PlaceError: The place is unknown or ambiguous.
    """
    config = reader.model.config
    dataset = rebase_as(open_climate(source, variables=config.variables), config.statistics or {})
    place = None if location is None else find_place(location)
    box = None
    if place is None and not whole_grid:
        _check_extent(dataset, config)
    if place is not None:
        box = Box(place.latitude, place.longitude, *config.box_size)
    window = select_window(dataset, time=time, box=box, history=config.history)
    if not window.available():
        raise MissingValuesError(
            str(source),
            expected=f"values of {' or '.join(config.variables)} there and then",
            received="missing values only",
            remedy="Choose another time or place.",
        )
    questions = [prompt] if prompt else overview_questions(window.available())
    if not questions:
        raise UsageError(
            "prompt",
            expected=f"a question, since there is no overview of {', '.join(window.available())}",
            received="none",
            remedy="Ask one.",
        )
    answers = reader.answer([window], questions, index=[0] * len(questions))
    prompt, text = " ".join(questions), " ".join(answers)
    found = attended_tokens(reader, window, prompt, text) if attention else None
    if found is None:
        return Answer(prompt, text, window, place)
    tokens, weights = found
    top = np.argsort(weights)[::-1][:5]
    return Answer(
        prompt,
        text,
        window,
        place,
        attention=placed(tokens, weights),
        attended=tuple((tokens.labels[index], float(weights[index])) for index in top if tokens.labels),
    )


def _check_extent(dataset: xr.Dataset, config: ClimateTextConfig) -> None:
    """A model that was trained on boxes of 16° answers about the globe as readily, and mostly wrong."""
    height, width = Grid(dataset["latitude"].values, dataset["longitude"].values).extent()
    if height > MUCH_LARGER * config.box_size[0] or width > MUCH_LARGER * config.box_size[1]:
        raise UsageError(
            "location",
            expected=f"a place, since the model was trained on boxes of {config.spelled_box} degrees",
            received=f"none, and fields of {height:g} by {width:g} degrees",
            remedy="Give --location; or --whole-grid, if the model was trained on texts about all of a grid.",
        )


def placed(tokens: ClimateTokens, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latitude, longitude and weight of the tokens of one window, for a map; NaN for the whole box."""
    return tokens.latitude[0].cpu().numpy(), tokens.longitude[0].cpu().numpy() % 360, weights


@torch.no_grad()
def attended_tokens(
    reader: Reader, window: Window, prompt: str, text: str
) -> tuple[ClimateTokens, np.ndarray] | None:
    """Find where the words of an answer attended.

    Args:
        reader: Model and processor.
        window: The fields.
        prompt: The question.
        text: The answer.

    Returns:
        The climate tokens and the weight of each [M], mean over the answer's words, heads and sites; None where
        no fusion of the model attends.
    """
    model = reader.model
    if not any(isinstance(fusion, CrossAttentionFusion) for fusion in model.fusions.values()):
        return None
    batch = reader._on_device(reader.processor([window], [prompt], [text]))
    climate = model.encode_climate(
        **{name: tensor for name, tensor in batch.items() if name.startswith("climate_")}
    )
    weights: list[torch.Tensor] = []
    words = batch["labels"][0, 1:] != IGNORED  # positions that predict a word of the answer

    def watch(site: object, hidden: torch.Tensor) -> torch.Tensor:
        fusion = model.fusions[str(site)]
        if isinstance(fusion, CrossAttentionFusion):
            attention = fusion.attention(hidden, climate)  # [1, heads, S, M]
            weights.append(attention[0][:, :-1][:, words].mean(dim=(0, 1)))
        fused: torch.Tensor = fusion(hidden, climate)
        return fused

    with model.watched(watch) as backbone:
        backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return climate, torch.stack(weights).mean(dim=0).cpu().numpy()
