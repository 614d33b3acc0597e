"""Is a classic NetCDF file (versions 1, 2 and 5) all there?

The NetCDF library reads zeros past the end of a truncated classic file, without a word (netCDF-C 4.9, seen).
Zeros are plausible winds and rain, so the size that the header promises is compared with the size of the file
before anything is read. NetCDF-4 files need no such check: HDF5 compares the sizes itself.

Reference: NetCDF user's guide, appendix B, "NetCDF classic format specification".
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}  # nc_type -> bytes


class _Header:
    """Reads the header from front to back; ``struct.error`` where it ends too early."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.version = file.read(4)[3]

    def integer(self) -> int:
        """A 4-byte number: a tag or type."""
        return self._unpack(">I")

    def count(self) -> int:
        """A length or number of elements: 8 bytes in version 5."""
        return self._unpack(">Q" if self.version == 5 else ">I")

    def offset(self) -> int:
        """A position in the file: 4 bytes in version 1."""
        return self._unpack(">I" if self.version == 1 else ">Q")

    def skip(self, size: int) -> None:
        """Skip bytes and what pads them to a multiple of four."""
        self._file.seek(_padded(size), 1)

    def list_length(self) -> int:
        """Length of the list of dimensions, attributes or variables that begins here."""
        self.integer()  # the tag: known from the order
        return self.count()

    def skip_attributes(self) -> None:
        """Skip a list of attributes."""
        for _ in range(self.list_length()):
            self.skip(self.count())
            size = _TYPE_SIZES[self.integer()]
            self.skip(self.count() * size)

    def _unpack(self, code: str) -> int:
        (value,) = struct.unpack(code, self._file.read(struct.calcsize(code)))
        return int(value)


def expected_size(path: Path) -> int:
    """How many bytes a classic NetCDF file must have at least.

    Args:
        path: The file; it must begin with ``CDF``.

    Returns:
        End of the last value that the header promises, padding left out.

    Raises:
        ValueError: The header itself is cut off or broken.
    """
    try:
        with path.open("rb") as file:
            return _expected_size(_Header(file))
    except (struct.error, KeyError, IndexError) as error:
        raise ValueError("the header is cut off or broken") from error


def _expected_size(header: _Header) -> int:
    num_records = header.count()
    if num_records == 2 ** (64 if header.version == 5 else 32) - 1:  # "streaming": the number is not known
        num_records = 0
    dimensions = []
    for _ in range(header.list_length()):
        header.skip(header.count())
        dimensions.append(header.count())
    header.skip_attributes()
    fixed_ends, records = [0], []
    for _ in range(header.list_length()):
        header.skip(header.count())
        shape = [dimensions[header.count()] for _ in range(header.count())]
        header.skip_attributes()
        size = _TYPE_SIZES[header.integer()]
        header.count()  # the size in bytes, which overflows for large variables: worked out here instead
        begin = header.offset()
        if shape and shape[0] == 0:  # the record dimension has length 0 in the header
            records.append((begin, math.prod(shape[1:]) * size))
        else:
            fixed_ends.append(begin + math.prod(shape) * size)
    # Records lie one after the other, each holding one step of every record variable. A single record
    # variable is not padded.
    sizes = [size for _, size in records]
    stride = sum(map(_padded, sizes)) if len(sizes) > 1 else sum(sizes)
    record_ends = [begin + (num_records - 1) * stride + size for begin, size in records if num_records]
    return max(fixed_ends + record_ends)


def _padded(size: int) -> int:
    return -(-size // 4) * 4
