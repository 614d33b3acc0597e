"""A run as one page that opens anywhere: no network, no script, no font of its own.

Takes plain data (`runs.RunRecord`, cards of samples) and fills a template. What comes from files that somebody else
may have written (answers, names, licenses) is escaped by the template engine, and a content security policy forbids
the page to load or run anything. What was not measured is said to be so, with the command that measures it.
"""

from __future__ import annotations

import base64
import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

import jinja2
from markupsafe import Markup

from climafuse import __version__
from climafuse.backbones import CATALOG, weights_of
from climafuse.data.files import whole_file
from climafuse.data.variables import VARIABLES
from climafuse.errors import spelled_out
from climafuse.facts import FACT_KINDS
from climafuse.facts.kinds import OTHER_NAMES, SPOKEN_VARIABLES, Rule
from climafuse.facts.unseen import UNSEEN_NAMES
from climafuse.json_values import interval, number, rows, table, text
from climafuse.model.card import spelled_trainable, whether_unseen
from climafuse.report.charts import Chart, Curve, line_chart
from climafuse.report.runs import RunRecord
from climafuse.report.samples import SampleCard

MOST_ROWS = 200  # of a table


@dataclass(frozen=True)
class Condition:
    """One condition of the grounding table.

    Args:
        name: As in an evaluation.
        group: Under which heading.
        label: In words.
        meaning: What was done.
    """

    name: str
    group: str
    label: str
    meaning: str


MODEL, GUESSERS, CONTROLS = "The model", "Guessers that know the place", "Controls on the same questions"
CONDITIONS = (
    Condition("true", MODEL, "True field", "the field as it is"),
    Condition("shuffled", MODEL, "Shuffled", "values of another sample; scored against the original field"),
    Condition("shown", MODEL, "Shown", "the same answers, scored against the field that was shown"),
    Condition("blank", MODEL, "Blank", "no values at all"),
    Condition("mean_field", MODEL, "Mean field", "mean of the training times; scored against the original"),
    Condition("other_time", MODEL, "Other time", "same place at another time; scored against the original"),
    Condition("other_time_shown", MODEL, "Other time, shown", "scored against the field that was shown"),
    Condition("climatology", GUESSERS, "Climatology", "facts of the mean of the training times"),
    Condition(
        "prior_guesser", GUESSERS, "Typical fact", "median or most frequent fact of the training times"
    ),
    Condition("last_training", GUESSERS, "Last training time", "its facts"),
    Condition("persistence", CONTROLS, "Persistence", "facts of the time just before the one asked about"),
    Condition("text_only", CONTROLS, "Text only", "a model that sees no climate, trained as long"),
    Condition("place_only", CONTROLS, "Place only", "a model that knows where and when, but no values"),
    Condition("regressor", CONTROLS, "Regressor", "the same encoder without a language model"),
    Condition("oracle", CONTROLS, "Oracle", "writes from the field: the upper bound"),
)
GUESSER_NAMES = tuple(entry.name for entry in CONDITIONS if entry.group == GUESSERS)
# Shuffled stands beside true wherever figures are told.
COMPARED = ("true", "shuffled", "shown")
ERRORS = (*COMPARED, "climatology", "prior_guesser", "last_training", "persistence", "regressor")


def write_report(
    run: RunRecord, path: str | Path, *, cards: Sequence[SampleCard] = (), notes: Sequence[str] = ()
) -> Path:
    """Write the report of a run.

    Args:
        run: What it left.
        path: Where to write, whole or not at all.
        cards: Answers to show.
        notes: What is to be said about them, such as why there are none.

    Returns:
        The path.

    Raises:
        OutputError: It cannot be written.
    """
    path = Path(path)
    content = render(run, cards=cards, notes=notes).encode("utf-8", errors="replace")
    with whole_file(path, size=len(content)) as temporary:
        temporary.write_bytes(content)
    return path


