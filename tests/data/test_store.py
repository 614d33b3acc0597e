"""The training store: what is read equals what was in the source, and damage is found."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from climafuse import facts
from climafuse.data import store as store_module
from climafuse.data import stored_fields
from climafuse.data.normalization import compute_statistics
from climafuse.data.pairs import Pair, write_pairs
from climafuse.data.splits import Splits
from climafuse.data.store import TrainingStore, prepare
from climafuse.data.window import Box, select_window
from climafuse.errors import DataError, OutOfRangeError, OutputError, PairsError, StoreError, UsageError

STEPS = 20
# Of 19 by 36 cells and three variables: 2 by 3 tiles of 3 x 16 x 16 numbers, each with 16 bytes of the index; its sum.
FILE_BYTES = 6 * (3 * 16 * 16 * 4 + 16) + 4
HOUR = datetime.timedelta(hours=1)
START = np.datetime64("2026-03-25", "s")


def make_dataset(times: np.ndarray | None = None) -> xr.Dataset:
    """Canonical: 20 six-hour steps on a 10-degree grid, some sea-surface temperatures missing."""
    rng = np.random.default_rng(0)
    shape = (STEPS, 19, 36)
    sst = rng.normal(290, 5, shape)
    sst[:, :, 10:20] = np.nan
    fields = {
        "t2m": (rng.normal(280, 10, shape), "K"),
        "msl": (rng.normal(1e5, 1e3, shape), "Pa"),
        "sst": (sst, "K"),
    }
    if times is None:
        times = (START + np.arange(STEPS) * np.timedelta64(6, "h")).astype("datetime64[ns]")
    return xr.Dataset(
        {
            name: (("time", "latitude", "longitude"), values.astype(np.float32), {"units": units})
            for name, (values, units) in fields.items()
        },
        coords={
            "time": ("time", times, {"standard_name": "time"}),
            "latitude": ("latitude", np.arange(-90.0, 91, 10), {"units": "degrees_north"}),
            "longitude": ("longitude", np.arange(0.0, 360, 10), {"units": "degrees_east"}),
        },
        attrs={"license": "CC-BY 4.0", "institution": "a test"},
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "fields.nc"
    make_dataset().to_netcdf(path)
    return path


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that tests only read."""
    path = tmp_path_factory.mktemp("stores") / "store"
    prepare(source, path, gap=12 * HOUR, pairs=make_pairs())
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A store to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def at(step: int) -> np.datetime64:
    return START + step * np.timedelta64(6, "h")


def make_pairs() -> list[Pair]:
    box = Box(50, 0, 30, 40)
    single = [
        Pair((at(step), at(step)), box, "How warm?", f"step {step}", sample=step) for step in range(STEPS)
    ]
    return [*single, Pair((at(1), at(2)), None, "", "a range", ({"kind": "mean"},), 90, ("sst",))]


@pytest.mark.parametrize("memory_bytes", [0, 2**30])
def test_windows_equal_those_of_the_source(folder: Path, memory_bytes: int) -> None:
    dataset = make_dataset()
    store = TrainingStore.open(folder, memory_bytes=memory_bytes)
    assert store.fields.in_memory == (memory_bytes > 0)  # type: ignore[union-attr]
    for step, box, history in [
        (5, Box(50, 0, 30, 40), 2), (0, Box(-85, 185, 40, 60), 1), (19, Box(90, 0, 20, 360), 3), (7, None, 1)
    ]:  # fmt: skip
        found = store.window(step, box, history)
        expected = select_window(dataset, time=at(step), box=box, history=history)
        np.testing.assert_array_equal(found.fields, expected.fields)
        np.testing.assert_array_equal(found.time, expected.time)
        np.testing.assert_array_equal(found.latitude, expected.latitude)
        np.testing.assert_array_equal(found.longitude, expected.longitude)
        assert found.variables == expected.variables
        assert found.fields.flags.writeable  # a copy: changing it leaves the store alone


