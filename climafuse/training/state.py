"""Everything beside the weights that a resumed run needs, as safetensors and JSON: nothing is ever pickled.

optimizer.safetensors   `<parameter name>:<moment>`, so that no order of parameters is relied upon
random.safetensors      generator states of Python, NumPy, torch and every GPU; of several processes, each
training_state.json     optimizer groups, schedule, generator odds and ends, seconds trained, the settings
"""

from __future__ import annotations

import base64
import json
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from climafuse.errors import CheckpointError
from climafuse.json_file import read_object
from climafuse.training.sharding import spread_like, whole

log = logging.getLogger(__name__)

OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_FILE = "random.safetensors"
STATE_FILE = "training_state.json"
_CONTENT = frozenset({"step", "seconds", "settings", "identity", "loss", "optimizer", "scheduler", "random"})


def optimizer_moments(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The moments of an optimizer by parameter, "<name>:<moment>", on the processor.

    Where they are spread over processes, all must ask for them.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}:{key}": whole(torch.as_tensor(value).detach()).cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def save_optimizer(
    directory: Path,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    moments: Mapping[str, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Writes the moments of an optimizer and returns its groups for the JSON file.

    Args:
        directory: The folder.
        optimizer: The optimizer.
        model: The model whose parameters it holds.
        moments: `optimizer_moments`; None for those it has now.

    Returns:
        The groups, with parameter names in place of parameters.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    found = optimizer_moments(optimizer, model) if moments is None else dict(moments)
    save_file(found, directory / OPTIMIZER_FILE)
    return [
        {**group, "params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]


def load_optimizer(
    directory: Path, groups: list[dict[str, Any]], optimizer: torch.optim.Optimizer, model: nn.Module
) -> None:
    """Restores what `save_optimizer` wrote, by parameter name.

    Args:
        directory: The folder.
        groups: The groups from the JSON file.
        optimizer: An optimizer made for the same model.
        model: The model.

    Raises:
        CheckpointError: The groups hold other parameters, or a moment belongs to none of them or has
            another shape.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    expected = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    if expected != [group["params"] for group in groups]:
        received = [name for group in groups for name in group["params"]]
        wanted = [name for group in expected for name in group]
        odd = sorted(set(received) ^ set(wanted))
        raise CheckpointError(
            str(directory / STATE_FILE),
            expected=f"the {len(wanted)} trainable parameters of this model in the same groups",
            received=f"{len(received)}; first difference: {odd[0] if odd else 'their grouping'}",
            remedy="Resume with the configuration that the run was started with.",
        )
    moments = load_file(directory / OPTIMIZER_FILE)
    parameters = {name: parameter for parameter, name in names.items()}
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    index = {name: position for position, name in enumerate(name for group in expected for name in group)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        name, _, moment = key.rpartition(":")
        if name not in index or (value.ndim and value.shape != shapes[name]):
            raise CheckpointError(
                str(directory / OPTIMIZER_FILE),
                expected=f"moments of shape {list(shapes[name])}" if name in index else "known parameters",
                received=f"{key} of shape {list(value.shape)}",
                remedy="Resume with the configuration that the run was started with.",
            )
        spread = spread_like(value, parameters[name]) if value.ndim else value
        state.setdefault(index[name], {})[moment] = spread
    plain = [
        {
            **{key: tuple(value) if isinstance(value, list) else value for key, value in group.items()},
            "params": [index[name] for name in group["params"]],
        }
        for group in groups
    ]
    optimizer.load_state_dict({"state": {}, "param_groups": plain})
    # Given to the optimizer, moments would take the type of their weight.
    for parameter, name in names.items():
        if name in index:
            moved = {key: value.to(parameter.device) for key, value in state.get(index[name], {}).items()}
            optimizer.state[parameter] = moved


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process, as JSON.

    Of GPUs, those that this process may use: one of several uses one.
    """
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),  # [625]
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),  # [624]
        "torch": torch.get_rng_state(),
    }
    for number, device in enumerate(_devices()):
        tensors[f"cuda.{number}"] = torch.cuda.get_rng_state(device)
    return {
        "tensors": base64.b64encode(save(tensors)).decode(),
        "python": [version, gauss],
        "numpy": [kind, int(position), int(has_gauss), float(cached)],
    }