def render(run: RunRecord, *, cards: Sequence[SampleCard] = (), notes: Sequence[str] = ()) -> str:
    """The page as text; see `write_report`."""
    evaluation = run.evaluation
    return _template().render(
        name=run.folder.resolve().name,
        command=f"climafuse evaluate {run.folder}",
        version=__version__,
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        finished=run.finished,
        stale=run.stale,
        evaluated=bool(evaluation),
        apart=run.apart,
        obstacle=run.obstacle,
        verdict=_verdict(evaluation),
        grounding=_grounding(evaluation),
        differences=_differences(evaluation),
        intervals=_intervals(evaluation),
        asked=_asked(run),
        kinds=_by_kind(evaluation),
        variables=_by_variable(evaluation),
        matrix=_matrix(evaluation),
        errors=_errors(evaluation),
        polling=_polling(evaluation),
        abstention=_abstention(evaluation),
        cards=[_shown_card(card) for card in cards],
        sample_count=_sample_count(evaluation),
        notes=list(notes),
        learning=_learning(run.log),
        gates=_gates(run.log),
        provenance=_provenance(run),
        brief=_brief(run),
    )


@cache
def _template() -> jinja2.Template:
    folder = files("climafuse.report").joinpath("templates")
    texts = {
        name: folder.joinpath(name).read_text(encoding="utf-8")
        for name in ("report.html.jinja", "report.css")
    }
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    environment.filters |= {"figure": figure, "loss": loss}
    return environment.get_template("report.html.jinja")