@pytest.mark.parametrize("memory_bytes", [0, 2**30])
def test_cells_equal_those_of_windows(folder: Path, memory_bytes: int) -> None:
    for store in (
        TrainingStore.open(folder, memory_bytes=memory_bytes),
        TrainingStore.from_dataset(make_dataset()),
    ):
        steps, rows, columns = np.array([0, 5]), np.array([3, 0, 2]), np.array([0, 7, 1])
        found = store.cells(steps, rows, columns)
        assert found.shape == (2, len(store.variables), 3)
        for step, cell in np.ndindex(2, 3):
            whole = store.window(int(steps[step])).fields[0]
            np.testing.assert_array_equal(found[step, :, cell], whole[:, rows[cell], columns[cell]])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, STEPS - 1),
    st.integers(1, 4),
    st.floats(-90, 90),
    st.floats(-180, 540),
    st.floats(1, 180),
    st.floats(1, 360),
    st.booleans(),
)
def test_any_window_equals_that_of_the_source(
    folder: Path,
    step: int,
    history: int,
    latitude: float,
    longitude: float,
    height: float,
    width: float,
    loaded: bool,
) -> None:
    """Bit for bit; and where the source has none, the store has none, for the same reason."""
    box, store = (
        Box(latitude, longitude, height, width),
        TrainingStore.open(folder, memory_bytes=2**30 * loaded),
    )
    try:
        expected = select_window(make_dataset(), time=at(step), box=box, history=history)
    except OutOfRangeError as error:
        with pytest.raises(OutOfRangeError, match=f"^{re.escape(str(error))}$"):
            store.window(step, box, history)
        return
    found = store.window(step, box, history)
    assert found.fields.tobytes() == expected.fields.tobytes()
    np.testing.assert_array_equal(found.longitude, expected.longitude)
    np.testing.assert_array_equal(found.latitude, expected.latitude)


def test_store_is_ordinary_zarr_that_xarray_reads(folder: Path) -> None:
    with xr.open_zarr(folder / "fields.zarr", consolidated=False) as found:
        fields = found["fields"]
        assert fields.dims == ("time", "variable", "latitude", "longitude")
        expected = np.stack([make_dataset()[name].values for name in found.attrs["variables"]], axis=1)
        np.testing.assert_array_equal(fields.values, expected)
        np.testing.assert_array_equal(found["time"].values, make_dataset()["time"].values)
        np.testing.assert_array_equal(found["latitude"].values, make_dataset()["latitude"].values)


def test_statistics_are_those_of_the_training_split_only(source: Path, tmp_path: Path) -> None:
    dataset = make_dataset()
    changed = dataset.copy(deep=True)
    changed["t2m"][11:] += 100.0  # all but training
    stores = []
    for number, content in enumerate((dataset, changed)):
        content.to_netcdf(tmp_path / f"{number}.nc")
        stores.append(prepare(tmp_path / f"{number}.nc", tmp_path / f"store-{number}", gap=12 * HOUR))
    assert stores[0].splits.train.tolist() == list(range(11))
    xr.testing.assert_identical(stores[0].statistics.drop_attrs(), stores[1].statistics.drop_attrs())
    expected = compute_statistics(dataset, dataset["time"].values[:11])
    xr.testing.assert_allclose(stores[0].statistics.drop_attrs(), expected.drop_attrs())


def test_pairs_belong_to_the_split_that_holds_their_whole_window(folder: Path) -> None:
    # 20 six-hour steps, gap 12 h: training 0 to 10, validation 12 to 14, test 16 to 19.
    store = TrainingStore.open(folder)
    texts = {name: [pair.text for pair in store.pairs(name)] for name in ("train", "validation", "test")}
    assert texts["train"] == [f"step {step}" for step in range(11)] + ["a range"]
    assert texts["validation"] == ["step 12", "step 13", "step 14"]
    assert texts["test"] == ["step 16", "step 17", "step 18", "step 19"]
    assert [pair.text for pair in store.pairs("test", history=3)] == ["step 18", "step 19"]
    # The history of the first steps would begin before the first; the range has its own length.
    assert [pair.text for pair in store.pairs("train", history=10)] == ["step 9", "step 10", "a range"]
    assert store.all_pairs == tuple(make_pairs())


