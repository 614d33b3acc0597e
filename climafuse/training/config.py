"""A whole run as one nested dataclass, read from YAML strictly.

    config = load_config("run.yaml", ["training.steps=200", "fusion.options.num_heads=4"])
    config.training.learning_rate
    config.to_yaml()                       # reads back to an equal configuration

Every key, its default and its meaning stand in the section classes below; what is not there is refused with
the nearest name. The reader (`read_dataclass`) knows nothing of these sections: a new one is one more
dataclass. YAML 1.1 calls `5e-5` a string and `no` a boolean; the first is accepted where a number is wanted,
the second refused where a string is.

This module imports neither torch nor transformers: `climafuse --help` and `--dry-run` stay fast.
"""

# ruff: noqa: RUF009  (`setting` returns a dataclass field)
from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from climafuse.errors import ConfigurationError
from climafuse.text_file import read_text

CONFIG_FILE = "run.yaml"  # beside all weights that are saved
MOST_WINDOWS = 10_000_000  # of a split: their places alone take hundreds of megabytes

T = TypeVar("T")
Sites = str | int | dict[str, int] | tuple[str | int | dict[str, int], ...]


def setting(default: Any, meaning: str, *, minimum: float | None = None, maximum: float | None = None) -> Any:
    """A dataclass field with its meaning, and with its bounds where it has any.

    Args:
        default: The default; a dict or a section class becomes a factory.
        meaning: What it sets, as it stands in a written-out configuration.
        minimum: Smallest value allowed.
        maximum: Largest value allowed.
    """
    metadata = {"meaning": meaning, "minimum": minimum, "maximum": maximum}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataConfig:
    """Which fields, which windows of them, and which texts."""

    source: str = setting("era5", "name of a bundled sample, or a file, glob, Zarr store or URI")
    variables: tuple[str, ...] = setting(
        ("t2m", "u10", "v10", "msl", "tp", "ws10"), "canonical names, in channel order"
    )
    history: int = setting(2, "time steps in a window, the last one being described", minimum=1)
    box_degrees: float | tuple[float, float] = setting(
        16.0, "side of a window's box in degrees, or [height, width]", minimum=0.0, maximum=180.0
    )
    places: dict[str, float] = setting(
        {}, 'share of the windows around a place, as in {"0,215": 0.5}; the rest are anywhere'
    )
    train_windows: int = setting(
        4000, "training windows drawn from the training times", minimum=1, maximum=MOST_WINDOWS
    )
    validation_windows: int = setting(
        128, "windows drawn from the validation times", minimum=1, maximum=MOST_WINDOWS
    )
    test_windows: int = setting(96, "windows drawn from the test times", minimum=1, maximum=MOST_WINDOWS)
    fractions: tuple[float, float, float] = setting(
        (0.6, 0.2, 0.2), "share of the times in training, validation and test, in that order in time"
    )
    periods: dict[str, tuple[str, str]] | None = setting(
        None,
        "first and last time of each split, as in {train: [1979-01, 2004-12], …}; null: by fractions",
    )
    anomalies: Literal["month", "all"] | None = setting(
        None,
        "measure fields of anomalies against the training times, by month or all; null: as they are",
    )
    gap_hours: float = setting(
        24.0, "hours dropped between two splits, against leakage", minimum=0.0, maximum=1e6
    )
    pairs: str | None = setting(None, "file of climate-text pairs; null: texts are made from facts")
    seed: int = setting(0, "seed of the window places and times", minimum=0)

    def __post_init__(self) -> None:
        """Splits that do not add up would silently drop or repeat times."""
        if any(part <= 0 for part in self.fractions) or not math.isclose(sum(self.fractions), 1.0):
            raise ConfigurationError(
                "fractions",
                expected="three positive shares that add up to 1",
                received=self.fractions,
                remedy="For example [0.6, 0.2, 0.2].",
            )
        if any(not 0 < size <= limit for size, limit in zip(self.box_size, (180, 360), strict=True)):
            raise ConfigurationError(
                "box_degrees",
                expected="a height above 0 and at most 180 degrees, and a width of at most 360",
                received=self.box_degrees,
                remedy="For example 16, or [11, 52].",
            )
        if any(share <= 0 for share in self.places.values()) or sum(self.places.values()) > 1 + 1e-9:
            raise ConfigurationError(
                "places",
                expected="shares above 0 that sum to at most 1",
                received=self.places,
                remedy='For example {"0,215": 0.5}; windows of the rest are anywhere.',
            )
        if not self.variables or len(set(self.variables)) < len(self.variables):
            raise ConfigurationError(
                "variables",
                expected="at least one name, each once",
                received=self.variables,
                remedy="List each variable once.",
            )

    @property
    def box_size(self) -> tuple[float, float]:
        """Height and width of a window's box, degrees."""
        return (
            self.box_degrees if isinstance(self.box_degrees, tuple) else (self.box_degrees, self.box_degrees)
        )


