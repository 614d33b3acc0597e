"""What every test shares: no network, one thread, a cache of its own, and the tables of `scripts/matrix`."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import settings

# Set before anything imports them. A test that reached a hub would depend on the day it runs.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start, too

# The quick suite tries few examples of a property, `--thorough` as many as the tables promise.
settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("thorough", max_examples=300, deadline=None)

Cell: TypeAlias = Callable[..., None]
_PROPERTY = "cell"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="try every case, not a sample of them")
    parser.addoption("--tables", action="store_true", help="print which cells of which tables were tested")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("thorough" if config.option.thorough else "quick")
    config.pluginmanager.register(_Tables(), "tables")
    # A job in the background of a shell ignores Ctrl-C, and so would the processes whose interruption is tested.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m looks at what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of tests marked `sampled(every)`, each so many-th case stays fast."""
    num: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is not None:
            name = item.nodeid.partition("[")[0]
            if num[name] % mark.args[0]:
                item.add_marker("slow")
            num[name] += 1


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors: threads cost more than they give, and without them results are repeatable."""
    import torch

    torch.set_num_threads(1)
    # All tests are imported by now, and with them most libraries: a million objects that no collection need look at.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test turns the power off: writing through to the disk, and removing what was, took a fifth of the time.

    Whether syncs come, and in which order, is told by tests that put their own in this one's place; what comes of them
    if they fail, or if the process dies between two, by processes of their own, which do sync.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            os, "fsync", lambda descriptor: os.fstat(descriptor) and None
        )  # refused still if closed
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_measuring_of_processes() -> Iterator[None]:
    """A plan measures once what a process of training holds, in one of its own: nine seconds, kept in a cache.

    Here it takes the typical one. `tests/planning/test_base.py` measures.
    """
    from climafuse.planning import base

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_measured", lambda modules, tokenizer: None)
        yield


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """The command line sets the log up for its process; here many calls share one.

    As after an import, before each test, too: fixtures of a module call the command line before this one runs.
    """
    log = logging.getLogger("climafuse")

    def as_imported() -> None:
        log.setLevel(logging.NOTSET)
        log.handlers[:], log.propagate = [], True

    as_imported()
    yield
    as_imported()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fields.nc, backbone/, run.yaml, a finished run/ of eight steps, and what `train --json` printed.

    For all files of tests, which leave it as it is: copy what you write to. Eight steps are too few to learn anything.
    """
    from typer.testing import CliRunner

    from climafuse.cli.app import app
    from tests.training.runs import save_backbone, settings, write_climate

    folder = tmp_path_factory.mktemp("finished")
    content = settings(
        write_climate(folder / "fields.nc"), save_backbone(folder / "backbone"), folder / "run"
    )
    content["data"]["test_windows"] = 12  # ten tell something
    (folder / "run.yaml").write_text(json.dumps(content))
    result = CliRunner().invoke(app, ["train", str(folder / "run.yaml"), "--json"])
    assert result.exit_code == 0, result.output
    (folder / "result.json").write_text(result.stdout)
    return folder


@pytest.fixture(scope="session")
def controlled_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of that run with its trained controls; the folder of the run. For all files of tests: copy it, too."""
    import shutil

    from climafuse.evaluation.controls import train_controls

    folder = Path(shutil.copytree(finished_run / "run", tmp_path_factory.mktemp("controlled") / "run"))
    train_controls(folder, say=lambda line: None)
    return folder


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether every case shall be tried."""
    return bool(request.config.option.thorough)


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Cell:
    """Say which cell of a table the test fills: `cell(table, row, column, cases=1)`, before what can fail.

    With `figure="95 %"` the cell shows what was measured rather than how many cases passed.
    """

    def record(table: str, row: str, column: str, cases: int = 1, figure: str = "") -> None:
        request.node.user_properties.append((_PROPERTY, (table, row, column, cases, figure)))

    return record


class _Tables:
    """Collects the cells of finished tests and prints the tables."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[tuple[str, str], list[Any]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            for name, value in report.user_properties:
                if name == _PROPERTY:
                    table, row, column, cases, figure = value
                    counts = self.tables.setdefault(table, {}).setdefault((row, column), [0, 0, ""])
                    counts[0 if report.passed else 1] += cases
                    counts[2] = figure

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> None:
        for table, cells in self.tables.items() if config.option.tables else ():
            passed, failed = (sum(counts[which] for counts in cells.values()) for which in (0, 1))
            terminalreporter.section(f"{table}: {passed:,} passed, {failed:,} failed")
            for line in _lines(cells):
                terminalreporter.write_line(line)


def _lines(cells: dict[tuple[str, str], list[Any]]) -> Iterator[str]:
    """The table: cases passed or a figure in each cell, "-" where there is none, failures after an exclamation mark."""
    columns = list(dict.fromkeys(column for _, column in cells))
    written = [["", *columns]]
    for row in dict.fromkeys(row for row, _ in cells):
        counts = [cells.get((row, column)) for column in columns]
        written.append(
            [row, *("-" if c is None else f"{c[2] or c[0]}" + f" !{c[1]}" * bool(c[1]) for c in counts)]
        )
    widths = [max(map(len, column)) for column in zip(*written, strict=True)]
    for first, *rest in written:
        yield "  ".join(
            [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        )
