"""Where states of texts are kept: in memory, or in files that later runs and other processes find.

States are kept by group: texts whose states were computed together, since the last bits of a state depend on what it
was computed with. A group is found by the tokens of all its texts, so what is found equals what would be computed, bit
for bit, whatever other texts and runs have been stored.

On the disk a folder belongs to one `identity`: whatever the states depend on. Its files are safetensors named by the
SHA-256 of their header, which holds where each group lies and a checksum of each of its parts. They appear whole
(written beside, synced, renamed), are never changed, and are mapped into memory. What is read is checked every time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import shutil
import stat
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import transformers
from torch import Tensor

from climafuse.backbones import Site
from climafuse.backbones.native import product_dtype
from climafuse.data.files import cache_directory, whole_file
from climafuse.data.lock import alone, in_use, remove_unused
from climafuse.errors import OutputError, UsageError
from climafuse.memory import memory_state

if TYPE_CHECKING:
    from climafuse.model.modeling import ClimateTextForCausalLM

Tokens = tuple[int, ...]
Parts = Sequence[Tensor]
logger = logging.getLogger(__name__)

FORMAT = 1  # of the files, and of how states are computed: another number, another folder
FILE_BYTES = 256 << 20  # of a file: few, since a process keeps those that it uses open
FILE_SECONDS = 60.0  # of computing between files: what a killed process loses at most
MAPPED_BYTES = 256 << 20  # read through maps before their pages are let go of
WAIT = 60.0  # seconds for another process that is writing
ABANDONED = 3600.0  # seconds after which an unfinished file is one of a process that was killed
SHARE = 4  # of what is free, a quarter is taken where no limit is given
_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
_HEADER_BYTES = 100 << 20  # no header is longer


class StoredStates(Protocol):
    """What a `PrefixStore` keeps the states of its groups in. A part is a tensor [r, D] of some tokens of a text."""

    def find(self, key: str, lengths: Sequence[int]) -> bool:
        """Whether the group of that key is there, in parts of these numbers of tokens."""

    def put(self, key: str, parts: Parts) -> bool:
        """Keep a group; False where there is no room."""

    def part(self, key: str, number: int) -> Tensor | None:
        """A part of a group; None where it is no longer there, or damaged."""

    def want(self, keys: Iterable[str]) -> None:
        """These are used from now on, others may go where there is no room."""

    def flush(self) -> bool:
        """Hand over what was put to where it stays; False where not all of it has room."""


def group_key(texts: Sequence[Tokens]) -> str:
    """Return the key of a group of texts: a hash of their tokens, in order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(array("q", (len(text), *text)).tobytes())
    return digest.hexdigest()[:40]


class MemoryStates:
    """States in memory, bounded.

    Args:
        limit: Bytes; None for a quarter of what is free for this process, see `free_memory`.
        device: Where they lie; for that quarter.

    Attributes:
        num_bytes: What is held.
    """

    def __init__(self, limit: int | None = None, *, device: torch.device | str = "cpu") -> None:
        self.limit = free_memory(torch.device(device)) // SHARE if limit is None else limit
        self.num_bytes = 0
        self._groups: dict[str, Parts] = {}
        self._wanted: set[str] = set()

    def find(self, key: str, lengths: Sequence[int]) -> bool:
        """See `StoredStates`."""
        return key in self._groups

    def put(self, key: str, parts: Parts) -> bool:
        """See `StoredStates`. What is not wanted goes first, the oldest first; what is wanted stays."""
        if key in self._groups:
            return True
        size = sum(part.numel() * part.element_size() for part in parts)
        others = (
            [] if self.num_bytes + size <= self.limit else [k for k in self._groups if k not in self._wanted]
        )
        for other in others:
            if self.num_bytes + size <= self.limit:
                break
            self.num_bytes -= sum(part.numel() * part.element_size() for part in self._groups.pop(other))
        if self.num_bytes + size > self.limit:
            return False
        self._groups[key] = parts
        self._wanted.add(key)
        self.num_bytes += size
        return True

    def part(self, key: str, number: int) -> Tensor | None:
        """See `StoredStates`."""
        parts = self._groups.get(key)
        return None if parts is None else parts[number]

    def want(self, keys: Iterable[str]) -> None:
        """See `StoredStates`."""
        self._wanted = set(keys)

    def flush(self) -> bool:
        """See `StoredStates`."""
        return True


