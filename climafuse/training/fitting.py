"""Whether a run fits into memory, asked before its backbone is loaded, and the microbatch with which it does."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from climafuse.backbones.native import multiplies
from climafuse.data.normalization import statistics_to_dict
from climafuse.errors import BackboneError, ConfigurationError
from climafuse.model import ClimateFeatureExtractor, ClimateTextProcessor
from climafuse.planning.backbones import Architecture, find_architecture
from climafuse.planning.base import Base, process_base, resident_bytes
from climafuse.planning.devices import Device, this_gpu, this_machine
from climafuse.planning.planner import Plan, fitting_microbatch, plan
from climafuse.planning.probe import probe_pace
from climafuse.planning.workload import TEXTS_AT_ONCE, Workload
from climafuse.registry import ENCODERS, FUSIONS
from climafuse.training.config import RunConfig, TrainingConfig
from climafuse.training.dataset import Examples, make_examples, open_store, window_statistics
from climafuse.training.group import local_process_count, process_count
from climafuse.training.launch import Launch, check_launch
from climafuse.training.rounding import RoundingAdamW
from climafuse.training.thinning import LabelThinning

# What a training process imports, for the measure of what it holds.
MODULES = ("climafuse.training.pipeline", "torch.utils.tensorboard")
LIKELY_TOKENS = (
    900  # of a sampled vocabulary, beside those of the answers: between 600 and 1,000 in runs so far
)
SAMPLE = 512  # texts whose labels are counted
FEW = 0.5  # of the free memory: what a generous bound says needs less is not planned
WORTHWHILE = 0.95  # seconds of a step with smaller microbatches, in those of the largest


def configured_workload(
    config: RunConfig, found: Architecture, *, device: Device | None = None, launch: Launch | None = None
) -> Workload:
    """The part of a workload that the configuration tells, without data.

    Args:
        config: The run.
        found: Its backbone.
        device: Where it will run; None for this machine.
        launch: In which processes; None for those that this one was started with.

    Returns:
        The workload of one process, where several train together.
    """
    backbone, settings = config.backbone, config.training
    gpu, cpu = device is not None and device.gpu, torch.device("cpu")
    launch = Launch.of_this_process() if launch is None else launch
    windows = settings.windows_per_step
    if windows % (launch.processes * settings.accumulation) == 0:  # else the trainer refuses it
        windows //= launch.processes
    native = gpu or multiplies(torch.bfloat16, cpu)
    precision = settings.precision if settings.precision != "auto" else "bfloat16" if native else "float32"
    return Workload(
        name=found.name,
        config=found.config,
        random_weights=found.random_weights,
        file_bytes=found.file_bytes,
        file_dtype=found.file_dtype,
        dtype=backbone.dtype,
        widened=not (gpu or multiplies(getattr(torch, backbone.dtype), cpu)),
        quantization=backbone.quantization,
        quantize_head=backbone.quantize_head,
        lora=None if backbone.lora is None else _plain(asdict(backbone.lora)),
        backbone_trainable=_plain(backbone.trainable),
        variables=config.data.variables,
        history=config.data.history,
        encoder=config.encoder.name,
        encoder_options=config.encoder.options,
        fusion=config.fusion.name,
        fusion_options=config.fusion.options,
        sites=_plain(config.fusion.sites),
        windows=windows,
        accumulation=settings.accumulation,
        texts_per_window=config.facts.questions_per_window,
        precision=precision,
        checkpoint_activations=settings.checkpoint_activations,
        reuse_prefix=settings.reuses_prefix,
        store_limit=_store_limit(settings),
        store_spills=settings.reuse_prefix != "memory",
        sampled_vocabulary=None
        if settings.sampled_vocabulary is None
        else settings.sampled_vocabulary + LIKELY_TOKENS,
        evaluation_windows=config.evaluation.windows_per_batch,
        processes=1 if gpu else launch.local,
        group=launch.processes,
        spread=launch.spread,
        optimizer=RoundingAdamW,
    )


def _store_limit(settings: TrainingConfig) -> int | None:
    """Most bytes of stored states in memory, see `pipeline`: more go to the disk, or are computed anew."""
    if settings.reuse_prefix == "disk":
        return 0
    return None if settings.prefix_store_gb is None else int(settings.prefix_store_gb * 1e9)


def workload_of(
    config: RunConfig,
    train: Examples,
    validation: Examples,
    found: Architecture,
    *,
    device: Device | None = None,
    launch: Launch | None = None,
) -> Workload:
    """The workload of a run with its data: how many texts there are, how long, with how many labels.

    Args:
        config: The run.
        train: Training examples.
        validation: Validation examples.
        found: The backbone.
        device: Where it will run; None for this machine.
        launch: In which processes; None for those that this one was started with.

    Raises:
        BackboneError: Its tokenizer cannot be read.
    """
    from climafuse.backbones.loading import load_tokenizer

    workload = configured_workload(config, found, device=device, launch=launch)
    window = train[0].window
    counts = window_statistics(train)
    workload = replace(
        workload,
        grid=(len(window.latitude), len(window.longitude)),
        texts_per_window=counts["texts"] / counts["windows"],
    )
    if found.directory is None:
        return workload
    statistics = statistics_to_dict(train.store.statistics)
    extractor = ClimateFeatureExtractor(list(train.store.variables), statistics)
    processor = ClimateTextProcessor(extractor, load_tokenizer(found.directory))
    encoded = [processor.encode(prompt, answer) for prompt, answer in train.texts()]
    others = [processor.encode(prompt, answer) for prompt, answer in validation.texts()]
    lengths = np.array([len(tokens) for tokens, _ in encoded])
    distinct = {tokens for tokens, _ in (*encoded, *others)}
    words = {token for tokens in distinct for token in tokens}
    num_texts = max(workload.texts(workload.microbatch), TEXTS_AT_ONCE)
    labels = float(np.mean([len(tokens) - start for tokens, start in encoded]))
    sampled = config.training.sampled_vocabulary
    return replace(
        workload,
        # A batch is as wide as its longest text.
        length=int(np.quantile(lengths, 1 - 1 / (num_texts + 1), method="higher")),
        labels=_kept_labels(config, encoded, labels),
        all_labels=labels,
        stored_tokens=sum(map(len, distinct)),
        distinct_tokens=len(words),
        varied=int(lengths.min()) < int(lengths.max()),
        sampled_vocabulary=None if sampled is None else sampled + LIKELY_TOKENS + len(words),
    )


def _kept_labels(config: RunConfig, encoded: list[tuple[tuple[int, ...], int]], all_labels: float) -> float:
    """Labels of a text in a training step, on average."""
    share = config.training.labels_decided_by_words
    if share >= 1:
        return all_labels
    thinning = LabelThinning(encoded, kept=share, seed=config.training.seed)
    kept = 0
    chosen = encoded[:: max(len(encoded) // SAMPLE, 1)]
    for number, (tokens, start) in enumerate(chosen):
        ids = torch.tensor([tokens])
        labels = ids.clone()
        labels[:, :start] = -100
        thinning.apply(labels, ids, [number])
        kept += int((labels != -100).sum())
    return max(kept / len(chosen), 1.0)


def planned_run(
    config: RunConfig, train: Examples, validation: Examples, *, smallest: bool = False
) -> Plan | None:
    """Plan a run whose data are open in this process; None where its backbone is not on this machine yet.

    Args:
        config: The run.
        train: Training examples.
        validation: Validation examples.
        smallest: Plan it with all that can be done in smaller parts in the smallest.

    Returns:
        The plan for this process's GPU, where it has one, else for this machine.
    """
    found = _found(config)
    if found is None:
        return None
    gpu = this_gpu()
    held = resident_bytes()  # before a tokenizer is loaded, which the base counts
    workload = workload_of(config, train, validation, found, device=gpu)
    workload, base = _with_process(workload.smallest() if smallest else workload, found, held)
    return plan(workload, gpu, base=base, time=False, search=False)


def plan_of(
    config: RunConfig,
    *,
    device: Device | None = None,
    shape: tuple[int | None, float | None] | None = None,
    launch: Launch | None = None,
    time: bool = True,
) -> Plan:
    """Plan a run from its configuration, for `climafuse plan`.

    Args:
        config: The run.
        device: Where; None for this machine as it is now.
        shape: Tokens of a text and texts about a window, either None for the usual: no data are opened then. None opens
            the data of the configuration, which tell.
        launch: In which processes it will run; None for those that this one was started with. The memory of a device
            that is no GPU is shared by those on one machine.
        time: Whether the time of a step is wanted.

    Raises:
        BackboneError: There is no such backbone or architecture.
        ConfigurationError: Weights are spread over processors; or see `check_launch`.
        TrainingError: See `check_launch`.
        ClimafuseError: The data or the configuration are at fault.
    """
    ENCODERS.check(config.encoder.name, config.encoder.options, given=1)
    FUSIONS.check(config.fusion.name, config.fusion.options, given=2)
    launched = Launch.of_this_process() if launch is None else launch
    check_launch(config, launched)
    on_gpu = device is not None and device.gpu
    if launched.spread == "weights" and not on_gpu:
        raise ConfigurationError(
            "spread",
            expected="moments or gradients on processors, where accelerate knows no FSDP",
            received="weights",
            remedy="Name a GPU: --device H100.",
        )
    if launch is not None and device is not None and not on_gpu:
        device = replace(device, memory=device.memory // launch.local)
    found = find_architecture(config.backbone.name)
    if shape is None:
        store = open_store(config)
        train, validation = (make_examples(store, split, config) for split in ("train", "validation"))
        held = resident_bytes()
        workload = workload_of(config, train, validation, found, device=device, launch=launch)
        workload, base = _with_process(workload, found, held)
    else:
        workload = configured_workload(config, found, device=device, launch=launch)
        length, texts = shape
        length = workload.length if length is None else length
        labels = min(workload.labels, length - 1)
        texts = workload.texts_per_window if texts is None else texts
        windows = config.data.train_windows + config.data.validation_windows
        workload = replace(
            workload,
            length=length,
            labels=labels,
            all_labels=labels,
            texts_per_window=texts,
            stored_tokens=round(windows * texts) * length,  # if no text comes twice, which only the data tell
        )
        base = process_base(MODULES, found.directory)
    return plan(workload, device, base=base, time=time)


def _found(config: RunConfig) -> Architecture | None:
    try:
        return find_architecture(config.backbone.name)
    except BackboneError:
        return None  # not here yet, or damaged: loading says what is wrong with it


def _with_process(workload: Workload, found: Architecture, held: int) -> tuple[Workload, Base]:
    """The workload with what its data take in this process, and what a process of training holds beside."""
    base = process_base(MODULES, found.directory)
    return replace(workload, data_bytes=max(held - base.imports, 0)), base


def check_memory(
    config: RunConfig, train: Examples, validation: Examples, planned: Plan | None = None
) -> None:
    """Refuse a run that would need more memory than there is, before anything is loaded.

    Runs that are far below are not traced: a bound is enough. On a GPU of one process, where running out of memory
    costs no more than a step done again in smaller parts, only what fits with no microbatch is refused.

    Args:
        config: The run.
        train: Training examples.
        validation: Validation examples.
        planned: Its plan, where there is one already.

    Raises:
        MemoryPlanError: It does not fit.
    """
    if not config.training.check_memory:
        return
    if planned is None:
        found = _found(config)
        if found is None or _obviously_fits(
            config, train, found, this_gpu() or this_machine(local_process_count())
        ):
            return
        planned = planned_run(config, train, validation)
    if planned is not None and planned.device.gpu and process_count() == 1 and not planned.fits:
        planned = planned_run(config, train, validation, smallest=True)
    if planned is not None:
        planned.require()


def _obviously_fits(config: RunConfig, train: Examples, found: Architecture, device: Device) -> bool:
    """Whether a bound that is far too high leaves half of the memory free."""
    text = found.config.get_text_config()
    settings = config.training
    texts = [len(prompt) + len(answer) for prompt, answer in train.texts()]
    longest = max(texts) + 64  # characters, of which a token has one at least; and the frame of a chat
    windows = max(settings.microbatch, config.evaluation.windows_per_batch)
    tokens = max(windows * -(-len(texts) // len(train)), TEXTS_AT_ONCE) * longest
    width, blocks = int(text.hidden_size), int(text.num_hidden_layers)
    bound = (
        2 * 10**9  # process, data, encoder and fusion with their moments
        + 4 * (found.file_bytes or 0)
        + tokens * (blocks * width * 64 + 16 * int(text.vocab_size))
        + 4 * len(set(train.texts())) * longest * width
    )
    return bound < FEW * device.memory


def choose_microbatch(config: RunConfig, train: Examples, validation: Examples) -> tuple[RunConfig, str]:
    """Cut a step into the largest microbatches that fit; into smaller ones where these are faster.

    The windows of a step stay the same, and with them what is learned.

    Args:
        config: The run.
        train: Training examples.
        validation: Validation examples.

    Returns:
        The run with its `training.accumulation`, and what was chosen, in words.

    Raises:
        MemoryPlanError: Not even one window at a time fits, and `training.check_memory` is on.
        BackboneError: The backbone is not on this machine.
    """
    found = find_architecture(config.backbone.name)
    whole = replace(config, training=replace(config.training, accumulation=1))
    held = resident_bytes()
    gpu = this_gpu()
    workload, base = _with_process(workload_of(whole, train, validation, found, device=gpu), found, held)
    planned = plan(workload, gpu, base=base, time=False, search=False)
    windows = workload.windows
    fitting = windows if planned.fits else fitting_microbatch(workload, planned)
    if not fitting and config.training.check_memory:
        plan(workload.with_microbatch(1), gpu, base=base, time=False, search=False).require()
    chosen = [num for num in range(max(fitting, 1), 0, -1) if windows % num == 0]
    seconds: dict[int, float] = {}
    for num in chosen[:3] if gpu is None else ():  # a GPU is quickest with the most
        parts = workload.with_microbatch(num)
        seconds[num] = probe_pace(parts, planned.footprint, seconds=1.0).seconds
    best = chosen[0]
    for num in chosen[1:3] if seconds else ():
        if seconds[num] < WORTHWHILE * seconds[best]:
            best = num
    accumulation = windows // best
    told = (
        f"microbatch: {best} of {windows} windows a step, {accumulation} of them "
        + (f"({', '.join(f'{num}: {value:.3g} s' for num, value in seconds.items())})" if seconds else "")
        + f"; {fitting or 'not even one'} at most fit{'' if fitting > 1 else 's'} into "
        f"{planned.device.memory / 1e9:.1f} GB"
    )
    return replace(config, training=replace(config.training, accumulation=accumulation)), told


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON keeps them."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value
