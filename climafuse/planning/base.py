"""What a process holds whatever it trains: Python, its libraries, a tokenizer, what kernels set up at their first call.

It differs between machines and versions and is of the size of a small model, so it is measured: once, in a process of
its own that takes steps of a tiny model, and remembered by versions and tokenizer.

    python -m climafuse.planning.base MODULE[,MODULE …] [DIRECTORY]
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path

from climafuse import __version__
from climafuse.backbones import cache_directory
from climafuse.data.files import whole_file
from climafuse.errors import OutputError
from climafuse.memory import memory_state

_DISTRIBUTIONS = ("torch", "transformers", "numpy", "xarray", "accelerate", "tokenizers")
_SECONDS = 300


@dataclass(frozen=True)
class Base:
    """Bytes that a process holds beside what is planned.

    Args:
        imports: Python and what training imports.
        tokenizer: Of the backbone.
        kernels: What the first steps of training set up and keep.
    """

    imports: int
    tokenizer: int
    kernels: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.imports + self.tokenizer + self.kernels


# Where nothing can be measured (no /proc): torch 2.13 and transformers 5.23 on Linux.
TYPICAL = Base(imports=480 << 20, tokenizer=50 << 20, kernels=65 << 20)


def process_base(modules: Sequence[str] = (), tokenizer: Path | None = None) -> Base:
    """Return what a process holds, measured once.

    Args:
        modules: What it imports beside this package's models: planning knows nothing of training.
        tokenizer: Directory of the backbone; None for no tokenizer.

    Returns:
        The measured base; a typical one on systems other than Linux.
    """
    if memory_state() is None:
        return TYPICAL
    key = {
        "python": platform.python_version(),
        "climafuse": __version__,
        **{name: metadata.version(name) for name in _DISTRIBUTIONS},
        "modules": sorted(modules),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "tokenizer": None if tokenizer is None else _signature(tokenizer),
    }
    text = json.dumps(key, sort_keys=True)
    memory = cache_directory() / "planning" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # absent or damaged: measured anew
        found = json.loads(memory.read_text(encoding="utf-8"))
        if found.pop("key") == key:
            return Base(**found)
    base = _measured(modules, tokenizer)
    if base is None:
        return TYPICAL
    with contextlib.suppress(OutputError), whole_file(memory) as unfinished:
        unfinished.write_text(json.dumps({"key": key, **asdict(base)}), encoding="utf-8")
    return base


def resident_bytes() -> int:
    """What this process holds now; 0 where the system cannot say."""
    state = memory_state()
    return 0 if state is None else state.resident


def _signature(directory: Path) -> list[object]:
    """Which tokenizer it is, by its files."""
    files = sorted(path for path in directory.iterdir() if "token" in path.name or "vocab" in path.name)
    return [str(directory.resolve()), *([path.name, path.stat().st_size] for path in files)]


def _measured(modules: Sequence[str], tokenizer: Path | None) -> Base | None:
    command = [sys.executable, "-m", "climafuse.planning.base", ",".join(modules)]
    command += [] if tokenizer is None else [str(tokenizer.resolve())]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        return Base(**json.loads(done.stdout.splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, IndexError):
        return None  # a plan does not fail for want of this


def _main(modules: str, tokenizer: str | None = None) -> None:
    """Measure this process."""
    import torch
    from transformers import LlamaConfig

    from climafuse.backbones.loading import load_tokenizer
    from climafuse.planning.skeleton import make_backbone, make_batch, make_model
    from climafuse.planning.workload import Workload

    for name in filter(None, modules.split(",")):
        import_module(name)
    begin = resident_bytes()
    kept = None if tokenizer is None else load_tokenizer(Path(tokenizer))
    loaded = resident_bytes()
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    small = {"heads": 2, "head_width": 8, "feed_forward": 16}
    encoder = {"width": 16, "depth": 1, "heads": 2}
    workload = Workload(
        "tiny", config, sites=[1, "output"], fusion_options=small, encoder_options=encoder, windows=2
    )
    model = make_model(workload, make_backbone(workload))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**make_batch(workload, 2, labels=8)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        model(**make_batch(workload, 2, labels=8))
    end = resident_bytes()
    print(json.dumps({"imports": begin, "tokenizer": loaded - begin, "kernels": end - loaded}))
    del kept


if __name__ == "__main__":
    _main(*sys.argv[1:])
