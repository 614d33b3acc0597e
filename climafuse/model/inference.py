"""Ask a trained model about fields: the way of `climafuse infer`, in two functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import xarray as xr

from climafuse.backbones import LoadedBackbone
from climafuse.climate_tokens import ClimateTokens
from climafuse.data.anomalies import rebase_as
from climafuse.data.places import Place, find_place
from climafuse.data.sources import open_climate
from climafuse.data.window import Box, Grid, Window, select_window
from climafuse.errors import MissingValuesError, ModelInputError, UsageError
from climafuse.facts.phrasing import overview_questions
from climafuse.fusion import Fusion
from climafuse.model.configuration import ClimateTextConfig
from climafuse.model.folder import model_folder
from climafuse.model.greedy import decodes_greedily, generated_words, greedy_words
from climafuse.model.modeling import ClimateTextForCausalLM
from climafuse.model.objective import IGNORED
from climafuse.model.processing import ClimateTextProcessor, check_texts
from climafuse.model.reuse import Tokens
from climafuse.model.rows import check_rows, stack_rows
from climafuse.model.scoring import TokenScores, token_scores

MUCH_LARGER = 1.5  # than a box of training
_WINDOWS = 32  # encoded together
_TOKENS = 2**28  # bytes of climate tokens in memory; what fusions make of them for some is a few times larger

T = TypeVar("T")


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
        self,
        windows: Sequence[Window],
        prompts: Sequence[str],
        *,
        index: Sequence[int] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[str]:
        """Answer prompts about windows, greedily.

        However many there are, a few at a time are in memory. Each window is encoded once, and what is the same
        for several answers is computed once: the more are asked together, the faster each is.

        Args:
            windows: B windows.
            prompts: N prompts.
            index: Which window each prompt is about; None where prompt n is about window n.
            progress: Called with how many answers are there and how many there will be, alike ones once.

        Returns:
            N answers.

        Raises:
            ModelInputError: Windows and prompts do not fit together, or a prompt is too long.
        """
        check_texts(prompts=prompts)
        if not prompts:
            return []
        of = self._windows_of(len(prompts), len(windows), index)
        asked = [
            (window, self.processor.encode(prompt, None)[0])
            for window, prompt in zip(of, prompts, strict=True)
        ]
        self.model.check_length(max(len(text) for _, text in asked), "prompts")
        said: dict[tuple[int, Tokens], list[int]] = {}
        total = len(set(asked))
        decode = greedy_words if decodes_greedily(self.model) else generated_words
        for pairs, climate, rows in self._encoded(windows, asked):
            words = decode(
                self.model,
                [text for _, text in pairs],
                climate,
                rows,
                max_new_tokens=self.max_new_tokens,
                progress=_from(len(said), total, progress),
            )
            said.update(zip(pairs, words, strict=True))
        texts = dict(zip(said, self.processor.texts_of(list(said.values())), strict=True))
        return [texts[pair] for pair in asked]

    def score(
        self,
        windows: Sequence[Window],
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        index: Sequence[int] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[TokenScores]:
        """Tell how likely the model finds given answers, token by token, each after the true ones before it.

        Args:
            windows: B windows.
            prompts: N prompts.
            answers: N answers.
            index: Which window each prompt is about; None where prompt n is about window n.
            progress: Called with how many answers are scored and how many there are, alike ones once.

        Returns:
            N scores.

        Raises:
            ModelInputError: Windows, prompts and answers do not fit together, or a text is too long.
        """
        check_texts(prompts=prompts, answers=answers)
        if len(answers) != len(prompts):
            raise ModelInputError(
                "answers",
                expected=f"one for each of {len(prompts)} prompts",
                received=len(answers),
                remedy="Give lists of equal length.",
            )
        if not prompts:
            return []
        of = self._windows_of(len(prompts), len(windows), index)
        texts = [self.processor.encode(*pair) for pair in zip(prompts, answers, strict=True)]
        self.model.check_length(max(len(text) for text, _ in texts), "prompts and answers")
        asked = list(zip(of, texts, strict=True))
        found: dict[tuple[int, tuple[Tokens, int]], tuple[np.ndarray, np.ndarray]] = {}
        total = len(set(asked))
        for pairs, climate, rows in self._encoded(windows, asked):
            scores = token_scores(
                self.model,
                [text for _, text in pairs],
                climate,
                rows,
                progress=_from(len(found), total, progress),
            )
            found.update(zip(pairs, scores, strict=True))
        return [
            TokenScores(*found[pair], num_bytes=len(answer.encode()))
            for pair, answer in zip(asked, answers, strict=True)
        ]

    def _windows_of(self, num_texts: int, num_windows: int, index: Sequence[int] | None) -> list[int]:
        """Number of the window of each of one text or more."""
        given = None if index is None else torch.as_tensor(index)
        check_rows(num_texts, num_windows, given)
        return list(range(num_texts)) if given is None else cast("list[int]", given.tolist())

    @torch.no_grad()
    def _encoded(
        self, windows: Sequence[Window], asked: Sequence[tuple[int, T]]
    ) -> Iterator[tuple[list[tuple[int, T]], ClimateTokens, list[int]]]:
        """Encode windows, as many as fit in memory.

        Args:
            windows: B windows.
            asked: Numbers of windows, with what is asked about each.

        Yields:
            Some of what is asked, each once; climate tokens; the row of climate tokens of each that is asked.
        """
        self.model.eval()
        about: dict[int, dict[tuple[int, T], None]] = {}
        for pair in asked:
            about.setdefault(pair[0], {})[pair] = None
        # Windows of one size side by side: the others of a batch are padded to the largest.
        order = sorted(about, key=lambda number: windows[number].fields.shape)
        held: list[int] = []
        parts: list[ClimateTokens] = []
        for first in range(0, len(order), _WINDOWS):
            numbers = order[first : first + _WINDOWS]
            fields = self.tensors(self.processor([windows[number] for number in numbers]))
            parts.append(self.model.encode_climate(**fields))
            held += numbers
            if first + _WINDOWS >= len(order) or sum(part.states.nbytes for part in parts) > _TOKENS:
                pairs = [pair for number in held for pair in about[number]]
                row = {number: row for row, number in enumerate(held)}
                yield pairs, stack_rows(parts), [row[number] for number, _ in pairs]
                held, parts = [], []

    def tensors(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch of the processor, where the model is."""
        return {name: tensor.to(self.model.backbone.device) for name, tensor in batch.items()}


