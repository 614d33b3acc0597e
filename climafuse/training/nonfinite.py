"""Who brought about a loss or gradient that is not finite: the samples of a step, taken one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from climafuse.data.normalization import Statistics
from climafuse.data.window import Window
from climafuse.errors import NonFiniteError
from climafuse.training.group import Group
from climafuse.training.optim import gradient_norms

# Bookkeeping of the collator that is not an input of the model.
SAMPLE_KEY = "sample"
_ALONE = "alone"
_DESCRIBED = 3  # samples of which an error says more than their number


def non_finite_step(
    step: int,
    batches: Sequence[Mapping[str, Any]],
    losses: Sequence[float],
    norm: float,
    *,
    model: nn.Module,
    trainable: list[nn.Parameter],
    prepare: Callable[[Any], Mapping[str, Any]],
    describe: Callable[[int], str] | None = None,
) -> NonFiniteError:
    """The error for a step whose loss or gradient is not finite, with the samples that bring it about alone.

    Args:
        step: Number of the step that was not taken, from 1.
        batches: Its microbatches.
        losses: Loss of each.
        norm: Norm of the gradient of all.
        model: The model; its gradients are lost.
        trainable: Its trainable parameters.
        prepare: Makes a microbatch the input of the model.
        describe: Says what a sample is, such as its time, its place and its most extreme variable.
    """
    bad_losses = [loss for loss in losses if not math.isfinite(loss)]
    received = f"a loss of {bad_losses[0]}" if bad_losses else f"finite losses, but a gradient norm of {norm}"
    suspects = [
        batch
        for batch, loss in zip(batches, losses, strict=True)
        if not bad_losses or not math.isfinite(loss)
    ]
    everyone = [number for batch in suspects for number in sample_numbers(batch)]
    found: list[int] = []
    apart = "though from none of them alone"
    try:
        for batch in suspects:
            found += _culprits(model, prepare(batch), sample_numbers(batch), trainable)
    except Exception as error:  # the search is a courtesy: what it looked for must still be reported
        apart = f"which could not be looked at one by one ({type(error).__name__}: {error})"
    if found:
        where = f"from sample {_enumerate(found)} {_ALONE}"
    elif everyone:
        where = f"in the batch of samples {_enumerate(everyone)}, {apart}"
    else:
        where = f"in a batch without a {SAMPLE_KEY!r} entry"
    if any("labels" in batch and not batch["labels"].ne(-100).any() for batch in suspects):
        where += "; a microbatch holds no labeled token"
    where += _described(found or everyone, describe)
    return NonFiniteError(
        f"step {step}",
        expected="a finite loss and gradient",
        received=f"{received} {where}",
        remedy=f"The weights are still those of step {step - 1}. Look at these samples for values far "
        "out of range, or lower training.learning_rate.",
    )


def of_all(error: NonFiniteError | None, group: Group) -> NonFiniteError:
    """The error that all processes of a run raise for a step, from those of the processes that looked.

    Args:
        error: What this one found; None where it was not asked.
        group: The processes.
    """
    parts = None if error is None else [error.argument, error.expected, error.received, error.remedy]
    found = [(rank, own) for rank, own in enumerate(group.exchange(parts)) if own is not None]
    # The samples of one process may be named, where others only know that the common gradient is not finite.
    rank, (argument, expected, received, remedy) = min(found, key=lambda entry: _ALONE not in entry[1][2])
    if group.size > 1:
        argument = f"{argument}, process {rank}"
    return NonFiniteError(argument, expected=expected, received=received, remedy=remedy)


def sample_numbers(batch: Mapping[str, Any]) -> list[int]:
    """The number of the sample behind each climate row of a batch."""
    numbers = batch.get(SAMPLE_KEY, [])
    return [int(number) for number in (numbers.tolist() if isinstance(numbers, Tensor) else numbers)]


def farthest_value(window: Window, statistics: Statistics) -> str:
    """Says which value of a window is farthest out: variable, time and place.

    Args:
        window: Fields [T, V, H, W].
        statistics: Mean and standard deviation of each variable.
    """
    table = statistics.sel(variable=list(window.variables))
    mean, std = (table[name].values[:, None, None] for name in ("mean", "std"))
    distance = np.abs(window.fields.astype(np.float64) - mean) / std  # [T, V, H, W]
    distance[np.isnan(window.fields)] = -1.0  # missing, which is nothing odd
    step, variable, row, column = np.unravel_index(distance.argmax(), distance.shape)
    value = window.fields[step, variable, row, column]
    latitude, longitude = window.latitude[row], window.longitude[column]
    return (
        f"{window.variables[variable]} is {value:g} {table['units'].values[variable]} at "
        f"{window.time[step]}, latitude {latitude:g}, longitude {longitude:g}: "
        f"{distance[step, variable, row, column]:.3g} standard deviations from the mean"
    )


def _described(samples: list[int], describe: Callable[[int], str] | None) -> str:
    if describe is None:
        return ""
    parts = []
    for sample in samples[:_DESCRIBED]:
        try:
            parts.append(f"; sample {sample}: {describe(sample)}")
        except Exception as error:  # as above: a courtesy
            parts.append(f"; sample {sample} could not be looked at ({type(error).__name__}: {error})")
    return "".join(parts)


def _culprits(
    model: nn.Module, inputs: Mapping[str, Any], numbers: list[int], trainable: list[nn.Parameter]
) -> list[int]:
    """The samples of a microbatch whose loss or gradient is not finite when they are alone."""
    found = []
    for number, row in _rows(inputs, numbers):
        model.zero_grad()
        with torch.enable_grad():
            loss = model(**row).loss
            loss.backward()
        _, norm = gradient_norms({"all": trainable})
        if not bool(torch.isfinite(loss.detach().to(norm) + norm)):
            found.append(number)
    model.zero_grad()
    return sorted(set(found))


def _rows(batch: Mapping[str, Any], numbers: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each text of a batch as a batch of its own, with the number of its sample.

    Several texts may share a window: `climate_index` [N] is the row of the climate tensors that belongs to
    each text.
    """
    index = batch.get("climate_index")
    if not numbers:
        return
    num_texts = len(batch["input_ids"]) if "input_ids" in batch else len(numbers)
    for text in range(num_texts):
        window = int(index[text]) if index is not None else text
        row: dict[str, Any] = {}
        for key, value in batch.items():
            if key == "climate_index":
                row[key] = torch.zeros_like(value[:1])
            elif isinstance(value, Tensor) and value.ndim:
                at = window if key.startswith("climate_") else text
                row[key] = value[at : at + 1]
            else:
                row[key] = value
        yield numbers[window if window < len(numbers) else text], row


def _enumerate(numbers: list[int], most: int = 8) -> str:
    shown = ", ".join(str(number) for number in numbers[:most])
    return shown if len(numbers) <= most else f"{shown} and {len(numbers) - most} more"
