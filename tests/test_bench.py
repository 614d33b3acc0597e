"""Every section of the benchmarks, on a tiny backbone: that the rows are right, not how fast anything is."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from climafuse.backbones import native
from climafuse.backbones.synthesize import write_random
from climafuse.backbones.widening import WidenedLinear
from climafuse.errors import TrainingError, UsageError
from climafuse.planning import planner
from scripts.benchmarks import __main__ as program
from scripts.benchmarks import (
    billion_case,
    billions,
    fusion,
    inputs,
    keeping,
    measure,
    own_process,
    plan,
    prefix,
    results,
)
from scripts.benchmarks.measure import Comparison, Row, Seconds, Size, compare, quartiles
from tests.planning.tiny_workload import counted
from tests.tiny import tiny_backbone, tiny_config, tiny_tokenizer

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
    ],
    "prefix": [
        *(
            f"tiny-llama, random weights, {mechanism} at {site}"
            for site in ("block 3", "output")
            for mechanism in ("gated_addition", "cross_attention")
        ),
        "preparation of 16 texts, warm disk",
        "10 lookups of 2 texts of 9 tokens, disk",
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
    "optimizer": [
        f"AdamW of 0.2 M float32 parameters: fused against {name}"
        for name in ("a loop over parameters", "foreach")
    ],
    "billions": [
        *(
            case
            for fusion in ("gated_addition", "cross_attention (20 heads)")
            for case in (
                f"gpt2-large bf16, {fusion}",
                f"gpt2-large bf16, {fusion}: peak ÷ 0.6 GB; 4 blocks ran, hash of frozen weights unchanged",
            )
        ),
        "gpt2-large bf16, cross_attention (20 heads): generation with climate ÷ bare, tokens/s",
        "gpt2-large bf16, cross_attention (20 heads): killed after 7 s and resumed, share of equal tensors and losses",
        "gpt2-large bf16, cross_attention (20 heads): seconds from the command to the end of the first step ÷ 90",
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
        *(
            pytest.param(name, marks=() if name in ("fusion", "optimizer") else pytest.mark.slow)
            for name in (*program.SECTIONS, "prepare")
            if name != "loader"
        ),
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


@pytest.fixture
def tiny_billions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Section `billions` with a tiny model for each architecture, measured in this process, and a cache of its own."""
    home = tmp_path / "home"
    monkeypatch.setenv("CLIMAFUSE_HOME", str(home))
    monkeypatch.setattr(
        inputs,
        "synthesize",
        lambda name, directory, progress: write_random(
            name, tiny_config("gpt2"), tiny_tokenizer(), directory
        ),
    )
    real = billions.Billion.case
    monkeypatch.setattr(billions.Billion, "case", lambda self, size: replace(real(self, size), tokens=128))
    return home


