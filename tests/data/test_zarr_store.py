"""Chunks that unpack to far more than their array has are refused before they do; all that is honest opens."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr import codecs

from climafuse import open_climate
from climafuse.data.sources import load_fields
from climafuse.errors import ClimateFileError
from tests.data.fixtures import arco, canonical, truth, write

pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")

NAME = "2m_temperature"
OF_V2: dict[str, Any] = {
    "gzip": numcodecs.GZip(),
    "zlib": numcodecs.Zlib(),
    "bz2": numcodecs.BZ2(),
    "lzma": numcodecs.LZMA(),
    "lzma raw": numcodecs.LZMA(format=3, filters=[{"id": 33, "preset": 1}]),
    "blosc lz4": numcodecs.Blosc("lz4"),
    "blosc zstd": numcodecs.Blosc("zstd", shuffle=2),
    "lz4": numcodecs.LZ4(),
    "zstd": numcodecs.Zstd(),
    "zstd checksum": numcodecs.Zstd(level=9, checksum=True),
}
OF_V3: dict[str, Any] = {
    "gzip": (codecs.GzipCodec(),),
    "blosc": (codecs.BloscCodec(cname="lz4"),),
    "zstd": (codecs.ZstdCodec(),),
    "zstd checksum": (codecs.ZstdCodec(checksum=True), codecs.Crc32cCodec()),
    "twice": (codecs.ZstdCodec(), codecs.GzipCodec()),
}
STORES = [(2, name) for name in OF_V2] + [(3, name) for name in OF_V3]


def stored(path: Path, version: int, name: str, dataset: xr.Dataset, **encoding: Any) -> Path:
    """A store whose field is packed by a codec."""
    encoding["compressors"] = OF_V2[name] if version == 2 else OF_V3[name]
    dataset.to_zarr(path, zarr_format=version, consolidated=version == 2, encoding={NAME: encoding})  # type: ignore[call-overload]
    return path


def chunk_of(path: Path) -> Path:
    """The file of a chunk of the field."""
    array = path / NAME
    return next(file for file in sorted(array.rglob("*")) if file.is_file() and file.name[0] not in ".z")


def packed(version: int, name: str, content: bytes) -> bytes:
    """As the codecs pack a chunk, by numcodecs itself."""
    numcodec = {"gzip": "gzip", "blosc": "blosc lz4", "twice": "zstd"}.get(name, name)
    once: bytes = OF_V2[numcodec].encode(content)
    once = numcodecs.GZip().encode(once) if name == "twice" else once
    if version == 3 and name == "zstd checksum":
        once += np.uint32(google_crc32c.value(once)).tobytes()
    return once


@pytest.mark.parametrize(("version", "name"), STORES)
@pytest.mark.sampled(4)
def test_what_cannot_be_compressed_opens(version: int, name: str, tmp_path: Path) -> None:
    """Random bits of floats in chunks of a few bytes: packed, they are larger than they were."""
    known = truth("t2m", num_times=3)
    path = stored(tmp_path / "a.zarr", version, name, arco(known), chunks=(2, 3, 3))
    with open_climate(path) as opened:
        xr.testing.assert_equal(load_fields(opened).drop_attrs(), canonical(known))
        again = pickle.loads(pickle.dumps(opened))  # as spawned workers get it
        np.testing.assert_array_equal(again["t2m"].values, known.fields["t2m"])


@pytest.mark.parametrize(("version", "name"), STORES)
@pytest.mark.sampled(4)
def test_a_chunk_that_unpacks_to_far_more_is_refused(version: int, name: str, tmp_path: Path) -> None:
    path = stored(tmp_path / "a.zarr", version, name, arco(truth("t2m")))
    chunk = chunk_of(path)
    chunk.write_bytes(packed(version, name, bytes(12_000_000)))
    size = 4 * 4 * int(np.prod(arco(truth("t2m"))[NAME].shape[1:]))
    with pytest.raises(ClimateFileError, match=rf"{NAME}/.*unpacks to .* bytes or more .* have {size:,}\)"):
        load_fields(open_climate(path))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_codec_is_bound_in_bytes_of_memory(tmp_path: Path) -> None:
    """The peak of a process that opens a bomb of 30 MB of each kind: it would have grown by as much."""
    for version, name in STORES:
        path = stored(tmp_path / f"{version} {name}", version, name, arco(truth("t2m")))
        chunk_of(path).write_bytes(packed(version, name, bytes(30_000_000)))
    write(arco(truth("t2m")), str(tmp_path / "honest"), "zarr2")
    code = f"""