def test_window_of_a_pair(folder: Path) -> None:
    store = TrainingStore.open(folder)
    single, spell = store.all_pairs[5], store.all_pairs[-1]
    np.testing.assert_array_equal(
        store.pair_window(single, 2).fields, store.window(5, single.place, 2).fields
    )
    window = store.pair_window(spell, history=9)
    assert list(window.time) == [at(1), at(2)]
    assert window.fields.shape == (2, 3, 19, 36)


def test_tolerance_of_pair_times(source: Path, tmp_path: Path) -> None:
    late = Pair((at(3) + 1800, at(3) + 1800), None, "", "half an hour later")
    with pytest.raises(PairsError, match="pair 1: time: expected a time the fields hold exactly"):
        prepare(source, tmp_path / "exact", pairs=[late])
    assert not list(tmp_path.iterdir())
    prepare(source, tmp_path / "store", pairs=[late], tolerance=np.timedelta64(30, "m"))
    store = TrainingStore.open(tmp_path / "store")
    assert [pair.text for pair in store.pairs("train")] == ["half an hour later"]
    assert list(store.pair_window(late).time) == [at(3)]


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (
            Pair((START - 3600, START - 3600), None, "", "early", sample=77),
            "time: expected a time within the fields",
        ),
        (
            Pair((at(0), at(40)), None, "", "long", sample=77),
            "time: expected a range of time that the fields cover",
        ),
        (Pair((at(0), at(0)), Box(1, 1, 0.1, 0.1), "", "small", sample=77), "box: expected a box that holds"),
    ],
)
def test_pairs_outside_the_fields_are_named(source: Path, tmp_path: Path, pair: Pair, reason: str) -> None:
    write_pairs([make_pairs()[0], pair], tmp_path / "pairs.jsonl")
    with pytest.raises(PairsError, match=rf"pairs\.jsonl, line 2: {reason}"):
        prepare(source, tmp_path / "store", pairs=tmp_path / "pairs.jsonl")
    with pytest.raises(PairsError, match=f"pair 2: {reason}"):
        prepare(source, tmp_path / "store", pairs=[make_pairs()[0], pair])
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_variables_and_splits_can_be_chosen(source: Path, tmp_path: Path) -> None:
    splits = Splits(np.arange(2), np.array([4]), np.array([9, 10]), np.array([2, 3]))
    store = prepare(source, tmp_path / "store", variables=["msl", "t2m"], splits=splits)
    assert store.variables == ("msl", "t2m")
    assert [store.splits.indices(name).tolist() for name in ("train", "validation", "test")] == [
        [0, 1],
        [4],
        [9, 10],
    ]
    assert store.splits.dropped.tolist() == [2, 3]


