"""Whether loader processes can be started from the running script."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

from climafuse.errors import TrainingError


def check_main_guard() -> None:
    """Refuse to start loader processes from a script that they would run once more.

    A process that is spawned imports the script that started it. Without `if __name__ == "__main__":` it would train,
    too, and the one that started it may wait for it without end.

    Raises:
        TrainingError: The line of the script that is running is under no `if` that asks for `__name__`.

    Reference: Python documentation, multiprocessing, "Safe importing of main module".
    """
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    frame = inspect.currentframe()
    while frame is not None and not (
        frame.f_globals.get("__name__") == "__main__" and frame.f_code.co_name == "<module>"
    ):
        frame = frame.f_back
    # Interactive, or in a thread: nothing is imported again, or nothing runs there. Under a profiler or debugger, a
    # process that is spawned imports that, not the script.
    if path is None or frame is None or Path(frame.f_code.co_filename).resolve() != Path(path).resolve():
        return
    try:
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):  # not a file of Python source: a program packed in some way
        return
    line = frame.f_lineno
    for node in tree.body:
        if node.lineno <= line <= (node.end_lineno or node.lineno):
            asks = isinstance(node, ast.If) and any(
                isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)
            )
            if not asks:
                raise TrainingError(
                    f"{path}, line {line}",
                    expected='`if __name__ == "__main__":` around what starts training, as training.workers is not 0',
                    received="a line that every loader process would run again",
                    remedy="Put it under such an `if`, or set training.workers to 0.",
                )