# Means most often, as people ask. Positions seldom: nearly every one is another text.
DEFAULT_KINDS = (
    "mean", "mean", "mean", "maximum", "maximum", "minimum", "direction",
    "tendency", "change", "comparison", "event", "event", "maximum_position", "minimum_position",
)  # fmt: skip


@dataclass(frozen=True)
class FactsConfig:
    """What is said about a window when texts are made from facts."""

    kinds: tuple[str, ...] | None = setting(
        DEFAULT_KINDS, "kinds of fact, one named twice being asked twice as often; null: all kinds"
    )
    questions_per_window: int = setting(6, "question-answer pairs for a window", minimum=1)
    bulletin_fraction: float = setting(0.0, "share of the texts that are bulletins", minimum=0.0, maximum=1.0)
    abstention_fraction: float = setting(
        0.12, "share of the questions about what the fields do not hold", minimum=0.0, maximum=1.0
    )


@dataclass(frozen=True)
class LoraConfig:
    """Adapters in the blocks of the frozen language model; needs the extra `climafuse[lora]`."""

    rank: int = setting(8, "rank of an adapter", minimum=1)
    alpha: float = setting(16.0, "adapters are scaled by alpha / rank", minimum=1e-9)
    dropout: float = setting(
        0.0, "share of an adapter's inputs dropped in training", minimum=0.0, maximum=0.99
    )
    target_modules: tuple[str, ...] | None = setting(
        None, "linear layers of a block, such as [q_proj, v_proj]; null: all of them"
    )
    layers: Sites | None = setting(
        None, "blocks, as a list of indices | {last: n} | {every: n}; null: all; those below sites cost most"
    )


@dataclass(frozen=True)
class BackboneConfig:
    """The frozen language model."""

    name: str = setting("smollm2-135m-instruct-q4_1", "name of the catalog, hub id or folder")
    dtype: Literal["bfloat16", "float16", "float32"] = setting(
        "bfloat16", "type of the frozen weights, and of products"
    )
    quantization: Literal["int8", "int4"] | None = setting(
        None, "bits in which the linear layers of its blocks are held: int8 | int4; null: as dtype says"
    )
    quantize_head: bool = setting(False, "quantize the head, too")
    num_threads: int | None = setting(None, "threads torch may use; null: torch decides", minimum=1)
    lora: LoraConfig | None = setting(None, "adapters to train in its blocks: {rank, alpha, …}; null: none")
    trainable: Sites | None = setting(
        None, "its own weights to train: all | blocks as in lora.layers; float32 or bfloat16; null: none"
    )

    def __post_init__(self) -> None:
        """A head is quantized with the blocks or not at all; of what is trained there is one kind."""
        if self.trainable is not None and (self.lora is not None or self.quantization is not None):
            other = "lora" if self.lora is not None else "quantization"
            raise ConfigurationError(
                "trainable",
                expected=f"null, as {other} is set",
                received=self.trainable,
                remedy=f"Set one of trainable and {other} to null.",
            )
        if self.quantize_head and self.quantization is None:
            raise ConfigurationError(
                "quantize_head",
                expected="false, as quantization is null",
                received="true",
                remedy="Set quantization to int8 or int4, too.",
            )


