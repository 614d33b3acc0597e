"""A process that has imported everything and forks one for each job: torch and transformers take seconds to import.

A test starts it with `Server`; the module that it runs imports what jobs need, and calls `serve`.
"""

from __future__ import annotations

import gc
import json
import multiprocessing.util
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

KILLED = 98  # exit code of a process that had to be killed by the harness


class Server:
    """The test's end, a context.

    Args:
        module: What it runs: a module that ends in `serve`.
        options: Of Python.
        environment: Variables besides those of this process.
    """

    def __init__(self, module: str, *options: str, **environment: str) -> None:
        self._command = [sys.executable, *options, "-m", module]
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            **environment,
        }

    def __enter__(self) -> Self:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(self._command, text=True, env=self._environment, **pipes)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def ask(self, **call: Any) -> Any:
        """What the server answers to a call, both in JSON types."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serve(answer: Callable[[dict[str, Any]], Any]) -> None:
    """Answer calls, one a line, until there are no more."""
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # no collection in a process of these need look at what all of them have imported
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def write_to(descriptor: int, path: Path) -> None:
    """Let what this process says go to the end of a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, descriptor)
    os.close(file)


def fork(work: Callable[[], object]) -> int:
    """Start a process that does something and ends as Python does; its number."""
    child = os.fork()
    if child:
        return child
    sys.stdin.close()
    code = 0
    try:
        work()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    multiprocessing.util._exit_function()  # as at the end of a process: workers are ended
    os._exit(code)


def wait(children: list[int], limit: float) -> tuple[list[int], float]:
    """Wait for processes, and kill those that take longer.

    Args:
        children: Their numbers.
        limit: Seconds.

    Returns:
        Exit codes, minus the signal of which a process died; and the seconds from the first end to the last.
    """
    codes: dict[int, int] = {}
    ends: list[float] = []
    until = time.monotonic() + limit
    while len(codes) < len(children):
        for child in [child for child in children if child not in codes]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
                ends.append(time.monotonic())
            elif time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                codes[child] = KILLED
        time.sleep(0.005)
    return [codes[child] for child in children], ends[-1] - ends[0] if ends else 0.0
