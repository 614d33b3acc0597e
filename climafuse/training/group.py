"""The processes that train one model together: who they are, what they agree on, and what becomes of them if one fails.

    with join() as group:                  # trivial where there is one process
        group.first(prepare)               # in the first process, while the others wait; an error reaches all
        rows = group.gather([loss, 3.0])   # the numbers of all processes, in every one

Processes are found by the variables that `torchrun`, `accelerate launch` and the like set (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT), or, where MASTER_ADDR is set and RANK is not, by those of a Slurm step.

**What is quick goes through the process group** (gloo or nccl), with a limit on how long one process waits for
another. What may take any time (preparing data, writing a checkpoint) is waited for at the store where the processes
met, without limit: a thread in every process says each second that it is alive, and looks after its neighbor.

**A process that is killed is named** by the one that looks after it, and all others end: with an error where a
collective fails (gloo notices at once), and where the process hangs in one, by leaving it. So does the error of one
process end all of them, as the same error. A process that lives and no longer takes part is named by how far it came.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

from climafuse import errors
from climafuse.errors import ClimafuseError, ConfigurationError, TrainingError

T = TypeVar("T")
BEAT = 1.0  # seconds between signs of life
PATIENCE = 15.0  # seconds without one, after which a process counts as gone
SUSPICION = 4.0  # the same once a collective has failed
GRACE = 6.0  # seconds that a process has to end by itself once it knows that another one has failed
_COLLECTIVE = re.compile(
    r"gloo|nccl|peer|c10d|store|socket|timed? ?out|connect|pipe|recv|process ?group", re.IGNORECASE
)
_TIMED_OUT = re.compile(r"timed? ?out", re.IGNORECASE)


class Group:
    """One process alone; the base of several.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
        local_rank: Its number on its machine.
        on_cpu: Whether several processes compute on processors, and meet by gloo.
    """

    rank, size, local_rank, on_cpu = 0, 1, 0, False

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def __enter__(self) -> Group:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def gather(self, values: list[float]) -> list[list[float]]:
        """The numbers of all processes, by rank: quick, and in all processes at the same point."""
        return [values]

    def advance(self) -> None:
        """Note that this process has come a bit further: of processes that wait for each other, one is behind."""

    def exchange(self, value: Any) -> list[Any]:
        """What can be written as JSON, of all processes, by rank; waits without limit."""
        return [value]

    def first(self, function: Callable[[], T]) -> T:
        """Call a function in the first process only; what it returns (JSON) or raises, all return or raise."""
        return function()

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process alone, then the first of each other machine, then the rest.

        For work that all have to do and that fills a cache, such as fetching weights.
        """
        yield