@dataclass(frozen=True)
class EncoderConfig:
    """What turns fields into climate tokens."""

    name: str = setting("grid_transformer", "a registered encoder")
    options: dict[str, Any] = setting({}, "arguments of that encoder")


@dataclass(frozen=True)
class FusionConfig:
    """How and where climate tokens enter the backbone."""

    name: str = setting("cross_attention", "a registered fusion")
    sites: Sites = setting(
        "output", "input | output | a block | {last: n} | {every: n} | a list of these; a prefix: input only"
    )
    options: dict[str, Any] = setting({}, "arguments of that fusion")


@dataclass(frozen=True)
class TrainingConfig:
    """The optimization: how long, how fast, and when to look, save and stop."""

    steps: int = setting(2400, "optimizer steps", minimum=1)
    windows_per_step: int = setting(
        24, "climate windows in an optimizer step, over all microbatches", minimum=1
    )
    accumulation: int = setting(1, "microbatches a step is cut into; divides windows_per_step", minimum=1)
    learning_rate: float = setting(3e-3, "peak learning rate", minimum=0.0)
    gate_learning_rate_scale: float = setting(
        10.0, "learning rate of gates relative to the rest", minimum=0.0
    )
    lora_learning_rate_scale: float = setting(
        0.2, "learning rate of adapters in the backbone relative to the rest", minimum=0.0
    )
    backbone_learning_rate_scale: float = setting(
        0.01, "learning rate of trained weights of the backbone itself relative to the rest", minimum=0.0
    )
    weight_decay: float = setting(0.01, "AdamW decay of matrices; none on biases, norms, gates", minimum=0.0)
    betas: tuple[float, float] = setting((0.9, 0.98), "AdamW decay rates of the moments")
    schedule: Literal["cosine", "linear", "constant"] = setting("cosine", "after the warmup")
    warmup_steps: int | None = setting(None, "steps of linear warmup; null: a twentieth of steps", minimum=0)
    minimum_learning_rate: float = setting(
        0.05, "where the schedule ends, as a fraction of the peak", minimum=0.0, maximum=1.0
    )
    schedule_by: Literal["steps", "seconds"] = setting(
        "steps",
        "steps: repeatable; seconds: anneal to the end by steps or max_seconds, whichever comes first",
    )
    max_seconds: float | None = setting(
        None,
        "wall-clock limit, preparation included, over all resumptions: evaluate, save and stop then",
        minimum=0.0,
    )
    max_gradient_norm: float | None = setting(1.0, "clip above this norm; null: never", minimum=1e-9)
    evaluation_interval: int = setting(400, "steps between evaluations", minimum=1)
    evaluate_first: bool = setting(False, "evaluate before the first step, too")
    gap_windows: int = setting(
        32, "training windows whose loss is measured like that of validation, for the gap; 0: none", minimum=0
    )
    patience: int | None = setting(
        None, "stop after so many evaluations without improvement; null: never", minimum=1
    )
    minimum_improvement: float = setting(0.0, "smaller changes of best_metric do not count", minimum=0.0)
    best_metric: str = setting(
        "loss", "evaluation metric that names the best step; higher is better but for losses"
    )
    keep_best: bool = setting(True, "end with the weights of the best step, not of the last")
    logging_interval: int = setting(20, "steps between log lines", minimum=1)
    workers: int = setting(0, "processes that load data; 0: the training process itself", minimum=0)
    reuse_prefix: bool | Literal["memory", "disk", "off"] = setting(
        True,
        "compute the states of a text below the first fusion site once, and keep them in memory or on the disk, where "
        "later runs find them; true: in memory where there is room; false, off: never",
    )
    prefix_store_gb: float | None = setting(
        None, "at most so much of these states, in 10^9 bytes; null: a quarter of what is free", minimum=1e-6
    )
    sampled_vocabulary: int | None = setting(
        512, "tokens drawn for the softmax of a training step beside the likely ones; null: all", minimum=1
    )
    labels_decided_by_words: float = setting(
        0.15,
        "share kept of the labels that the words before them decide alone; all of answers given rarely",
        minimum=0.0,
        maximum=1.0,
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "type of matrix products in a step; auto: bfloat16 where the processor has it, else float32",
    )
    checkpoint_activations: bool = setting(False, "recompute activations in the backward pass to save memory")
    check_memory: bool = setting(
        True, "refuse before loading what would need more memory than there is; false: try anyway"
    )
    timeout_seconds: float = setting(
        600.0, "several processes: how long one waits in a step for another before all are ended", minimum=1.0
    )
    seed: int = setting(0, "seed of the initial weights, dropout and data order", minimum=0)

    def __post_init__(self) -> None:
        """Combinations that no single bound can refuse."""
        if self.windows_per_step % self.accumulation:
            raise ConfigurationError(
                "accumulation",
                expected=f"a divisor of windows_per_step = {self.windows_per_step}",
                received=self.accumulation,
                remedy="Every microbatch holds the same number of windows.",
            )
        if self.schedule_by == "seconds" and self.max_seconds is None:
            raise ConfigurationError(
                "max_seconds",
                expected="a number of seconds, since schedule_by is 'seconds'",
                received="null",
                remedy="Set max_seconds, or schedule_by: steps.",
            )
        if self.warmup >= self.steps:
            raise ConfigurationError(
                "warmup_steps",
                expected=f"fewer than steps = {self.steps}",
                received=self.warmup_steps,
                remedy="Shorten the warmup or train longer.",
            )

    @property
    def warmup(self) -> int:
        """Steps of linear warmup."""
        return self.steps // 20 if self.warmup_steps is None else self.warmup_steps

    @property
    def reuses_prefix(self) -> bool:
        """Whether states of texts are computed once, wherever they are kept."""
        return self.reuse_prefix not in (False, "off")

    @property
    def microbatch(self) -> int:
        """Climate windows in one forward pass, of all processes together where there are several."""
        return self.windows_per_step // self.accumulation