def save_random(directory: Path, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes the random states of all processes.

    Args:
        directory: The folder.
        states: `random_state` of each, by rank.

    Returns:
        What of them is not a tensor, for the JSON file: of the first process, and under `processes` of the others.
    """
    tensors: dict[str, Tensor] = {}
    rest: list[dict[str, Any]] = []
    for rank, state in enumerate(states):
        prefix = f"{rank}:" if rank else ""
        own = load(base64.b64decode(state["tensors"]))
        tensors |= {f"{prefix}{name}": tensor for name, tensor in own.items()}
        rest.append({key: value for key, value in state.items() if key != "tensors"})
    save_file(tensors, directory / RANDOM_FILE)
    return rest[0] | ({"processes": rest[1:]} if len(rest) > 1 else {})


def load_random(directory: Path, rest: Mapping[str, Any], *, rank: int = 0, size: int = 1) -> None:
    """Restores what `save_random` wrote.

    With another number of processes, one that has no state of its own goes on from that of the first; draws that are
    made for each sample (dropout) then differ from those of an uninterrupted run, and the log says so.

    Args:
        directory: The folder.
        rest: What `save_random` returned.
        rank: Number of this process.
        size: How many there are.

    Raises:
        CheckpointError: The checkpoint was written with another number of GPUs.
    """
    states = [rest, *rest.get("processes", [])]
    own = rank if rank < len(states) else 0
    prefix = f"{own}:" if own else ""
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in load_file(directory / RANDOM_FILE).items()
        if name.startswith(prefix) and (own or ":" not in name)
    }
    devices = _devices()
    saved = sum(name.startswith("cuda.") for name in tensors)
    if size != len(states):
        if rank == 0:
            log.info(
                "resume: %d processes go on where %d were; what is drawn for each sample, such as dropout, differs "
                "from an uninterrupted run",
                size,
                len(states),
            )
        devices = devices[:saved]
    elif saved != len(devices):
        raise CheckpointError(
            str(directory / RANDOM_FILE),
            expected=f"random states of {len(devices)} GPUs",
            received=f"{saved}",
            remedy="Resume on as many GPUs as the run was started on.",
        )
    version, gauss = states[own]["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    kind, position, has_gauss, cached = states[own]["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    for number, device in enumerate(devices):
        torch.cuda.set_rng_state(tensors[f"cuda.{number}"], device)


def _devices() -> list[int]:
    """The GPUs that this process draws on."""
    if not torch.cuda.is_available():
        return []
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return [torch.cuda.current_device()] if several else list(range(torch.cuda.device_count()))


def write_state(directory: Path, content: Mapping[str, Any]) -> None:
    """Writes the JSON file of a checkpoint; floats keep every bit."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    (directory / STATE_FILE).write_text(text, encoding="utf-8")


def read_state(directory: Path) -> dict[str, Any]:
    """Reads the JSON file of a checkpoint.

    Raises:
        CheckpointError: There is none: the folder is a saved model, from which no run can be resumed.
    """
    path = directory / STATE_FILE
    if not path.is_file():
        raise CheckpointError(
            str(path),
            expected="the training state of a checkpoint",
            received="no such file",
            remedy="Resume from a checkpoint-N folder of a run, not from a saved model.",
        )
    try:
        state = read_object(path)
    except ValueError as error:
        raise CheckpointError(
            str(path),
            expected="the training state of a checkpoint",
            received=str(error),
            remedy="Resume from another checkpoint of the run.",
        ) from error
    missing = _CONTENT - state.keys()
    if missing:
        raise CheckpointError(
            str(path),
            expected=f"{', '.join(sorted(_CONTENT))}, as this climafuse writes them",
            received=f"no {', '.join(sorted(missing))}",
            remedy="Resume with the version of climafuse that wrote it, or start another run.",
        )
    return state