class Processes(Group):
    """Several processes. Made by `join`.

    Args:
        rank: Number of this process.
        size: How many there are.
        local_rank: Its number on its machine.
        on_cpu: Whether they compute on processors.
        connect: Makes a connection to the store where they met.
    """

    def __init__(
        self, rank: int, size: int, local_rank: int, *, on_cpu: bool, connect: Callable[[], Any]
    ) -> None:
        self.rank, self.size, self.local_rank, self.on_cpu = rank, size, local_rank, on_cpu
        self._connect = connect
        self._depth = self._session = self._round = self._progress = 0
        self._verdict: dict[str, Any] | None = None
        self._suspicious = False
        self._over = threading.Event()

    # ---- Coming and going

    def __enter__(self) -> Group:
        self._depth += 1
        if self._depth == 1:
            self._session += 1
            self._round = 0
            self._store = self._connect()
            self._verdict, self._suspicious = None, False
            self._over = threading.Event()
            self._watch = threading.Thread(target=self._look_after, name="process-group", daemon=True)
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._depth > 1:
            self._depth -= 1
            return
        try:
            if error is None:
                self.exchange(None)  # nobody goes while another one may still fail
                self._say_goodbye()
            else:
                self._end_with(error)
        finally:
            self._over.set()
            # A thread that is at the store while the interpreter shuts down aborts it: with an exit code of its own.
            self._watch.join(GRACE)
            self._depth -= 1

    def _end_with(self, error: BaseException) -> None:
        """Tells the others of an error, or raises the one that it follows from."""
        if self._verdict is None and isinstance(error, RuntimeError) and _COLLECTIVE.search(str(error)):
            self._find_out(timed_out=bool(_TIMED_OUT.search(str(error))))
        if self._verdict is None:  # also of an interruption: others would wait for this one
            self._tell({"kind": "failed", "rank": self.rank, **_describe(error)})
        verdict = self._verdict
        with contextlib.suppress(Exception):  # the store may be gone with the process that kept it
            self._say_goodbye(
                seconds=3 * BEAT
            )  # all have heard of it; who waits for this one is let go by its end
        if verdict is None or verdict["rank"] == self.rank or not isinstance(error, Exception):
            return
        if isinstance(error, ClimafuseError) and _describe(error).get("parts") == verdict.get("parts"):
            error.told = True  # all raise it; the one that was first says it
            return
        raise self._error(verdict) from error

    def _find_out(self, *, timed_out: bool) -> None:
        """Waits for the watch to say who is gone; of processes that all live, the one that is behind hangs."""
        self._suspicious = True
        end = time.monotonic() + SUSPICION + 3 * BEAT
        while self._verdict is None and time.monotonic() < end:
            time.sleep(0.05)
        if self._verdict is None and timed_out:
            with contextlib.suppress(Exception):
                progress = [self._beat_of(rank)[1] for rank in range(self.size)]
                slowest = min(range(self.size), key=lambda rank: progress[rank])
                if progress[slowest] < self._progress:
                    self._tell({"kind": "hangs", "rank": slowest})

    def _say_goodbye(self, seconds: float = GRACE) -> None:
        """The first process may keep the store, so it goes last: it waits for the others, if not forever."""
        self._store.set(self._key(f"bye/{self.rank}"), "")
        verdict = self._verdict or {"kind": "failed"}
        gone = None if verdict["kind"] == "failed" else verdict["rank"]
        keys = [self._key(f"bye/{rank}") for rank in range(self.size) if rank != gone]
        end = time.monotonic() + seconds
        while self.is_first and not self._store.check(keys) and time.monotonic() < end:
            time.sleep(0.01)
        if self.is_first and gone is not None:
            time.sleep(1.5 * BEAT)  # for one that hangs, or was only stopped, to hear of it

    def _error(self, verdict: dict[str, Any]) -> ClimafuseError:
        """What another process has failed of."""
        rank = verdict["rank"]
        if verdict.get("parts"):
            cls = getattr(errors, verdict["type"], TrainingError)
            argument, expected, received, remedy = verdict["parts"]
            error: ClimafuseError = cls(argument, expected=expected, received=received, remedy=remedy)
            error.told = True
            return error
        return TrainingError(
            f"process {rank}",
            expected=f"all {self.size} processes to go on",
            received=f"process {rank} {_FATES[verdict['kind']]}"
            + (f" ({verdict['text']})" if verdict.get("text") else ""),
            remedy="Look at its output and at the memory of its machine; go on with --resume.",
        )

    # ---- Agreeing

    def gather(self, values: list[float]) -> list[list[float]]:
        """See `Group`."""
        import torch
        from torch import distributed

        device = "cpu"
        if distributed.get_backend() == "nccl":
            device = f"cuda:{torch.cuda.current_device()}"
        own = torch.tensor(values, dtype=torch.float64, device=device)  # [K]
        rows = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(rows, own)
        self.advance()
        found: list[list[float]] = torch.stack(rows).tolist()
        return found

    def advance(self) -> None:
        """See `Group`."""
        self._progress += 1

    def exchange(self, value: Any) -> list[Any]:
        """See `Group`."""
        self._round += 1
        key = self._key(f"x/{self._round}")
        self._store.set(f"{key}/{self.rank}", json.dumps(value))
        keys = [f"{key}/{rank}" for rank in range(self.size)]
        pause = 0.002
        while not self._store.check(keys):
            self._raise_if_over()
            time.sleep(pause)
            pause = min(1.5 * pause, 0.2)
        values = [json.loads(self._store.get(name)) for name in keys]
        # Everybody is in this round, so nobody still reads the one before.
        self._store.delete_key(self._key(f"x/{self._round - 1}/{self.rank}"))
        self.advance()
        return values

    def first(self, function: Callable[[], T]) -> T:
        """See `Group`."""
        outcome: dict[str, Any] = {}
        if self.is_first:
            try:
                outcome = {"value": function()}
            except Exception as error:
                # Whoever waits is told by `_end_with`, and raises it, too.
                self._tell({"kind": "failed", "rank": self.rank, **_describe(error)})
                raise
        value: T = self.exchange(outcome)[0]["value"]
        return value

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """See `Group`."""
        turn = 0 if self.is_first else 1 if self.local_rank == 0 else 2
        for number in range(3):
            if number == turn:
                yield
            self.exchange(None)

    def _raise_if_over(self) -> None:
        if self._verdict is not None and self._verdict["rank"] != self.rank:
            raise self._error(self._verdict)

    # ---- Watching

    def _key(self, name: str) -> str:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return f"climafuse/{attempt}/{self._session}/{name}"

    def _tell(self, verdict: dict[str, Any]) -> None:
        """Says what has happened; whoever was first is right."""
        try:
            verdict = json.loads(self._store.compare_set(self._key("verdict"), "", json.dumps(verdict)))
        except Exception as error:  # of the store, which the first process keeps, or the launcher beside it
            verdict = {"kind": "gone", "rank": 0, "text": str(error).splitlines()[0][:200]}
        self._verdict = verdict if self._verdict is None else self._verdict

    def _beat_of(self, rank: int) -> tuple[str, int]:
        """Last sign of life of a process, and how far it has come."""
        sign = self._store.get(self._key(f"beat/{rank}")).decode()
        return sign, int(sign.split()[1])

    def _look_after(self) -> None:
        """Runs in a thread: says that this process lives, and looks whether the next one does."""
        store: Any = None
        over, session = self._over, self._session
        neighbor, last, since = (self.rank + 1) % self.size, b"", time.monotonic()
        beat = 0
        known: float | None = None
        while not over.is_set() and session == self._session:
            beat += 1
            now = time.monotonic()
            try:
                store = self._connect() if store is None else store
                store.set(self._key(f"beat/{self.rank}"), f"{beat} {self._progress}")
                if self._verdict is None and store.check([self._key("verdict")]):
                    self._verdict = json.loads(store.get(self._key("verdict")))
                if store.check([self._key(f"bye/{neighbor}")]):
                    neighbor, since = (neighbor + 1) % self.size, now
                key = self._key(f"beat/{neighbor}")
                sign = store.get(key) if store.check([key]) else last
                last, since = (sign, now) if sign != last else (last, since)
                patience = SUSPICION if self._suspicious else PATIENCE
                if neighbor != self.rank and now - since > patience and self._verdict is None:
                    self._tell({"kind": "gone", "rank": neighbor})
            except Exception:  # of the store; what it means is said in one place
                if self._verdict is None and not over.is_set():
                    self._tell({"kind": "gone", "rank": 0})
            # Also a process that was taken for gone, or hangs, once it can hear of it.
            if self._verdict is not None and (self._verdict["rank"], self._verdict["kind"]) != (
                self.rank,
                "failed",
            ):
                known = now if known is None else known
                if now - known > GRACE:
                    self._leave(self._verdict)
            over.wait(BEAT)

    def _leave(self, verdict: dict[str, Any]) -> None:
        """Ends this process, which waits in a collective for one that will not come."""
        error = self._error(verdict)
        print(f"error: {error} (told by process {self.rank})", file=sys.stderr, flush=True)
        os._exit(error.exit_code)


