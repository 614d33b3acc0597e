"""Climate files of every layout, and what can happen to them on a disk, on the way, or by malice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from tests.data import fixtures

Mutation: TypeAlias = Callable[[Path, np.random.Generator], None]

# ---- Products: a name and a writer of the untouched original --------------------------------------------------


def _netcdf(path: Path, make: Callable[..., xr.Dataset], kind: str, **options: Any) -> None:
    make(fixtures.truth("t2m", "msl")).to_netcdf(path, engine="netcdf4", format=kind, **options)


def _fletcher32(path: Path) -> None:
    encoding = {"zlib": True, "fletcher32": True, "chunksizes": (1, 7, 8)}
    _netcdf(path, fixtures.merra2, "NETCDF4", encoding={"T2M": encoding, "SLP": encoding})


def _zarr(
    path: Path, make: Callable[..., xr.Dataset], kind: int, consolidated: bool, **encoding: Any
) -> None:
    dataset = make(fixtures.truth("t2m", "msl"))
    chunks = {name: {"chunks": (1, *dataset[name].shape[1:]), **encoding} for name in dataset.data_vars}
    dataset.to_zarr(path, zarr_format=kind, consolidated=consolidated, encoding=chunks)


def _crc32c(path: Path) -> None:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    _zarr(path, fixtures.arco, 3, False, compressors=(ZstdCodec(), Crc32cCodec()))


FILES: dict[str, Callable[[Path], None]] = {
    "NetCDF-3 classic": lambda path: _netcdf(path, fixtures.era5, "NETCDF3_CLASSIC"),
    "NetCDF-3 64-bit": lambda path: _netcdf(path, fixtures.merra2, "NETCDF3_64BIT", unlimited_dims=["time"]),
    "NetCDF-4": lambda path: _netcdf(path, fixtures.era5, "NETCDF4"),
    "NetCDF-4 Fletcher32": _fletcher32,
}
FOLDERS: dict[str, Callable[[Path], None]] = {
    "Zarr 2 consolidated": lambda path: _zarr(path, fixtures.arco, 2, True),
    "Zarr 2": lambda path: _zarr(path, fixtures.era5, 2, False),
    "Zarr 3": lambda path: _zarr(path, fixtures.arco, 3, False),
    "Zarr 3 CRC32C": _crc32c,
}
# Here what is hit has a checksum: an altered byte is never read as a value. (That of HDF5 is on the chunks, and not on
# the tree that says where they lie and which of their filters were left out.)
CHECKED = {"Zarr 3 CRC32C": ("chunk ruined", "chunk emptied")}

# ---- Mutations of bytes ---------------------------------------------------------------------------------------


def truncated(content: bytearray, random: np.random.Generator) -> bytearray:
    return content[: int(random.integers(len(content)))]


def bits_flipped(content: bytearray, random: np.random.Generator, *, within: int | None = None) -> bytearray:
    for _ in range(int(random.integers(1, 6))):
        content[int(random.integers(min(within or len(content), len(content))))] ^= 1 << int(
            random.integers(8)
        )
    return content


def header_bits_flipped(content: bytearray, random: np.random.Generator) -> bytearray:
    return bits_flipped(content, random, within=1024)


def bytes_replaced(content: bytearray, random: np.random.Generator) -> bytearray:
    start = int(random.integers(len(content)))
    for position in range(start, min(start + int(random.integers(1, 9)), len(content))):
        content[position] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, int(random.integers(256))]))
    return content


def block_zeroed(content: bytearray, random: np.random.Generator) -> bytearray:
    start = int(random.integers(len(content)))
    size = min(int(2 ** random.uniform(2, 11)), len(content) - start)
    content[start : start + size] = bytes(size)
    return content


def block_doubled(content: bytearray, random: np.random.Generator) -> bytearray:
    start = int(random.integers(len(content)))
    size = int(2 ** random.uniform(2, 11))
    return content[: start + size] + content[start : start + size] + content[start + size :]


def bytes_inserted(content: bytearray, random: np.random.Generator) -> bytearray:
    start = int(random.integers(len(content) + 1))
    return content[:start] + random.bytes(int(random.integers(1, 64))) + content[start:]


def bytes_removed(content: bytearray, random: np.random.Generator) -> bytearray:
    start = int(random.integers(len(content)))
    return content[:start] + content[start + int(random.integers(1, 64)) :]


BYTES = {
    function.__name__.replace("_", " "): function
    for function in (
        truncated, header_bits_flipped, bits_flipped, bytes_replaced, block_zeroed, block_doubled, bytes_inserted,
        bytes_removed,
    )
}  # fmt: skip

# ---- Mutations of Zarr metadata: what a key may become --------------------------------------------------------

HUGE = 2**40
_VALUES: dict[str, list[Any]] = {
    "shape": [[HUGE], [4, 7, HUGE], [4, HUGE, 8], [-4, 7, 8], [4, 7], [], [0, 7, 8], [4.5, 7, 8], "all", None,
              [4, 7, 8, 1], [2**70, 7, 8], [2**63 - 1, 2**63 - 1, 8]],
    "chunks": [[0, 7, 8], [-1, 7, 8], [HUGE, HUGE, HUGE], [1], None, "x", [2, 7, 8]],
    "chunk_grid": [{"name": "regular", "configuration": {"chunk_shape": shape}}
                   for shape in ([0, 7, 8], [-1, 7, 8], [1], [HUGE, HUGE, HUGE])] + [{"name": "hexagonal"}, None, 7],
    "dtype": ["<f8", ">f4", "<i2", "|O", "<U9", "|V4", "<f3", "int", None, 7, ["<f4"], "|S1000000000", "<M8[ns]"],
    "data_type": ["float64", "int16", "bool", "complex64", "string", "float33", None, 7, {"name": "python"},
                  {"name": "null_terminated_bytes", "configuration": {"length_bytes": HUGE}}],
    "compressor": [{"id": "gzip"}, {"id": "none"}, {"id": "pickle"}, {}, 7, None, {"id": "zlib", "level": 99}],
    "filters": [[{"id": "pickle"}], [{"id": "json2"}], [{"id": "delta", "dtype": "<f4"}], 7, [{}]],
    "codecs": [[], [{"name": "unknown"}], None, 7, [{"name": "gzip"}],
               [{"name": "sharding_indexed", "configuration": {}}],
               [{"name": "bytes", "configuration": {"endian": "big"}}]],
    "fill_value": ["NaN", 1e400, "x", {}, HUGE, None, 7, -1],
    "zarr_format": [1, 4, "2", None, -3],
    "node_type": ["group", "file", None],
    "order": ["F", "Z", None],
    "dimension_separator": ["/", "..", None],
    "chunk_key_encoding": [{"name": "v2"}, {"name": "../x"}, None,
                           {"name": "default", "configuration": {"separator": "../"}}],
    "dimension_names": [["a", "b", "c"], ["time"], None, 7, ["time", "time", "time"], [None, None, None]],
    "_ARRAY_DIMENSIONS": [["a", "b", "c"], ["time"], None, 7, ["time", "time", "time"], []],
    "attributes": [None, [], 7, {}],
    "units": ["K", "", None, 7, {}, ["days"], "hours since the beginning", "hours since 0000-00-00",
              "days since 999999-01-01", "x since 1900-01-01"],
    "calendar": ["lunar", 7, None, "360_day"],
    "scale_factor": ["x", [], 1e300, {}, [1, 2]],
    "storage_transformers": [[{"name": "x"}], 7],
}  # fmt: skip


def _edit(content: Any, random: np.random.Generator) -> bool:
    """Change one key of `_VALUES`, wherever it stands; whether there is one."""
    places: list[tuple[dict[str, Any], str]] = []

    def search(node: Any) -> None:
        if isinstance(node, dict):
            places.extend((node, key) for key in node if key in _VALUES)
            for child in node.values():
                search(child)
        elif isinstance(node, list):
            for child in node:
                search(child)

    search(content)
    if not places:
        return False
    keys = sorted({key for _, key in places})
    key = keys[int(random.integers(len(keys)))]
    nodes = [node for node, name in places if name == key]
    nodes[int(random.integers(len(nodes)))][key] = _VALUES[key][int(random.integers(len(_VALUES[key])))]
    return True


def metadata_edited(store: Path, random: np.random.Generator) -> None:
    files = metadata_files(store)
    while True:
        path = files[int(random.integers(len(files)))]
        content = json.loads(path.read_text())
        if _edit(content, random):
            path.write_text(json.dumps(content))
            return


def metadata_ruined(store: Path, random: np.random.Generator) -> None:
    """Bytes of a metadata file changed, or all of it for another document."""
    path = _any(metadata_files(store), random)
    documents = (
        b"",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe{}",
    )
    if random.integers(2):
        path.write_bytes(documents[int(random.integers(len(documents)))])
    else:
        name = _any(sorted(BYTES), random)
        path.write_bytes(BYTES[name](bytearray(path.read_bytes()), random))


def chunk_ruined(store: Path, random: np.random.Generator) -> None:
    path = _any(chunk_files(store), random)
    path.write_bytes(BYTES[_any(sorted(BYTES), random)](bytearray(path.read_bytes()), random))


def chunk_emptied(store: Path, random: np.random.Generator) -> None:
    _any(chunk_files(store), random).write_bytes(b"")


def file_missing(store: Path, random: np.random.Generator) -> None:
    _any(metadata_files(store) + chunk_files(store), random).unlink()


def file_elsewhere(store: Path, random: np.random.Generator) -> None:
    """One file in the place of another."""
    files = metadata_files(store) + chunk_files(store)
    _any(files, random).write_bytes(_any(files, random).read_bytes())


STORES: dict[str, Mutation] = {
    function.__name__.replace("_", " "): function
    for function in (
        metadata_edited,
        metadata_ruined,
        chunk_ruined,
        chunk_emptied,
        file_missing,
        file_elsewhere,
    )
}


def metadata_files(store: Path) -> list[Path]:
    """The JSON files of a Zarr store."""
    names = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
    return sorted(path for path in store.rglob("*") if path.name in names)


def chunk_files(store: Path) -> list[Path]:
    """The files of a Zarr store that hold values."""
    return sorted(path for path in store.rglob("*") if path.is_file() and path not in metadata_files(store))


def mutate_file(name: str) -> Mutation:
    """A mutation of bytes as one of a file."""

    def mutate(path: Path, random: np.random.Generator) -> None:
        path.write_bytes(BYTES[name](bytearray(path.read_bytes()), random))

    return mutate


def _any(choices: list[Any], random: np.random.Generator) -> Any:
    return choices[int(random.integers(len(choices)))]
