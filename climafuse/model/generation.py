"""What a model's files may say about generation: which words, not on which machine or by which code.

transformers sets whatever a `generation_config.json` holds, methods included, and some options ask for a GPU, for code
from the hub or for another kind of result. Here the options that choose words are a closed table with the values that
they may have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from climafuse.errors import CheckpointError
from climafuse.json_file import read_object

_LONGEST = 2**31 - 1
_MOST_BEAMS = 64  # each takes the memory of a whole text
_Check = Callable[[Any, int], bool]  # of a value and the number of tokens in the vocabulary


def _whole(low: int, high: int) -> _Check:
    return lambda value, _: type(value) is int and low <= value <= high


def _number(low: float, high: float = 1e6, *, above: bool = False) -> _Check:
    def check(value: Any, _: int) -> bool:
        return (
            type(value) in (int, float)
            and math.isfinite(value)
            and low <= value <= high
            and not (above and value == low)
        )

    return check


def _tokens(value: Any, vocabulary: int) -> bool:
    several = value if isinstance(value, list) else [value]
    return all(type(token) is int and 0 <= token < vocabulary for token in several)


def _ends(value: Any, _: int) -> bool:
    """No model says a token beyond its vocabulary, so it may be named as an end."""
    return _tokens(value, _LONGEST)


def _token(value: Any, vocabulary: int) -> bool:
    return not isinstance(value, list) and _tokens(value, vocabulary)


def _phrases(value: Any, vocabulary: int) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, list) and v and _tokens(v, vocabulary) for v in value
    )


def _flag(value: Any, _: int) -> bool:
    return isinstance(value, bool)


_OPTIONS: dict[str, _Check] = {
    "bos_token_id": _ends,
    "eos_token_id": _ends,
    "pad_token_id": _token,
    "suppress_tokens": lambda value, vocabulary: isinstance(value, list) and _tokens(value, vocabulary),
    "begin_suppress_tokens": lambda value, vocabulary: isinstance(value, list) and _tokens(value, vocabulary),
    "bad_words_ids": _phrases,
    "max_length": _whole(1, _LONGEST),
    "max_new_tokens": _whole(1, _LONGEST),
    "min_length": _whole(0, _LONGEST),
    "min_new_tokens": _whole(0, _LONGEST),
    "do_sample": _flag,
    "use_cache": _flag,
    "renormalize_logits": _flag,
    "remove_invalid_values": _flag,
    "num_beams": _whole(1, _MOST_BEAMS),
    "early_stopping": lambda value, _: isinstance(value, bool) or value == "never",
    "length_penalty": _number(-1e6),
    "temperature": _number(0, above=True),
    "top_k": _whole(0, _LONGEST),
    "top_p": _number(0, 1, above=True),
    "min_p": _number(0, 1),
    "typical_p": _number(0, 1, above=True),
    "epsilon_cutoff": _number(0, 1),
    "eta_cutoff": _number(0, 1),
    "repetition_penalty": _number(0, above=True),
    "no_repeat_ngram_size": _whole(0, _LONGEST),
}
_NOTES = ("transformers_version", "_from_model_config")  # what transformers writes besides options

# Options that greedy search does not look at, or that say where it ends; and the values under which others do nothing.
_IDLE = {
    "bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens", "do_sample", "use_cache",
    "early_stopping", "length_penalty", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff",
    "eta_cutoff", "transformers_version",
}  # fmt: skip
_NEUTRAL = {
    "num_beams": 1, "min_length": 0, "min_new_tokens": 0, "repetition_penalty": 1, "no_repeat_ngram_size": 0,
}  # fmt: skip


def is_plain_greedy(config: GenerationConfig) -> bool:
    """Whether generation without sampling says the most likely token, one by one, and nothing else decides.

    Args:
        config: Options of a model, those that were set from Python included.
    """
    return all(
        name.startswith("_")
        or name in _IDLE
        or value is None
        or value is False
        or (name in _NEUTRAL and value == _NEUTRAL[name])
        for name, value in config.to_diff_dict().items()  # what is not at its default
    )


def end_tokens(config: GenerationConfig) -> list[int]:
    """Tokens that end a text; none where it ends at its longest."""
    ends = config.eos_token_id
    return [] if ends is None else list(ends) if isinstance(ends, Sequence) else [int(ends)]


def own_options(config: GenerationConfig | None, vocabulary: int) -> GenerationConfig:
    """Options of generation without those that do not choose words.

    Args:
        config: Those of a backbone, which anybody may have written.
        vocabulary: Number of its tokens.

    Returns:
        A copy; what the table does not have, or not with this value, is at its default.
    """
    held = {name: getattr(config, name, None) for name in _OPTIONS}
    return GenerationConfig(
        **{
            name: value
            for name, value in held.items()
            if value is not None and _OPTIONS[name](value, vocabulary)
        }
    )


def read_options(folder: Path, vocabulary: int) -> GenerationConfig | None:
    """Options of generation of a saved model.

    Args:
        folder: Of the model.
        vocabulary: Number of tokens of its backbone.

    Returns:
        The options, or None: the folder holds none, and those of the backbone count.

    Raises:
        CheckpointError: The file is broken, or holds an option or value that is not in the table.
    """
    path = folder / GENERATION_CONFIG_NAME
    if not path.is_file():
        return None
    try:
        held = read_object(path)
        options = {
            name: value
            for name, value in held.items()
            if value is not None and name not in _NOTES and not (value is False and name not in _OPTIONS)
        }  # transformers writes None and False for much that is not asked for
        strange = [
            name for name, value in options.items() if not _OPTIONS.get(name, _never)(value, vocabulary)
        ]
        if strange:
            raise ValueError(f"{strange[0]}: {options[strange[0]]!r}")
        return GenerationConfig(**{name: held[name] for name in held if name in _OPTIONS})
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            str(path),
            expected="options that choose words, with values they may have",
            received=str(error),
            remedy="Remove the option from the file; those of one call are arguments of generate.",
        ) from error


def _never(value: Any, vocabulary: int) -> bool:
    return False