def test_provenance(folder: Path, source: Path) -> None:
    provenance = TrainingStore.open(folder).provenance
    (file,) = provenance["sources"]
    assert file["bytes"] == source.stat().st_size
    assert file["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert provenance["attributes"]["license"] == "CC-BY 4.0"
    assert provenance["versions"]["xarray"] == xr.__version__


def test_existing_folder_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist yet"):
        prepare(source, tmp_path)


# ---- Interruptions -------------------------------------------------------------------------------------------

BLOCK = 4 * 3 * 19 * 36 * 3  # three steps


def content_of(folder: Path) -> dict[str, Any]:
    """Bytes of all files; the manifest without the time of its creation, and the hash over it."""
    files: dict[str, Any] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    manifest = json.loads(files["manifest.json"])
    del manifest["provenance"]["created"], manifest["digest"]
    return {**files, "manifest.json": manifest}


# A child is forked for each kill before anything has read a file: thousands of imports would take minutes.
KILLED = """
import datetime, gc, os, pathlib, signal, sys
import dask, netCDF4, pyarrow.parquet, xarray.backends, zarr
from climafuse.data import sources, store

source, pairs, folder, block, *moments = sys.argv[1:]
gap = datetime.timedelta(hours=12)
store.BLOCK_BYTES, synced = int(block), os.fsync
gc.freeze()
for moment in moments:
    if (child := os.fork()) == 0:
        left = int(moment)
        def fsync(descriptor):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            synced(descriptor)
        os.fsync = fsync
        store.prepare(source, pathlib.Path(folder) / moment, gap=gap, pairs=pairs)
        os._exit(0)
    print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_a_killed_preparation_goes_on_and_ends_in_the_same_bytes(
    source: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thorough: bool
) -> None:
    """Killed before each of its syncs: after a chunk, a record, the plan, a file of the frame, at the end."""
    moments = list(range(1, 80, 1 if thorough else 13))
    names = [str(moment) for moment in moments]
    write_pairs(make_pairs(), tmp_path / "pairs.parquet")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, source, tmp_path / "pairs.parquet", tmp_path, str(BLOCK), *names],
        capture_output=True,
        text=True,
        check=True,
    )
    codes = dict(map(int, line.split()) for line in done.stdout.splitlines())
    killed = [moment for moment in moments if codes[moment] == -signal.SIGKILL]
    assert killed == moments[: len(killed)]
    assert codes[moments[-1]] == 0  # the last one came after the end
    assert len(killed) > (40 if thorough else 3)
    expected = content_of(folder)
    went_on = 0
    for moment in moments:
        path = tmp_path / str(moment)
        assert path.exists() == (codes[moment] == 0 or not (tmp_path / f".{moment}.parts/folder").exists())
        if not path.exists():
            seen: list[int] = []
            prepare(
                source,
                path,
                gap=12 * HOUR,
                pairs=make_pairs(),
                progress=lambda done, _, seen=seen: seen.append(done),  # type: ignore[misc]
            )
            went_on += seen[0] > 0
        assert content_of(path) == expected
    assert went_on >= len(killed) // 3
    assert {path.name for path in tmp_path.iterdir()} >= set(names)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_preparation_keeps_its_parts(
    source: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_write_manifest", fail)
        with pytest.raises((OutputError, KeyboardInterrupt)) as raised:
            prepare(source, tmp_path / "store", gap=12 * HOUR, pairs=make_pairs())
    if isinstance(error, OSError):
        assert "No space left" in str(raised.value)
        assert f"goes on from the parts in {tmp_path}/.store.parts" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [".store.parts"]
    monkeypatch.setattr(store_module, "write_sparse", fail)  # not one chunk is written again
    prepare(source, tmp_path / "store", gap=12 * HOUR, pairs=make_pairs())
    assert content_of(tmp_path / "store") == content_of(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def interrupt(source: Path | xr.Dataset, destination: Path, **arguments: Any) -> None:
    def stop(done: int, _: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "BLOCK_BYTES", BLOCK)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, destination, progress=stop, **arguments)
    # None goes on writing to what was cleared away.
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("prepare")]


@pytest.mark.parametrize(
    ("change", "differs"), [("source", "source"), ("variables", "variables"), ("splits", "splits")]
)
def test_another_job_does_not_go_on_from_the_parts(
    source: Path, tmp_path: Path, change: str, differs: str
) -> None:
    path = Path(shutil.copy(source, tmp_path / "fields.nc"))
    interrupt(path, tmp_path / "store")
    if change == "source":
        path.touch()
    with pytest.raises(UsageError, match=f"differs in {differs}. Repeat that command as it was, or remove"):
        prepare(
            path,
            tmp_path / "store",
            variables=["t2m", "msl"] if change == "variables" else None,
            gap=12 * HOUR if change == "splits" else store_module.DEFAULT_GAP,
        )
    shutil.rmtree(tmp_path / ".store.parts")
    prepare(path, tmp_path / "store")


def test_a_dataset_in_memory_begins_anew(tmp_path: Path) -> None:
    """Nothing tells whether it is the same one."""
    interrupt(make_dataset(), tmp_path / "store")
    assert not list(tmp_path.iterdir())
    changed = make_dataset()
    changed["t2m"] += 1
    store = prepare(changed, tmp_path / "store")
    np.testing.assert_array_equal(store.window(0).field("t2m"), changed["t2m"].values[:1])


def test_nothing_is_left_when_the_data_are_at_fault(tmp_path: Path) -> None:
    dataset = make_dataset()
    dataset["t2m"][:] = 280.0
    dataset.to_netcdf(tmp_path / "fields.nc")
    with pytest.raises(DataError, match="280 everywhere"):
        prepare(tmp_path / "fields.nc", tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["fields.nc"]


def test_two_preparations_of_one_store_do_not_meet(source: Path, tmp_path: Path) -> None:
    def again(done: int, _: int) -> None:
        if not done:
            with pytest.raises(UsageError, match="a process that writes it now"):
                prepare(source, tmp_path / "store")

    prepare(source, tmp_path / "store", progress=again)


def test_too_little_room_is_told_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError, match=f"room for {STEPS * FILE_BYTES:,} bytes.*1,000 bytes free"):
        prepare(source, tmp_path / "store")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_and_threads_change_nothing(
    source: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(store_module, "WORKERS", workers)
    monkeypatch.setattr(store_module, "BLOCK_BYTES", BLOCK)
    prepare(source, tmp_path / "store", gap=12 * HOUR, pairs=make_pairs())
    assert content_of(tmp_path / "store") == content_of(folder)


def test_hashes_of_the_manifest_are_those_of_the_files(folder: Path) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert len(files) > STEPS
    for name, (size, digest) in files.items():
        content = (folder / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)


def test_no_store_at_all(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        TrainingStore.open(tmp_path / "store")
    with pytest.raises(StoreError, match="without manifest"):
        TrainingStore.open(tmp_path)


def test_flipped_byte_in_a_field_is_found_when_it_is_loaded(copy: Path) -> None:
    path = copy / "fields.zarr" / "fields" / "c.7.0.0.0"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"c\.7\.0\.0\.0: expected the content it was written with"):
        TrainingStore.open(copy)
    with pytest.raises(StoreError, match=r"c\.7\.0\.0\.0"):
        TrainingStore.open(copy, memory_bytes=0, verify=True)
    TrainingStore.open(copy, memory_bytes=0)  # fields on disk are checked on request only: stated


@pytest.mark.parametrize(
    "name", ["fields.zarr/latitude/c.0", "statistics.json", "pairs.parquet", "manifest.json"]
)
def test_flipped_byte_in_any_other_file_is_found_on_opening(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    middle = content.index(b"t2m") if name == "manifest.json" else len(content) // 2
    content[middle] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(StoreError, match="the content it was written with"):
        TrainingStore.open(copy, memory_bytes=0)


def test_missing_and_truncated_files_are_found_on_opening(copy: Path) -> None:
    path = copy / "fields.zarr" / "fields" / "c.19.0.0.0"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=f"expected {FILE_BYTES} bytes"):
        TrainingStore.open(copy, memory_bytes=0)
    path.unlink()
    with pytest.raises(StoreError, match="received none"):
        TrainingStore.open(copy, memory_bytes=0)


def test_later_format_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(StoreError, match="format 2; received format 99"):
        TrainingStore.open(copy)


@pytest.mark.parametrize("memory_bytes", [0, 2**30])
def test_store_goes_to_loader_workers(folder: Path, memory_bytes: int) -> None:
    store = TrainingStore.open(folder, memory_bytes=memory_bytes)
    sent = pickle.dumps(store)
    again = pickle.loads(sent)
    np.testing.assert_array_equal(
        again.window(3, Box(0, 0, 40, 40), 2).fields, store.window(3, Box(0, 0, 40, 40), 2).fields
    )
    assert again.all_pairs == store.all_pairs
    assert not again.fields.in_memory  # not once more in each worker
    assert len(sent) < 4 * STEPS * 3 * 19 * 36  # the files are opened again, not sent


def test_few_files_of_a_large_store_are_open_at_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_fields, "OPEN_FILES", 5)
    store = TrainingStore.open(copy, memory_bytes=0)
    for step in [*range(STEPS), 3]:
        store.will_need([(slice(step, step + 1), Box(50, 0, 30, 40))])
        np.testing.assert_array_equal(
            store.window(step).fields[0, 0], make_dataset()["t2m"].values[step], strict=True
        )
    opened = Path("/proc/self/fd")
    if opened.exists():
        targets = [os.readlink(link) for link in opened.iterdir() if link.is_symlink() and link.exists()]
        assert sum(target.startswith(str(copy)) for target in targets) == 5


@pytest.mark.parametrize("plain", [True, False])
def test_a_file_that_is_cut_short_while_it_is_read_is_an_error(
    copy: Path, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    if plain:  # where the system cannot read at a position
        monkeypatch.delattr(os, "preadv")
        monkeypatch.delattr(os, "posix_fadvise")
    store = TrainingStore.open(copy, memory_bytes=0)
    np.testing.assert_array_equal(store.window(7).fields[0, 0], make_dataset()["t2m"].values[7])
    os.truncate(copy / "fields.zarr" / "fields" / "c.7.0.0.0", 6000)
    with pytest.raises(StoreError, match=r"c\.7\.0\.0\.0"):
        store.window(7)


def test_in_memory_store_is_the_same_without_a_folder(folder: Path) -> None:
    written, held = (
        TrainingStore.open(folder),
        TrainingStore.from_dataset(make_dataset(), gap=12 * HOUR, pairs=make_pairs()),
    )
    assert held.pairs("test") == written.pairs("test")
    np.testing.assert_array_equal(
        held.window(4, Box(50, 0, 30, 40), 2).fields, written.window(4, Box(50, 0, 30, 40), 2).fields
    )
    xr.testing.assert_identical(held.statistics.drop_attrs(), written.statistics.drop_attrs())
    with pytest.raises(OutOfRangeError):
        held.window(0, None, 2)


def test_other_calendars(tmp_path: Path) -> None:
    times = cftime.num2date(np.arange(STEPS) * 6, "hours since 2000-02-28", calendar="360_day")
    make_dataset(times).to_netcdf(tmp_path / "fields.nc")
    store = prepare(tmp_path / "fields.nc", tmp_path / "store")
    assert list(store.time) == list(times)
    assert store.window(10).time[0] == cftime.datetime(2000, 2, 30, 12, calendar="360_day")
    windows = [(number, store.window(number)) for number in range(STEPS)]
    told = store.with_pairs(
        facts.describe(windows, kinds=["mean/t2m"], questions_per_window=1, abstentions=0)
    )
    assert [told.pair_window(pair).time[0] for pair in told.all_pairs] == list(times)


def test_step_without_any_value_is_kept(tmp_path: Path) -> None:
    dataset = make_dataset()
    for name in dataset:
        dataset[name][3] = np.nan
    store = prepare(dataset, tmp_path / "store")
    assert TrainingStore.open(tmp_path / "store", memory_bytes=0).window(3).available() == ()
    assert store.window(4, history=2).available() == store.variables


def test_progress_counts_every_step(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BLOCK_BYTES", 4 * 3 * 19 * 36 * 8)  # eight steps
    seen: list[tuple[int, int]] = []
    prepare(source, tmp_path / "store", progress=lambda done, total: seen.append((done, total)))
    assert (seen[0], seen[-1]) == ((0, 20), (20, 20))
    # Told as each block ends, and the short last one may be the first to.
    assert sorted(after - before for (before, _), (after, _) in pairwise(seen)) == [4, 8, 8]
