"""Fields of a training store by step, from memory or from disk."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from climafuse.data.files import RandomFile
from climafuse.data.tiles import Tiling
from climafuse.errors import StoreError

FIELDS = "fields.zarr"
OPEN_FILES = 512  # those of some batches, and half of what systems allow


class StoredFields:
    """Fields of a store by step.

    Args:
        folder: The store.
        shape: (T, V, H, W).
        digests: SHA-256 of the file of each step, to check them and load them into memory; None to leave them on disk.

    Raises:
        StoreError: A file that is loaded has another content.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int, int, int], digests: Sequence[str] | None = None
    ) -> None:
        self.folder = folder
        self.shape = shape
        self.tiling = Tiling(*shape[1:])
        self._loaded = None if digests is None else self._load(digests)
        # Least recently used files are closed first.
        self._open_cached = functools.lru_cache(maxsize=OPEN_FILES)(self._open)

    @property
    def in_memory(self) -> bool:
        """Whether the fields were loaded."""
        return self._loaded is not None

    def read(self, step: int, rows: slice, columns: slice) -> np.ndarray:
        """Read a part of a step.

        Args:
            step: The step.
            rows: Which rows, south to north, at least one.
            columns: Which columns, west to east, at least one.

        Returns:
            [V, rows, columns] float32, possibly a view.

        Raises:
            StoreError: The file has become shorter.
        """
        if self._loaded is not None:
            loaded: np.ndarray = self._loaded[step, :, rows, columns]
            return loaded
        positions, length = self.tiling.reads(rows, columns)
        file = self._open_cached(step)
        tiles = np.empty((len(positions), length // 4), dtype="<f4")
        for part, position in zip(tiles, positions, strict=True):
            if not file.read_into(part, position):
                raise altered(chunk_path(self.folder, step))
        return self.tiling.arrange(tiles, rows, columns)

    def will_need(self, step: int, rows: slice, columns: slice) -> None:
        """Have a part of a step read from the disk while something else is done."""
        if self._loaded is None:
            positions, length = self.tiling.reads(rows, columns)
            file = self._open_cached(step)
            for position in positions:
                file.will_need(position, length)

    def __reduce__(self) -> tuple[Any, ...]:
        """A loader worker opens the files rather than being sent their content, or loading it once more."""
        return StoredFields, (self.folder, self.shape)

    def _open(self, step: int) -> RandomFile:
        return RandomFile(chunk_path(self.folder, step))

    def _load(self, digests: Sequence[str]) -> np.ndarray:
        fields = np.empty(self.shape, dtype="<f4")
        for step, digest in enumerate(digests):
            path = chunk_path(self.folder, step)
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise altered(path)
            fields[step] = self.tiling.decode(content)
        fields.setflags(write=False)
        return fields


def chunk_path(folder: Path, step: int) -> Path:
    """Where the fields of a step lie in a store: see `Tiling`."""
    return folder / FIELDS / "fields" / f"c.{step}.0.0.0"


def altered(path: str | os.PathLike[str]) -> StoreError:
    """The error for a file of a store that is not as it was written."""
    return StoreError(
        str(path),
        expected="the content it was written with",
        received="altered content",
        remedy="Copy or make the store again.",
    )
