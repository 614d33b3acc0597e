"""Does what the header of a GGUF file counts fit into the file? Asked before the gguf package reads it.

That package believes every length: a list of 2**50 numbers in a file of 100 bytes keeps it busy for years.

Reference: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

# Type of a value -> its size in bytes; 8 is text and 9 a list.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _LIST = 8, 9


def check_header(path: Path) -> None:
    """Check the lengths in the header of a GGUF file (versions 2 and 3, little-endian).

    Args:
        path: The file.

    Raises:
        ValueError: They do not fit into the file.
    """
    with path.open("rb") as file:
        magic, version, num_tensors, num_values = struct.unpack("<4sIQQ", _take(file, 24))
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("not GGUF of version 2 or 3")
        for _ in range(num_values):
            _skip_text(file)
            _skip_value(file, *struct.unpack("<I", _take(file, 4)))
        for _ in range(num_tensors):
            _skip_text(file)
            (dimensions,) = struct.unpack("<I", _take(file, 4))
            _skip(file, 8 * dimensions + 4 + 8)  # sizes, type, offset


def _skip_value(file: BinaryIO, kind: int) -> None:
    if kind == _TEXT:
        _skip_text(file)
    elif kind == _LIST:
        inner, length = struct.unpack("<IQ", _take(file, 12))
        if inner == _LIST:
            raise ValueError("a list of lists")
        if inner != _TEXT and inner in _SIZES:
            _skip(file, length * _SIZES[inner])
            return
        for _ in range(length):
            _skip_value(file, inner)
    elif kind in _SIZES:
        _skip(file, _SIZES[kind])
    else:
        raise ValueError(f"a value of unknown type {kind}")


def _skip_text(file: BinaryIO) -> None:
    _skip(file, *struct.unpack("<Q", _take(file, 8)))


def _skip(file: BinaryIO, size: int) -> None:
    """Skip bytes that must be there."""
    here = file.tell()
    if size > 2**62 or file.seek(0, 2) < here + size:
        raise ValueError("a length beyond the end of the file")
    file.seek(here + size)


def _take(file: BinaryIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise ValueError("cut off in its header")
    return content
