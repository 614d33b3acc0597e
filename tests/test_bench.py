"""Every section of the benchmarks, on a tiny backbone: that the rows are right, not how fast anything is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.benchmarks import __main__ as program
from scripts.benchmarks import fusion, inputs, measure
from scripts.benchmarks.measure import Comparison, Row, Seconds, Size, compare, quartiles
from tests.tiny import tiny_backbone

TINY = Size(
    "tiny",
    1,
    warmup=0,
    backbone="tiny",
    texts=2,
    tokens=9,
    new_tokens=3,
    windows=16,
    batches=2,
    steps=40,
    pairs=256,
)
CASES = {
    "fusion": [
        f"{mechanism} at {site}"
        for site in ("input", "block 2", "block 3", "output")
        for mechanism in ("gated_addition", "cross_attention")
    ]
    + [
        f"{mechanism} at {site}, prefix reuse"
        for site in ("output", "block 2")
        for mechanism in ("gated_addition", "cross_attention")
    ],
    "generate": [
        f"{mechanism} at {site}, batch {batch}"
        for mechanism, site in (
            ("gated_addition", "output"),
            ("cross_attention", "output"),
            ("cross_attention", "block 2"),
        )
        for batch in (1, 8)
    ],
    "loader": ["store in memory, batches of 16", "store on disk, batches of 16"],
    "mock": [
        "step alone: 2.9 M random weights, batch 2",
        "trainer: 2.9 M random weights, batch 2",
        "trainer: 2.9 M random weights, batch 2, prefix reuse",
    ],
    "prepare": [
        "prepare 256 pairs, 0.1 GB, 0.0 GB on disk",
        "waiting for 1 batches while training, cold disk, tiny-llama",
        "a step while coming batches are read beside it",
        "only loading all 252 pairs, no workers",
        "only loading all 252 pairs, 2 workers",
    ],
}


@pytest.fixture(autouse=True)
def _tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(inputs, "load_backbone", lambda name, dtype: tiny_backbone())
    inputs.backbone.cache_clear()
    yield
    inputs.backbone.cache_clear()


# The section of `test_json_holds_a_header_and_rows` is measured there.
@pytest.mark.parametrize(
    "section",
    [
        *(name for name in program.SECTIONS if name != "loader"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in program.ON_REQUEST),
    ],
)
def test_a_section_measures_each_of_its_cases(section: str) -> None:
    _check(section, list(import_module(f"scripts.benchmarks.{section}").rows(TINY)))


def _check(section: str, rows: list[Row]) -> None:
    assert [row.case for row in rows] == CASES[section]
    for row in rows:
        assert row.section == section
        assert row.repeats == 1
        assert row.spread[0] <= row.ratio <= row.spread[1]
        assert all(math.isfinite(x) and x > 0 for x in (row.ratio, row.seconds, row.rate, row.peak_gb))
        assert (row.aim is None) == (row.reached is None)


def test_the_floor_is_the_bare_loss_and_stops_at_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    # The untrained model's loss at zero gates is the backbone's own; the floor must arrive at the same number.
    loaded = tiny_backbone()
    batch = {**inputs.climate(2), **inputs.random_texts(300, 2, 9)}
    monkeypatch.setattr(fusion, "open_gates", lambda model: None)
    for site in ("input", 2, "output"):
        bare = fusion.floor(loaded, site, batch)()
        logits = loaded.model(input_ids=batch["input_ids"]).logits
        # 9 tokens, the last third labeled: 6, 7 and 8, told from the logits at 5, 6 and 7.
        by_hand = torch.nn.functional.cross_entropy(
            logits[:, 5:8].flatten(0, 1).float(), batch["input_ids"][:, 6:9].flatten()
        )
        torch.testing.assert_close(bare, by_hand)
        torch.testing.assert_close(fusion.fused_step(loaded, "gated_addition", site, batch)(), by_hand)


def test_the_floor_runs_no_backward_below_the_site() -> None:
    loaded = tiny_backbone()
    batch = inputs.random_texts(300, 2, 9)
    graph: dict[int, bool] = {}
    handles = [
        block.register_forward_hook(
            lambda module, args, output, k=k: graph.__setitem__(k, output.requires_grad)
        )
        for k, block in enumerate(loaded.model.model.layers)
    ]
    fusion.floor(loaded, 2, batch)()
    for handle in handles:
        handle.remove()
    assert graph == {0: False, 1: False, 2: True, 3: True}


def test_json_holds_a_header_and_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = import_module("scripts.benchmarks.loader")
    measured: list[Row] = []

    def rows(size: Size, real: Any = loader.rows) -> list[Row]:
        measured.extend(real(size))
        return measured

    monkeypatch.setattr(loader, "rows", rows)
    content = program.run(["loader"], TINY, tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text()) == content
    assert {"date", "cores", "threads", "versions", "processor", "size"} <= content["header"].keys()
    assert [row["case"] for row in content["rows"]] == CASES["loader"]
    for row in content["rows"]:
        assert {"section", "case", "ratio", "seconds", "peak_gb", "spread", "repeats"} <= row.keys()
    _check("loader", measured)
    table = capsys.readouterr().out
    assert all(case in table for case in CASES["loader"])


@pytest.mark.parametrize("arguments", [["nonsense"], ["--threads", "0"]])
def test_a_wrong_call_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert ended.value.code == 2
    assert "error" in capsys.readouterr().err


def test_sides_take_turns_and_warmup_does_not_count() -> None:
    calls: list[str] = []
    clock = iter([100, 100, 3, 2, 2, 2, 6, 2])  # A B | A B | B A | A B

    def side(name: str) -> Seconds:
        calls.append(name)
        return Seconds(next(clock))

    found = compare(lambda: side("A"), lambda: side("B"), repeats=3, warmup=1)
    assert "".join(calls) == "ABABBAAB"
    assert found.ratios == (3 / 2, 2 / 2, 6 / 2)
    assert (found.seconds, found.reference_seconds, found.ratio) == (3, 2, 1.5)
    assert found.inverse() == (2 / 3, 1, 1 / 3)


def test_quartiles() -> None:
    assert quartiles((1.0, 2.0, 3.0, 4.0, 5.0)) == (2.0, 4.0)
    assert quartiles((7.0,)) == (7.0, 7.0)


def test_the_peak_counts_what_was_held_for_a_while() -> None:
    measure.reset_peak()
    before = measure.peak_gb()
    found: Comparison = compare(lambda: bytearray(b"x" * 200_000_000), lambda: None, repeats=1, warmup=0)
    assert found.peak_gb - before > 0.15
