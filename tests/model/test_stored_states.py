"""States kept in memory and on the disk. Oracles: the states computed anew, and the safetensors library."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from climafuse.backbones import LoadedBackbone, find_blocks, prefix_states
from climafuse.data.lock import in_use, remove_unused
from climafuse.memory import MemoryState
from climafuse.model import ClimateTextForCausalLM, DiskStates, MemoryStates, PrefixStore, stored_states
from climafuse.model.stored_states import group_key, states_identity
from tests.model.build import make_batch, make_model
from tests.model.test_reuse import as_batch, texts_of_many_kinds
from tests.tiny import in_every_architecture, tiny_backbone

Tokens = tuple[int, ...]
WIDTH = 32


def store_of(
    model: ClimateTextForCausalLM, folder: Path, said: list[str] | None = None, limit: int | None = None
) -> PrefixStore:
    say = [].append if said is None else said.append
    states = DiskStates.of(model, folder=folder, limit=limit, say=say)
    return PrefixStore(model.backbone, model.prefix_site, batch=3, states=states, say=say)


def in_memory(model: ClimateTextForCausalLM) -> PrefixStore:
    return PrefixStore(model.backbone, model.prefix_site, batch=3)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def count_blocks(model: ClimateTextForCausalLM) -> list[int]:
    """Numbers of blocks that ran, in order."""
    ran: list[int] = []
    for number, block in enumerate(find_blocks(model.backbone).blocks):
        block.register_forward_hook(lambda module, args, output, number=number: ran.append(number))
    return ran


def test_processes_of_a_machine_take_a_quarter_of_its_free_memory_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stored_states, "memory_state", lambda: MemoryState(1, 1, 1200, 9999))
    assert MemoryStates().limit == 300
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert MemoryStates().limit == 100
    assert MemoryStates(77).limit == 77


@pytest.mark.parametrize("site", [2, "output"])
@in_every_architecture
def test_a_later_run_finds_the_same_bits_and_runs_no_block(
    architecture: str, site: Any, tmp_path: Path
) -> None:
    model = make_model(architecture, sites=site)
    texts = texts_of_many_kinds()
    memory = in_memory(model)
    memory.add(texts)
    expected = memory.lookup(*as_batch(texts))
    store_of(model, tmp_path).add(texts)
    ran = count_blocks(model)
    later = store_of(model, tmp_path)
    later.add(texts)
    assert len(later) == len(texts)
    assert torch.equal(later.lookup(*as_batch(texts)), expected)
    assert ran == []
    for row, text in enumerate(texts):
        alone = prefix_states(model.backbone, site, input_ids=torch.tensor([text]))[0]
        torch.testing.assert_close(
            expected[row, : len(text)], alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max())
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_file_is_plain_safetensors(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_model(sites=2, dtype=dtype)
    texts = [(5, 6, 7, 8), (5, 6, 9)]
    store = store_of(model, tmp_path)
    store.add(texts)
    (path,) = files(tmp_path)
    rows = load_file(path)["states"]  # what both begin with, then the rest of each, sorted
    states = store.lookup(*as_batch(texts))
    assert rows.dtype == dtype
    assert torch.equal(rows, torch.cat([states[0, :2], states[0, 2:4], states[1, 2:3]]))
    assert [file.suffix for file in tmp_path.rglob("*") if file.is_file()] == [".safetensors"]


def test_what_is_found_does_not_depend_on_what_others_have_stored(tmp_path: Path) -> None:
    # In bfloat16 the bits of a state depend on the texts that it is computed with.
    model = make_model(sites=3, dtype=torch.bfloat16)
    texts = texts_of_many_kinds()
    memory = in_memory(model)
    memory.add(texts)
    for part in (texts[::2], texts[1::3], [(1, 2, 3), *texts[:4]]):
        store_of(model, tmp_path).add(part)
    store = store_of(model, tmp_path)
    store.add(texts)
    assert torch.equal(store.lookup(*as_batch(texts)), memory.lookup(*as_batch(texts)))


def test_loss_and_gradients_are_those_with_states_in_memory(tmp_path: Path) -> None:
    model = make_model(sites=(2, "output")).train()
    batch = make_batch(model)
    rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    texts = [tuple(row[mask].tolist()) for row, mask in rows]
    results = []
    for store in (in_memory(model), store_of(model, tmp_path), store_of(model, tmp_path)):
        model.prefix_store = store
        store.add(texts)
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        results.append([output.loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


def _identity(model: ClimateTextForCausalLM, site: Any = 2) -> dict[str, Any]:
    return states_identity(model, site)


def test_states_are_of_one_model_one_form_and_one_place() -> None:
    model = make_model(sites=2)
    plain = _identity(model)
    assert _identity(make_model(sites=2)) == plain  # the same weights
    assert _identity(make_model(sites=2, lora={"rank": 1, "layers": [3]})) == plain  # adapters above
    others = [
        _identity(model, 3),
        _identity(model, "output"),
        _identity(make_model(sites=2, dtype=torch.bfloat16)),
        _identity(make_model("mistral", sites=2)),
    ]
    with torch.no_grad():
        other = tiny_backbone()
        other.model.get_input_embeddings().weight[3, 3] += 1
    changed = LoadedBackbone.from_model(other.model, other.tokenizer, id=other.identity["id"])
    for name, value in (("backbone_quantization", "int8"),):
        quantized = make_model(sites=2)
        setattr(quantized.config, name, value)
        others.append(_identity(quantized))
    eager = make_model(sites=2)
    eager.backbone.set_attn_implementation("eager")
    others.append(_identity(eager))
    rotated = make_model(sites=2)  # of the same weights
    rotated.backbone.config.rope_parameters = {**rotated.backbone.config.rope_parameters, "rope_theta": 7.0}
    others.append(_identity(rotated))
    with pytest.MonkeyPatch.context() as patch:  # a processor that multiplies otherwise
        patch.setattr(stored_states, "product_dtype", lambda dtype, device: torch.bfloat16)
        others.append(_identity(make_model(sites=2)))
    others.append({**plain, "weights": changed.identity["content_hash"]})
    assert all(one != other for number, one in enumerate([plain, *others]) for other in others[number:])


def test_states_of_another_model_are_not_found(tmp_path: Path) -> None:
    texts = texts_of_many_kinds()
    one, other = make_model(sites=2), make_model(sites=3)
    store_of(one, tmp_path).add(texts)
    before = files(tmp_path)
    store = store_of(other, tmp_path)
    store.add(texts)
    assert len(files(tmp_path)) == 2 * len(before)
    expected = in_memory(other)
    expected.add(texts)
    assert torch.equal(store.lookup(*as_batch(texts)), expected.lookup(*as_batch(texts)))
    # Nor where somebody has put its file.
    said: list[str] = []
    shutil.copy(before[0], store.states.folder / before[0].name)  # type: ignore[attr-defined]
    again = store_of(other, tmp_path, said)
    assert "another model" in said[0]
    again.add(texts)
    assert torch.equal(again.lookup(*as_batch(texts)), expected.lookup(*as_batch(texts)))


# ---- Damage


def _flip(position: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[position] ^= 0x10
        path.write_bytes(content)

    return damage


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a bit of the states": _flip(-5),
    "a bit of the header": _flip(40),
    "its first byte": _flip(0),
    "the length of the header": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "cut in the states": lambda path: os.truncate(path, path.stat().st_size - 4096),
    "cut in the header": lambda path: os.truncate(path, 100),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": _folder,
}


@pytest.mark.parametrize("when", ["before it is opened", "in use"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.sampled(3)
def test_what_is_damaged_is_said_and_computed_again(damage: str, when: str, tmp_path: Path) -> None:
    if damage == "a folder" and when == "in use":
        pytest.skip("the file that is open stays what it is")
    model = make_model(sites=3, dtype=torch.bfloat16)
    texts = [*texts_of_many_kinds(), *texts_of_many_kinds(seed=1)]
    expected = in_memory(model)
    expected.add(texts)
    store_of(model, tmp_path).add(texts)
    said: list[str] = []
    store = store_of(model, tmp_path, said)
    if when == "in use":
        store.add(texts)
        store.lookup(*as_batch(texts[:1]))
    (path,) = files(tmp_path)
    DAMAGES[damage](path)
    if when != "in use":
        store = store_of(model, tmp_path, said)
        store.add(texts)
    ran = count_blocks(model)
    for _ in range(2):
        assert torch.equal(store.lookup(*as_batch(texts)), expected.lookup(*as_batch(texts)))
    unseen = when == "in use" and damage in (
        "a bit of the header",
        "its first byte",
        "the length of the header",
    )
    assert bool(said) != unseen  # a header is not read twice
    if said:
        assert str(path) in said[0]
        assert "computed again" in said[0]
    store.states.flush()
    del ran[:]
    healed = store_of(model, tmp_path)
    healed.add(texts)
    if not unseen and damage != "a folder":
        assert ran == []
    assert torch.equal(healed.lookup(*as_batch(texts)), expected.lookup(*as_batch(texts)))


def test_a_file_that_was_removed_is_computed_again_without_a_word(tmp_path: Path) -> None:
    model, said = make_model(sites=2), list[str]()
    texts = texts_of_many_kinds()
    store_of(model, tmp_path).add(texts)
    store = store_of(model, tmp_path, said)
    for path in files(tmp_path):
        path.unlink()
    store.add(texts)
    expected = in_memory(model)
    expected.add(texts)
    assert torch.equal(store.lookup(*as_batch(texts)), expected.lookup(*as_batch(texts)))
    assert said == []


# ---- Bounds


def _group(number: int, tokens: int = 8) -> tuple[str, list[Tensor]]:
    return group_key([(number,) * tokens]), [
        torch.empty(0, WIDTH),
        torch.full((tokens, WIDTH), float(number)),
    ]


GROUP_BYTES = 8 * WIDTH * 4


def _fill(states: DiskStates, numbers: Sequence[int]) -> None:
    for number in numbers:
        assert states.put(*_group(number))
        states.flush()  # a file each


def _held(states: DiskStates | MemoryStates, numbers: Sequence[int]) -> list[int]:
    return [number for number in numbers if states.find(_group(number)[0], [0, 8])]


def test_states_under_the_name_of_others_are_not_taken(tmp_path: Path) -> None:
    # Every checksum of a part would be right.
    said: list[str] = []
    states = DiskStates({}, folder=tmp_path)
    for number in (1, 2):
        states.put(*_group(number))
    states.flush()
    (path,) = files(tmp_path)
    one, other = (_group(number)[0].encode() for number in (1, 2))
    content = path.read_bytes()
    path.write_bytes(content.replace(one, b"-").replace(other, one).replace(b"-", other))
    again = DiskStates({}, folder=tmp_path, say=said.append)
    assert _held(again, [1, 2]) == []
    assert "header" in said[0]


def test_the_least_recently_used_files_make_room(tmp_path: Path) -> None:
    _fill(DiskStates({"of": "one"}, folder=tmp_path), [1])
    limit = int(5.5 * files(tmp_path)[0].stat().st_size)
    _fill(DiskStates({"of": "one"}, folder=tmp_path, limit=limit), [2])
    _fill(DiskStates({"of": "another"}, folder=tmp_path, limit=limit), [3, 4])
    for age, path in enumerate(sorted(files(tmp_path), key=lambda path: path.stat().st_mtime)):
        os.utime(path, (1000 + age, 1000 + age))
    reader = DiskStates({"of": "one"}, folder=tmp_path)
    assert _held(reader, [1]) == [1]  # used now, and marked as used
    del reader  # no longer
    _fill(DiskStates({"of": "a third"}, folder=tmp_path, limit=limit), [5, 6, 7])
    assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
    assert _held(DiskStates({"of": "one"}, folder=tmp_path), [1, 2]) == [1]
    assert _held(DiskStates({"of": "another"}, folder=tmp_path), [3, 4]) == [4]
    assert _held(DiskStates({"of": "a third"}, folder=tmp_path), [5, 6, 7]) == [5, 6, 7]


def test_files_in_use_stay_and_the_rest_goes_to_memory(tmp_path: Path) -> None:
    limit, said = 3 * (GROUP_BYTES + 600), list[str]()
    _fill(DiskStates({"of": "one"}, folder=tmp_path, limit=limit), [1, 2, 3])
    reader = DiskStates({"of": "one"}, folder=tmp_path)
    assert _held(reader, [1, 2, 3]) == [1, 2, 3]
    writer = DiskStates({"of": "another"}, folder=tmp_path, limit=limit, say=said.append)
    _fill(writer, [4, 5])
    assert len(said) == 1
    assert "training.prefix_store_gb" in said[0]
    assert "kept in memory" in said[0]
    assert _held(writer, [4, 5]) == [4, 5]
    part = writer.part(_group(5)[0], 1)
    assert part is not None
    assert torch.equal(part, _group(5)[1][1])
    assert len(files(tmp_path)) == 3
    assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
    found = reader.part(_group(2)[0], 1)
    assert found is not None
    assert torch.equal(found, _group(2)[1][1])


def test_a_run_does_not_remove_what_it_has_written_itself(tmp_path: Path) -> None:
    _fill(DiskStates({}, folder=tmp_path / "measured"), [1])
    limit = int(3.5 * files(tmp_path)[0].stat().st_size)
    folder = tmp_path / "states"
    states = DiskStates({}, folder=folder, limit=limit)
    kept = [states.put(*_group(number)) and states.flush() for number in range(1, 7)]
    assert kept == [True, True, True, False, False, False]
    assert _held(states, range(1, 7)) == [1, 2, 3]
    assert states._instead is not None
    assert states._instead.limit + sum(path.stat().st_size for path in files(folder)) <= limit
    del states
    other = DiskStates({"of": "another"}, folder=folder, limit=limit)
    _fill(other, [7, 8, 9])  # used no longer
    assert _held(other, [7, 8, 9]) == [7, 8, 9]


def test_a_full_disk_store_says_so_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_states, "FILE_BYTES", 1)
    model, said = make_model(sites=2), list[str]()
    texts = texts_of_many_kinds()
    expected = in_memory(model)
    expected.add(texts)
    limit = sum(path.stat().st_size for path in _stored(model, texts, tmp_path / "all")) // 2
    store = store_of(model, tmp_path / "half", said, limit)
    store.add(texts)
    (line,) = said
    kept = [text for text in texts if store._kept(text) is not None]
    assert 0 < len(kept) < len(texts)
    assert f"full with {len(kept)} of {len(texts)} texts" in line
    for _ in range(2):
        torch.testing.assert_close(store.lookup(*as_batch(texts)), expected.lookup(*as_batch(texts)))
        assert [text for text in texts if store._kept(text) is not None] == kept
    assert sum(path.stat().st_size for path in files(tmp_path / "half")) <= limit


def _stored(model: ClimateTextForCausalLM, texts: list[Tokens], folder: Path) -> list[Path]:
    store_of(model, folder).add(texts)
    return files(folder)


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "rb")
fcntl.flock(file, fcntl.LOCK_SH)
print("held", flush=True)
input()
"""


