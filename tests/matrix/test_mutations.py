"""Mutated climate files, opened and read to the last value in another process.

Whatever happened to a file, one of these comes of it: it is refused with a typed error in one line; it reads as
before (what was hit is padding, or space that nothing uses); its fields are altered, where the format has no
checksum and so no library can tell; or the bytes that were hit make it a whole and valid file that says something
else, such as another number in `units`. Never another exception, a warning, a hang, gigabytes of memory, a crash,
or fields on axes that are no axes. (Where Zarr finds no chunk it takes the fill value, by its specification.)
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.matrix.mutations import BYTES, CHECKED, FILES, FOLDERS, STORES, mutate_file

WORKER = Path(__file__).with_name("reading_worker.py")
SECONDS = 20.0  # for one file
CASES = [(product, kind) for product in FILES for kind in BYTES] + [
    (product, kind) for product in FOLDERS for kind in STORES
]


class Reader:
    """The worker process; a new one where the last died or hung."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def read(self, path: Path) -> dict[str, Any]:
        """What the worker says of a file, or what became of the worker."""
        process = self.process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        written = self.noise.tell()
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        line = process.stdout.readline() if ready else ""
        if not line:
            self.stop()
            return {"outcome": "crash" if ready else "hang", "type": str(process.returncode), "warnings": []}
        found: dict[str, Any] = json.loads(line)
        self.noise.seek(0, os.SEEK_END)
        if self.noise.tell() > written:
            self.noise.seek(written)
            found["warnings"].append("on standard error: " + self.noise.read(300))
            self.noise.seek(0, os.SEEK_END)
        return found

    def _start(self) -> subprocess.Popen[str]:
        self.noise = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed by stop
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.noise, text=True, bufsize=1,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
        return self.process

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.noise.close()
            self.process = None


@pytest.fixture(scope="module")
def reader():
    reader = Reader()
    yield reader
    reader.stop()


@pytest.fixture(scope="module")
def originals(tmp_path_factory, reader):
    """Each product as it was written, and what the worker reads from it."""
    folder = tmp_path_factory.mktemp("originals")
    made = {}
    for number, (name, write) in enumerate((FILES | FOLDERS).items()):
        write(folder / str(number))
        found = reader.read(folder / str(number))
        assert found["outcome"] == "read", found
        assert not found["problems"] + found["warnings"], found
        made[name] = (folder / str(number), found)
    return made


def judge(original: dict[str, Any], found: dict[str, Any], *, checked: bool) -> tuple[str, str | None]:
    """(What came of a mutated file, what is wrong with that)."""
    if found["warnings"]:
        return "warned", str(found["warnings"])
    if found["outcome"] == "refused":
        return "refused", None if "\n" not in found["line"] else found["line"]
    if found["outcome"] != "read" or found["problems"]:
        return "wrong", str(found)
    if found == original:
        return "unharmed", None
    if found["coordinates"] != original["coordinates"] or _attributes(found) != _attributes(original):
        return "says otherwise", None
    return "altered", "altered values in spite of a checksum" if checked else None


def _attributes(found: dict[str, Any]) -> dict[str, list[str]]:
    return {name: attributes for name, (_, *attributes) in found["fields"].items()}


def pytest_generate_tests(metafunc):
    if "kind" in metafunc.fixturenames:
        cases = CASES if metafunc.config.option.thorough else CASES[::5]
        metafunc.parametrize(("product", "kind"), cases, ids=lambda value: value.replace(" ", "-"))


@pytest.mark.sampled(4)
def test_mutated_files(product, kind, originals, reader, tmp_path, thorough, cell):
    cases = 12 if thorough else 1
    cell("mutations", product, kind, cases)
    path, original = originals[product]
    outcomes: Counter[str] = Counter()
    wrong = []
    for case in range(cases):
        random = np.random.default_rng([CASES.index((product, kind)), case])
        copy = tmp_path / f"{case}"
        if path.is_dir():
            shutil.copytree(path, copy)
            STORES[kind](copy, random)
        else:
            shutil.copyfile(path, copy)
            mutate_file(kind)(copy, random)
        outcome, reason = judge(original, reader.read(copy), checked=kind in CHECKED.get(product, ()))
        outcomes[outcome] += 1
        if reason is not None:
            wrong.append(f"case {case}: {reason}")
        with contextlib.suppress(OSError):
            shutil.rmtree(copy) if copy.is_dir() else copy.unlink()
    for outcome, count in outcomes.items():
        cell("mutations: what came of them", product, outcome, count)
    assert not wrong, "\n".join(wrong)