@pytest.mark.slow
def test_billions_measures_each_of_its_cases_once(
    tiny_billions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def here(spec: dict[str, Any]) -> dict[str, Any]:
        measured.append(spec["kind"])
        if spec["kind"] == "run":
            return {"identical": 1.0, "killed_after": 7.0, "first_step": 6.0, "seconds": 9.0, "peak_gb": 1.0}
        return billion_case.measure(**spec)

    monkeypatch.setattr(billions, "_measured", here)
    rows = list(billions.rows(TINY))
    assert measured == ["step", "step", "generate", "run"]
    assert [row.case for row in rows] == CASES["billions"]
    for row in rows[::2][:2]:
        assert row.details["every_block_ran"]
        assert row.details["blocks_run_a_step"] == 4
        assert row.details["frozen_unchanged"]
        assert row.details["random_weights"]
        assert row.details["loss_after"] < row.details["loss_before"]
    again = list(billions.rows(TINY))  # as after an interruption: nothing is measured twice
    assert len(measured) == 4
    assert [row.ratio for row in again] == [row.ratio for row in rows]
    path = next(keeping.folder(TINY, "billions").glob("*.json"))
    whole = path.read_text()
    path.write_text(whole[:99])
    with pytest.raises(UsageError, match="Remove the file"):
        list(billions.rows(TINY))
    path.write_text(whole)
    beside = replace(TINY, kept=tiny_billions / "figures")
    assert [row.ratio for row in billions.rows(beside)] != [row.ratio for row in rows]
    assert len(measured) == 8  # what is kept elsewhere is not known here
    assert all(row.measured.endswith(f"products in {keeping.products_in()}") for row in rows)
    for size in (TINY, beside):
        assert len(list(keeping.folder(size, "billions").glob("*.json"))) == 4
        keeping.forget(size, "billions")
        assert not list(keeping.folder(size, "billions").glob("*.json"))


@pytest.mark.slow
def test_a_quantized_case_and_several_models_together(tiny_billions: Path) -> None:
    one = billions.Billion("llama-3-8b", "cross_attention", {"heads": 2}, 1.5, 10.6, "int4")
    found = billion_case.measure("step", asdict(one.case(TINY)))
    assert found["distinct_floor_blocks"] == 4
    assert (found["every_block_ran"], found["frozen_unchanged"], found["quantization"]) == (
        True,
        True,
        "int4",
    )
    together = billion_case.measure(
        "together", [asdict(one.case(TINY)), asdict(billions.TABLE[0].case(TINY))]
    )
    plain = 4 * (3 * 32 * 32 + 32 * 32 + 8 * 32 * 32)  # weights of the matrices of four blocks
    assert together["weight_bytes"] > 2 * plain  # those of the one that is not quantized alone
    assert len(together["losses"]) == 2
    assert together["frozen_unchanged"]


def test_a_case_that_is_not_sound_reaches_no_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast it is, if a block did not run or a frozen weight changed."""
    found = {
        **dict.fromkeys(("weight_bytes", "trainable", "seconds", "floor_seconds", "ratio", "tokens"), 1),
        **dict.fromkeys(("peak_gb", "loss_before", "loss_after"), 0.1),
        **{"ratios": [1], "step_seconds": [1], "spread": [1, 1], "blocks": 4, "measured": ""},
    }
    for unchanged, ran in ((True, True), (False, True), (True, False)):
        result = {**found, "frozen_unchanged": unchanged, "every_block_ran": ran}
        monkeypatch.setattr(billions, "_kept", lambda *_, result=result: result)
        rows = list(billions._step_rows(billions.TABLE[4], TINY))
        assert [row.reached for row in rows] == [unchanged and ran] * 2
        assert ("NOT" in rows[1].case, "CHANGED" in rows[1].case) == (not ran, not unchanged)


@pytest.mark.slow
def test_a_run_is_killed_and_resumed_by_the_command_line(tiny_billions: Path) -> None:
    found = billions._killed_run(billions.TABLE[4].case(TINY), tiny_billions / "run")
    assert found["identical"] == 1.0
    assert 0 < found["first_step"] < found["seconds"]
    # In steps: seconds of two processes, each with its own start, cannot be compared.
    assert 2 <= found["killed_after_steps"] < billions.RUN_STEPS
    assert found["killed_after"] > 0
    assert len(found["losses"]) == billions.RUN_STEPS


def test_the_floor_is_the_bare_loss_and_stops_at_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    # The untrained model's loss at zero gates is the backbone's own; the floor must arrive at the same number.
    loaded = tiny_backbone()
    batch = {**inputs.climate(2), **inputs.random_texts(300, 2, 9)}
    monkeypatch.setattr(fusion, "open_gates", lambda model: None)
    monkeypatch.setattr(fusion, "products", lambda *_: contextlib.nullcontext())
    for site in ("input", 2, "output"):
        bare = fusion.floor(loaded, site, batch)()
        logits = loaded.model(input_ids=batch["input_ids"]).logits
        # 9 tokens, the last third labeled: 6, 7 and 8, told from the logits at 5, 6 and 7.
        by_hand = torch.nn.functional.cross_entropy(
            logits[:, 5:8].flatten(0, 1).float(), batch["input_ids"][:, 6:9].flatten()
        )
        torch.testing.assert_close(bare, by_hand)
        torch.testing.assert_close(fusion.fused_step(loaded, "gated_addition", site, batch)(), by_hand)


def test_the_bound_of_prefix_reuse_counts_each_weight() -> None:
    # By hand, of a fusion at the output: a token passes the weights of all blocks, 2 operations each, or none; a
    # labeled position the head, 2 forward and 2 back to its input. Attention, encoder and fusion are small beside.
    loaded = tiny_backbone("llama", hidden_size=256)
    batch = {**inputs.climate(2), **inputs.random_texts(300, 2, 60)}
    counts = []
    for reuse in (False, True):
        step = fusion.fused_step(loaded, "gated_addition", "output", batch, reuse=reuse)
        step()
        counts.append(prefix._operations(step))
    layers = loaded.model.model.layers
    blocks = sum(weight.numel() for weight in layers.parameters() if weight.ndim == 2)
    attention = (
        len(layers) * 2 * 2 * 60 * 60 * 256 * 2
    )  # of every position to every one: weights, and their sums
    assert counts[0] - counts[1] == pytest.approx(2 * blocks * 2 * 60 + attention, rel=0.01)


def test_the_bound_counts_products_in_another_type_forward_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2 operations a weight and token forward, and as many back to what lies below.
    monkeypatch.setattr(native, "_processor_multiplies", lambda dtype: False)
    for kind in (nn.Linear(64, 32, bias=False), Conv1D(32, 64)):
        layer = WidenedLinear(kind.bfloat16().requires_grad_(False))
        x = torch.randn(5, 64).bfloat16().requires_grad_()
        assert (
            prefix._operations(lambda x=x, layer=layer: layer(x).float().sum().backward()) == 4 * 5 * 64 * 32
        )


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


def test_a_floor_of_shared_blocks_goes_back_through_all(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, plain = (tiny_backbone("llama", num_blocks=7) for _ in range(2))
    monkeypatch.setattr(billion_case, "load_backbone", lambda *_, **options: plain)
    monkeypatch.setattr(billion_case, "backbone_of", lambda name: name)
    monkeypatch.setattr(billion_case, "memory_state", lambda: None)
    shared, distinct = billion_case._bare(
        billion_case.Case("any", "gated_addition", {}, quantization="int8"), loaded
    )
    assert distinct == 4
    assert len({id(block) for block in shared.model.model.layers}) == 4
    batch = inputs.random_texts(300, 2, 9)
    whole, parts = (prefix._operations(fusion.floor(each, "input", batch)) for each in (loaded, shared))
    assert whole == parts


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
    content = content["loader"]
    assert {"date", "cores", "threads", "versions", "processor", "size"} <= content["header"].keys()
    assert [row["case"] for row in content["rows"]] == CASES["loader"]
    for row in content["rows"]:
        assert {"section", "case", "ratio", "seconds", "peak_gb", "spread", "repeats"} <= row.keys()
    _check("loader", measured)
    table = capsys.readouterr().out
    assert all(case in table for case in CASES["loader"])


def test_sections_are_put_beside_those_of_earlier_runs(tmp_path: Path) -> None:
    row = Row(
        "one",
        "a case",
        1.25,
        (1.0, 1.5),
        "<= 1.30",
        True,
        2.0,
        1.6,
        3.0,
        "steps/s",
        0.5,
        3,
        "this ÷ that",
    ).to_dict()
    header = {
        "processor": "P", "cores": 2, "threads": 2, "products": "X", "versions": {"torch": "T"},
        "load_average_at_start": 0.1, "load_average_at_end": 0.2, "date": "today",
    }  # fmt: skip
    path = tmp_path / "figures.json"
    results.put(path, {"two": {"header": header, "rows": [{**row, "section": "two"}]}})
    results.put(path, {"one": {"header": header, "rows": [row]}})
    assert list(json.loads(path.read_text())) == ["one", "two"]
    table = (tmp_path / "figures.md").read_text()
    assert "| a case | 1.250 | 1.000 to 1.500 | <= 1.30 | yes | 2 | 3 steps/s | 0.50 |  |" in table
    assert "P, 2 cores, 2 threads, products of bfloat16 in X, torch T, load 0.1 to 0.2, today." in table
    results.put(path, {"one": {"header": header, "rows": [{**row, "ratio": 9.0, "reached": False}]}})
    assert "| a case | 9.000 |" in (tmp_path / "figures.md").read_text()


@pytest.mark.parametrize(
    "content",
    [
        '{"one": {"hea',
        "[]",
        '{"header": {}, "rows": []}',
        "notes of mine",
        '{"one": {"header": {}, "rows": [{}]}}',
        '{"one": {"header": 1, "rows": 2}}',
    ],
)
def test_what_no_bench_has_written_is_refused_before_anything_is_measured(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    path.write_text(content)
    monkeypatch.setattr(program, "import_module", lambda name: pytest.fail("measured"))
    assert program.main(["loader", "--json", str(path)]) == 2
    assert "a file that scripts/bench has written" in capsys.readouterr().err
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("table.md", 2, "a file named .json"),
        ("figures", 2, "a file named .json"),
        ("a file/it.json", 1, "a file/it"),
    ],
)
def test_a_destination_that_cannot_be_is_refused_before_anything_is_measured(
    name: str,
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a file").write_text("of mine")
    monkeypatch.setattr(program, "import_module", lambda name: pytest.fail("measured"))
    assert program.main(["loader", "--json", str(tmp_path / name)]) == code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import sys; sys.exit(3)", "ended with 3"),
        ("import time; time.sleep(60)", "none within"),
    ],
)
def test_a_case_whose_process_fails_ends_with_a_message(
    body: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_case.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=told):
        own_process.measure("failing_case", {}, limit=0.5 if "sleep" in body else None)


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


def test_reads_from_the_disk_count_for_the_side_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    total = [0]
    monkeypatch.setattr(measure, "_disk_reads", lambda: total[0])

    def side(reads: int) -> Seconds:
        total[0] += reads
        return Seconds(1)

    assert compare(lambda: side(2), lambda: side(7), repeats=3, warmup=1).disk_reads == (6, 21)


def test_the_committed_table_is_made_of_the_committed_figures() -> None:
    path = Path(results.__file__).parents[1] / "bench_results.json"
    held = results.read(path)
    assert path.with_suffix(".md").read_text(encoding="utf-8") == results.table(held)
    named = {"fusion", "prefix", "generate", "loader", "billions", "plan", "mock", "optimizer"}
    assert named <= held.keys()
    for name, section in held.items():
        assert section["rows"], name
        assert all(name.startswith(row["section"]) for row in section["rows"])


def test_quartiles() -> None:
    assert quartiles((1.0, 2.0, 3.0, 4.0, 5.0)) == (2.0, 4.0)
    assert quartiles((7.0,)) == (7.0, 7.0)


def test_the_peak_counts_what_was_held_for_a_while() -> None:
    measure.reset_peak()
    before = measure.peak_gb()
    found: Comparison = compare(lambda: bytearray(b"x" * 200_000_000), lambda: None, repeats=1, warmup=0)
    assert found.peak_gb - before > 0.15


def test_plan_compares_time_and_peak_of_each_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = write_random("tiny", tiny_config("gpt2"), tiny_tokenizer(), tmp_path / "backbone")
    monkeypatch.setattr(
        plan, "TABLE", (plan.Planned("tiny", str(backbone), {"sites": "input", "dtype": "float32"}),)
    )
    monkeypatch.setattr(planner, "measure", counted)
    found = {"peak_gb": 0.5, "seconds": 2.0, "planned_seconds": 2.2, "ratios": [1.1, 1.3, 1.2], "parts": {}}
    monkeypatch.setattr(plan, "_measured", lambda case: found)
    time, peak = plan.rows(replace(TINY, name="full"))
    assert (time.case, time.ratio, time.reached) == ("tiny, random weights: seconds", 1.2, True)
    assert peak.case == "tiny, random weights: peak"
    # A typical process of 0.624 GB, and 3 MB.
    assert peak.ratio == peak.details["planned_peak_gb"] / 0.5 == pytest.approx(0.627 / 0.5, abs=0.005)
    assert not peak.reached
    assert peak.details["random_weights"]