def _harmless(value: Any) -> Any:
    """What would turn the direction of writing or is no character of HTML is spelled out."""
    return spelled_out(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def figure(value: float | None, decimals: int = 3) -> str:
    """A number for a table; a dash for what was not measured."""
    return "–" if value is None else f"{value:.{decimals}f}"


def loss(value: float | None, sign: str = "") -> str:
    """A loss for a table: three decimals, and as many digits where it is smaller than that."""
    if value is None:
        return "–"
    return format(value, f"{sign}.3f" if value == 0 or abs(value) >= 0.001 else f"{sign}.3g")


# ---- Verdict -----------------------------------------------------------------------------------------------


def _verdict(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    verdict, f1 = table(evaluation, "verdict"), table(evaluation, "fact_f1")
    grounded = verdict.get("grounded")
    read = [
        pair for what in ("variables", "kinds") for pair in list(table(verdict, what).items())[:MOST_ROWS]
    ]
    checks = [
        {
            "name": _compared(check.get("name")),
            "passed": check.get("passed") if isinstance(check.get("passed"), bool) else None,
            "measured": number(check.get("value")) is not None,
            "value": _value(check.get("value"), "+.3f"),
            "limit": _value(check.get("limit"), "g"),
            "interval": interval(check.get("interval")),
            "meaning": text(check.get("meaning"), 500),
        }
        for check in map(table, rows(verdict.get("checks")))
    ]
    conditions = table(evaluation, "conditions")
    tiles = [
        {
            "label": label,
            "meaning": meaning,
            "value": number(f1.get(name)),
            "interval": interval(table(conditions.get(found)).get("interval")),
            "style": style,
        }
        for name, found, label, meaning, style in (
            ("true", "true", "true field", "what it says of the fields it sees", "true"),
            (
                "shuffled",
                "shuffled",
                "shuffled",
                "it sees another window’s values; scored against the original",
                "shuffled",
            ),
            ("shown", "shown", "shown", "the same answers, scored against the values it saw", "shown"),
            (
                "prior",
                _best_guesser(evaluation) or "",
                "best guesser",
                "knows the place and the training times, not the fields",
                "guess",
            ),
        )
    ]
    return {
        "grounded": grounded if isinstance(grounded, bool) else None,
        "judged": bool(verdict.get("words")),
        "reason": text(verdict.get("words"), 500).partition(": ")[2].partition(" (")[0],
        "read": {
            answer: [
                text(name, 40).replace("_", " ") for name, row in read if table(row).get("read") is answer
            ]
            for answer in (True, False, None)
        },
        "checks": checks[:MOST_ROWS],
        "tiles": tiles if any(tile["value"] is not None for tile in tiles) else [],
    }


def _compared(name: Any) -> str:
    """Two conditions in words, such as "true field − best guesser"."""
    labels = {entry.name: entry.label.lower() for entry in CONDITIONS} | {"prior": "best guesser"}
    words = text(name, 200).split(" - ")
    return " − ".join(labels.get(word) or word.replace("_", " ") for word in words)


def _value(value: Any, form: str) -> str:
    """The value of a check: mostly a figure, now and then a word."""
    found = number(value)
    if found is not None:
        return format(found, form)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else text(value, 100)


# ---- Grounding ---------------------------------------------------------------------------------------------


def _known(evaluation: Mapping[str, Any]) -> list[Condition]:
    """Every condition of the table, and those of the evaluation that it does not know."""
    names = {entry.name for entry in CONDITIONS}
    others = [name for name in table(evaluation, "conditions") if name not in names]
    return [
        *CONDITIONS,
        *(Condition(name, "Others", text(name, 80), "") for name in others[:MOST_ROWS]),
    ]


def _grounding(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    conditions, f1 = table(evaluation, "conditions"), table(evaluation, "fact_f1")
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in _known(evaluation):
        found = table(conditions.get(entry.name))
        score = number(found.get("f1"))
        score = number(f1.get(entry.name)) if score is None else score
        row = {
            "name": entry.name,
            "label": entry.label if entry.meaning else text(found.get("label"), 200) or entry.label,
            "meaning": entry.meaning,
            "f1": score,
            "interval": interval(found.get("interval")),
            "style": _style(entry),
        }
        for key in (
            "precision", "recall", "wrong_rate", "invented_rate", "abstained",
            "token_loss", "bits_per_byte", "token_accuracy",
        ):  # fmt: skip
            row[key] = number(found.get(key))
        groups.setdefault(entry.group, []).append(row)
    measured = {group: [row for row in members if row["f1"] is not None] for group, members in groups.items()}
    return {
        "groups": {group: members for group, members in measured.items() if members},
        "absent": [row for members in groups.values() for row in members if row["f1"] is None],
        "guesser": number(f1.get("prior")),
        "best_guesser": _best_guesser(evaluation),
        "has_tokens": any(row["token_loss"] is not None for members in measured.values() for row in members),
    }


def _asked(run: RunRecord) -> str:
    """How much was asked: "546 questions about 96 windows of 3 times"."""
    data = table(run.evaluation, "data")
    counts = [number(data.get(key)) for key in ("num_questions", "num_windows", "num_test_times")]
    if any(count is None for count in counts):
        return ""
    questions, windows, times = (f"{count:,.0f}" for count in counts)
    unseen = whether_unseen(run.evaluation)
    return f"{questions} questions about {windows} windows of {times} times{unseen}. "


def _style(entry: Condition) -> str:
    if entry.name in COMPARED:
        return entry.name
    return {GUESSERS: "guess", CONTROLS: "control"}.get(entry.group, "other")


def _best_guesser(evaluation: Mapping[str, Any]) -> str | None:
    """Name of the guesser with the highest F1."""
    f1, conditions = table(evaluation, "fact_f1"), table(evaluation, "conditions")
    found = {}
    for name in GUESSER_NAMES:
        score = number(table(conditions.get(name)).get("f1"))
        score = number(f1.get(name)) if score is None else score
        if score is not None:
            found[name] = score
    return max(found, key=lambda name: found[name]) if found else None


def _differences(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": _compared(name),
            "difference": number(table(found).get("difference")),
            "interval": interval(table(found).get("interval")),
            "p": _chance(number(table(found).get("p"))),
        }
        for name, found in list(table(evaluation, "differences").items())[:MOST_ROWS]
        if number(table(found).get("difference")) is not None
    ]


def _chance(p: float | None) -> str:
    """A p-value, with no more digits than an approximation has."""
    return "–" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _intervals(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    found = table(evaluation, "intervals")
    claimed = found.get("claimed")
    return {
        "claimed": claimed if isinstance(claimed, bool) else None,
        "why": _sentence(text(found.get("why"), 500)),
        **{
            key: number(found.get(key))
            for key in (
                "num_blocks",
                "effective_blocks",
                "effective_in_time",
                "effective_in_space",
                "field_kilometers",
            )
        },
        "size": _block_size(found),
    }


def _block_size(found: Mapping[str, Any]) -> str:
    """How large blocks are; "" where each window is one."""
    hours, kilometers = number(found.get("block_hours")), number(found.get("block_kilometers"))
    sides = [f"{hours:,.3g} hours"] if hours else []
    return " by ".join(sides + ([f"{kilometers:,.0f} km"] if kilometers else []))


def _sentence(words: str) -> str:
    """With a capital and a full stop."""
    stop = "" if not words or words.endswith((".", "!", "?")) else "."
    return f"{words[:1].upper()}{words[1:]}{stop}"


# ---- Facts by kind and variable ------------------------------------------------------------------------------


def _columns(evaluation: Mapping[str, Any], part: str) -> dict[str, Mapping[str, Any]]:
    """Figures by kind or variable under the conditions that are compared; "guess" is the best guesser."""
    conditions = table(evaluation, "conditions")
    columns = {name: table(conditions.get(name), part) for name in COMPARED}
    return columns | {"guess": table(conditions.get(_best_guesser(evaluation) or ""), part)}


def _scores(evaluation: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    columns, counts = _columns(evaluation, part), _counts(evaluation, part)
    found = [
        {
            "label": _topic(name),
            "count": counts.get(name),
            **{column: number(values.get(name)) for column, values in columns.items()},
        }
        for name in columns["true"]
    ]
    best_first = sorted(found, key=lambda row: _sortable(row["true"]), reverse=True)
    return best_first[:MOST_ROWS]


def _counts(evaluation: Mapping[str, Any], part: str) -> Counter[str]:
    """How many questions there are of each kind or variable."""
    found = table(table(evaluation, "conditions").get("true"), "num_by_kind_and_variable")
    counts: Counter[str] = Counter()
    for key, value in found.items():
        kind, _, variable = str(key).partition("/")
        counts[kind if part == "by_kind" else variable] += int(number(value) or 0)
    return counts


def _sortable(value: Any) -> float:
    """What was not measured comes last."""
    return -1.0 if value is None else float(value)


def _by_kind(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    return _scores(evaluation, "by_kind")


def _by_variable(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    return _scores(evaluation, "by_variable")


def _matrix(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    columns = _columns(evaluation, "by_kind_and_variable")
    pairs = [key.split("/", 1) for key in columns["true"] if isinstance(key, str) and "/" in key]
    kinds = list(dict.fromkeys(kind for kind, _ in pairs))[:MOST_ROWS]
    variables = list(dict.fromkeys(variable for _, variable in pairs))[:20]
    return {
        "variables": [_topic(variable) for variable in variables],
        "rows": [
            {
                "label": _topic(kind),
                "cells": [
                    {
                        "true": number(columns["true"].get(f"{kind}/{variable}")),
                        "shuffled": number(columns["shuffled"].get(f"{kind}/{variable}")),
                    }
                    for variable in variables
                ],
            }
            for kind in kinds
        ],
    }


def _topic(name: Any) -> str:
    """A kind or variable in words."""
    if not isinstance(name, str):
        return ""
    if name in SPOKEN_VARIABLES:
        return SPOKEN_VARIABLES[name].name
    if name in FACT_KINDS:
        return _filled(name, "value") or text(name, 80).replace("_", " ")
    if name in VARIABLES:
        return VARIABLES[name].long_name
    return OTHER_NAMES.get(name) or UNSEEN_NAMES.get(name) or text(name, 80).replace("_", " ")


def _filled(kind: str, name: str) -> str:
    """The topic of a kind about a name; "" where it takes more than that to tell it."""
    topic = FACT_KINDS[kind].topic
    if topic == "{name}" and name == "value":
        return ""
    filled = topic.replace("{name}", name)
    return "" if "{" in filled else filled


def _errors(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    conditions = table(evaluation, "conditions")
    columns = {name: table(conditions.get(name), "numeric_error") for name in ERRORS}
    columns = {name: values for name, values in columns.items() if values}
    order = {kind: place for place, kind in enumerate(FACT_KINDS)}  # means first
    keys = list(dict.fromkeys(str(key) for values in columns.values() for key in values))
    keys = sorted(keys, key=lambda key: order.get(key.partition("/")[0], len(order)))[:MOST_ROWS]
    labels = {entry.name: entry.label for entry in CONDITIONS}
    found = []
    for key in keys:
        kind, _, variable = key.partition("/")
        rule = FACT_KINDS[kind].rules.get(variable) if kind in FACT_KINDS else None
        label = _filled(kind, _topic(variable)) if rule else ""
        unit = rule.unit if rule else ""
        found.append(
            {
                "label": label or (f"{_topic(kind)}, {_topic(variable)}" if variable else _topic(kind)),
                "unit": unit,
                "within": _within(kind, rule) if rule else "",
                "cells": [
                    {
                        "figure": _error_figure(number(values.get(key)), 0 if unit == "km" else 2),
                        "few": _few(table(conditions.get(name)), key),
                    }
                    for name, values in columns.items()
                ],
            }
        )
    return {"columns": [labels[name] for name in columns], "styles": list(columns), "rows": found}


def _few(condition: Mapping[str, Any], key: str) -> str:
    """Of how many answers a figure is, where that is not all of those asked: "1 of 17"."""
    stated = number(table(condition, "num_errors").get(key))
    asked = number(table(condition, "num_by_kind_and_variable").get(key))
    return "" if stated is None or asked is None or stated >= asked else f"{stated:,.0f} of {asked:,.0f}"


def _within(kind: str, rule: Rule) -> str:
    """How near is right."""
    match FACT_KINDS[kind].form:
        case "position":
            return "one cell"
        case "direction":
            return f"{22.5 + rule.tolerance:g}° of the octant"
    return f"{rule.tolerance:g} {rule.unit}" + (f" or {100 * rule.relative:g} %" if rule.relative else "")


def _error_figure(value: float | None, decimals: int) -> str:
    """Three digits, and no more decimals than that."""
    if value is None:
        return "–"
    return f"{value:,.{min(decimals, 0 if value >= 100 else 1 if value >= 10 else 2)}f}"


_POLLS = {
    "random": "any that does not take place",
    "popular": "the most frequent in training",
    "adversarial": "the one that most often went with the other in training",
}


def _polling(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys = ("num_questions", "accuracy", "precision", "recall", "f1", "yes_ratio", "unanswered")
    return [
        {
            "label": text(name, 80),
            "meaning": _POLLS.get(name, ""),
            **{key: number(table(found).get(key)) for key in keys},
        }
        for name, found in list(table(evaluation, "polling").items())[:MOST_ROWS]
    ]


def _abstention(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    found = table(evaluation, "abstention")
    reasons = {
        "withheld": "a variable that was taken away",
        "unseen": "a variable that the fields never hold, named in training texts",
        "untrained": "a variable that no training text names",
        "masked": "a place without values",
    }
    return {
        "num_questions": number(found.get("num_questions")),
        "abstained": number(found.get("abstained")),
        "false": number(found.get("false_abstentions")),
        "reasons": [
            (reasons.get(name, text(name, 80)), number(table(row).get("num_questions")), _share(row))
            for name, row in table(found, "by_reason").items()
        ][:MOST_ROWS],
        "withheld": [
            (
                _topic(name),
                number(table(row).get("num_questions")),
                _share(row),
                number(table(row).get("others_f1")),
            )
            for name, row in table(evaluation, "withheld").items()
        ][:MOST_ROWS],
    }


def _share(row: Any) -> float | None:
    """The share of abstentions, alone or in a row with its number of questions."""
    return number(table(row).get("abstained")) if isinstance(row, Mapping) else number(row)


# ---- Samples -------------------------------------------------------------------------------------------------


def _shown_card(card: SampleCard) -> dict[str, Any]:
    pictures = [
        {
            # Letters, digits, +, / and = only: nothing that could leave the attribute.
            "source": "data:image/webp;base64," + base64.b64encode(picture.content).decode("ascii"),
            "alternative": picture.alternative,
            "title": picture.title,
            "caption": picture.caption,
        }
        for picture in card.pictures
    ]
    return {"card": card, "pictures": pictures}


def _sample_count(evaluation: Mapping[str, Any]) -> tuple[int, int]:
    """How many samples of the evaluation are right, and how many there are."""
    judged = [table(sample).get("right") for sample in rows(evaluation.get("samples"))]
    return sum(right is True for right in judged), sum(isinstance(right, bool) for right in judged)


# ---- Training ------------------------------------------------------------------------------------------------


def _points(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = [(number(line.get("step")), number(line.get(key))) for line in log]
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _learning(log: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    training, validation, seen = (_points(log, key) for key in ("loss", "eval_loss", "eval_train_loss"))
    chart = line_chart(
        [
            Curve("training steps", "faint", training),
            Curve("training windows", "train", seen),
            Curve("validation", "validation", validation),
        ]
    )
    if chart is None:
        return None
    last, best = validation[-1] if validation else None, min(validation, key=lambda p: p[1], default=None)
    of_training = dict(seen).get(last[0]) if last else None
    return {
        "chart": chart,
        "last": last,
        "best": best,
        "train": of_training,
        "gap": None if last is None or of_training is None else last[1] - of_training,
        "table": [
            {"step": f"{step:,.0f}", "validation": value, "train": dict(seen).get(step)}
            for step, value in _thinned(validation)
        ],
    }


def _gates(log: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    names = list(dict.fromkeys(key for line in log for key in line if key.startswith("gate/")))[:12]
    curves = [
        Curve(name.removeprefix("gate/").replace("_", " "), f"line{index % 6}", _points(log, name))
        for index, name in enumerate(names)
    ]
    chart: Chart | None = line_chart(curves, from_zero=True)
    if chart is None:
        return None
    ends = [(curve.label, curve.points[-1][1]) for curve in curves if curve.points]
    return {"chart": chart, "ends": ends, "closed": all(value == 0 for _, value in ends)}


def _thinned(points: list[tuple[float, float]], count: int = 8) -> list[tuple[float, float]]:
    """At even distances, first and last among them."""
    if len(points) <= count:
        return points
    return [points[round(i * (len(points) - 1) / (count - 1))] for i in range(count)]


# ---- What was trained on what --------------------------------------------------------------------------------


def _kept(config: Mapping[str, Any]) -> str:
    """Whether the weights of the language model are what they were."""
    return text(spelled_trainable(config.get("backbone_trainable")), 200)


def _brief(run: RunRecord) -> list[str]:
    """What stands under the title."""
    parts = (
        f"{_backbone_name(run)}, {_kept(run.config)}",
        f"{text(run.config.get('fusion'), 80).replace('_', ' ')} at {_sites(run.config.get('sites'))}",
        text(run.settings.data.source, 200),
        text(run.record.get("date"), 40).partition("T")[0],
    )
    return [part for part in parts if part]


def _backbone_name(run: RunRecord) -> str:
    name = text(table(run.config, "backbone").get("id"), 300)
    return PurePath(name).name if PurePath(name).is_absolute() else name


def _provenance(run: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    config, record, evaluation = run.config, run.record, run.evaluation
    data, training = table(evaluation, "data"), table(evaluation, "training")
    # The evaluation may have asked about the test times of other fields than those of training.
    # Where nothing tells what it was trained on, its file may have been another one then.
    splits: dict[str, Any] = {**run.trained_on.splits}
    if splits:
        splits["test"] = table(data, "splits").get("test") or splits.get("test")
    evaluated = text(data.get("source"), 500)
    backbone, statistics = table(config, "backbone"), table(config, "statistics", "provenance")
    entry = CATALOG.get(text(backbone.get("id")))
    licenses = [text(source, 300) for source in (record.get("license"), data.get("license")) if text(source)]
    trainable = number(record.get("trainable_parameters")) or number(training.get("trainable_parameters"))
    parameters = number(backbone.get("num_parameters"))
    machine = {**table(evaluation, "machine"), **table(record, "machine")}
    seconds = number(record.get("train_seconds")) or number(training.get("seconds"))
    if seconds is None and run.log:
        seconds = number(run.log[-1].get("seconds"))
    steps = number(record.get("steps"))
    if steps is None and run.log:
        steps = number(run.log[-1].get("step"))
    counts = table(record, "train")
    variables = [f"{_topic(name)} ({text(name, 40)})" for name in rows(config.get("variables"))]
    history, box = number(config.get("history")), _box(config.get("box_degrees"))
    groups: list[tuple[str, list[tuple[str, str]]]] = [
        (
            "Data",
            [
                ("source", text(statistics.get("source"), 500) or text(run.settings.data.source, 500)),
                ("variables", ", ".join(variables)),
                *((f"{name} period", _period(splits.get(name))) for name in ("train", "validation", "test")),
                ("periods", "" if splits else "not known: nothing beside the weights tells"),
                (
                    "windows",
                    ""
                    if history is None or not box
                    else f"boxes of {box}, {history:.0f} time{'s' * (history != 1)} each",
                ),
                (
                    "training texts",
                    _count(counts.get("texts"), "texts about ") + _count(counts.get("windows"), "windows"),
                ),
                ("evaluated on", "" if evaluated == run.settings.data.source else evaluated),
                ("license", licenses[0] if licenses else "not stated by the source"),
            ],
        ),
        (
            "Language model",
            [
                ("id", _backbone_name(run)),
                ("what it is", _honest(backbone, entry)),
                ("revision", text(backbone.get("revision"), 200)),
                ("content", text(backbone.get("content_hash"), 200)),
                ("architecture", text(backbone.get("architecture"), 200)),
                ("parameters", "" if parameters is None else f"{parameters:,.0f}, {_kept(config)}"),
                ("license", entry.license if entry else "see its source"),
            ],
        ),
        (
            "What was trained",
            [
                ("trainable parameters", "" if trainable is None else f"{trainable:,.0f}"),
                ("encoder", _part(config, "encoder")),
                ("fusion", _part(config, "fusion")),
                ("sites", _sites(config.get("sites"))),
                ("adapters", ", ".join(f"{key} {value}" for key, value in table(config, "lora").items())),
                ("steps", _steps(run, steps, record)),
                ("time", "" if seconds is None else f"{seconds:,.0f} s"),
                ("seed", str(run.settings.training.seed)),
                ("weights", text(config.get("weights_sha256"), 64)),
            ],
        ),
        (
            "Where and when",
            [
                ("date of training", _date(record) or "not recorded"),
                ("date of evaluation", _date(evaluation) or "not evaluated"),
                ("machine", _machine(machine)),
                (
                    "versions",
                    ", ".join(
                        f"{text(name, 40)} {text(version, 40)}"
                        for name, version in (
                            table(run.manifest, "versions") or table(evaluation, "versions")
                        ).items()
                    ),
                ),
            ],
        ),
    ]
    return [(heading, [(term, words) for term, words in lines if words]) for heading, lines in groups]


def _date(record: Mapping[str, Any]) -> str:
    return text(record.get("date"), 40).replace("T", " ").replace("+00:00", " UTC")


def _box(sides: Any) -> str:
    """One side of a square box, or height and width, in degrees."""
    found = [number(side) for side in (rows(sides) or [sides])]
    return " by ".join(f"{side:g}°" for side in found if side is not None)


def _honest(backbone: Mapping[str, Any], entry: Any) -> str:
    """Whether the weights are the ones that the name makes one think of."""
    if entry is not None:
        return f"{entry.description}: not the weights that its makers published, but a copy of them"
    return weights_of(backbone)


def _part(config: Mapping[str, Any], name: str) -> str:
    options = table(config, f"{name}_options")
    chosen = ", ".join(
        f"{key} {value}" for key, value in options.items() if isinstance(value, str | int | float)
    )
    return text(f"{text(config.get(name), 80).replace('_', ' ')}{f' ({chosen})' if chosen else ''}", 500)


def _sites(sites: Any) -> str:
    if isinstance(sites, Mapping):
        return text(", ".join(f"{key} {value}" for key, value in sites.items()), 200)
    if isinstance(sites, list | tuple):
        return text(", ".join(_sites(site) for site in sites), 200)
    return f"block {sites}" if isinstance(sites, int) else text(sites, 200)


def _steps(run: RunRecord, steps: float | None, record: Mapping[str, Any]) -> str:
    if steps is None:
        return ""
    ended = {"steps": "", "max_seconds": "; ended by the clock", "patience": "; ended by patience"}
    why = ended.get(text(record.get("stopped_by")), "") if run.finished else "; still running or interrupted"
    return f"{steps:,.0f} of {run.settings.training.windows_per_step} windows{why}"


def _period(ends: Any) -> str:
    first_last = [text(end, 40).replace("T", " ") for end in rows(ends)]
    return " to ".join(first_last) if len(first_last) == 2 and all(first_last) else ""


def _count(value: Any, what: str) -> str:
    found = number(value)
    return "" if found is None else f"{found:,.0f} {what}"


def _machine(machine: Mapping[str, Any]) -> str:
    cores = number(machine.get("cores"))
    parts: Iterable[str] = (
        text(machine.get("processor"), 200),
        "" if cores is None else f"{cores:.0f} core{'s' * (cores != 1)}",
        text(machine.get("system"), 200),
    )
    return ", ".join(part for part in parts if part) or "not recorded"
