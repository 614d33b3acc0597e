"""Folders made in parts: only what a record vouches for is kept, and only for the same job."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from climafuse.data.parts import Parts, folder_in_parts
from climafuse.errors import DataError, OutputError, UsageError


def work(
    path: Path, upto: int, *, plan: int = 1, error: type[BaseException] | None = None, **options
) -> Parts:
    """Write parts up to a number, then fail or end."""
    counter = itertools.count()
    arguments = {
        "details": lambda: {"begun": next(counter)},
        "repeatable": True,
        "final": (DataError,),
        **options,
    }
    with folder_in_parts(path, {"plan": plan}, **arguments) as parts:
        for number in range(len(parts.records), upto):
            (parts.folder / str(number)).write_text(f"part {number}")
            parts.add({"number": number})
        if error is DataError:
            raise DataError("file", expected="a", received="b", remedy="c.")
        if error is not None:
            raise error
    return parts


def hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.parts")


def test_a_job_goes_on_after_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "made" / "folder"
    with pytest.raises(KeyboardInterrupt):
        work(path, 2, error=KeyboardInterrupt)
    assert not path.exists()
    parts = work(path, 3, details=lambda: pytest.fail("noted already"))
    assert parts.details == {"begun": 0}
    assert parts.records == [{"number": number} for number in range(3)]
    assert {file.name: file.read_text() for file in path.iterdir()} == {str(n): f"part {n}" for n in range(3)}
    assert not hidden(path).exists()


@pytest.mark.parametrize("torn", ['{"number": 2', '{"number"', "\n", "3\n", '{"number": 2}'])
def test_what_a_power_cut_left_of_a_record_does_not_count(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt):
        work(path, 2, error=KeyboardInterrupt)
    with (hidden(path) / "done.jsonl").open("a") as file:
        file.write(torn)
    with pytest.raises(KeyboardInterrupt):
        work(path, 3, error=KeyboardInterrupt)
    assert (hidden(path) / "done.jsonl").read_text() == "".join(f'{{"number": {n}}}\n' for n in range(3))
    assert len(work(path, 4).records) == 4


def test_another_plan_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt):
        work(path, 2, error=KeyboardInterrupt)
    with pytest.raises(UsageError, match="differs in plan"):
        work(path, 2, plan=2)
    assert len(work(path, 2).records) == 2


@pytest.mark.parametrize(
    ("finished", "options", "error"),
    [(0, {}, KeyboardInterrupt), (2, {}, DataError), (2, {"repeatable": False}, KeyboardInterrupt)],
    ids=["nothing finished", "data at fault", "not repeatable"],
)
def test_what_is_of_no_use_is_removed(tmp_path: Path, finished: int, options: dict, error: type) -> None:
    with pytest.raises(error):
        work(tmp_path / "folder", finished, error=error, **options)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_job_left_that_cannot_be_repeated_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt):
        work(path, 2, error=KeyboardInterrupt)  # as if killed: its parts stay
    (hidden(path) / "folder" / "stray").touch()
    assert work(path, 1, repeatable=False).records == [{"number": 0}]
    assert [file.name for file in path.iterdir()] == ["0"]


def test_a_disk_that_is_full_is_one_error_and_the_parts_stay(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(OutputError, match="goes on from the parts in"):
        work(path, 2, error=OSError)
    assert len(work(path, 2).records) == 2
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="nothing was left half-written"):
        work(tmp_path / "file" / "folder", 1)
