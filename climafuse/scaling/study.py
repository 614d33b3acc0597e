"""A study as a file: which runs, on what budget, and which of them are looked at more closely.

    study = load_study("examples/studies/fusion.yaml")
    runs = plan(study, {})                # the first runs
    runs = plan(study, figures)           # and, once these are done, those of the next stage

From study to runs everything is a pure function: the same file and the same figures give the same runs with the same
ids, so a study can be stopped and resumed anywhere. This module imports neither torch nor transformers.
"""

# ruff: noqa: RUF009  (`setting` returns a dataclass field)
from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

from climafuse.errors import ConfigurationError, spelled_out
from climafuse.json_values import number as finite
from climafuse.text_file import read_text
from climafuse.training.config import RunConfig, read_dataclass, read_yaml, setting

FORMAT = 1  # of a run and its figures; raise it when finished runs must be made anew
UNBOUNDED = 1_000_000  # steps, where seconds are the budget
MOST_RUNS = 2000  # of a study: at five minutes each, a week
FIGURES = ("training", "validation", "test", "generation")
SEED = "training.seed"
DIRECTORY = "output.directory"  # each run has its own


@dataclass(frozen=True)
class Budget:
    """How long each run trains."""

    seconds: float | None = setting(None, "wall-clock seconds, preparation included", minimum=1)
    steps: int | None = setting(None, "optimizer steps", minimum=1)

    def settings(self) -> dict[str, Any]:
        """The budget as settings of a run; of both limits, the first that is reached ends it."""
        if self.seconds is None:
            return {} if self.steps is None else {"training.steps": self.steps}
        return {
            "training.steps": self.steps or UNBOUNDED,
            "training.schedule_by": "seconds",
            "training.max_seconds": self.seconds,
        }


@dataclass(frozen=True)
class Stage:
    """The best runs so far once more, with other settings."""

    best: int = setting(3, "how many of the runs so far", minimum=1)
    distinct: tuple[str, ...] = setting((), "of runs that are alike in these keys only the best counts")
    grid: dict[str, tuple[Any, ...]] = setting({}, "each of them with every combination of these settings")


