"""How the fields of a step lie in their file: in tiles, so that a window is a few short reads at known places.

A row of a global grid at 0.25 degrees has 1,440 cells, of which a window needs some 60. So a field is cut into tiles
of at most 16 by 16 cells. A tile holds all variables; the tiles of a row of tiles follow each other, south to north.
The file is a shard of a Zarr v3 array, uncompressed, which any reader of Zarr reads; its index stands at the end and
is the same in every file, so that reading here does without it.

Reference: Zarr v3, sharding codec 1.0.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

TILE = 16


@dataclass(frozen=True)
class Tiling:
    """Tiles of a field, and where they lie in the file of a step.

    Args:
        variables: V.
        height: H, rows of the field.
        width: W, columns of the field.
    """

    variables: int
    height: int
    width: int

    @functools.cached_property
    def tile(self) -> tuple[int, int, int]:
        """(V, h, w) of a tile."""
        return self.variables, min(TILE, self.height), min(TILE, self.width)

    @functools.cached_property
    def counts(self) -> tuple[int, int]:
        """How many rows of tiles there are, and how many tiles in each; those at the edge are filled up with zeros."""
        _, height, width = self.tile
        return -(-self.height // height), -(-self.width // width)

    @property
    def shard(self) -> tuple[int, int, int]:
        """(V, H', W') of all tiles side by side."""
        (rows, columns), (variables, height, width) = self.counts, self.tile
        return variables, rows * height, columns * width

    @functools.cached_property
    def tile_bytes(self) -> int:
        """Size of a tile."""
        return 4 * math.prod(self.tile)

    @functools.cached_property
    def payload_bytes(self) -> int:
        """Size of the tiles of a file."""
        return 4 * math.prod(self.shard)

    @property
    def file_bytes(self) -> int:
        """Size of a file."""
        return self.payload_bytes + 16 * math.prod(self.counts) + 4

    @functools.cached_property
    def index(self) -> bytes:
        """The end of every file: position and size of each tile, and their checksum."""
        import google_crc32c

        places = np.arange(0, self.payload_bytes, self.tile_bytes)
        entries = np.stack([places, np.full_like(places, self.tile_bytes)], axis=1).astype("<u8").tobytes()
        return entries + int(google_crc32c.value(entries)).to_bytes(4, "little")

    def encode(self, values: np.ndarray) -> memoryview:
        """The content of a file.

        Args:
            values: [V, H, W] float32.
        """
        (rows, columns), (variables, height, width) = self.counts, self.tile
        content = np.zeros(self.file_bytes, dtype=np.uint8)
        tiles = content[: self.payload_bytes].view("<f4").reshape(rows, columns, variables, height, width)
        padded = np.zeros(self.shard, dtype="<f4")
        padded[:, : self.height, : self.width] = values
        tiles[...] = padded.reshape(variables, rows, height, columns, width).transpose(1, 3, 0, 2, 4)
        content[self.payload_bytes :] = np.frombuffer(self.index, dtype=np.uint8)
        return content.data

    def decode(self, content: bytes) -> np.ndarray:
        """[V, H, W] float32 of a file that is whole."""
        tiles = np.frombuffer(content, dtype="<f4", count=self.payload_bytes // 4)
        return self.arrange(tiles, slice(0, self.height), slice(0, self.width))

    def reads(self, rows: slice, columns: slice) -> tuple[range, int]:
        """Where in a file the tiles of a window lie.

        Args:
            rows: Of the window, at least one.
            columns: Likewise.

        Returns:
            Positions to read at, and how many bytes at each.
        """
        first, last, left, right = self._covering(rows, columns)
        in_row, size = self.counts[1], self.tile_bytes
        if right - left == in_row:  # whole rows of tiles follow each other
            return range(first * in_row * size, first * in_row * size + 1), (last - first) * in_row * size
        return range((first * in_row + left) * size, (last * in_row + left) * size, in_row * size), (
            right - left
        ) * size

    def arrange(self, tiles: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Put together what was read.

        Args:
            tiles: Of `reads`, one after the other: float32.
            rows: Of the window.
            columns: Likewise.

        Returns:
            [V, rows, columns] float32.
        """
        first, last, left, right = self._covering(rows, columns)
        variables, height, width = self.tile
        apart = tiles.reshape(last - first, right - left, variables, height, width)
        joined = apart.transpose(2, 0, 3, 1, 4).reshape(
            variables, (last - first) * height, (right - left) * width
        )
        south, west = first * height, left * width
        return joined[:, rows.start - south : rows.stop - south, columns.start - west : columns.stop - west]

    def _covering(self, rows: slice, columns: slice) -> tuple[int, int, int, int]:
        """First row and column of the tiles that hold a window, and one past the last: [first, last), [left, right)."""
        _, height, width = self.tile
        return (
            rows.start // height,
            -(-rows.stop // height),
            columns.start // width,
            -(-columns.stop // width),
        )
