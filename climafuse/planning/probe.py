"""How long a step will take: parts of it are run here for some seconds, and counted.

A part of each kind is timed in turn (a few real blocks of the architecture with random weights, forward and backward at
the very shape; blocks without a graph; the head; encoder; fusion; optimizer), round by round, so that whatever else the
machine does slows all of them alike. Medians are multiplied by how many there are. Of a microbatch so large that a
round would take long, some windows are timed: with hundreds of positions a product takes as long for each as with
thousands.
"""

from __future__ import annotations

import contextlib
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from climafuse.backbones import attach, find_blocks, resume, without_adapters
from climafuse.backbones.fine_tuning import ALL
from climafuse.backbones.head import head_logits
from climafuse.backbones.quantization import quantize_model
from climafuse.backbones.widening import widen_products
from climafuse.errors import is_disk_error
from climafuse.manifest import available_cores
from climafuse.model.chunked_loss import chunked_loss, num_chunks, row_loss
from climafuse.model.rows import fuse_flat, fuse_rows
from climafuse.planning.devices import Device
from climafuse.planning.memory import Footprint, mapped
from climafuse.planning.skeleton import make_backbone, make_batch, make_model
from climafuse.planning.workload import Workload

BLOCK_BYTES = 256 << 20  # of the blocks that are timed: more than caches hold
# Operations of these blocks in a round, about: a second or two on a few cores. Fewer blocks are timed where they have
# more, as weights that many positions are multiplied by take their time in the processor, not in coming from memory.
ROUND_OPERATIONS = 1e11
LEAST_POSITIONS = 256  # that are timed, where there are as many
HEAD_ROWS = 32_768  # of the head that is timed, at most
SECONDS = 3.0  # of rounds
LEAST_ROUNDS = 3
USUAL_SHARE = 0.4  # of its peak that a GPU reaches in such models
LAUNCH = 10e-6  # seconds to start a kernel
KERNELS = 60  # of a block, forward and backward
AROUND = "a pass beside its blocks"
ABOVE, BELOW, TRAINED = "blocks", "blocks without a graph", "trained blocks"
BLOCKS = {ABOVE, BELOW, TRAINED}


@dataclass(frozen=True)
class Pace:
    """How long a step takes.

    Args:
        seconds: A step.
        parts: Seconds of its parts, by name.
        estimated: Whether this follows from a data sheet rather than from a measurement.
    """

    seconds: float
    parts: dict[str, float]
    estimated: bool = False


def estimate_pace(workload: Workload, footprint: Footprint, device: Device) -> Pace | None:
    """Estimate the time of a step on a device whose figures are known; None where they are not."""
    peak = device.bfloat16 if workload.precision == "bfloat16" else device.float32
    if peak is None or device.bandwidth is None:
        return None
    f = footprint
    passes = (
        workload.accumulation * (f.blocks_run + max(f.num_blocks - f.blocks_below, 0)) / max(f.num_blocks, 1)
    )
    parts = {
        "products": sum(f.flops.values()) / (USUAL_SHARE * peak),
        "reading weights": passes * f.frozen_bytes / device.bandwidth,
        "optimizer": (6 * f.trainable_bytes + f.gradient_bytes) / device.bandwidth,
        "starting kernels": workload.accumulation * max(f.blocks_run, 1) * KERNELS * LAUNCH,
    }
    # Weights are read while products are computed; kernels are started ahead of both.
    seconds = max(parts["products"], parts["reading weights"], parts["starting kernels"]) + parts["optimizer"]
    return Pace(seconds, parts, estimated=True)


