"""From windows and words to what the model takes, and back.

The feature extractor knows the channels and their statistics; it calls `data.batch`, the only way from fields
to tensors. The processor adds the tokenizer and knows how a prompt is put to this backbone: through its chat
template where it has one, else as "Question: …" and "Answer:".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from transformers import AutoFeatureExtractor, AutoProcessor, BatchFeature, ProcessorMixin
from transformers.feature_extraction_utils import FeatureExtractionMixin

from climafuse.data.batch import collate_windows
from climafuse.data.window import Window
from climafuse.errors import BackboneError, ModelInputError
from climafuse.model.configuration import ClimateTextConfig
from climafuse.model.objective import IGNORED

# Options of transformers' processors and the values under which they change nothing.
_OPTIONS: dict[str, tuple[Any, ...]] = {"return_tensors": (None, "pt"), "padding": (True, "longest")}


class ClimateFeatureExtractor(FeatureExtractionMixin):
    """Windows of climate fields to tensors.

    Args:
        variables: Canonical names of the channels, in order.
        statistics: Of each over the training times, as `statistics_to_dict` writes them.
        **kwargs: For transformers.
    """

    model_input_names = [  # noqa: RUF012
        "climate_fields", "climate_mask", "climate_latitude", "climate_longitude", "climate_time",
    ]  # fmt: skip

    def __init__(
        self, variables: Sequence[str] = (), statistics: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.variables = list(variables)
        self.statistics = statistics

    def __call__(self, windows: Sequence[Window], **kwargs: Any) -> BatchFeature:
        """Make tensors of windows.

        Args:
            windows: B windows of any size and place, each with variables of the model. One that a window
                lacks is all missing there: the model was trained to say so.
            **kwargs: Options of transformers, at the values under which they change nothing.

        Raises:
            ModelInputError: No windows, or a window with a variable that the model does not know; or an option
                that would be ignored.
        """
        _refuse_options(kwargs)
        return BatchFeature(collate_windows(windows, self._normalization))

    @cached_property
    def _normalization(self) -> xr.Dataset:
        return ClimateTextConfig(variables=self.variables, statistics=self.statistics).normalization()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; what is computed from them is left out."""
        content: dict[str, Any] = super().to_dict()
        content.pop("_normalization", None)
        return content


