"""Are the global heaps of an HDF5 file (NetCDF 4) sound?

A global heap holds texts of variable length, such as most attributes. It is the one structure of the metadata
without a checksum, and where its bytes are zero, as a download that broke off leaves them in a file of the final
size, the HDF5 library (2.2, seen) walks it in steps of zero bytes for ever, deaf to Ctrl-C. So the steps are checked
before the library sees the file. What else can be wrong with an HDF5 file, the library reports.

Reference: HDF5 file format specification 3.0, section III.E, "Disk format: level 1E, global heap".
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

# Metadata lie at the beginning, or at the end where they were added: a file of gigabytes is not read through for them.
EXAMINED_BYTES = 32 * 2**20
_SIGNATURE = b"GCOL\x01\0\0\0"
_HEADER = struct.calcsize("<8sQ")  # signature, size of the heap
_OBJECT = struct.Struct("<HHIQ")  # number, references, nothing, size


def check_heaps(path: Path) -> None:
    """Check the global heaps at the beginning and end of an HDF5 file.

    Args:
        path: The file; not empty.

    Raises:
        ValueError: A heap is broken.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for first, last in _stretches(len(content)):
            start = content.find(_SIGNATURE, first, last)
            while start >= 0:
                _check_heap(content, start)
                start = content.find(_SIGNATURE, start + 1, last)


def _stretches(size: int) -> list[tuple[int, int]]:
    if size <= 2 * EXAMINED_BYTES:
        return [(0, size)]
    return [(0, EXAMINED_BYTES), (size - EXAMINED_BYTES, size)]


def _check_heap(content: mmap.mmap, start: int) -> None:
    if start + _HEADER > len(content):
        return  # cut off: the library says so
    (size,) = struct.unpack_from("<Q", content, start + 8)
    end = min(start + size, len(content))
    position = start + _HEADER
    while position + _OBJECT.size <= end:
        number, _, _, length = _OBJECT.unpack_from(content, position)
        # Object 0 is the free space at the end: its size counts the header.
        step = length if number == 0 else _OBJECT.size + -(-length // 8) * 8
        if step < _OBJECT.size:
            raise ValueError(f"the heap of texts at byte {start} is broken")
        position += step
