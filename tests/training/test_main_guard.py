"""Scripts that start loader processes, each run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK = "from climafuse.training.main_guard import check_main_guard"


def outcome(script: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *(arguments or [str(script)])],
        capture_output=True,
        text=True,
        cwd=script.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return done.stderr.splitlines()[-1] if done.returncode else "passed"


@pytest.mark.parametrize(
    "body",
    [
        f"{CHECK}\ncheck_main_guard()\n",
        f"{CHECK}\ndef main():\n    check_main_guard()\nmain()\n",
        f"{CHECK}\nif True:\n    check_main_guard()\n",
        f"{CHECK}\nfor _ in range(1):\n    check_main_guard()\nif __name__ == '__main__':\n    pass\n",
    ],
)
def test_a_script_that_would_run_again_is_refused(tmp_path: Path, body: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(body)
    assert "expected `if __name__ ==" in outcome(script)


@pytest.mark.parametrize(
    "body",
    [
        f"{CHECK}\nif __name__ == '__main__':\n    check_main_guard()\n",
        f"{CHECK}\ndef main():\n    check_main_guard()\nif '__main__' == __name__:\n    main()\n",
    ],
)
def test_a_guarded_script_passes(tmp_path: Path, body: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(body)
    assert outcome(script) == "passed"
    assert outcome(script, "-m", "script") == "passed"


def test_a_script_that_a_profiler_runs_is_not_the_one_that_is_imported_again(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(f"{CHECK}\ncheck_main_guard()\n")
    runner = tmp_path / "runner.py"  # as cProfile and pdb do it
    runner.write_text(
        "code = compile(open('script.py').read(), 'script.py', 'exec')\n"
        "names = {'__name__': '__main__'}\n"
        "if __name__ == '__main__':\n    exec(code, names)\n"
    )
    assert outcome(runner) == "passed"


def test_what_is_no_script_passes(tmp_path: Path) -> None:
    (tmp_path / "imported.py").write_text(f"{CHECK}\ncheck_main_guard()\n")
    assert outcome(tmp_path / "x", "-c", f"{CHECK}\ncheck_main_guard()") == "passed"
    assert outcome(tmp_path / "x", "-c", "import imported") == "passed"