def _from(
    done: int, total: int, progress: Callable[[int, int], object] | None
) -> Callable[[int], object] | None:
    """Progress of a part, told as that of the whole."""
    return None if progress is None else lambda number: progress(done + number, total)


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
        checkpoint: Folder of a saved model, or of the run that saved it.
        backbone: Where its backbone is, if not where its recorded id says.
        max_new_tokens: Longest answer, in text tokens.
        verify: Hash all weights of the backbone again.

    Raises:
        CheckpointError: The folder is incomplete or altered.
        BackboneError: The backbone is not there, or another one.
    """
    # Not from the hub unless it is in its cache: most names that lead nowhere are misspelled folders.
    model = ClimateTextForCausalLM.from_pretrained(
        model_folder(checkpoint), backbone=backbone, verify=verify, local_files_only=True
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
    reader: Reader, window: Window, prompt: str, text: str, *, words: Sequence[int] | None = None
) -> tuple[ClimateTokens, np.ndarray] | None:
    """Find where the words of an answer attended.

    Args:
        reader: Model and processor.
        window: The fields.
        prompt: The question.
        text: The answer.
        words: Positions of the tokens of prompt and answer to look at, such as `value_tokens` finds; None for all
            of the answer.

    Returns:
        The climate tokens and the weight of each [M], mean over these words, heads and sites; None where
        no fusion of the model attends (`Fusion.attention`).
    """
    model = reader.model
    if model.num_soft_tokens:
        return None
    batch = reader.tensors(reader.processor([window], [prompt], [text]))
    climate = model.encode_climate(
        **{name: tensor for name, tensor in batch.items() if name.startswith("climate_")}
    )
    weights: list[torch.Tensor] = []
    if words is None:
        words = (batch["labels"][0] != IGNORED).nonzero()[:, 0].tolist()
    before = (
        torch.as_tensor(words, device=model.backbone.device) - 1
    )  # a token is said by the state before it

    def watch(site: object, hidden: torch.Tensor) -> torch.Tensor:
        fusion = cast("Fusion", model.fusions[str(site)])
        attention = fusion.attention(hidden, climate)  # [1, heads, S, M]
        if attention is not None:
            weights.append(attention[0][:, before].mean(dim=(0, 1)))
        fused: torch.Tensor = fusion(hidden, climate)
        return fused

    with model.watched(watch) as backbone:
        backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return (climate, torch.stack(weights).mean(dim=0).cpu().numpy()) if weights else None