_FATES = {
    "gone": f"gave no sign of life for {PATIENCE:g} seconds, or was killed",
    "hangs": "lives, but no longer takes part",
    "failed": "failed",
}


def _describe(error: BaseException) -> dict[str, Any]:
    """An error as JSON."""
    if isinstance(error, ClimafuseError):
        parts = [str(part) for part in (error.argument, error.expected, error.received, error.remedy)]
        return {"type": type(error).__name__, "parts": parts}
    return {"text": f"{type(error).__name__}: {error}".removesuffix(": ")[:500]}


_joined: Processes | None = None


def join(timeout: float = 600.0) -> Group:
    """Meet the other processes of this run, if it was started as several.

    Args:
        timeout: Seconds that one process waits for another in a collective before all are ended.

    Raises:
        ConfigurationError: The variables that name the processes are incomplete; or see `zero.check_request` and
            `sharding.check_request`.
        TrainingError: See `zero.check_request`.
    """
    global _joined
    if _joined is None:
        from torch import accelerator

        from climafuse.training import sharding, zero

        variables = _variables()
        zero.settle_device()
        device = accelerator.current_accelerator() if accelerator.is_available() else None
        on_cpu = device is None or device.type == "mps"  # no collectives between processes there
        if zero.asked_for():
            zero.check_request(1 if variables is None else int(variables["WORLD_SIZE"]))
        if sharding.asked_for():
            sharding.check_request(on_cpu=on_cpu)
        if variables is None:
            return Group()
        os.environ.update(variables | {"LOCAL_WORLD_SIZE": str(local_process_count())})
        from accelerate import PartialState
        from torch import distributed

        # The process group that transformers will find; it makes the same one where there is none.
        if on_cpu and zero.asked_for():  # with `cpu=True`, accelerate forgets DeepSpeed
            zero.use_gloo()
            PartialState(backend="gloo", timeout=timedelta(seconds=timeout))
        else:
            PartialState(cpu=on_cpu, timeout=timedelta(seconds=timeout))
        host, port = variables["MASTER_ADDR"], int(variables["MASTER_PORT"])

        def connect() -> Any:
            return distributed.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30))

        rank, size, local_rank = (int(variables[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        _joined = Processes(rank, size, local_rank, on_cpu=on_cpu, connect=connect)
    return _joined


def process_count() -> int:
    """Return how many processes train one model together, as the variables say with which this one was started."""
    variables = _variables()
    return 1 if variables is None else int(variables["WORLD_SIZE"])


def local_process_count() -> int:
    """Return how many of these processes are on this machine, and share its memory.

    Where only their whole number is known, all; where Slurm gives machines different numbers, the largest.
    """
    if process_count() == 1:
        return 1
    known = os.environ.get("LOCAL_WORLD_SIZE")
    if not known and "RANK" not in os.environ:  # as for `_variables`
        known = os.environ.get("SLURM_STEP_TASKS_PER_NODE")  # such as "4(x2),3"
    numbers = re.findall(r"(\d+)(?:\(x\d+\))?", known or "")
    return max(map(int, numbers), default=process_count())


def _variables() -> dict[str, str] | None:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; None where there is one process."""
    given = os.environ
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    # A shell inside an allocation has Slurm's variables, too, and is one process: the address says what is meant.
    slurm = "RANK" not in given and "MASTER_ADDR" in given
    found = {name: given.get(name) or (given.get(other) if slurm else None) for name, other in names.items()}
    found |= {"MASTER_ADDR": given.get("MASTER_ADDR"), "MASTER_PORT": given.get("MASTER_PORT")}
    if int(found["WORLD_SIZE"] or 1) <= 1:
        return None
    missing = [name for name, value in found.items() if not value]
    if missing:
        raise ConfigurationError(
            ", ".join(missing),
            expected=f"variables that name each of {found['WORLD_SIZE']} processes",
            received="none set",
            remedy="Start it by torchrun, accelerate launch, or srun as in examples/distributed/slurm.sh.",
        )
    return {name: str(value) for name, value in found.items()}