import pathlib, re, warnings
import pyarrow
from climafuse import open_climate
from climafuse.errors import ClimateFileError
# Not getrusage, whose peak is also that of the process which started this one.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
open_climate({str(tmp_path / "honest")!r}).load()
before, refused = peak(), 0
for path in sorted(pathlib.Path({str(tmp_path)!r}).glob("[23] *")):
    with warnings.catch_warnings(action="ignore"):
        try:
            open_climate(path).load()
        except ClimateFileError as error:
            refused += "unpacks to" in str(error)
print(refused, (peak() - before) // 1024)
"""
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(said[0]) == len(STORES)
    assert int(said[1]) < 10  # MiB


@pytest.mark.parametrize("how", ["frames", "no size"])
def test_zstd_that_hides_its_size_is_refused(how: str, tmp_path: Path) -> None:
    """A second frame is unpacked with the first, and a frame need not tell its size."""
    import pyarrow as pa

    path = stored(tmp_path / "a.zarr", 3, "zstd", arco(truth("t2m")))
    zeros = bytes(12_000_000)
    if how == "frames":
        content = numcodecs.Zstd().encode(bytes(384)) + numcodecs.Zstd().encode(zeros)
    else:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(zeros)
        content = sink.getvalue().to_pybytes()
    assert len(numcodecs.Zstd().decode(content)) >= len(zeros)
    chunk_of(path).write_bytes(content)
    with pytest.raises(ClimateFileError, match="unpacks to"):
        load_fields(open_climate(path))


def test_honest_zstd_without_a_size_and_in_frames_opens(tmp_path: Path) -> None:
    import pyarrow as pa

    known = truth("t2m")
    path = stored(tmp_path / "a.zarr", 3, "zstd", arco(known))
    plain = numcodecs.Zstd().decode(chunk_of(path).read_bytes())
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(plain[100:])
    skipped = b"\x50\x2a\x4d\x18\x02\x00\x00\x00hi"
    chunk_of(path).write_bytes(numcodecs.Zstd().encode(plain[:100]) + skipped + sink.getvalue().to_pybytes())
    np.testing.assert_array_equal(open_climate(path)["t2m"].values, known.fields["t2m"])


@pytest.mark.parametrize("bomb", [False, True])
def test_chunks_in_shards_are_bound_too(bomb: bool, tmp_path: Path) -> None:
    known = truth("t2m")
    dataset = arco(known)
    shape = dataset[NAME].shape
    path = stored(tmp_path / "a.zarr", 3, "gzip", dataset, chunks=(2, *shape[1:]), shards=(4, *shape[1:]))
    if bomb:
        first, second = (
            numcodecs.GZip().encode(bytes(size)) for size in (12_000_000, 8 * shape[1] * shape[2])
        )
        index = np.array([0, len(first), len(first), len(second)], dtype="<u8").tobytes()
        check = np.uint32(google_crc32c.value(index)).tobytes()
        chunk_of(path).write_bytes(first + second + index + check)
        with pytest.raises(ClimateFileError, match="unpacks to"):
            load_fields(open_climate(path))
    else:
        np.testing.assert_array_equal(open_climate(path)["t2m"].values, known.fields["t2m"])


@pytest.mark.parametrize("bomb", [False, True])
def test_filters_of_zarr_2_are_bound_too(bomb: bool, tmp_path: Path) -> None:
    """They may be any codec, and several; one that makes the numbers wider is honest."""
    known = truth("t2m")
    path = tmp_path / "a.zarr"
    filters = [numcodecs.AsType("f8", "f4"), numcodecs.Shuffle(8), numcodecs.Zlib()]
    encoding = {NAME: {"filters": filters, "compressors": numcodecs.GZip()}}
    arco(known).to_zarr(path, zarr_format=2, consolidated=False, encoding=encoding)
    if bomb:
        chunk_of(path).write_bytes(numcodecs.GZip().encode(numcodecs.Zlib().encode(bytes(12_000_000))))
        with pytest.raises(ClimateFileError, match=r"unpacks to .* from zlib"):
            load_fields(open_climate(path))
    else:
        np.testing.assert_array_equal(open_climate(path)["t2m"].values, known.fields["t2m"])


def test_zarr_behind_a_uri_is_bound_too(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.zarr", 2, "gzip", arco(truth("t2m")))
    chunk_of(path).write_bytes(packed(2, "gzip", bytes(12_000_000)))
    with pytest.raises(ClimateFileError, match="unpacks to"):
        load_fields(open_climate(f"file://{path}"))


def test_opening_leaves_zarr_as_it_was(tmp_path: Path) -> None:
    before = zarr.config.get("codec_pipeline.path")
    with open_climate(stored(tmp_path / "a.zarr", 3, "gzip", arco(truth("t2m")))):
        assert zarr.config.get("codec_pipeline.path") == before


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_pickles_behind_texts_are_refused(place: str, tmp_path: Path) -> None:
    """zarr looks at the first codec for objects only, and takes these for texts."""
    path = stored(tmp_path / "a.zarr", 2, "gzip", arco(truth("t2m")))
    (path / ".zmetadata").unlink()
    array = path / "latitude" / ".zarray"
    texts, pickles = {"id": "vlen-utf8"}, {"id": "pickle"}
    told = {"filters": [texts, pickles], "compressor": None}
    if place == "compressor":
        told = {"filters": [texts], "compressor": pickles}
    array.write_text(json.dumps(json.loads(array.read_text()) | told | {"dtype": "|O", "fill_value": None}))
    with pytest.raises(ClimateFileError, match="received pickled objects"):
        open_climate(path)


def test_a_chunk_far_larger_than_its_array_is_refused(tmp_path: Path) -> None:
    """Its size would be no bound. Times may still be missing at the end of an array that grows."""
    path = stored(tmp_path / "a.zarr", 3, "gzip", arco(truth("t2m")))
    metadata = path / NAME / "zarr.json"
    told = json.loads(metadata.read_text())
    cell = 4 * int(np.prod(told["shape"][1:]))
    told["chunk_grid"]["configuration"]["chunk_shape"] = [2**28 // cell + 1, *told["shape"][1:]]
    metadata.write_text(json.dumps(told))
    with pytest.raises(
        ClimateFileError, match=rf"{NAME}.*chunks of 268,.* bytes in an array of {4 * cell:,}"
    ):
        open_climate(path)
    told["chunk_grid"]["configuration"]["chunk_shape"][0] = 2**28 // cell
    metadata.write_text(json.dumps(told))
    open_climate(path)


def test_a_refused_store_leaves_nothing_to_tell_at_the_end(tmp_path: Path) -> None:
    """Reads beside the one that is refused are under way, which a slow disk makes sure of."""
    path = stored(tmp_path / "a.zarr", 3, "gzip", arco(truth("t2m")))
    (path / "latitude" / "zarr.json").rename(tmp_path / "outside")
    (path / "latitude" / "zarr.json").symlink_to(tmp_path / "outside")
    code = f"""
import asyncio
from zarr.storage import LocalStore
from climafuse import open_climate
from climafuse.errors import ClimateFileError
get = LocalStore.get
async def slow(self, key, *arguments, **options):
    await asyncio.sleep(5 if key.startswith("2m") else 0)
    return await get(self, key, *arguments, **options)
LocalStore.get = slow
try:
    open_climate({str(path)!r})
except ClimateFileError as error:
    print("leads out" in str(error))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "True\n"
    assert ended.stderr == ""