class DiskStates:
    """States in files, found again by later runs and by other processes at the same time.

    Files that no process has in use are removed where there is no room, the least recently used first, whatever
    backbone they are of; what this process has written it has in use. Where nothing can be written, or others use all
    the room, states are kept in memory as far as the limit allows, and that is said.

    Args:
        identity: What the states depend on, as JSON values.
        folder: Where all states lie; None for `prefix_states` in climafuse's cache (`CLIMAFUSE_HOME`).
        limit: Bytes of all files in it; None for a quarter of what is free with them.
        say: Told what the user should know; None for the log.
    """

    def __init__(
        self,
        identity: Mapping[str, Any],
        *,
        folder: Path | None = None,
        limit: int | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.identity = json.dumps(identity, sort_keys=True)
        self.root = cache_directory() / "prefix_states" if folder is None else folder
        self.folder = self.root / hashlib.sha256(self.identity.encode()).hexdigest()[:32]
        self.limit = limit
        self._say = logger.warning if say is None else say
        self._files: dict[str, _File] = {}  # by name
        self._index: dict[str, _File] = {}  # by key
        self._pending: dict[str, Parts] = {}
        self._pending_bytes = 0
        self._since = 0.0
        self._read_bytes = 0
        self._instead: MemoryStates | None = None  # where nothing more can be written
        self._look()

    @classmethod
    def of(
        cls,
        model: ClimateTextForCausalLM,
        *,
        folder: Path | None = None,
        limit: int | None = None,
        say: Callable[[str], None] | None = None,
    ) -> DiskStates:
        """Make one for the states at the `prefix_site` of a model; arguments as of the class."""
        return cls(states_identity(model, model.prefix_site), folder=folder, limit=limit, say=say)

    def find(self, key: str, lengths: Sequence[int]) -> bool:
        """See `StoredStates`. From then on this process uses the file."""
        if key in self._pending or (self._instead is not None and self._instead.find(key, lengths)):
            return True
        file = self._index.get(key)
        if file is None:
            return False
        try:
            return file.hold().lengths(key) == list(lengths)
        except (OSError, _DamagedError) as error:
            self._lose(file, error)
        return False

    def put(self, key: str, parts: Parts) -> bool:
        """See `StoredStates`."""
        if self._instead is not None:
            return self._instead.put(key, parts)
        if not self._pending:
            self._since = time.monotonic()
        self._pending[key] = [part.cpu() for part in parts]
        self._pending_bytes += sum(part.numel() * part.element_size() for part in parts)
        largest = FILE_BYTES if self.limit is None else min(FILE_BYTES, self.limit // 8)
        if self._pending_bytes >= largest or time.monotonic() - self._since > FILE_SECONDS:
            return self.flush()
        return True

    def part(self, key: str, number: int) -> Tensor | None:
        """See `StoredStates`."""
        if key in self._pending:
            return self._pending[key][number]
        file = self._index.get(key)
        if file is None:
            return None if self._instead is None else self._instead.part(key, number)
        try:
            found = file.hold().part(key, number)
        except (OSError, _DamagedError) as error:
            self._lose(file, error)
            return None
        self._read_bytes += found.numel() * found.element_size()
        if self._read_bytes > MAPPED_BYTES:
            self._read_bytes = 0
            for file in self._files.values():
                file.let_go()
        return found

    def want(self, keys: Iterable[str]) -> None:
        """See `StoredStates`: what this process has found, it uses; so nothing is to be done."""
        if self._instead is not None:
            self._instead.want(keys)

    def flush(self) -> bool:
        """Write what is pending to a file of its own."""
        self._look()  # another process may have computed the same
        for key in [key for key in self._pending if key in self._index]:
            del self._pending[key]
        kept = True
        if self._pending:
            try:
                with alone(self.root / ".lock", wait=WAIT):
                    self._add(self._write(), hold=True)
            except (OutputError, UsageError) as error:
                kept = self._keep_instead(error)
        self._pending, self._pending_bytes = {}, 0
        return kept

    def _keep_instead(self, error: Exception) -> bool:
        """Keep in memory what is pending and all that comes, as far as files in use leave room within the limit."""
        self._instead = MemoryStates()
        if self.limit is not None:
            used = sum(file.size for file in self._files.values() if file.held)
            self._instead.limit = min(self._instead.limit, max(self.limit - used, 0))
        kept = [self._instead.put(key, parts) for key, parts in self._pending.items()]
        if any(kept):  # else it is full, which is said by who fills it
            self._say(f"prefix store: {error} States are kept in memory from here on.")
        return all(kept)

    def _write(self) -> Path:
        """Write pending groups to a file, and make room for it."""
        parts = [part.contiguous() for group in self._pending.values() for part in group]
        contents = [part.view(torch.uint8).reshape(-1).numpy().data for part in parts]
        checksums = iter([zlib.crc32(content) for content in contents])
        first = 0
        groups: dict[str, list[Any]] = {}
        for key, group in self._pending.items():
            lengths = [len(part) for part in group]
            groups[key] = [first, lengths, [next(checksums) for _ in group]]
            first += sum(lengths)
        num_bytes = sum(map(len, contents))
        header = json.dumps(
            {
                "__metadata__": {"identity": self.identity, "groups": json.dumps(groups)},
                "states": {
                    "dtype": _DTYPES[parts[0].dtype],
                    "shape": [first, parts[0].shape[1]],
                    "data_offsets": [0, num_bytes],
                },
            }
        ).encode()
        header += b" " * (-len(header) % 8)
        path = self.folder / f"{hashlib.sha256(header).hexdigest()[:40]}.safetensors"
        size = 8 + len(header) + num_bytes
        self._make_room(size)
        with whole_file(path, size=size) as temporary, temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little"))
            file.write(header)
            for content in contents:
                file.write(content)
        return path

    def _make_room(self, size: int) -> None:
        """Remove files until one of that size fits; the lock is held, so that nobody else writes or removes."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            folders, free = list(self.root.iterdir()), shutil.disk_usage(self.root).free
        except OSError as error:
            raise OutputError(
                error.filename or str(self.root),
                expected="a folder that can be made and listed",
                received=error.strerror or str(error),
                remedy="Choose another place for climafuse's cache: CLIMAFUSE_HOME.",
            ) from error
        files: list[tuple[float, int, Path]] = []
        for folder in folders:
            for path in _entries(folder):
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    status = path.stat()
                    if stat.S_ISREG(status.st_mode):
                        files.append((status.st_mtime, status.st_size, path))
        total = sum(taken for _, taken, _ in files)
        if self.limit is None:
            self.limit = (free + total) // SHARE
        for modified, taken, path in sorted(files):
            abandoned = path.suffix == ".tmp" and time.time() - modified > ABANDONED
            if (total + size > self.limit or abandoned) and remove_unused(path):
                total -= taken
                with contextlib.suppress(OSError):  # not empty, or about to be filled
                    if path.parent != self.folder:
                        path.parent.rmdir()
        if total + size > self.limit:
            raise OutputError(
                str(self.root),
                expected=f"room for {size / 1e9:.3g} GB of states within {self.limit / 1e9:.3g} GB",
                received=f"{total / 1e9:.3g} GB that running processes use",
                remedy="Allow more: training.prefix_store_gb.",
            )

    def _look(self) -> None:
        """Learn of files that were written since."""
        try:
            paths = [path for path in self.folder.iterdir() if path.suffix == ".safetensors"]
        except OSError:  # not there yet
            return
        for path in sorted(paths):
            if path.name not in self._files:
                self._add(path)

    def _add(self, path: Path, *, hold: bool = False) -> None:
        try:
            file = _File(path, self.identity)
            if hold:
                file.hold()
        except (OSError, _DamagedError) as error:
            self._tell(path, error)
            return
        self._files[path.name] = file
        for key in file.groups:
            self._index.setdefault(key, file)

    def _lose(self, file: _File, error: Exception) -> None:
        self._files.pop(file.path.name, None)
        self._index = {key: other for key, other in self._index.items() if other is not file}
        self._tell(file.path, error)

    def _tell(self, path: Path, error: Exception) -> None:
        if isinstance(error, FileNotFoundError):  # removed by another process, for room
            return
        self._say(f"prefix store: {path} cannot be used ({error}); what it held is computed again")
        if isinstance(error, _DamagedError):
            with contextlib.suppress(OSError):
                path.unlink()


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it is a file, or another user's: there, this one can remove nothing."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


class _DamagedError(Exception):
    """A file does not hold what was written to it."""


class _File:
    """A file of groups. Its header is read when it is made, its states when they are asked for."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, size, _HEADER_BYTES))
        if hashlib.sha256(header).hexdigest()[:40] != path.stem:
            raise _DamagedError("its header is not the one that was written")
        try:
            content = json.loads(header)
            states, metadata = content["states"], content["__metadata__"]
            rows, self.width = states["shape"]
            self.dtype = {name: dtype for dtype, name in _DTYPES.items()}[states["dtype"]]
            self.groups = {
                key: (list(accumulate(lengths, initial=first)), lengths, checksums)
                for key, (first, lengths, checksums) in json.loads(metadata["groups"]).items()
            }
            other = metadata["identity"] != identity
            self.start = 8 + length
            self.row_bytes = self.width * self.dtype.itemsize
            self.size = self.start + rows * self.row_bytes
        except (ValueError, KeyError, TypeError) as error:
            raise _DamagedError(f"its header cannot be read: {error}") from error
        if other:
            raise _DamagedError("it holds the states of another model")
        self._check_size(size)
        self._map: mmap.mmap | None = None

    def _check_size(self, size: int) -> None:
        if size != self.size:
            raise _DamagedError(f"{size:,} bytes of {self.size:,}")

    @property
    def held(self) -> bool:
        """Whether this process uses it."""
        return self._map is not None

    def hold(self) -> _File:
        """Use it from now on: no other process removes it."""
        if self._map is None:
            with in_use(self.path) as file:  # the map keeps it open, and so its lock
                self._check_size(os.fstat(file.fileno()).st_size)
                with contextlib.suppress(
                    OSError
                ):  # somebody else's: then it looks less recently used than it is
                    os.utime(self.path)
                self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        return self

    def lengths(self, key: str) -> list[int]:
        """Number of tokens of each part of a group."""
        return self.groups[key][1]

    def part(self, key: str, number: int) -> Tensor:
        """Read a part of a group, and check it."""
        assert self._map is not None
        firsts, lengths, checksums = self.groups[key]
        if not lengths[number]:
            return torch.empty(0, self.width, dtype=self.dtype)
        # A page beyond the end of a file that was cut would end the process.
        self._check_size(self._map.size())
        start = self.start + firsts[number] * self.row_bytes
        content = bytearray(memoryview(self._map)[start : start + lengths[number] * self.row_bytes])
        if zlib.crc32(content) != checksums[number] or len(content) != lengths[number] * self.row_bytes:
            raise _DamagedError(f"other bytes than were written, at {start:,}")
        return torch.frombuffer(content, dtype=self.dtype).view(-1, self.width)

    def let_go(self) -> None:
        """Let go of the pages that were read: they would count as memory of this process."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def states_identity(model: ClimateTextForCausalLM, site: Site) -> dict[str, Any]:
    """Return what states at a site depend on, to the last bit where shapes are the same.

    Weights (by content), the form they are held in, the architecture with all its settings, how attention is computed,
    and what computes: another version of torch or transformers may order sums otherwise or mend an error, and its
    states would meet those of the old one in one run; so would those of products in another type. Adapters lie above
    the site. What is not in it: the model of the processor and the number of threads. Machines that differ in these and
    share a cache may find states whose last bits they would have computed otherwise.

    Args:
        model: The model.
        site: A site up to which its states depend on text and frozen weights alone.
    """
    backbone, config = model.backbone, model.config
    settings = backbone.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):  # where it lies, who wrote the file
        settings.pop(name, None)
    return {
        "format": FORMAT,
        "weights": model.backbone_identity["content_hash"],
        "architecture": type(backbone).__name__,
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest(),
        "dtype": str(backbone.dtype),
        "quantization": config.backbone_quantization,
        "attention": str(getattr(backbone.config, "_attn_implementation", None)),
        "site": site,
        "device": backbone.device.type,
        "products": str(product_dtype(backbone.dtype, backbone.device)),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are free on a device, for this process: those that one machine runs have equal parts."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    state = memory_state()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # as torchrun sets it, or else `join`
    return 1 << 62 if state is None else state.room // processes  # not Linux: nobody says
