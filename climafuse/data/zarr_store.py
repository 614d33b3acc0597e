"""Zarr stores of unknown origin: nothing outside the folder is read, no codec runs code, no chunk fills the memory.

A few kilobytes may unpack to gigabytes. How many bytes a chunk has is known from the array's metadata before any is
unpacked, and at every codec on the way: so each codec that unpacks is bound to that many, inside shards, too.
"""

from __future__ import annotations

import asyncio
import atexit
import bz2
import dataclasses
import gzip
import io
import lzma
import math
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import xarray as xr
import zarr
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.abc.store import ByteRequest
from zarr.codecs import ShardingCodec
from zarr.codecs._v2 import V2Codec
from zarr.core import sync as zarr_sync
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline
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


def check_chunks(dataset: xr.Dataset, *, where: str) -> None:
    """Refuse arrays whose chunks are far larger than themselves: they would be a bound to nothing.

    Args:
        dataset: As opened from Zarr.
        where: Name of the store, for errors.

    Raises:
        ClimateFileError: There is one.
    """
    for name, variable in dataset.variables.items():
        chunk = variable.encoding.get("shards") or variable.encoding.get("chunks") or ()
        size, whole = (math.prod(shape) * variable.dtype.itemsize for shape in (chunk, variable.shape))
        if size > LARGE_CHUNK and size > 16 * whole:
            raise ClimateFileError(
                f"{where}: variable {str(name)!r}",
                expected="chunks that are not much larger than their array",
                received=f"chunks of {size:,} bytes in an array of {whole:,}",
                remedy="Write it again with smaller chunks.",
            )


# ---- How large a chunk may become

SLACK = 64 * 1024  # bytes; headers and checksums
VARIABLE_LENGTH = 64 * 1024**2  # bytes of a chunk of texts, whose metadata do not tell
LARGE_CHUNK = 256 * 1024**2  # bytes; of one that is no larger, little is lost


class ChunkSizeError(ValueError):
    """A chunk has far more bytes than its array says."""


def largest(spec: ArraySpec) -> int:
    """The most bytes that a chunk may have on its way through the codecs: a filter may store wider numbers."""
    dtype = spec.dtype.to_native_dtype()
    if dtype.hasobject or dtype.kind == "T":
        return VARIABLE_LENGTH
    return 2 * math.prod(spec.shape) * dtype.itemsize + SLACK