def probe_pace(workload: Workload, footprint: Footprint, *, seconds: float = SECONDS) -> Pace:
    """Measure parts of a step on this machine.

    Args:
        workload: The run.
        footprint: Its counts.
        seconds: How long the rounds last.

    Returns:
        What a step takes. Where several processes train on this machine, each has its share of the cores; what they
        send each other, and that they wait for the same memory, is not in it.
    """
    with _share_of_cores(workload.processes):
        probe = Probe(workload, footprint)
        probe.round()  # first calls allocate, and choose their kernels
        rounds: list[dict[str, float]] = []
        end = time.perf_counter() + seconds
        while len(rounds) < LEAST_ROUNDS or time.perf_counter() < end:
            rounds.append(probe.round())
    return probe.pace(rounds)


@contextlib.contextmanager
def _share_of_cores(processes: int) -> Iterator[None]:
    """Compute with no more cores than each of several processes has, while this lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(min(before, available_cores() // processes), 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Probe:
    """Parts of a step, ready to be timed.

    Args:
        workload: The run.
        footprint: Its counts.
    """

    def __init__(self, workload: Workload, footprint: Footprint) -> None:
        self.workload, self.footprint = workload, footprint
        windows = probed_windows(workload, footprint)
        config, num_blocks, head_factor = _shrunken(workload, footprint, windows)
        sites = _shrunken_sites(footprint, num_blocks)
        self.few = replace(_trained_everywhere(workload), config=config, sites=sites, sampled_vocabulary=None)
        with torch.random.fork_rng(devices=[]):
            backbone = make_backbone(self.few)
            if workload.quantization is not None:
                quantize_model(
                    backbone.model, cast("Any", workload.quantization), head=workload.quantize_head
                )
            if workload.widened:
                widen_products(backbone.model)
            if mapped(workload):
                _map(backbone.model)
            self.model = make_model(self.few, backbone)
        self.optimizer = workload.optimizer([p for p in self.model.parameters() if p.requires_grad])
        self.batch = make_batch(self.few, windows, labels=workload.labels)
        self.positions = torch.nn.functional.pad(self.batch["labels"][:, 1:] != -100, (0, 1))
        fields_per_step = workload.accumulation * workload.microbatch / windows
        per_step = workload.accumulation * workload.texts(workload.microbatch) / workload.texts(windows)
        above = footprint.num_blocks - footprint.blocks_below
        below = footprint.blocks_run - above
        frozen = above - footprint.trained_blocks
        only_labeled = footprint.sites == ("output",) and footprint.prefix_site == "output"
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        # Name -> what is timed, and how many of it a step has.
        self.parts: dict[str, tuple[Callable[[], Any], float]] = {
            "encoder": (self._encoder, fields_per_step),
            "head": (self._head, per_step * head_factor),
            "optimizer": (self._optimizer, footprint.trainable / max(trained, 1)),
        }
        if above or below:
            self.parts[AROUND] = (self._around, per_step)
        if frozen:
            self.parts[ABOVE] = (self._frozen_blocks, per_step * frozen / num_blocks)
        if footprint.trained_blocks:
            self.parts[TRAINED] = (self._blocks, per_step * footprint.trained_blocks / num_blocks)
        if below:
            self.parts[BELOW] = (self._blocks_below, per_step * below / num_blocks)
        if only_labeled:
            self.parts["fusion"] = (self._fusion_of_labeled, per_step)
        elif not self.model.num_soft_tokens:
            self.parts["fusion"] = (self._fusion, per_step * len(footprint.sites))
        else:
            self.parts["fusion"] = (self._soft_prompt, per_step)

    def round(self) -> dict[str, float]:
        """Time each part once."""
        found = {}
        for name, (part, _) in self.parts.items():
            begin = time.perf_counter()
            part()
            found[name] = time.perf_counter() - begin
        for name in BLOCKS & found.keys():  # what a pass costs beside its blocks does not grow with them
            found[name] = max(found[name] - found[AROUND], 0.0)
        return found

    def pace(self, rounds: list[dict[str, float]]) -> Pace:
        """The time of a step from several rounds."""
        parts = {
            name: count * statistics.median(found[name] for found in rounds)
            for name, (_, count) in self.parts.items()
        }
        return Pace(sum(parts.values()), parts)

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.workload.precision == "bfloat16")

    def _climate(self) -> Any:
        names = ("fields", "mask", "latitude", "longitude", "time")
        return self.model.encode_climate(*(self.batch[f"climate_{name}"] for name in names))

    def _encoder(self) -> None:
        with self._autocast():
            states = self._climate().states
        states.sum().backward()
        self._forget()

    def _states(self, rows: int) -> Tensor:
        width = int(cast("Any", self.model.fusions[str(self.model.sites[-1])]).hidden_size)
        return torch.randn(rows, width, dtype=self.model.backbone.dtype).requires_grad_()

    def _detached(self) -> Any:
        with torch.no_grad(), self._autocast():
            climate = self._climate()
        return replace(climate, states=climate.states.detach().requires_grad_())

    def _fusion(self) -> None:
        ids = self.batch["input_ids"]
        climate = self._kept_climate()
        states = self._states(ids.numel()).view(*ids.shape, -1)
        site = self.model.sites[0]
        with self._autocast():
            fused = fuse_rows(self.model.fusions, climate, self.batch["climate_index"])(site, states)
        fused.sum().backward()
        self._forget()

    def _fusion_of_labeled(self) -> None:
        rows = self.batch["climate_index"].unsqueeze(1).expand_as(self.positions)[self.positions]
        with self._autocast():
            fused = fuse_flat(
                cast("Any", self.model.fusions["output"]), self._states(len(rows)), self._kept_climate(), rows
            )
        fused.sum().backward()
        self._forget()

    def _soft_prompt(self) -> None:
        fusion: Any = self.model.fusions["input"]
        climate = self._kept_climate()
        places = torch.ones(len(climate.states), self.model.num_soft_tokens, fusion.hidden_size)
        with self._autocast():
            fused = fusion(places.to(self.model.backbone.dtype), climate)
        fused.sum().backward()
        self._forget()

    def _kept_climate(self) -> Any:
        if not hasattr(self, "_kept"):
            self._kept = self._detached()
        return self._kept

    def _head(self) -> None:
        states = self._states(int(self.positions.sum()))
        targets = torch.zeros(len(states), dtype=torch.long)
        head = partial(head_logits, self.model.backbone)
        columns = int(self.few.config.get_text_config().vocab_size)
        count = len(targets)
        with self._autocast():
            if num_chunks(count, columns) == 1:
                loss = row_loss(head(states), targets, count=count)
            else:
                loss = chunked_loss(head, states, targets, num_columns=columns, count=count)
        loss.backward()

    def _blocks(self) -> None:
        leaf = torch.zeros((), dtype=self.model.backbone.dtype, requires_grad=True)
        with attach(self.model.backbone, ["input"], lambda site, hidden: hidden + leaf), self._autocast():
            states = self._run()
        states.sum().backward()
        self._forget()

    def _frozen_blocks(self) -> None:
        with self._as_loaded():
            self._blocks()

    def _blocks_below(self) -> None:
        with self._as_loaded(), torch.no_grad(), self._autocast():
            self._run()

    @contextlib.contextmanager
    def _as_loaded(self) -> Iterator[None]:
        """Blocks without what is trained in them, while this lasts."""
        backbone = self.model.backbone
        trained = [p for p in find_blocks(backbone).blocks.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            with without_adapters(backbone):
                yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def _around(self) -> None:
        states = self._states(self.positions.numel()).view(*self.positions.shape, -1)
        with resume(self.model.backbone, "output", states), self._autocast():
            self._run()

    def _run(self) -> Tensor:
        last: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...]) -> Any:
            last.append(args[0])
            return (args[0][:1, :1],)  # the head is timed by itself

        handle = find_blocks(self.model.backbone).head.register_forward_pre_hook(keep)
        try:
            self.model.backbone(
                input_ids=self.batch["input_ids"],
                attention_mask=self.batch["attention_mask"],
                use_cache=False,
            )
        finally:
            handle.remove()
        return last[0]

    def _optimizer(self) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if not hasattr(self, "_gradients"):
            self._gradients = [torch.full_like(p, 1e-6) for p in trained]
        for parameter, gradient in zip(trained, self._gradients, strict=True):
            parameter.grad = gradient
        nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        nn.utils.clip_grads_with_norm_(trained, 1.0, torch.tensor(2.0))
        self.optimizer.step()
        self._forget()

    def _forget(self) -> None:
        self.model.zero_grad()


def _map(model: nn.Module) -> None:
    """Have weights mapped from a file, as those of a loaded backbone are: products read them from there faster.

    Files lie in larger pieces of memory than the heap: a forward pass of gpt2-large took 1.3 s with them, 2 s without.
    """
    if os.name != "posix":  # elsewhere a file that is mapped cannot be removed
        return
    weights = dict(model.named_parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        try:
            save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, path)
        except Exception as error:
            if not is_disk_error(error):
                raise
            return  # no room: they are timed where they are
        for name, tensor in load_file(path).items():
            weights[name].data = tensor


def probed_windows(workload: Workload, footprint: Footprint) -> int:
    """How many windows of a microbatch are timed: all, where a block takes no longer with them than a round may.

    Args:
        workload: The run.
        footprint: Its counts.
    """
    if not footprint.blocks_run:
        return workload.microbatch
    most = max(ROUND_OPERATIONS / (4 * _block_parameters(workload, footprint)), LEAST_POSITIONS)
    return min(max(int(most / (workload.length * workload.texts_per_window)), 1), workload.microbatch)


def _block_parameters(workload: Workload, footprint: Footprint) -> int:
    text = workload.config.get_text_config()
    embedded = int(text.vocab_size) * int(text.hidden_size)
    backbone = footprint.frozen + (footprint.trainable if workload.backbone_trainable is not None else 0)
    return max(backbone - embedded, footprint.num_blocks) // footprint.num_blocks


def _shrunken(workload: Workload, footprint: Footprint, windows: int) -> tuple[Any, int, float]:
    """The configuration of fewer blocks and words; how many blocks, and by how much the head is smaller."""
    config = copy.deepcopy(workload.config)
    text = config.get_text_config()
    parameters = _block_parameters(workload, footprint)
    operations = 4 * parameters * workload.texts(windows) * workload.length
    enough = min(-(-BLOCK_BYTES // (2 * parameters)), int(ROUND_OPERATIONS / operations))
    num_blocks = min(max(enough, 1), footprint.num_blocks)
    _set_blocks(text, num_blocks)
    wanted = workload.sampled_vocabulary or int(text.vocab_size)
    rows = min(wanted, HEAD_ROWS, int(text.vocab_size))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text, name, None)  # none of them matters, and rows may be fewer
    text.vocab_size = rows
    return config, num_blocks, wanted / rows


def _set_blocks(config: Any, num: int) -> None:
    """Fewer blocks, of the same kinds in the same order."""
    for name, value in list(vars(config).items()):
        if name in ("layer_types", "attention_layers") and isinstance(value, list):
            setattr(config, name, value[:num])
    if hasattr(config, "attention_types") and config.attention_types:
        kinds = [kind for part, times in config.attention_types for _ in range(times) for kind in part][:num]
        config.attention_types = [[[kind], 1] for kind in kinds]
        config.attention_layers = kinds
    config.num_hidden_layers = num


def _trained_everywhere(workload: Workload) -> Workload:
    """The same with each block trained where any is: those that are not are timed without what is trained in them."""
    trained, lora = workload.backbone_trainable, workload.lora
    return replace(
        workload,
        backbone_trainable=trained if trained in (None, ALL) else {"every": 1},
        lora=None if lora is None else {**lora, "layers": None},
    )


def _shrunken_sites(footprint: Footprint, num_blocks: int) -> list[Any]:
    """A site of the same kind: one fusion is timed for all."""
    if footprint.sites == ("output",):
        return ["output"]
    return ["input"]