@dataclass(frozen=True)
class EvaluationConfig:
    """How a trained model is asked and scored."""

    windows_per_batch: int = setting(16, "climate windows in an evaluation batch", minimum=1)
    max_new_tokens: int = setting(48, "longest generated answer in text tokens", minimum=1)
    seed: int = setting(0, "seed of who is given whose values", minimum=0)


@dataclass(frozen=True)
class OutputConfig:
    """Where a run leaves its log, checkpoints and model."""

    directory: str = setting("runs/train", "folder of the run")
    overwrite: bool = setting(False, "delete the checkpoints and logs of an earlier run in that folder")
    save_interval: int = setting(400, "steps between checkpoints; the last step is always saved", minimum=1)
    keep_checkpoints: int = setting(2, "newest checkpoints to keep, besides the best", minimum=1)
    tensorboard: bool = setting(True, "write TensorBoard event files beside log.jsonl")


@dataclass(frozen=True)
class RunConfig:
    """A whole run."""

    data: DataConfig = setting(DataConfig, "fields and texts")
    facts: FactsConfig = setting(FactsConfig, "texts made from facts")
    backbone: BackboneConfig = setting(BackboneConfig, "frozen language model")
    encoder: EncoderConfig = setting(EncoderConfig, "climate encoder")
    fusion: FusionConfig = setting(FusionConfig, "how climate enters the language model")
    training: TrainingConfig = setting(TrainingConfig, "optimization")
    evaluation: EvaluationConfig = setting(EvaluationConfig, "evaluation")
    output: OutputConfig = setting(OutputConfig, "files of the run")

    def to_yaml(self, *, comments: bool = False) -> str:
        """The configuration as YAML that reads back to an equal one.

        Args:
            comments: Put the meaning of each key beside it.
        """
        return to_yaml(self, comments=comments)


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a run's configuration.

    Args:
        path: YAML file; None for the defaults.
        overrides: "section.key=value" each, the value in YAML; they win over the file.

    Raises:
        ConfigurationError: No such file, malformed YAML, an unknown or repeated key, a wrong type or value.
            Names the full dotted key, and the line in the file.
    """
    if path is None:
        return read_yaml(RunConfig, "", overrides=overrides)
    path = Path(path)
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            str(path),
            expected="a YAML file",
            received=f"{type(error).__name__}: {error}",
            remedy="Give the path of a configuration, or none for the built-in demo.",
        ) from error
    return read_yaml(RunConfig, text, source=str(path), overrides=overrides)


# ---- The generic reader: YAML text → any nested dataclass --------------------------------------------------


def read_yaml(cls: type[T], text: str, *, source: str = "", overrides: Iterable[str] = ()) -> T:
    """Reads YAML text into a nested dataclass.

    Args:
        cls: A dataclass whose fields are scalars, tuples, dicts, unions, literals or dataclasses.
        text: YAML.
        source: File name for error messages.
        overrides: "section.key=value" each.

    Raises:
        ConfigurationError: See `load_config`.
    """
    content, places = _parse(text, source)
    for override in overrides:
        _override(content, places, override)
    return read_dataclass(cls, content, places=places)


def read_dataclass(
    cls: type[T], content: Mapping[str, Any], *, key: str = "", places: Mapping[str, str] = {}
) -> T:
    """Reads a mapping into a dataclass, refusing whatever does not fit.

    Args:
        cls: The dataclass.
        content: Key → plain value.
        key: Dotted key of the mapping itself, "" at the top.
        places: Dotted key → where it was written, for error messages.

    Raises:
        ConfigurationError: An unknown key, a wrong type or a value out of bounds.
    """
    hints = typing.get_type_hints(cls)
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for name, value in content.items():
        dotted = f"{key}.{name}" if key else str(name)
        if name not in fields:
            near = get_close_matches(str(name), fields, n=1)
            raise ConfigurationError(
                _named(dotted, places),
                expected=f"one of {', '.join(fields)}",
                received="an unknown key",
                remedy=f"Did you mean {near[0]!r}?" if near else "Remove it.",
            )
        values[name] = _read(hints[name], value, dotted, places)
        _check_bounds(fields[name], values[name], dotted, places)
    try:
        return cls(**values)
    except ConfigurationError as error:  # from __post_init__, which knows only its own section
        dotted = f"{key}.{error.argument}" if key else error.argument
        raise ConfigurationError(
            _named(dotted, places), expected=error.expected, received=error.received, remedy=error.remedy
        ) from None


def to_yaml(config: Any, *, comments: bool = False) -> str:
    """A nested dataclass as YAML.

    Args:
        config: The dataclass.
        comments: Put the meaning of each key beside it.
    """
    lines: list[str] = []
    _write(config, lines, indent=0, comments=comments)
    return "\n".join(lines) + "\n"


# A number as YAML 1.2 and every programming language write it; YAML 1.1 wants a dot and a signed exponent.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def _read(hint: Any, value: Any, key: str, places: Mapping[str, str]) -> Any:
    """One value as one type."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if hint is Any:
        return _read_anything(value, key, places)
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, hint, value, key, places)
    if origin is Literal:
        if value in arguments and type(value) in {type(argument) for argument in arguments}:
            return value
        near = get_close_matches(str(value), [str(argument) for argument in arguments], n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else "Choose one of them."
        raise _wrong(key, places, _spell(hint), value, remedy)
    if dataclasses.is_dataclass(hint):
        # `data:` with every key commented out reads as null.
        content = {} if value is None else value
        if not isinstance(content, dict):
            raise _wrong(key, places, "a section of keys", value)
        return read_dataclass(typing.cast("type[Any]", hint), content, key=key, places=places)
    if origin is tuple:
        return _read_tuple(arguments, hint, value, key, places)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise _wrong(key, places, _spell(hint), value)
        return {name: _read(arguments[1], entry, f"{key}.{name}", places) for name, entry in value.items()}
    return _read_scalar(hint, value, key, places)


def _read_anything(value: Any, key: str, places: Mapping[str, str]) -> Any:
    """A value whose type only its receiver knows; a number that YAML 1.1 left a string is still made one.

    Whatever YAML can say that JSON cannot is refused: records of runs are JSON.
    """
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise _wrong(key, places, "keys that are text", value, "Put them in quotes.")
        return {name: _read_anything(entry, f"{key}.{name}", places) for name, entry in value.items()}
    if isinstance(value, list):
        return [_read_anything(entry, f"{key}[{number}]", places) for number, entry in enumerate(value)]
    if not isinstance(value, str | int | float | None):
        raise _wrong(key, places, "a number, a text, true, false or null", value, "Put it in quotes.")
    if isinstance(value, str) and "e" in value.lower() and _NUMBER.fullmatch(value.strip()):
        return float(value)
    return value


def _read_union(options: Sequence[Any], hint: Any, value: Any, key: str, places: Mapping[str, str]) -> Any:
    if value is None and type(None) in options:
        return None
    options = [option for option in options if option is not type(None)]
    if len(options) == 1:
        return _read(options[0], value, key, places)
    for option in options:
        try:
            return _read(option, value, key, places)
        except ConfigurationError:
            continue
    raise _wrong(key, places, _spell(hint), value)


def _read_tuple(arguments: Sequence[Any], hint: Any, value: Any, key: str, places: Mapping[str, str]) -> Any:
    if not isinstance(value, list | tuple):
        raise _wrong(key, places, _spell(hint), value)
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise _wrong(key, places, _spell(hint), value, f"Give {len(arguments)} values.")
    return tuple(
        _read(a, v, f"{key}[{i}]", places) for i, (a, v) in enumerate(zip(arguments, value, strict=True))
    )


def _read_scalar(hint: Any, value: Any, key: str, places: Mapping[str, str]) -> Any:
    if isinstance(value, str) and hint in (int, float) and _NUMBER.fullmatch(value.strip()):
        value = float(value)  # YAML 1.1 left `5e-5` a string
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint is int and type(value) is float and value.is_integer():
        return int(value)
    if type(value) is int and abs(value) >= 2**63:
        raise _wrong(key, places, f"{_spell(hint)} of less than 64 bits", f"{str(value)[:20]}…")
    if type(value) is hint:  # not isinstance: True is an int
        if hint is float:
            raise _wrong(key, places, "a finite number", value)
        return value
    remedy = "Put it in quotes." if hint is str and value is not None else ""
    raise _wrong(key, places, _spell(hint), value, remedy)


def _check_bounds(entry: dataclasses.Field[Any], value: Any, key: str, places: Mapping[str, str]) -> None:
    minimum, maximum = entry.metadata.get("minimum"), entry.metadata.get("maximum")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        bounds = [f"at least {minimum:g}"] if minimum is not None else []
        bounds += [f"at most {maximum:g}"] if maximum is not None else []
        raise _wrong(key, places, " and ".join(bounds), value)


_SPELLED = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def _spell(hint: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_spell(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each {_spell(arguments[0])}"
        return f"a list of {len(arguments)}, each {_spell(arguments[0])}"
    if origin is dict:
        return "keys with values"
    if hint is Any:
        return "of any type"
    return _SPELLED.get(hint, str(hint))


def _wrong(
    key: str, places: Mapping[str, str], expected: str, value: Any, remedy: str = ""
) -> ConfigurationError:
    received = "null" if value is None else f"{type(value).__name__} {value!r}"
    return ConfigurationError(
        _named(key, places), expected=expected, received=received, remedy=remedy or "Correct it."
    )


def _named(key: str, places: Mapping[str, str]) -> str:
    """A dotted key and where it, or the nearest thing around it, was written."""
    around = key
    while around and around not in places:
        around = re.sub(r"(\.[^.\[]*|\[\d+\]|^[^.\[]*)$", "", around)
    return f"{key} ({places[around]})" if around else key


def _parse(text: str, source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """YAML text as plain values, and where each dotted key stands."""
    prefix = f"{source}, line" if source else "line"
    try:
        _check_plain(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
    ) as error:  # or of dates and keys that are none
        mark = getattr(error, "problem_mark", None)
        raise ConfigurationError(
            f"{prefix} {mark.line + 1}" if mark else source or "configuration",
            expected="YAML",
            received=getattr(error, "problem", None) or str(error),
            remedy="Check indentation, colons and quotes there.",
        ) from error
    if content is None:
        return {}, {}
    if not isinstance(content, dict):
        raise ConfigurationError(
            source or "configuration",
            expected="sections of keys",
            received=f"a {type(content).__name__}",
            remedy="Start with a section, such as `training:`.",
        )
    places: dict[str, str] = {}
    _locate(root, "", prefix, places)
    return content, places


MAX_DEPTH = 20  # of nested lists and sections
MAX_SCALAR = 1000  # characters of a value without quotes


def _check_plain(text: str) -> None:
    """Refuse what no configuration needs and a hostile one uses.

    A few lines of aliases to aliases make gigabytes, an alias to its own section or brackets by the thousand make the
    reader recurse without end, and a number of a million digits takes hours.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = f"an alias (*{event.anchor}): write out what it stands for"
        elif depth > MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} levels of nesting"
        elif isinstance(event, yaml.ScalarEvent) and not _is_unicode(event.value):
            problem = "half of a character (a surrogate): write the character itself"
        elif isinstance(event, yaml.ScalarEvent) and event.style is None and len(event.value) > MAX_SCALAR:
            problem = f"a value of {len(event.value):,} characters without quotes"
        if problem is not None:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _locate(node: yaml.Node | None, key: str, prefix: str, places: dict[str, str]) -> None:
    """Records the line of every key, and refuses a key given twice (YAML itself would take the last)."""
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            _locate(entry, f"{key}[{number}]", prefix, places)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, str] = {}
    for name_node, value_node in node.value:
        name = str(name_node.value)
        dotted = f"{key}.{name}" if key else name
        places[dotted] = f"{prefix} {name_node.start_mark.line + 1}"
        if name in seen:
            raise ConfigurationError(
                f"{dotted} ({places[dotted]})",
                expected="each key once",
                received=f"a second one after {seen[name]}",
                remedy="Remove one of them.",
            )
        seen[name] = places[dotted]
        _locate(value_node, dotted, prefix, places)


def _override(content: dict[str, Any], places: dict[str, str], override: str) -> None:
    """Applies one "section.key=value"."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise ConfigurationError(
            f"--set {override}",
            expected="section.key=value",
            received=repr(override),
            remedy="For example --set training.steps=200.",
        )
    try:
        _check_plain(text)
        value = yaml.safe_load(text)
        _locate(yaml.compose(text, Loader=yaml.SafeLoader), key, f"--set {key}, line", {})
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"--set {key}", expected="a YAML value", received=repr(text), remedy="Quote it."
        ) from error
    *sections, name = key.split(".")
    inner = content
    for section in sections:
        if inner.get(section) is None:
            inner[section] = {}
        inner = inner[section]
        if not isinstance(inner, dict):
            raise ConfigurationError(
                f"--set {key}",
                expected=f"{section} to be a section",
                received=repr(inner),
                remedy="Correct the file.",
            )
    inner[name] = value
    places[key] = "--set"


def _write(config: Any, lines: list[str], *, indent: int, comments: bool) -> None:
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        margin = "  " * indent
        meaning = entry.metadata.get("meaning", "")
        comment = f"  # {meaning}" if comments and meaning else ""
        if dataclasses.is_dataclass(value):
            lines.append(f"{margin}{entry.name}:{comment}")
            _write(value, lines, indent=indent + 1, comments=comments)
        else:
            lines.append(f"{margin}{entry.name}: {_inline(_plain(value))}{comment}")


def _inline(value: Any) -> str:
    """A plain value as YAML on one line; letters beyond ASCII stay readable where PyYAML reads them back."""
    if value is None or isinstance(value, bool | int):  # half of all values, and every checkpoint writes them
        return json.dumps(value)
    for readable in (True, False):
        text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=readable)
        if yaml.safe_load(text) == value:
            break
    return text.removesuffix("...\n").rstrip("\n")  # a bare scalar comes with an end-of-document mark


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down: YAML has no tuples."""
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value