@dataclass(frozen=True)
class Study:
    """Runs that answer one question.

    Settings are those of a run (`RunConfig`), by dotted key; a section such as `fusion` takes several keys at once.
    """

    name: str = setting("", "short, as in a file name")
    question: str = setting("", "what the study asks, and why it is fair")
    base: dict[str, Any] = setting({}, "settings of every run")
    budget: Budget = setting(Budget, "how long each run trains")
    runs: tuple[dict[str, Any], ...] = setting((), "settings of single runs")
    grid: dict[str, tuple[Any, ...]] = setting({}, "key → values; runs of every combination")
    metric: str = setting(
        "validation.fact_f1.true", "figure by which runs are chosen; never one of the test split"
    )
    goal: Literal["highest", "lowest"] = setting("highest", "which value of it is best")
    stages: tuple[Stage, ...] = setting((), "what is run next, in turn, each after all before")

    def __post_init__(self) -> None:
        """Refuse what could not be run, or not be believed."""
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum():
            raise ConfigurationError(
                "name",
                expected="letters, digits, - and _",
                received=repr(self.name),
                remedy="Name the study, as in `name: fusion`.",
            )
        part = self.metric.partition(".")[0]
        if part not in FIGURES or part == "test":
            raise ConfigurationError(
                "metric",
                expected=f"a figure of {', '.join(name for name in FIGURES if name != 'test')}",
                received=self.metric,
                remedy="What is chosen by test figures has no test figures left; choose by validation.fact_f1.true.",
            )
        for key, values in self._axes():
            if not values:
                raise ConfigurationError(
                    key, expected="at least one value", received="none", remedy="Remove the key."
                )
        for number, stage in enumerate(self.stages):
            if not stage.grid:
                raise ConfigurationError(
                    f"stages[{number}].grid",
                    expected="at least one setting that is changed",
                    received="none",
                    remedy="Give `grid:` with values by key, or remove the stage.",
                )
        if not self.runs and not self.grid:
            raise ConfigurationError(
                "runs",
                expected="runs, or a grid of them",
                received="neither",
                remedy="Give `grid:` with values by key.",
            )
        # Counted without making them: there may be a million.
        num = len(self.runs) + math.prod(map(len, self.grid.values())) * bool(self.grid)
        if (num := _with_stages(self, num)) > MOST_RUNS:
            raise ConfigurationError(
                "grid",
                expected=f"at most {MOST_RUNS:,} runs in all",
                received=f"{num:,}",
                remedy="Give fewer values, or make several studies of it.",
            )
        if DIRECTORY in self.told:
            raise ConfigurationError(
                DIRECTORY,
                expected="nothing: every run has its own folder in that of the study",
                received="values that runs differ in",
                remedy="Remove it; `climafuse scale run --output` chooses where the study is.",
            )

    @cached_property
    def told(self) -> tuple[str, ...]:
        """Keys in which runs differ, anywhere in the study."""
        points = [*self.runs, *({key: value} for key, values in self._grids() for value in values)]
        return tuple(dict.fromkeys(key for point in points for key in opened(point)))

    def _grids(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        yield from self.grid.items()
        for stage in self.stages:
            yield from stage.grid.items()

    def _axes(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        for key, values in self.grid.items():
            yield f"grid.{key}", values
        for number, stage in enumerate(self.stages):
            for key, values in stage.grid.items():
                yield f"stages[{number}].grid.{key}", values


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Args:
        id: Known by all that the run computes: two runs of one id are the same run.
        config: Its configuration; where it is written is the runner's to say.
        settings: What differs between the runs of the study, by dotted key.
        stage: 0 for the first runs, 1 for those of the first stage after them, ….
    """

    id: str
    config: RunConfig
    settings: dict[str, Any]
    stage: int

    @property
    def label(self) -> str:
        """The run in a few words: texts as they are, other values with their key; options of parts are left out."""
        words = []
        for key, value in self.settings.items():
            name = key.rpartition(".")[2]
            if isinstance(value, Mapping):
                words += [] if name == "options" else [name]
            elif value is not None:
                words.append(value if isinstance(value, str) else f"{name} {value}")
        return spelled_out(", ".join(words)) or self.id


def load_study(path: str | Path) -> Study:
    """Read a study, strictly.

    Args:
        path: YAML file.

    Raises:
        ConfigurationError: No such file, malformed YAML, an unknown key, a wrong type or value, in the study or in the
            settings of its runs.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            str(path),
            expected="a YAML file of a study",
            received=f"{type(error).__name__}: {error}",
            remedy="Give the path of one, such as examples/studies/fusion.yaml.",
        ) from error
    study = read_yaml(Study, text, source=str(path))
    runs = first_runs(study)  # every setting is read now, not when its turn comes
    for number, stage in enumerate(study.stages):
        for key in stage.distinct:
            value_of(runs[0].config, key)
        _stage_runs(stage, runs[:1], number + 1, study)
    return study


def first_runs(study: Study) -> list[PlannedRun]:
    """The runs that depend on no figure, each once: single ones, then the grid, its last key changing fastest."""
    points = [*study.runs, *_combinations(study.grid)]
    return _once(_run(study, opened(point), 0) for point in points)


def plan(study: Study, figures: Mapping[str, Mapping[str, Any] | None]) -> list[PlannedRun]:
    """All runs that can be known so far, in their order.

    Args:
        study: The study.
        figures: Of the runs that are done, by id; None for one that failed. The next stage is known once all runs of
            the stages before it are done.
    """
    runs = first_runs(study)
    for number, stage in enumerate(study.stages):
        if any(run.id not in figures for run in runs):
            break
        best = choose(study, runs, figures, stage.best, stage.distinct)
        runs = _once([*runs, *_stage_runs(stage, best, number + 1, study)])
    return runs


def most_runs(study: Study) -> int:
    """How many runs there will be, at most."""
    return _with_stages(study, len(first_runs(study)))


def _with_stages(study: Study, num: int) -> int:
    for stage in study.stages:
        num += min(stage.best, num) * math.prod(len(values) for values in stage.grid.values())
    return num


def choose(
    study: Study,
    runs: Sequence[PlannedRun],
    figures: Mapping[str, Mapping[str, Any] | None],
    best: int,
    distinct: Iterable[str] = (),
) -> list[PlannedRun]:
    """The best runs by the study's metric; the earlier one where two are equal.

    Args:
        study: The study.
        runs: The runs, in their order.
        figures: By id; runs without the metric are not chosen.
        best: How many, at most.
        distinct: Keys; of runs alike in them only the best is chosen.
    """
    keys = tuple(distinct)
    sign = -1 if study.goal == "highest" else 1
    ranked = sorted(
        (sign * value, number)
        for number, run in enumerate(runs)
        if (value := figure(figures.get(run.id), study.metric)) is not None
    )
    chosen: dict[str, PlannedRun] = {}
    for _, number in ranked:
        alike = _spelled([plain(value_of(runs[number].config, key)) for key in keys] or runs[number].id)
        chosen.setdefault(alike, runs[number])
    return list(chosen.values())[:best]


def figure(figures: Mapping[str, Any] | None, path: str) -> float | None:
    """One figure by its dotted path; None where it was not measured."""
    value: Any = figures
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return finite(value)


def value_of(config: Any, key: str) -> Any:
    """A setting by its dotted key.

    Raises:
        ConfigurationError: There is no such key.
    """
    value = config
    for name in key.split("."):
        known = (
            value if isinstance(value, Mapping) else vars(value) if dataclasses.is_dataclass(value) else {}
        )
        if name not in known:
            raise ConfigurationError(
                key,
                expected=f"a key of a run's configuration: {', '.join(known) or 'none'} follow",
                received=repr(name),
                remedy="Correct the key.",
            )
        value = known[name]
    return value


def opened(content: Mapping[str, Any], schema: Any = RunConfig) -> dict[str, Any]:
    """Settings by dotted key: sections are opened; what options a part takes, only the part knows."""
    hints = typing.get_type_hints(schema)
    found: dict[str, Any] = {}
    for key, value in content.items():
        first, _, rest = key.partition(".")
        inner = {rest: value} if rest else value
        if dataclasses.is_dataclass(hints.get(first)) and isinstance(inner, Mapping):
            found |= {f"{first}.{name}": entry for name, entry in opened(inner, hints[first]).items()}
        else:
            found[key] = value
    return found


def _run(study: Study, settings: Mapping[str, Any], stage: int) -> PlannedRun:
    """A run from settings that are opened."""
    content: dict[str, Any] = {}
    for layer in (opened(study.base), study.budget.settings(), settings):  # the later wins
        for key, value in layer.items():
            _put(content, key, value)
    config = read_dataclass(RunConfig, content)
    computed = {name: value for name, value in dataclasses.asdict(config).items() if name != "output"}
    identity = _spelled({"format": FORMAT, **plain(computed)})
    told = {key: plain(value_of(config, key)) for key in study.told if _has(config, key)}
    return PlannedRun(hashlib.sha256(identity.encode()).hexdigest()[:12], config, told, stage)


def _has(config: Any, key: str) -> bool:
    """Whether there is such a key: options are told by those runs that set them."""
    try:
        value_of(config, key)
    except ConfigurationError:
        return False
    return True


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for number, section in enumerate(sections):
        inner = content.get(section)
        if inner is not None and not isinstance(inner, Mapping):
            raise ConfigurationError(
                ".".join(sections[: number + 1]),
                expected=f"a section of keys, since {key} is set, too",
                received=repr(inner),
                remedy="Correct or remove one of them.",
            )
        content[section] = content = dict(inner or {})
    content[name] = value


def _stage_runs(stage: Stage, best: Iterable[PlannedRun], number: int, study: Study) -> list[PlannedRun]:
    changes = [opened(change) for change in _combinations(stage.grid)]
    return [_run(study, {**run.settings, **change}, number) for run in best for change in changes]


def _combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    if grid:
        for values in product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


def _once(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    found: dict[str, PlannedRun] = {}
    for run in runs:
        found.setdefault(run.id, run)
    return list(found.values())


def plain(value: Any) -> Any:
    """A setting as JSON keeps it: sections as objects, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, tuple | list) else value


def _spelled(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
