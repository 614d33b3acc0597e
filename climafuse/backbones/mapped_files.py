"""Memory that is files mapped into a process: which it is, and how to let go of it."""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor


class MappedFiles:
    """Which memory of this process is files mapped into it, as it was when this was made (Linux; elsewhere none)."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        if sys.platform.startswith("linux"):
            with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    addresses, *fields = line.split(maxsplit=5)
                    if len(fields) == 5 and fields[4].startswith("/"):
                        first, _, last = addresses.partition("-")
                        self._ranges.append((int(first, 16), int(last, 16)))

    def let_go(self, tensor: Tensor) -> None:
        """Tell the system that the pages of mapped weights are not needed now; read again, they come from the file.

        Without this they would count as the process's own until the whole file is closed.

        Args:
            tensor: Weights that nobody has written to, as that would be lost. If they are not mapped from a file,
                nothing happens.
        """
        self._advise(tensor, "MADV_DONTNEED")

    def read_ahead(self, tensor: Tensor) -> None:
        """Tell the system that mapped weights are needed soon: it reads them from the disk while others are computed.

        Args:
            tensor: The weights. If they are not mapped from a file, nothing happens.
        """
        self._advise(tensor, "MADV_WILLNEED")

    def _advise(self, tensor: Tensor, advice: str) -> None:
        start = tensor.data_ptr()
        stop = start + tensor.numel() * tensor.element_size()
        if tensor.device.type != "cpu" or not any(
            first <= start < stop <= last for first, last in self._ranges
        ):
            return
        page = mmap.PAGESIZE  # whole pages only: those at the ends are shared with neighbors
        first, last = -(-start // page) * page, stop // page * page
        if first < last:
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(first), ctypes.c_size_t(last - first), getattr(mmap, advice)
            )
