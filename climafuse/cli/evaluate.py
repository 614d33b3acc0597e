"""`climafuse evaluate`: do the words of a model come from the fields?"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from climafuse.cli.handler import NOT_GROUNDED, CheckpointArgument, print_table, print_weights, progress_line
from climafuse.errors import RunInterruptedError, spelled_out

# Whose columns the tables have.
ERRORS = ("true", "shown", "shuffled", "climatology", "last_training", "persistence", "regressor")
KINDS = ("true", "shown", "shuffled", "prior_guesser", "text_only", "place_only", "regressor", "oracle")


def evaluate(
    checkpoint: CheckpointArgument,
    climate: Annotated[
        str | None,
        typer.Option(
            "--climate",
            help="Ask about these fields' test times: a sample, store or files; default: those of the run.",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option("--pairs", help="Ask these pairs; default: those of the run.", show_default=False),
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.", show_default=False)
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls/--no-controls",
            help="Train text-only, place-only and regressor for as many steps as the model, once.",
        ),
    ] = True,
    questions: Annotated[
        int | None,
        typer.Option("--questions", min=1, help="Ask at most so many; default: all.", show_default=False),
    ] = None,
) -> None:
    """Ask a model the same questions under other fields, beside guessers and controls, and judge.

    What was answered is kept in RUN/evaluation: a stopped evaluation goes on. RUN/evaluation/evaluation.json is that of
    all questions about the run's own data; any other is beside it. Exit code 3: the model is not grounded, or it cannot
    be told.
    """
    from climafuse.evaluation.checkpoint import evaluate_checkpoint, write_json
    from climafuse.training.own_files import Result, check_result

    if json_ is not None:
        check_result(json_, "--json", Result.FIGURES)  # before anything is asked for nothing
    options: dict[str, Any] = {} if controls else {"controls": ()}
    with _ends_when_told():
        found = evaluate_checkpoint(
            checkpoint,
            climate=climate,
            pairs=pairs,
            num_questions=questions,
            say=lambda line: typer.echo(spelled_out(line), err=True),
            progress=lambda stage: progress_line(stage, goes_on=True),
            **options,
        )
    print_evaluation(found.record)
    if json_ is not None:
        write_json(json_, found.record)
    typer.echo(f"\nfigures: {json_ or found.path}")
    if not found.record["verdict"]["grounded"]:
        raise typer.Exit(NOT_GROUNDED)


@contextmanager
def _ends_when_told() -> Iterator[None]:
    """SIGTERM ends an evaluation as Ctrl-C does, and is told apart: what was answered is kept."""

    def end(number: int, frame: Any) -> None:
        raise RunInterruptedError(
            signal.Signals(number).name,
            expected="an evaluation to its end",
            received="a request to end it",
            remedy="The same command goes on: what was answered is kept, but for the last seconds.",
        )

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_evaluation(record: Mapping[str, Any]) -> None:
    """Print the tables of an evaluation."""
    print_weights(record["training"]["backbone"])
    _print_conditions(record)
    _print_trust(record["intervals"])
    _print_errors(record["conditions"])
    _print_kinds(record["conditions"])
    _print_withheld(record["withheld"])
    _print_abstention(record["abstention"])
    _print_left_out(record["num_left_out"])
    _print_polling(record["polling"])
    _print_verdict(record["verdict"])


def _print_conditions(record: Mapping[str, Any]) -> None:
    rows = []
    for name, row in record["conditions"].items():
        if row["f1"] is not None:
            rows.append(
                (
                    name,
                    row["label"],
                    _figure(row["f1"]),
                    _interval(row["interval"]),
                    _figure(row["precision"]),
                    _figure(row["recall"]),
                    _figure(row["invented_rate"]),
                    _figure(row["abstained"]),
                    _figure(row["token_loss"]),
                    _figure(row["bits_per_byte"]),
                    _figure(row["token_accuracy"]),
                )
            )
    typer.echo("")
    print_table(
        rows,
        header=(
            "condition", "", "F1", "95 %", "precision", "recall", "invented", "abstained", "loss", "bits/byte",
            "tokens right",
        ),
    )  # fmt: skip


def _print_trust(trust: Mapping[str, Any]) -> None:
    blocks = (
        f"{trust['num_blocks']} blocks of time and space, worth {_figure(trust['effective_blocks'], 1)} equal ones "
        f"({_figure(trust['effective_in_time'], 1)} in time, {_figure(trust['effective_in_space'], 1)} in space)"
    )
    lengths = _lengths(trust["field_hours"], trust["field_kilometers"])
    if trust["claimed"]:
        typer.echo(f"\nintervals: {blocks}; {lengths}")
        if trust["effective_in_time"] < 2:
            typer.echo("They hold for other places at these times; of other times one block tells nothing.")
        elif trust["effective_in_time"] < 10:
            typer.echo("They hold for times like these: few blocks of time tell little of others.")
    else:
        typer.echo(f"\nno intervals: {trust['why']} ({blocks}; {lengths})")


def _lengths(hours: float | None, kilometers: float | None) -> str:
    sides = [f"{length:,.0f} {unit}" for length, unit in ((hours, "hours"), (kilometers, "km")) if length]
    return (
        f"the fields are correlated over {' and '.join(sides)}"
        if sides
        else "correlation of the fields unknown"
    )


def _print_errors(conditions: Mapping[str, Any]) -> None:
    from climafuse.facts.kinds import FACT_KINDS

    names = [name for name in ERRORS if name in conditions]
    rows = []
    for key in sorted({key for name in names for key in conditions[name]["numeric_error"]}):
        kind, variable = key.split("/")
        unit = FACT_KINDS[kind].rules[variable].unit
        errors = [conditions[name]["numeric_error"].get(key) for name in names]
        rows.append((f"{kind} {variable} [{unit}]", *(_figure(error, 2) for error in errors)))
    if rows:
        typer.echo("")
        print_table(rows, header=("mean absolute error", *names))


def _print_kinds(conditions: Mapping[str, Any]) -> None:
    names = [name for name in KINDS if name in conditions]
    for title, key in (("F1 by kind", "by_kind"), ("F1 by variable", "by_variable")):
        rows = [
            (entry, *(_figure(conditions[name][key].get(entry)) for name in names))
            for entry in conditions["true"][key]
        ]
        typer.echo("")
        print_table(rows, header=(title, *names))


def _print_withheld(withheld: Mapping[str, Any]) -> None:
    typer.echo("")
    print_table(
        [
            (
                variable,
                _figure(row["abstained"]),
                row["num_questions"],
                _figure(row["others_f1"]),
                row["num_others"],
            )
            for variable, row in withheld.items()
        ],
        header=("withheld", "abstains", "questions", "F1 on others", "questions"),
    )


def _print_abstention(abstention: Mapping[str, Any]) -> None:
    if not abstention["num_questions"]:
        return
    reasons = ", ".join(
        f"{reason} {_figure(row['abstained'])} of {row['num_questions']}"
        for reason, row in abstention["by_reason"].items()
    )
    typer.echo(
        f"\nwithout an answer: abstains in {_figure(abstention['abstained'])} of {abstention['num_questions']} "
        f"questions ({reasons});\nanswerable: abstains in {_figure(abstention['false_abstentions'])} of "
        f"{abstention['num_answerable']}"
    )


def _print_left_out(num_left_out: int) -> None:
    if num_left_out:
        typer.echo(f"not asked: {num_left_out} questions to which the fields do not tell the answer")


def _print_polling(polling: Mapping[str, Any]) -> None:
    if not polling:
        return
    columns = ("num_questions", "accuracy", "precision", "recall", "f1", "yes_ratio", "unanswered")
    typer.echo("")
    print_table(
        [(name, *(row[column] for column in columns)) for name, row in polling.items()],
        header=("yes or no", *(column.replace("_", " ") for column in columns)),
    )


def _print_verdict(verdict: Mapping[str, Any]) -> None:
    typer.echo("")
    print_table(
        [
            (
                row["name"],
                {True: "passes", False: "FAILS"}.get(
                    row["passed"], "not clear" if row["measured"] else "not measured"
                ),
                _figure(row["value"]),
                _interval(row["interval"]),
                row["meaning"],
            )
            for row in verdict["checks"]
        ],
        header=("check", "", "difference", "95 %", ""),
    )
    words = {True: "read", False: "NOT READ", None: "not clear"}
    typer.echo("")
    for what, found in (("variable", verdict["variables"]), ("kind", verdict["kinds"])):
        told = [
            f"{name} {words[row['read']] if row['judged'] else 'too few questions'}"
            for name, row in found.items()
        ]
        typer.echo(f"by {what}: {', '.join(told)}")
    judged, bracket, rest = verdict["words"].partition(" (")
    typer.echo(f"\nverdict: {judged if verdict['grounded'] else judged.upper()}{bracket}{rest}")


def _figure(value: float | None, decimals: int = 3) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def _interval(interval: list[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