def test_what_another_process_uses_is_not_removed_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert not remove_unused(path)
        process.kill()
        process.wait()
    with in_use(path):
        assert not remove_unused(path)
    assert remove_unused(path)
    assert not path.exists()
    assert remove_unused(path)


def test_unfinished_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    states = DiskStates({}, folder=tmp_path)
    _fill(states, [1])
    old, new = (states.folder / f".{name}.safetensors.0000.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    _fill(states, [2])
    assert not old.exists()
    assert new.exists()  # somebody may be writing it


def _closed(monkeypatch: pytest.MonkeyPatch, name: str, closed: Path) -> None:
    """A method of paths fails for one of them, as of a folder with mode 0700 of another user."""
    method = getattr(Path, name)

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return method(path, *args, **options)

    monkeypatch.setattr(Path, name, refuse)


@pytest.mark.parametrize("name", ["mkdir", "iterdir"])
def test_a_folder_that_cannot_be_made_or_listed_is_told_and_memory_serves(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    states = DiskStates({"of": "one"}, folder=tmp_path, say=said.append)
    _closed(monkeypatch, name, states.folder if name == "mkdir" else tmp_path)
    _fill(states, [1, 2])
    assert _held(states, [1, 2]) == [1, 2]
    assert len(said) == 1
    assert "Permission denied" in said[0]
    assert "kept in memory" in said[0]
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["iterdir", "stat"])
def test_what_another_user_has_closed_is_not_counted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    _fill(DiskStates({"of": "another"}, folder=tmp_path), [1])
    (foreign,) = files(tmp_path)
    _closed(monkeypatch, name, foreign.parent if name == "iterdir" else foreign)
    # Room for a file, not for two.
    states = DiskStates({"of": "one"}, folder=tmp_path, limit=int(1.5 * (GROUP_BYTES + 600)), say=said.append)
    _fill(states, [2])
    assert said == []
    assert len(os.listdir(states.folder)) == 1
    assert os.path.exists(foreign)


@pytest.mark.parametrize("fault", ["no folder", "disk full", "locked"])
def test_where_nothing_can_be_written_states_are_kept_in_memory(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, said = make_model(sites=2), list[str]()
    texts = texts_of_many_kinds()
    folder = tmp_path / "states"
    if fault == "no folder":
        folder.write_text("a file")
    elif fault == "disk full":

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    else:
        folder.mkdir()
        (folder / ".lock").write_text("")
        monkeypatch.setattr(stored_states, "WAIT", 0.1)
        lock = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert lock.stdout is not None
        lock.stdout.readline()
    store = store_of(model, folder, said)
    store.add(texts)
    if fault == "locked":
        lock.communicate(b"\n")
    store.add(texts_of_many_kinds(seed=1))
    assert len(said) == 1
    assert "kept in memory" in said[0]
    ran = count_blocks(model)
    states = store.lookup(*as_batch(texts))
    assert ran == []
    expected = in_memory(model)
    expected.add(texts)
    assert torch.equal(states, expected.lookup(*as_batch(texts)))
    assert files(tmp_path) == []


def test_memory_is_bounded_and_what_is_wanted_stays() -> None:
    states = MemoryStates(3 * GROUP_BYTES)
    for number in (1, 2, 3):
        assert states.put(*_group(number))
    assert not states.put(*_group(4))
    assert _held(states, range(9)) == [1, 2, 3]
    states.want([_group(2)[0], _group(4)[0]])
    assert states.put(*_group(4))
    assert _held(states, range(9)) == [2, 3, 4]
    assert states.put(*_group(4))  # again
    assert states.num_bytes == 3 * GROUP_BYTES
    assert states.put(*_group(5))
    assert not states.put(*_group(6))
    assert _held(states, range(9)) == [2, 4, 5]
    assert states.part(_group(3)[0], 1) is None


def test_texts_beyond_the_bound_are_computed_each_time() -> None:
    model, said = make_model(sites=2), list[str]()
    texts = texts_of_many_kinds()
    expected = in_memory(model)
    expected.add(texts)
    size = expected.states.num_bytes  # type: ignore[attr-defined]
    states = MemoryStates(size // 2)
    store = PrefixStore(model.backbone, 2, batch=3, states=states, say=said.append)
    store.add(texts)
    assert 0 < len(store) < len(texts)
    assert len(said) == 1
    assert f"full with {len(store)} of {len(texts)} texts" in said[0]
    ran = count_blocks(model)
    for _ in range(2):
        number = len(ran)
        torch.testing.assert_close(
            store.lookup(*as_batch(texts)), expected.lookup(*as_batch(texts)), rtol=1e-5, atol=1e-5
        )
        assert len(ran) > number
        assert 0 < states.num_bytes <= size // 2
    # The texts of another run take the place of those that are wanted no more.
    others = [tuple(token + 1 for token in text) for text in texts[:2]]
    store.add(others)
    del ran[:]
    store.lookup(*as_batch(others))
    assert ran == []
    assert len(said) == 1


# ---- Processes

WRITER = """
import sys, torch
from pathlib import Path
from climafuse.model import stored_states
from tests.model.build import make_model
from tests.model.test_reuse import texts_of_many_kinds
from tests.model.test_stored_states import store_of
torch.set_num_threads(1)
stored_states.FILE_BYTES = 1 << 14
model = make_model(sites=2, dtype=torch.bfloat16)
store = store_of(model, Path(sys.argv[1]), limit=int(sys.argv[2]))
print("ready", flush=True)
for round in range(int(sys.argv[3])):
    store.add(texts_of_many_kinds(seed=round))
print("done", flush=True)
"""


def _writer(folder: Path, limit: int, rounds: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(folder), str(limit), str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])


def _check_everything(folder: Path, rounds: int, limit: int | None = None) -> None:
    model, said = make_model(sites=2, dtype=torch.bfloat16), list[str]()
    store, expected = store_of(model, folder, said, limit), in_memory(model)
    for round_ in range(rounds):
        texts = texts_of_many_kinds(seed=round_)
        for one in (store, expected):
            one.add(texts)
        assert torch.equal(store.lookup(*as_batch(texts)), expected.lookup(*as_batch(texts)))
    assert not any("cannot be used" in line for line in said)


@pytest.mark.slow
def test_processes_that_store_the_same_at_once(tmp_path: Path) -> None:
    writers = [_writer(tmp_path, 1 << 30, 40) for _ in range(2)]
    for writer in writers:
        output, _ = writer.communicate(timeout=300)
        assert writer.returncode == 0
        assert output == b"ready\ndone\n"
    _check_everything(tmp_path, 40)
    model = make_model(sites=2, dtype=torch.bfloat16)
    store, ran = store_of(model, tmp_path), count_blocks(model)
    for number in range(40):
        store.add(texts_of_many_kinds(seed=number))
    assert ran == []


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1 << 30, 100_000])  # the second: files are removed all the time
def test_a_process_killed_at_any_moment_leaves_nothing_half_written(limit: int, tmp_path: Path) -> None:
    generator = random.Random(limit)
    for _ in range(4):
        writers = [_writer(tmp_path, limit, 10_000) for _ in range(2)]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        for writer in writers:
            time.sleep(generator.uniform(0, 1.5))
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
        _check_everything(tmp_path, 30, limit)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
