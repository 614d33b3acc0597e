"""Zarr stores of unknown origin: nothing outside the folder is read, and no codec runs code."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import xarray as xr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from climafuse.errors import ClimateFileError


class ConfinedStore(LocalStore):
    """A Zarr store in a folder, which must hold its files itself.

    A link in it may name any file of the reader, and a key of consolidated metadata any path: what is read there would
    come back as values.
    """

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As of `LocalStore`."""
        self._check_inside(key)
        return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As of `LocalStore`."""
        key_ranges = list(key_ranges)
        for key, _ in key_ranges:
            self._check_inside(key)
        return await super().get_partial_values(prototype, key_ranges)

    def _check_inside(self, key: str) -> None:
        root = os.path.realpath(self.root)
        if os.path.commonpath([root, os.path.realpath(self.root / key)]) != root:
            raise ClimateFileError(
                str(self.root),
                expected="a Zarr store that holds its files itself",
                received=f"{key}, which leads out of it",
                remedy="If you trust its origin, put the file itself in place of the link.",
            )


def check_codecs(dataset: xr.Dataset, *, where: str) -> None:
    """Refuse arrays that are decoded by unpickling, before a value is read.

    Args:
        dataset: As opened from Zarr, without indexes.
        where: Name of the store, for errors.

    Raises:
        ClimateFileError: There is one.
    """
    for name, variable in dataset.variables.items():
        codecs: Any = [
            variable.encoding.get(key) for key in ("filters", "compressors", "compressor", "serializer")
        ]
        if "pickle" in repr(codecs).lower():
            raise ClimateFileError(
                f"{where}: variable {str(name)!r}",
                expected="values as numbers",
                received="pickled objects, which can run code when read",
                remedy="Do not open it; ask for the fields as numbers.",
            )