def _zlib(data: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj()
    unpacked = stream.decompress(data, limit)
    if len(unpacked) < limit and not stream.eof:
        raise EOFError("compressed data that end in the middle")
    return unpacked


def _lzma(data: bytes, limit: int, options: Mapping[str, Any]) -> bytes:
    kind, filters = options.get("format", lzma.FORMAT_XZ), options.get("filters")
    with lzma.LZMAFile(io.BytesIO(data), format=kind, filters=filters) as stream:
        return stream.read(limit)


def _zstd(data: bytes, limit: int) -> bytes:
    import pyarrow as pa

    unpacked: bytes = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read(limit)
    return unpacked


def _zstd_size(data: bytes) -> int | None:
    """Bytes of content that the headers of all frames declare; None where one does not (RFC 8878, section 3.1)."""
    total = at = 0
    while at < len(data):
        magic = int.from_bytes(data[at : at + 4], "little")
        if magic >> 4 == 0x184D2A5:  # a frame to be skipped
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            continue
        descriptor = int.from_bytes(data[at + 4 : at + 5], "little")
        single_segment = descriptor >> 5 & 1
        width = (single_segment, 2, 4, 8)[descriptor >> 6]
        if magic != 0xFD2FB528 or not width:
            return None
        at += 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
        total += int.from_bytes(data[at : at + width], "little") + (256 if width == 2 else 0)
        at += width
        last = 0
        while not last:
            if at + 3 > len(data):
                return None
            block = int.from_bytes(data[at : at + 3], "little")
            last, repeated = block & 1, block >> 1 & 3 == 1
            at += 3 + (1 if repeated else block >> 3)
        at += descriptor & 4  # bytes of a checksum
    return total


# Codec -> unpacks up to so many bytes.
_STREAMS: dict[str, Callable[[bytes, int, Mapping[str, Any]], bytes]] = {
    "gzip": lambda data, limit, _: gzip.GzipFile(fileobj=io.BytesIO(data)).read(limit),
    "zlib": lambda data, limit, _: _zlib(data, limit),
    "bz2": lambda data, limit, _: bz2.BZ2File(io.BytesIO(data)).read(limit),
    "lzma": _lzma,
    "zstd": lambda data, limit, _: _zstd(data, limit),
}
# Codec -> bytes that it makes room for, as the data themselves declare; None where they do not.
_DECLARED: dict[str, Callable[[bytes], int | None]] = {
    "blosc": lambda data: int.from_bytes(data[4:8], "little"),
    "lz4": lambda data: int.from_bytes(data[:4], "little"),
    "zstd": _zstd_size,
}


def unpack(codec: str, options: Mapping[str, Any], data: Any, spec: ArraySpec) -> bytes | None:
    """Unpack no more of a chunk than it may have, or find that its codec can be left to do so.

    Args:
        codec: Name of the codec, as numcodecs has it.
        options: Its configuration.
        data: What it is to decode.
        spec: Shape and type of the chunk.

    Returns:
        What the codec would make of the data, or None: it makes no more than it may, or is none that unpacks.

    Raises:
        ChunkSizeError: There are more.
    """
    limit = largest(spec)
    size = getattr(data, "nbytes", None) or len(data)
    if size <= limit and codec in _DECLARED | _STREAMS:
        data = data if isinstance(data, bytes) else memoryview(data).tobytes()
        declared = _DECLARED[codec](data) if codec in _DECLARED else None
        if declared is None:
            unpacked = _STREAMS[codec](data, limit + 1, options)
            if len(unpacked) <= limit:
                return unpacked
        size = limit + 1 if declared is None else declared
    if size > limit:
        raise ChunkSizeError(
            f"{size:,} bytes or more from {codec}, in an array whose chunks have {(limit - SLACK) // 2:,}"
        )
    return None


@dataclass(frozen=True)
class _Bounded(BytesBytesCodec):
    """A codec that unpacks no more than the chunk may have.

    Args:
        codec: The codec.
    """

    codec: BytesBytesCodec

    is_fixed_size = False

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        told = self.codec.to_dict()
        name = str(told["name"]).removeprefix("numcodecs.")
        options: Any = told.get("configuration", {})
        unpacked = await asyncio.to_thread(unpack, name, options, chunk_data.as_numpy_array(), chunk_spec)
        if unpacked is None:
            return await self.codec._decode_single(chunk_data, chunk_spec)
        return chunk_spec.prototype.buffer.from_bytes(unpacked)

    async def _encode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await self.codec._encode_single(chunk_data, chunk_spec)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """As of the codec."""
        return self.codec.compute_encoded_size(input_byte_length, chunk_spec)

    def to_dict(self) -> dict[str, Any]:
        """As of the codec."""
        return self.codec.to_dict()


@dataclass(frozen=True)
class _Filter:
    """A codec of Zarr 2 for one chunk, as `_Bounded`.

    Args:
        codec: The codec, of numcodecs.
        spec: Shape and type of the chunk.
    """

    codec: Any
    spec: ArraySpec

    def decode(self, buf: Any) -> Any:
        """What the codec makes of it."""
        options = self.codec.get_config()
        unpacked = unpack(options["id"], options, buf, self.spec)
        return self.codec.decode(buf) if unpacked is None else unpacked


class _BoundedV2(V2Codec):
    """The compressor and the filters of Zarr 2, as `_Bounded`."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        filters: Any = tuple(_Filter(codec, chunk_spec) for codec in self.filters or ()) or None
        compressor: Any = _Filter(self.compressor, chunk_spec) if self.compressor else None
        return await V2Codec(filters, compressor)._decode_single(chunk_bytes, chunk_spec)


def _bounded(codec: Codec) -> Codec:
    if isinstance(codec, BytesBytesCodec):
        return _Bounded(codec)
    if isinstance(codec, V2Codec):
        return _BoundedV2(codec.filters, codec.compressor)
    if isinstance(codec, ShardingCodec):
        return dataclasses.replace(codec, codecs=tuple(_bounded(inner) for inner in codec.codecs))
    return codec


class BoundedPipeline(BatchedCodecPipeline):
    """The codecs of an array, none of which unpacks more than a chunk may have."""

    @classmethod
    def from_codecs(cls, codecs: Iterable[Codec], *, batch_size: int | None = None) -> BoundedPipeline:
        """As of `BatchedCodecPipeline`."""
        return super().from_codecs([_bounded(codec) for codec in codecs], batch_size=batch_size)

    async def read_batch(self, batch_info: Iterable[Any], *arguments: Any, **options: Any) -> Any:
        """As of `BatchedCodecPipeline`; errors name the chunk."""
        batch_info = list(batch_info)
        try:
            return await super().read_batch(batch_info, *arguments, **options)
        except ChunkSizeError as error:
            keys = ", ".join(str(getattr(place, "path", place)) for place, *_ in batch_info)
            raise ChunkSizeError(f"{keys} unpacks to {error}") from error


register_pipeline(BoundedPipeline)
_opening = threading.Lock()


@contextmanager
def bounded_chunks() -> Iterator[None]:
    """While this lasts, arrays of Zarr are opened such that they never unpack more than their chunks may have."""
    # The setting is of the process: two that open at once would give it back in the wrong order.
    with _opening, zarr.config.set({"codec_pipeline.path": f"{__name__}.{BoundedPipeline.__qualname__}"}):
        yield


# ---- What a refused store leaves behind


async def _cancel_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@atexit.register  # after zarr's own, which stops the loop: so it runs before
def _end_reads() -> None:
    """End reads that nobody waits for: zarr leaves those beside one that failed, and Python would tell of them."""
    if zarr_sync.loop[0] is not None:
        with suppress(TimeoutError):  # the process ends in any case
            zarr_sync.sync(_cancel_tasks(), timeout=1)