class ClimateTextProcessor(ProcessorMixin):
    """Windows, prompts and answers to a batch for `ClimateTextForCausalLM`.

    Args:
        feature_extractor: For the fields.
        tokenizer: Of the backbone.
        **kwargs: For transformers.
    """

    def __init__(self, feature_extractor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(feature_extractor, tokenizer, **kwargs)
        self._encoded = _remembering_encode()

    @property
    def chat_template(self) -> Any:
        """The tokenizer's: there is one template, whoever is asked for it."""
        return None if self.tokenizer is None else self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, template: Any) -> None:
        if template is not None:  # transformers sets none, where it knows none
            self.tokenizer.chat_template = template

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled for the workers of a loader: everything but the memory of texts."""
        return {name: value for name, value in self.__dict__.items() if name != "_encoded"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._encoded = _remembering_encode()

    @classmethod
    def of(cls, config: ClimateTextConfig, tokenizer: Any) -> ClimateTextProcessor:
        """Make the processor of a model.

        Args:
            config: The model's configuration.
            tokenizer: Of its backbone.
        """
        return cls(ClimateFeatureExtractor(config.variables, config.statistics), tokenizer)

    def __call__(
        self,
        windows: Sequence[Window] | None = None,
        prompts: Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        *,
        climate_index: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Make a batch.

        Args:
            windows: B windows.
            prompts: N prompts; as many as windows unless `climate_index` tells which belongs to which.
            answers: N answers to learn; None to generate.
            climate_index: N numbers of windows.
            **kwargs: Options of transformers, at the values under which they change nothing.

        Returns:
            Tensors for `forward` (with answers: padded on the right, `labels` set) or `generate` (padded on
            the left).

        Raises:
            ModelInputError: The numbers of windows, prompts and answers do not fit together, or an option would
                be ignored.
        """
        _refuse_options(kwargs)
        batch: dict[str, Any] = {}
        if windows is not None:
            batch.update(self.feature_extractor(windows))
        if prompts is None:
            return BatchFeature(batch)
        expected = len(prompts) if climate_index is None or windows is None else len(climate_index)
        pairs_fit = answers is None or len(answers) == len(prompts)
        windows_fit = windows is None or climate_index is not None or len(windows) == len(prompts)
        if not prompts or not pairs_fit or not windows_fit or expected != len(prompts):
            raise ModelInputError(
                "prompts",
                expected="one for each answer, and for each window or entry of climate_index",
                received=f"{len(prompts)} prompts, {len(answers) if answers is not None else 'no'} answers, "
                f"{len(windows) if windows is not None else 'no'} windows",
                remedy="Give lists of equal length, or climate_index.",
            )
        batch.update(self._texts(prompts, answers))
        if climate_index is not None:
            batch["climate_index"] = torch.as_tensor(climate_index)
        return BatchFeature(batch)

    def encode(self, prompt: str, answer: str | None) -> tuple[tuple[int, ...], int]:
        """Tokens of one text and how many of them are the prompt's.

        The answer is tokenized apart from the prompt and ends with the end-of-text token, so that what is
        learned is what is generated.
        """
        tokenizer = self.tokenizer
        template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        return self._encoded(tokenizer, template, prompt, answer)

    def decode_answers(self, generated: torch.Tensor, prompt_length: int) -> list[str]:
        """Text of what was generated after the prompts; generated [N, S + new]."""
        return self.texts_of(generated[:, prompt_length:].tolist())

    def texts_of(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Text of the tokens of answers, without those that only end or pad it."""
        return [text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def _texts(self, prompts: Sequence[str], answers: Sequence[str] | None) -> dict[str, torch.Tensor]:
        check_texts(prompts=prompts, answers=answers or ())
        given: Sequence[str | None] = [None] * len(prompts) if answers is None else answers
        encoded = [self.encode(prompt, answer) for prompt, answer in zip(prompts, given, strict=True)]
        longest = max(len(tokens) for tokens, _ in encoded)
        # In NumPy: a tensor for each text would take ten times as long.
        ids = np.full((len(encoded), longest), self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        labels = np.full_like(ids, IGNORED)
        for row, (tokens, length) in enumerate(encoded):
            here = slice(0, len(tokens)) if answers is not None else slice(longest - len(tokens), longest)
            ids[row, here] = tokens
            mask[row, here] = 1
            labels[row, length : len(tokens)] = ids[row, length : len(tokens)]
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return {**batch, "labels": torch.from_numpy(labels)} if answers is not None else batch


def check_texts(**given: Sequence[str]) -> None:
    """Refuse what is no list of texts, such as a single one.

    Args:
        **given: Lists by their names.

    Raises:
        ModelInputError: One is something else.
    """
    for name, texts in given.items():
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ModelInputError(
                name, expected="a list of texts", received=repr(texts)[:80], remedy="Give a list of str."
            )


def _encode(
    tokenizer: Any, chat_template: str | None, prompt: str, answer: str | None
) -> tuple[tuple[int, ...], int]:
    """See `ClimateTextProcessor.encode`."""
    if chat_template:
        message = [{"role": "user", "content": prompt}]
        try:
            text = tokenizer.apply_chat_template(
                message, chat_template=chat_template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program, which runs in the sandbox of Jinja
            raise BackboneError(
                "chat template of the tokenizer",
                expected="a template that makes text of a message",
                received=f"{type(error).__name__}: {error}",
                remedy="Use the template that belongs to the model, or none.",
            ) from error
        # Silent about long texts: the model refuses what is too long for it (`check_length`).
        tokens = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        lead = ""
    else:
        tokens = tokenizer(f"Question: {prompt}\nAnswer:", verbose=False).input_ids
        if tokens[-1] == tokenizer.eos_token_id:  # some tokenizers end every text, this one goes on
            tokens = tokens[:-1]
        lead = " "
    length = len(tokens)
    if answer is not None:
        tokens = tokens + tokenizer(lead + answer, add_special_tokens=False, verbose=False).input_ids
        tokens = [*tokens, tokenizer.eos_token_id]
    return tuple(tokens), length


def _refuse_options(options: dict[str, Any]) -> None:
    """Refuse options of transformers' processors that are not followed here."""
    for name, value in options.items():
        if name not in _OPTIONS or value not in _OPTIONS[name]:
            raise ModelInputError(
                name,
                expected="windows, prompts, answers, climate_index",
                received=f"{name}={value!r}",
                remedy="Leave it out: texts are given as prompts and answers, and what is made are torch tensors.",
            )


def _remembering_encode() -> Callable[..., tuple[tuple[int, ...], int]]:
    """`_encode` with a memory: a few thousand texts come again and again, in training millions of times."""
    return lru_cache(maxsize=65536)(_encode)


AutoFeatureExtractor.register(ClimateTextConfig, ClimateFeatureExtractor)
AutoProcessor.register(ClimateTextConfig, ClimateTextProcessor)
