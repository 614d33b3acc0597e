"""What a run will cost and whether it fits, before anything is loaded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from climafuse.errors import MemoryPlanError
from climafuse.planning.base import Base, process_base
from climafuse.planning.devices import GB, Device, this_machine
from climafuse.planning.memory import CUDA_SLACK, HEAP_SLACK, HEAP_SLACK_OF_VARIED, Footprint, mapped, measure
from climafuse.planning.probe import Pace, estimate_pace, probe_pace
from climafuse.planning.workload import Workload

CUDA_CONTEXT = 500 << 20  # bytes of a GPU that CUDA and its kernels take
LONGEST, MOST_WINDOWS = 1 << 20, 1 << 12  # tokens of a text and windows that are asked about
EXACT = 64  # the largest that fit are found to one part in so many
LEAST_SAVING = 0.01  # of the peak: less is not proposed


@dataclass(frozen=True)
class Change:
    """Something to change so that a run takes less memory.

    Args:
        what: In words.
        settings: As of `--set`.
        saving: Bytes of the peak.
        fits: Whether it is enough by itself.
    """

    what: str
    settings: tuple[str, ...]
    saving: int
    fits: bool


@dataclass(frozen=True)
class Share:
    """Bytes that each process holds of what a run consists of: all, unless it is spread over several.

    Args:
        weights: Of the backbone and of what is put into it; where they are spread, with what is gathered at a time.
        gradients: In a training step.
        gradients_always: Gradients, buckets in which they are sent and float32 copies that stay between steps.
        moments: Of the optimizer.
    """

    weights: int
    gradients: int
    gradients_always: int
    moments: int


@dataclass(frozen=True)
class Plan:
    """What a run will cost on a device.

    Args:
        backbone: Its name.
        random_weights: Whether its weights are random: capacity only, it knows nothing.
        device: Where.
        microbatch: Windows in a microbatch.
        accumulation: Microbatches in a step.
        length: Tokens of a text.
        footprint: Parameters, bytes and operations by kind.
        phases: Most bytes held in each phase of a run.
        base: Bytes of the process itself.
        share: What each process holds of weights, gradients and moments.
        processes: How many train together.
        pace: Seconds of a step and its parts; None where they were not asked for.
        largest_microbatch: Windows that fit at this length, at most 4,096; None where it was not looked for, 0 for
            none.
        largest_length: Tokens of a text that fit at this microbatch, at most those that the backbone reads.
        changes: What to change where it does not fit, best first.
    """

    backbone: str
    random_weights: bool
    device: Device
    microbatch: int
    accumulation: int
    length: int
    footprint: Footprint
    phases: dict[str, int]
    base: int
    share: Share
    processes: int = 1
    pace: Pace | None = None
    largest_microbatch: int | None = None
    largest_length: int | None = None
    changes: tuple[Change, ...] = field(default=())

    @property
    def peak(self) -> int:
        """Most bytes held at a time."""
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        """When that is."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def fits(self) -> bool:
        """Whether the device has them."""
        return self.peak <= self.device.memory

    @property
    def line(self) -> str:
        """The plan in one line."""
        kind = "random weights, " if self.random_weights else ""
        seconds = "" if self.pace is None else f", {self.pace.seconds:.3g} s a step"
        return (
            f"plan: {self.backbone} ({kind}{self.footprint.frozen / 1e6:,.0f} M parameters frozen, "
            f"{self.footprint.trainable / 1e6:,.1f} M trainable); peak {self.peak / GB:.2f} GB in {self.peak_phase} of "
            f"{self.device.memory / GB:.1f} GB free on {self.device.name}{seconds}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        from dataclasses import asdict

        return {
            **asdict(self),
            "peak_bytes": self.peak,
            "peak_phase": self.peak_phase,
            "fits": self.fits,
            "times_are": None
            if self.pace is None
            else "estimates"
            if self.pace.estimated
            else "measured on blocks",
        }

    @property
    def advice(self) -> str:
        """What to do about a run that does not fit, before its `changes` are listed."""
        if self.base >= self.device.memory:
            return f"Process and libraries alone take {self.base / GB:.2f} GB: no change of the run is enough"
        if any(change.fits for change in self.changes):
            return "What to change"
        return (
            "What to change; none of it is enough by itself, so take several, or a machine with more memory"
        )

    def require(self) -> None:
        """Refuse a run that does not fit.

        Raises:
            MemoryPlanError: It does not.
        """
        if self.fits:
            return
        first = next((change for change in self.changes if change.fits), None)
        first = first or next(iter(self.changes), None)
        remedy = "Take a machine with more memory"
        if self.base >= self.device.memory:
            remedy += f": process and libraries alone take {self.base / GB:.2f} GB"
        elif first is not None:
            options = " ".join(f"--set {setting}" for setting in first.settings)
            remedy = f"First: {first.what} ({options}), which saves {first.saving / GB:.2f} GB"
            remedy += "" if first.fits else ", and then some of what `climafuse plan` names beside it"
        share = self.share
        optimization = share.gradients + share.gradients_always + share.moments
        raise MemoryPlanError(
            "memory",
            expected=f"at most {self.device.memory / GB:.2f} GB, which {self.device.name} has free",
            received=f"{self.peak / GB:.2f} GB in {self.peak_phase}"
            + (" of a backbone of random weights" if self.random_weights else "")
            + f" (weights {self.share.weights / GB:.2f}, step "
            f"{self.footprint.step_bytes / GB:.2f}, gradients and optimizer {optimization / GB:.2f}, process "
            f"{self.base / GB:.2f} GB)",
            remedy=f"{remedy}. To try anyway: --set training.check_memory=false.",
        )


def plan(
    workload: Workload,
    device: Device | None = None,
    *,
    base: Base | int | None = None,
    modules: Sequence[str] = (),
    tokenizer: Path | None = None,
    time: bool = True,
    search: bool = True,
) -> Plan:
    """Plan a run.

    Args:
        workload: The run.
        device: Where; None for this machine as it is now.
        base: Bytes of the process itself; None measures them.
        modules: What it imports, for that.
        tokenizer: Directory of its tokenizer, for that.
        time: Whether the time of a step is wanted: a probe of some seconds on this machine.
        search: Whether the largest batch and length are looked for.
    """
    device = this_machine(workload.processes) if device is None else device
    if device.gpu:
        base = CUDA_CONTEXT
    elif base is None:
        base = process_base(modules, tokenizer)
    held = base.total if isinstance(base, Base) else base
    footprint = measure(workload, slack=_slack(workload, device))
    made = Plan(
        backbone=workload.name,
        random_weights=workload.random_weights,
        device=device,
        microbatch=workload.microbatch,
        accumulation=workload.accumulation,
        length=workload.length,
        footprint=footprint,
        phases=phases(workload, footprint, held, device),
        base=held,
        share=share_of(workload, footprint, device),
        processes=workload.group,
    )
    if time:
        pace = estimate_pace(workload, footprint, device) if device.gpu else probe_pace(workload, footprint)
        made = replace(made, pace=pace)
    if search:
        made = replace(
            made,
            largest_microbatch=largest_microbatch(workload, made),
            largest_length=largest_length(workload, made),
        )
    if not made.fits:
        made = replace(
            made, changes=tuple(sorted(_changes(workload, made), key=lambda change: not change.fits))
        )
    return made


def _slack(workload: Workload, device: Device) -> float:
    if device.gpu:
        return CUDA_SLACK
    return HEAP_SLACK_OF_VARIED if workload.varied else HEAP_SLACK


def phases(workload: Workload, footprint: Footprint, base: int, device: Device) -> dict[str, int]:
    """Most bytes held in each phase of a run, by its name.

    Args:
        workload: The run.
        footprint: What it holds.
        base: Bytes of the process itself.
        device: Where; a GPU holds all rows of the embeddings, and no files.
    """
    f, share = footprint, share_of(workload, footprint, device)
    process = base + (0 if device.gpu else workload.data_bytes)
    frozen, weights = _frozen(workload, f, device), share.weights
    limit = device.memory // 4 if workload.store_limit is None else workload.store_limit
    stored = min(f.store_bytes, limit)
    if f.store_bytes > limit and workload.store_spills:
        stored = 0  # on the disk
    loading = frozen
    if not device.gpu:
        loading = f.frozen_bytes - f.mapped_bytes  # nothing of a mapped file has been read yet
        if workload.quantization is not None:
            loading += f.quantizing_bytes
        elif not mapped(workload):
            loading += workload.file_bytes or 0  # as it lies in the file, and as it is wanted
    # FSDP: the model is prepared beside the GPU, and comes there in parts.
    whole_elsewhere = device.gpu and workload.spread == "weights"
    found = {"loading": weights if whole_elsewhere else process + loading}
    if f.storing_bytes and not whole_elsewhere:
        found["storing states"] = process + weights + stored + f.storing_bytes
    if f.vocabulary_bytes and not whole_elsewhere:
        found["choosing the vocabulary"] = process + weights + stored + f.vocabulary_bytes
    kept = process + weights + stored + f.buffer_bytes + share.moments + share.gradients_always
    # Gradients grow while activations are let go of, unless there is a place for all of them from the beginning.
    step = f.step_bytes if workload.group == 1 else max(f.step_bytes, f.activation_bytes)
    found["training"] = kept + share.gradients + step
    if f.evaluation_bytes:
        found["evaluation"] = kept + f.evaluation_bytes
    found["saving"] = kept  # files are written out of the tensors
    if not device.gpu and workload.spread is not None:  # what is spread is gathered first
        found["saving"] += f.optimizer_bytes
        found["saving"] += f.trainable_bytes if workload.spread == "weights" else 0
    return found


def share_of(workload: Workload, f: Footprint, device: Device) -> Share:
    """What each process holds of weights, gradients and moments.

    Args:
        workload: The run.
        f: What it holds in all.
        device: Where.
    """
    weights = _frozen(workload, f, device) + f.trainable_bytes
    if workload.group == 1:
        return Share(weights, f.gradient_bytes, 0, f.optimizer_bytes)
    part, several = _part(f.gradient_bytes, workload), workload.accumulation > 1
    # All but the last microbatch of a step leave whole gradients in each process, which are not sent yet.
    if workload.spread is None:  # in the last they are views of DDP's buckets, which stay
        return Share(weights, f.gradient_bytes if several else 0, f.gradient_bytes, f.optimizer_bytes)
    moments = _part(f.optimizer_bytes, workload)
    if workload.spread == "weights":
        weights = _part(f.frozen_bytes + f.trainable_bytes, workload) + f.gathered_bytes
        return Share(weights, f.gradient_bytes if several else part, 0, moments)
    # DeepSpeed keeps a bucket in which gradients are sent, and float32 copies of the weights that are a process's own.
    own = _part(f.optimizer_bytes // 2, workload)
    gradients = f.gradient_bytes if workload.spread == "moments" else part
    return Share(weights, gradients, f.gradient_bytes + own, moments)


def _frozen(workload: Workload, f: Footprint, device: Device) -> int:
    """Weights of the backbone, as far as a process that has them whole holds them."""
    if device.gpu:
        return f.frozen_bytes
    # Of what is mapped by all processes of a machine, each counts its part.
    others = max(f.mapped_bytes - f.untouched_bytes, 0) * (workload.processes - 1) // workload.processes
    return f.frozen_bytes - f.untouched_bytes - others


def _peak(workload: Workload, made: Plan, *, phases_too: bool = False) -> int:
    """Peak of another run on the same device, of its training steps alone or of all."""
    footprint = measure(workload, phases=phases_too, slack=_slack(workload, made.device))
    return max(phases(workload, footprint, made.base, made.device).values())


def largest_microbatch(workload: Workload, made: Plan) -> int:
    """Windows of the largest microbatch whose training steps fit, at most 4,096; 0 where not even one does.

    Gradients of an earlier microbatch are counted as there where the plan has one.
    """
    if _nothing_fits(made):
        return 0

    def held(windows: int) -> int:
        other = replace(workload, windows=windows * workload.accumulation)
        return _training(other, made)

    return _largest(held, {workload.microbatch: made.phases["training"]}, made.device.memory, MOST_WINDOWS)


def largest_length(workload: Workload, made: Plan) -> int:
    """Tokens of the longest texts whose training steps fit, at most those of its positions; 0 for none."""
    positions = getattr(workload.config.get_text_config(), "max_position_embeddings", None)
    most = positions if isinstance(positions, int) and positions > 0 else LONGEST
    most -= made.footprint.num_soft_tokens
    if _nothing_fits(made):
        return 0

    def held(length: int) -> int:
        # Of the weights, as many rows are read as before: the words of longer texts are not known.
        texts = replace(workload, length=length, labels=min(workload.labels, length - 1))
        return _training(texts, made)

    known = {workload.length: made.phases["training"]}
    return _largest(held, known, made.device.memory, most, least=2)  # of one token nothing is asked


def fitting_microbatch(workload: Workload, made: Plan) -> int:
    """Windows of the largest microbatches into which a step can be cut so that it fits; 0 where not even one does.

    Args:
        workload: The run; how it is cut now does not matter.
        made: Its plan.
    """
    if _training(workload.with_microbatch(workload.windows), made) <= made.device.memory:
        return workload.windows  # the whole holds no gradients of an earlier microbatch
    divisors = [windows for windows in range(1, workload.windows) if workload.windows % windows == 0]
    fits, too_many = 0, len(divisors) + 1  # how many divisors, from the smallest on
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if _training(workload.with_microbatch(divisors[middle - 1]), made) <= made.device.memory:
            fits = middle
        else:
            too_many = middle
    return divisors[fits - 1] if fits else 0


def _part(num: int, workload: Workload) -> int:
    return -(-num // workload.group)


def _nothing_fits(made: Plan) -> bool:
    """Whether what is held beside the steps is too much already."""
    return made.phases["training"] - made.footprint.step_bytes > made.device.memory


def _training(workload: Workload, made: Plan) -> int:
    """Most bytes that the training steps of another run hold on the same device."""
    footprint = measure(workload, phases=False, slack=_slack(workload, made.device))
    return phases(workload, footprint, made.base, made.device)["training"]


def _largest(
    held: Callable[[int], int], known: dict[int, int], room: int, most: int, *, least: int = 1
) -> int:
    """The largest number, to one part in 64, with which no more is held than there is room for; 0 for none.

    What is returned was tried, and so was a larger one that does not fit, or there is none. A parabola through what is
    known says where to try: as a rule that needs four to six trials.

    Args:
        held: Bytes that are held with a number, which grow with it.
        known: Those that were asked for already.
        room: Bytes that there are.
        most: The largest number that there is.
        least: The smallest.
    """
    fits = max((number for number in known if number <= most and known[number] <= room), default=least - 1)
    too_many = min((number for number in known if known[number] > room), default=most + 1)
    too_many = min(too_many, most + 1)
    for trial in itertools.count():
        step = max(fits // EXACT, 1)
        close = (
            step if too_many in known else 1
        )  # of the largest there is, nobody has tried that it does not fit
        if too_many - fits <= close:
            break
        parabola = trial % 4 < 3  # should it be none at all, every fourth trial halves what is left
        guess = _where(known, room, fits, too_many) if parabola else math.isqrt(max(fits, 1) * too_many)
        guess = min(max(min(guess, too_many - close), fits + step), too_many - 1)
        known[guess] = held(guess)
        if known[guess] <= room:
            fits = guess
        else:
            too_many = guess
    return fits if fits >= least else 0


def _where(known: dict[int, int], room: int, fits: int, too_many: int) -> int:
    """Where to try: on the line between what fits and what does not, else where a parabola passes the room.

    Small pieces of memory cost more than large ones, so that what is held may fall where pieces become large: points
    close together say little of where it goes.
    """
    numbers = sorted(known)
    if len(numbers) == 1:
        return 2 * numbers[0] if known[numbers[0]] <= room else numbers[0] // 2
    if fits in known and too_many in known:
        return fits + (too_many - fits) * (room - known[fits]) // (known[too_many] - known[fits])
    far = sorted({numbers[0], numbers[len(numbers) // 2], numbers[-1]})
    line = np.polynomial.Polynomial.fit(far, [known[number] - room for number in far], len(far) - 1)
    roots = np.atleast_1d(line.roots())
    crossings = [float(root) for root in roots[abs(roots.imag) < 1].real if root > fits]
    return math.floor(min(crossings, default=too_many))


def _changes(workload: Workload, made: Plan) -> Iterator[Change]:
    """What saves memory, what changes the result least first."""
    for what, settings, other in _alternatives(workload, made):
        peak = _peak(other, made, phases_too=True)
        saving = made.peak - peak
        if saving >= LEAST_SAVING * made.peak:
            yield Change(what, settings, saving, peak <= made.device.memory)


def _alternatives(workload: Workload, made: Plan) -> Iterator[tuple[str, tuple[str, ...], Workload]]:
    if workload.evaluation_windows > 1:
        yield (
            "evaluate one window at a time",
            ("evaluation.windows_per_batch=1",),
            replace(workload, evaluation_windows=1),
        )
    if workload.microbatch > 1:
        chosen = fitting_microbatch(workload, made)
        if not 0 < chosen < workload.microbatch:  # not enough by itself, or not what is too large
            chosen = 1
        other = workload.with_microbatch(chosen)
        yield (
            f"cut a step into {other.accumulation} microbatches: the effective batch stays the same",
            (f"training.accumulation={other.accumulation}",),
            other,
        )
    if not workload.checkpoint_activations and made.footprint.blocks_below < made.footprint.num_blocks:
        yield (
            "compute activations anew in the backward pass",
            ("training.checkpoint_activations=true",),
            replace(workload, checkpoint_activations=True),
        )
    for kind, bits in (("int8", 8), ("int4", 4)):
        if workload.quantization not in (kind, "int4") and workload.backbone_trainable is None:
            yield (
                f"hold the backbone in {bits} bits, head included",
                (f"backbone.quantization={kind}", "backbone.quantize_head=true"),
                replace(workload, quantization=kind, quantize_head=True),
            )
    if made.footprint.blocks_below < made.footprint.num_blocks and workload.fusion != "prefix":
        yield (
            "put the fusion at the output, and store the states of texts",
            ("fusion.sites=output", "training.reuse_prefix=true"),
            replace(workload, sites="output", reuse_prefix=True),
        )
    if workload.fusion in ("cross_attention", "gated_addition"):
        width = int(workload.fusion_options.get("feed_forward", 1152)) // 4
        yield (
            "make the fusion narrower",
            (f"fusion.options.feed_forward={width}",),
            replace(workload, fusion_options={**workload.fusion_options, "feed_forward": width}),
        )
