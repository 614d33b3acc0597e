"""Where fields lie in a file: against zarr, which knows the format without this code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from climafuse.data.tiles import TILE, Tiling

SHAPES = [(1, 1, 1), (2, 5, 40), (3, 16, 32), (2, 33, 17), (6, 19, 36)]


def field(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


def sharded(folder: Path, shape: tuple[int, int, int]) -> zarr.Array:
    tiling = Tiling(*shape)
    return zarr.create_array(
        folder,
        shape=shape,
        chunks=tiling.tile,
        shards=tiling.shard,
        dtype="float32",
        compressors=None,
        filters=None,
        chunk_key_encoding={"name": "default", "separator": "."},
        fill_value=float("nan"),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_zarr_reads_what_was_encoded(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    array = sharded(tmp_path, shape)
    (tmp_path / "c.0.0.0").write_bytes(Tiling(*shape).encode(field(shape)))
    np.testing.assert_array_equal(array[:], field(shape), strict=True)
    np.testing.assert_array_equal(array[-1, -1:, : shape[2] // 2], field(shape)[-1, -1:, : shape[2] // 2])


@pytest.mark.parametrize("shape", SHAPES)
def test_zarr_writes_what_is_decoded_with_an_index_as_long(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    tiling = Tiling(*shape)
    sharded(tmp_path, shape)[:] = field(shape)
    written = (tmp_path / "c.0.0.0").read_bytes()
    assert len(written) == tiling.file_bytes == len(tiling.encode(field(shape)))
    # zarr orders the tiles along a curve: their places are in its index, eight bytes each, beside their size.
    places = np.frombuffer(written[tiling.payload_bytes : -4], dtype="<u8").reshape(-1, 2)
    own = np.frombuffer(tiling.index[:-4], dtype="<u8").reshape(-1, 2)
    assert sorted(places.tolist()) == own.tolist()
    tiles = b"".join(written[place : place + size] for place, size in places.tolist())
    np.testing.assert_array_equal(tiling.decode(tiles), field(shape), strict=True)


@given(st.data())
def test_a_window_is_read_from_its_tiles_alone(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from(SHAPES))
    tiling, values = Tiling(*shape), field(shape)
    top, left = (data.draw(st.integers(0, size - 1)) for size in shape[1:])
    rows = slice(top, data.draw(st.integers(top + 1, shape[1])))
    columns = slice(left, data.draw(st.integers(left + 1, shape[2])))
    positions, length = tiling.reads(rows, columns)
    content = bytes(tiling.encode(values))
    tiles = np.concatenate([np.frombuffer(content, "<f4", length // 4, position) for position in positions])
    np.testing.assert_array_equal(tiling.arrange(tiles, rows, columns), values[:, rows, columns], strict=True)
    # No more than the window and the rest of the tiles at its edges; whole rows of tiles are one read.
    size = (rows.stop - rows.start + 2 * TILE) * (columns.stop - columns.start + 2 * TILE)
    assert len(positions) * length < 4 * shape[0] * size
    if columns == slice(0, shape[2]):
        assert len(positions) == 1


def test_tiles_follow_each_other_from_west_to_east_and_south_to_north() -> None:
    tiling = Tiling(2, 20, 40)  # 2 by 3 tiles of 2 x 16 x 16
    size = 4 * 2 * 16 * 16
    assert tiling.reads(slice(0, 16), slice(0, 16)) == (range(0, 3 * size, 3 * size), size)
    assert list(tiling.reads(slice(3, 17), slice(17, 40))[0]) == [size, 4 * size]
    assert tiling.reads(slice(3, 17), slice(17, 40))[1] == 2 * size
    assert tiling.reads(slice(17, 20), slice(0, 40)) == (range(3 * size, 3 * size + 1), 3 * size)
