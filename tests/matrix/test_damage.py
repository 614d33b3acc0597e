"""Damaged checkpoints: every one is detected, its file named, and the newest good one taken instead."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from climafuse.errors import CheckpointError
from climafuse.manifest import MANIFEST_NAME, UNVERIFIED_NAMES
from climafuse.training.checkpoint import newest_good_checkpoint, verify_checkpoint
from climafuse.training.pipeline import run
from tests.training.runs import make_config, save_backbone, write_climate

NEWEST, BEFORE = "checkpoint-6", "checkpoint-4"
FILES = (
    "chat_template.jinja",
    "config.json",
    "data.json",
    "generation_config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer.safetensors",
    "processor_config.json",
    "random.safetensors",
    "run.yaml",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    "training_state.json",
)
KINDS = (
    "truncated",
    "bit flipped",
    "emptied",
    "grown",
    "zero-filled",
    "swapped",
    "missing",
    "extra",
    "folder",
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real checkpoints, at steps 4 and 6."""
    folder = tmp_path_factory.mktemp("damage")
    parts = write_climate(folder / "fields.nc"), save_backbone(folder / "backbone")
    config = make_config(*parts, folder / "run", training={"steps": 6, "evaluation_interval": 6})
    run(replace(config, output=replace(config.output, save_interval=2)), say=lambda line: None)
    return folder / "run"


def mutations(kind: str, content: bytes, elsewhere: list[bytes], thorough: bool) -> Iterator[bytes | None]:
    """Contents of a damaged file; None for no file at all."""
    rng = random.Random(len(content))
    size = len(content)
    if kind == "truncated":
        ends = [size - 1, size // 2, 1, *(rng.randrange(1, size) for _ in range(3))]
        yield from (content[:end] for end in (ends if thorough else ends[:2]))
    elif kind == "bit flipped":
        places = [0, 8 * size - 1, *(rng.randrange(8 * size) for _ in range(14))]
        for place in places if thorough else places[-2:]:
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            yield bytes(flipped)
    elif kind == "emptied":
        yield b""
    elif kind == "grown":
        yield content + b"\n"
        yield content + content
    elif kind == "zero-filled":
        for start in (0, size // 2):  # as a file system leaves a block that never reached the disk
            yield content[:start] + bytes(min(512, size - start)) + content[start + 512 :]
    elif kind == "swapped":
        yield from elsewhere
    elif kind == "missing":
        yield None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        quick = ("manifest.json", "training_state.json")
        metafunc.parametrize("name", FILES if metafunc.config.option.thorough else quick)
        metafunc.parametrize("kind", KINDS)


def test_damage_is_detected_and_the_newest_good_one_taken(
    checkpoints: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    thorough: bool,
    cell: Any,
    name: str,
    kind: str,
) -> None:
    whole = (checkpoints / NEWEST / name).read_bytes()
    others = [checkpoints / BEFORE / name, checkpoints / NEWEST / FILES[FILES.index(name) - 1]]
    elsewhere = [path.read_bytes() for path in others if path.read_bytes() != whole]
    damaged = tmp_path / NEWEST / name
    if kind in ("extra", "folder"):
        contents: list[bytes | None] = [whole]
    else:
        contents = [found for found in mutations(kind, whole, elsewhere, thorough) if found != whole]
    cell("damage", name, kind, len(contents))
    shutil.copytree(checkpoints / BEFORE, tmp_path / BEFORE)
    shutil.copytree(checkpoints / NEWEST, tmp_path / NEWEST)
    assert newest_good_checkpoint(tmp_path) == tmp_path / NEWEST
    for content in contents:
        if kind == "extra":
            damaged = damaged.with_name(f"{name}.orig")
            damaged.write_bytes(whole)
        elif kind == "folder":
            damaged.unlink()
            damaged.mkdir()
        elif content is None:
            damaged.unlink()
        else:
            damaged.write_bytes(content)
        # Another manifest is one that the files do not fit: then a file is named.
        named = tmp_path / NEWEST if name == MANIFEST_NAME and kind == "swapped" else damaged
        with pytest.raises(CheckpointError) as caught:
            verify_checkpoint(tmp_path / NEWEST)
        assert caught.value.argument.startswith(str(named))
        caplog.clear()
        assert newest_good_checkpoint(tmp_path) == tmp_path / BEFORE
        (message,) = [entry.getMessage() for entry in caplog.records]
        assert str(named) in message
        assert "\n" not in message


def test_the_table_names_every_file_that_a_checkpoint_answers_for(checkpoints: Path) -> None:
    names = {path.name for path in (checkpoints / NEWEST).iterdir()}
    assert names - set(FILES) == UNVERIFIED_NAMES - {MANIFEST_NAME}


def test_a_checkpoint_under_another_name_is_passed_over(
    checkpoints: Path, tmp_path: Path, cell: object
) -> None:
    cell("damage", "the whole folder", "swapped")
    shutil.copytree(checkpoints / BEFORE, tmp_path / BEFORE)
    shutil.copytree(checkpoints / BEFORE, tmp_path / NEWEST)
    assert newest_good_checkpoint(tmp_path) == tmp_path / BEFORE


def test_a_run_that_ends_with_its_best_step_needs_it(checkpoints: Path, tmp_path: Path, cell: Any) -> None:
    """Going on without it would end with other weights than the uninterrupted run."""
    cell("damage", "the best checkpoint", "bit flipped")
    from climafuse.training.checkpoint import write_folder

    def save(step: int, best: int | None) -> Path:
        return write_folder(
            tmp_path / f"checkpoint-{step}",
            lambda folder: (folder / "weights").write_text(f"{step}"),
            kind="checkpoint",
            details={"step": step, "best_step": best},
        )

    save(1, None), save(2, 1), save(3, 3), save(4, 3)
    (tmp_path / "checkpoint-3" / "weights").write_text("?")
    assert newest_good_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert newest_good_checkpoint(tmp_path, with_best=False) == tmp_path / "checkpoint-4"
