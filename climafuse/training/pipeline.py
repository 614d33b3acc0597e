"""A run from configuration to saved model: fields, texts, backbone, model, trainer. `climafuse train` calls `run`."""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Subset

from climafuse.backbones import LoadedBackbone, find_blocks, load_backbone, weights_of
from climafuse.data.files import whole_file
from climafuse.data.store import TrainingStore
from climafuse.data.window import Window
from climafuse.errors import ClimafuseError, ConfigurationError, OutputError
from climafuse.manifest import machine
from climafuse.memory import in_halves, release_memory
from climafuse.model import (
    ClimateTextForCausalLM,
    ClimateTextProcessor,
    DiskStates,
    MemoryStates,
    PrefixStore,
    SampledVocabulary,
)
from climafuse.model.card import model_card
from climafuse.model.stored_states import StoredStates
from climafuse.pace import every
from climafuse.planning.workload import TEXTS_AT_ONCE
from climafuse.registry import ENCODERS, FUSIONS
from climafuse.training import sharding
from climafuse.training.checkpoint import newest_good_checkpoint, remove_unfinished
from climafuse.training.config import BackboneConfig, RunConfig
from climafuse.training.dataset import (
    ExampleCollator,
    ExampleDataset,
    Examples,
    make_examples,
    open_store,
    window_statistics,
)
from climafuse.training.fitting import check_memory, choose_microbatch, planned_run
from climafuse.training.group import Group, join
from climafuse.training.identity import describe
from climafuse.training.launch import Launch, check_launch
from climafuse.training.main_guard import check_main_guard
from climafuse.training.nonfinite import farthest_value
from climafuse.training.output import check_output, check_room
from climafuse.training.same_run import check_same_settings
from climafuse.training.state import read_state
from climafuse.training.thinning import LabelThinning
from climafuse.training.trained_on import RECORD_FILE, TrainedOn
from climafuse.training.trainer import ClimateTextTrainer

LIKELY_TOKENS = 8  # tokens the bare language model would say, kept for each label
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """What a run trains, ready to be trained.

    Args:
        config: The configuration.
        store: The fields.
        train: Training examples.
        validation: Validation examples.
        model: The model, with its prefix store and sampled vocabulary.
        processor: Its processor.
        thinning: Which labels are left out of a training step.
    """

    config: RunConfig
    store: TrainingStore
    train: Examples
    validation: Examples
    model: ClimateTextForCausalLM
    processor: ClimateTextProcessor
    thinning: LabelThinning | None


@dataclass
class Shared:
    """What runs with one language model make only once, one after the other in one process.

    Args:
        backbone: The language model; None for the one that the configuration names.
        states: States of texts below the fusion; each run adds those that are missing.
    """

    backbone: LoadedBackbone | None = None
    states: PrefixStore | None = None


def run(
    config: RunConfig,
    *,
    resume: bool = False,
    dry_run: bool = False,
    auto_batch: bool = False,
    say: Say | None = None,
    shared: Shared | None = None,
) -> dict[str, Any]:
    """Train a model as configured and save it.

    Args:
        config: The run.
        resume: Go on from the newest checkpoint that verifies.
        dry_run: Check everything up to the first step, and train nothing.
        auto_batch: Cut a step into the microbatches that fit best; of a resumed run those it was begun with stand.
        say: Told one line at each stage; None prints to standard error.
        shared: What earlier runs have made and later ones can use; None where this is the only one.

    Returns:
        What was trained on what, how long, the best validation loss, and where the model is.

    Raises:
        ClimafuseError: Something does not fit; nothing was written then, or the newest checkpoint stands.
    """
    if config.training.workers:
        check_main_guard()  # the trainer asks, too, but much later
    with join(config.training.timeout_seconds) as group:
        say = (say or _print) if group.is_first else _keep_silent
        options = {"resume": resume, "dry_run": dry_run, "auto_batch": auto_batch}
        return _run(config, group, **options, say=say, shared=shared or Shared())


def _run(
    config: RunConfig,
    group: Group,
    *,
    resume: bool,
    dry_run: bool,
    auto_batch: bool,
    say: Say,
    shared: Shared,
) -> dict[str, Any]:
    begin = time.perf_counter()
    checkpoint = group.first(lambda: _checkpoint(config, resume=resume, dry_run=dry_run, say=say))
    if auto_batch and checkpoint is not None:
        begun = read_state(Path(checkpoint))["settings"]["training.accumulation"]
        say(
            f"microbatch: {begun} a step, as the run was begun with; without --auto-batch, training.accumulation "
            "decides"
        )
        config = replace(config, training=replace(config.training, accumulation=begun))
    setup = assemble(
        config,
        backbone=shared.backbone,
        say=say,
        auto_batch=auto_batch and checkpoint is None,
        tell_plan=dry_run,
        group=group,
    )
    trainable = sum(parameter.numel() for parameter in setup.model.parameters() if parameter.requires_grad)
    result: dict[str, Any] = {
        "backbone": dict(setup.model.backbone_identity),
        "trainable_parameters": trainable,
        "sites": [str(site) for site in setup.model.sites],
        "train": window_statistics(setup.train),
        "validation": window_statistics(setup.validation),
        "accumulation": setup.config.training.accumulation,  # which --auto-batch may have chosen
    }
    kept = "frozen" if config.backbone.trainable is None else "fine-tuned"
    say(
        f"model: {setup.model.backbone_identity['id']} ({weights_of(setup.model.backbone_identity)}), {kept}; "
        f"{trainable:,} trainable parameters; "
        f"{config.fusion.name} at {', '.join(result['sites'])}"
    )
    size = _checkpoint_bytes(setup.model)
    group.first(lambda: check_room(config.output, size, resumed=checkpoint is not None))
    if dry_run:
        return result
    record = Path(config.output.directory) / RECORD_FILE
    group.first(lambda: _make_place(record, anew=checkpoint is None))
    prepare_reuse(setup, say=say, states=shared.states)
    shared.states = setup.model.prefix_store
    trainer = make_trainer(setup, spent=group.exchange(time.perf_counter() - begin)[0])
    outcome = trainer.train(resume_from_checkpoint=checkpoint)
    folder = Path(config.output.directory) / "model"
    trainer.save_model(folder)
    result |= {
        "model": str(folder),
        "steps": trainer.state.global_step,
        "stopped_by": trainer.stopped_by,
        "microbatch": trainer.memory,
        "training_loss": outcome.training_loss,
        "validation_loss": trainer.state.best_metric,
        # Where the run was resumed: training before, and all of this process.
        "train_seconds": trainer.clock.before + time.perf_counter() - begin,
    }
    assert trainer.trained_on is not None  # make_trainer has told
    trained_on = trainer.trained_on
    group.first(lambda: _write_record(record, setup, result, trained_on))
    loss = result["validation_loss"]
    say(
        f"trained {result['steps']} steps in {result['train_seconds']:.0f} s, preparation included; "
        f"best validation loss {'-' if loss is None else format(loss, '.4f')}; model in {folder}"
    )
    return result


def _checkpoint(config: RunConfig, *, resume: bool, dry_run: bool, say: Say) -> str | None:
    """The checkpoint to go on from."""
    checkpoint = None
    if resume:
        if not dry_run:
            remove_unfinished(config.output.directory)
        checkpoint = newest_good_checkpoint(config.output.directory, with_best=config.training.keep_best)
    if checkpoint is None:
        check_output(config.output)
        if resume:
            say(f"resume: no checkpoint in {config.output.directory}; starting from the beginning")
        return None
    # The trainer asks, too, and of the inputs, but only once they are open.
    check_same_settings(checkpoint.name, read_state(checkpoint), config)
    say(f"resume: going on from {checkpoint}")
    return str(checkpoint)


def _checkpoint_bytes(model: ClimateTextForCausalLM) -> int:
    """Trainable weights, and two moments of each in float32."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return sum(parameter.numel() * (parameter.element_size() + 8) for parameter in trainable)


def _make_place(record: Path, *, anew: bool) -> None:
    """Make the output folder, without the record of an earlier run."""
    _make_folder(record.parent)
    if anew:
        record.unlink(missing_ok=True)


def _write_record(path: Path, setup: Run, result: dict[str, Any], trained_on: TrainedOn) -> None:
    """Write what was trained on what, where and when, for people."""
    record = {
        **{key: value for key, value in result.items() if key != "model"},  # a run may be moved
        "license": setup.store.license,
        **trained_on.to_dict(),
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _make_folder(folder: Path) -> None:
    """Make the output folder before the work that would be lost without it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            str(folder),
            expected="a folder that can be made",
            received=error.strerror or str(error),
            remedy="Choose another output.directory.",
        ) from error


def assemble(
    config: RunConfig,
    *,
    backbone: LoadedBackbone | None = None,
    say: Say | None = None,
    auto_batch: bool = False,
    tell_plan: bool = False,
    group: Group | None = None,
) -> Run:
    """Make all that a run needs, up to the untrained model.

    Args:
        config: The run.
        backbone: The language model; None for the one that the configuration names.
        say: Told one line at each stage.
        auto_batch: Choose `training.accumulation`, see `fitting.choose_microbatch`.
        tell_plan: Tell what the run will cost, too.
        group: The processes that make the same; None for one.

    Raises:
        MemoryPlanError: The backbone named would not fit with all else; nothing of it was loaded.
        ClimafuseError: The data, the backbone or the configuration is at fault.
    """
    say, group = say or _print, group or Group()
    # What takes no time first.
    if config.training.best_metric != "loss":
        raise ConfigurationError(
            "training.best_metric",
            expected="loss, which is what a run measures",
            received=repr(config.training.best_metric),
            remedy="Other metrics need extra_metrics of ClimateTextTrainer, from Python.",
        )
    ENCODERS.check(config.encoder.name, config.encoder.options, given=1)
    FUSIONS.check(config.fusion.name, config.fusion.options, given=2)
    uncut = replace(config, training=replace(config.training, accumulation=1))
    check_launch(uncut if auto_batch else config, Launch.of_this_process())
    if config.backbone.num_threads is not None:
        torch.set_num_threads(config.backbone.num_threads)
    with group.in_turn():  # what one has fetched is in the cache for the others
        store = open_store(config)
    train = make_examples(store, "train", config)
    validation = make_examples(store, "validation", config)
    counts = window_statistics(train)
    say(
        f"data: {config.data.source}, {counts['windows']:,} windows of "
        f"{len(store.splits.train)} training times, {counts['texts']:,} texts, {counts['distinct']:,} distinct"
    )
    # A plan counts on the other processes of a machine to hold as much as the one that asks.
    group.exchange(None)
    if auto_batch:
        accumulation = group.first(lambda: _accumulation(config, train, validation, say))
        config = replace(config, training=replace(config.training, accumulation=accumulation))
    if backbone is None:
        # One asks while nobody loads: of what is free then, each process may have its part.
        group.first(lambda: _check_memory(config, train, validation, say if tell_plan else None))
        with group.in_turn():
            backbone = configured_backbone(config.backbone, say)
    torch.manual_seed(config.training.seed)
    model = _make_model(config, store, backbone)
    processor = ClimateTextProcessor.of(model.config, backbone.tokenizer)
    settings = config.training
    encoded = [processor.encode(prompt, answer) for prompt, answer in train.texts()]
    others = (processor.encode(prompt, answer) for prompt, answer in validation.texts())
    model.check_length(max(len(tokens) for tokens, _ in (*encoded, *others)), "texts")
    thinning = None
    if settings.labels_decided_by_words < 1:
        thinning = LabelThinning(encoded, kept=settings.labels_decided_by_words, seed=settings.seed)
    return Run(config, store, train, validation, model, processor, thinning)


def _check_memory(config: RunConfig, train: Examples, validation: Examples, tell: Say | None) -> None:
    planned = None if tell is None else planned_run(config, train, validation)
    if tell is not None and planned is not None:
        tell(planned.line)
    check_memory(config, train, validation, planned)


def _accumulation(config: RunConfig, train: Examples, validation: Examples, say: Say) -> int:
    chosen, told = choose_microbatch(config, train, validation)
    say(told)
    return chosen.training.accumulation


def configured_backbone(config: BackboneConfig, say: Say) -> LoadedBackbone:
    """Load the language model that a run names, in the form that it says.

    Args:
        config: The section of the run.
        say: Told one line at each stage.
    """
    return load_backbone(
        config.name,
        dtype=config.dtype,
        quantization=config.quantization,
        quantize_head=config.quantize_head,
        progress=say,
    )


def _make_model(config: RunConfig, store: TrainingStore, backbone: Any) -> ClimateTextForCausalLM:
    return ClimateTextForCausalLM.from_backbone(
        backbone,
        statistics=store.statistics,
        encoder=config.encoder.name,
        fusion=config.fusion.name,
        sites=_plain(config.fusion.sites),
        encoder_options=dict(config.encoder.options),
        fusion_options=dict(config.fusion.options),
        lora=None if config.backbone.lora is None else _plain(asdict(config.backbone.lora)),
        backbone_trainable=_plain(config.backbone.trainable),
        history=config.data.history,
        box_degrees=config.data.box_degrees,
    )


def prepare_reuse(setup: Run, *, say: Say, states: PrefixStore | None = None) -> None:
    """Compute what frozen blocks make of the texts, and choose the vocabulary of the training steps.

    Where the model will be trained: it is moved there, as the trainer would do later.

    Args:
        setup: The run.
        say: Told one line at each stage.
        states: Of another run with the same language model; those of the same site are used and added to.
    """
    settings, model, processor = setup.config.training, setup.model, setup.processor
    _place(model)
    texts = [
        processor.encode(prompt, answer)[0]
        for prompt, answer in dict.fromkeys(setup.train.texts() + setup.validation.texts())
    ]
    if settings.reuses_prefix and model.prefix_site not in (
        "input",
        0,
    ):  # there, no block has seen a text yet
        begin = time.perf_counter()
        if states is None or states.site != model.prefix_site:
            states = PrefixStore(
                model.backbone, model.prefix_site, states=_place_of_states(setup, texts, say), say=say
            )
        model.prefix_store = states
        model.prefix_store.add(
            texts, progress=every(5.0, lambda done, all_: say(f"texts: {done:,} of {all_:,}"))
        )
        say(
            f"texts: states of {len(texts):,} distinct texts below site {model.prefix_site} stored in "
            f"{time.perf_counter() - begin:.0f} s"
        )
    if settings.sampled_vocabulary is not None:
        model.sampled_vocabulary = _vocabulary(setup, settings.sampled_vocabulary)
        say(
            f"softmax: {len(model.sampled_vocabulary.kept):,} likely tokens and "
            f"{model.sampled_vocabulary.num_sampled:,} drawn anew each step, of {_vocabulary_size(model):,}"
        )
    release_memory()  # else what it took stays with the process, between what is kept


def _place(model: ClimateTextForCausalLM) -> None:
    """Move a model to its device; not where FSDP will spread its weights: it may not fit there as a whole."""
    if not sharding.asked_for():
        model.to(PartialState().device)


def _place_of_states(setup: Run, texts: Sequence[Sequence[int]], say: Say) -> StoredStates:
    """Where states of texts are kept: as set, or else in memory if they fit there, and on the disk if not."""
    settings, model = setup.config.training, setup.model
    limit = None if settings.prefix_store_gb is None else int(settings.prefix_store_gb * 1e9)
    in_memory = MemoryStates(limit, device=model.backbone.device)
    size = (
        sum(map(len, texts))
        * find_blocks(model.backbone).width(model.prefix_site)
        * model.backbone.dtype.itemsize
    )
    if settings.reuse_prefix == "memory" or (settings.reuse_prefix is True and size <= in_memory.limit):
        return in_memory
    return DiskStates.of(model, limit=limit, say=say)


def _vocabulary(setup: Run, num_sampled: int) -> SampledVocabulary:
    model, processor = setup.model, setup.processor
    distinct = list(dict.fromkeys(setup.train.texts()))
    kept = [
        torch.tensor([token for text in distinct for token in processor.encode(*text)[0]]).unique(),
    ]
    # Of the bare model's own choices a sample of texts shows nearly all; every prompt is in it.
    sample = list({prompt: (prompt, answer) for prompt, answer in distinct}.values())

    def ask(part: Sequence[tuple[str, str]]) -> None:
        prompts, answers = zip(*part, strict=True)
        batch = processor(prompts=list(prompts), answers=list(answers))
        kept.append(model.likely_tokens(**batch, count=LIKELY_TOKENS).flatten())

    for first in range(0, len(sample), TEXTS_AT_ONCE):
        in_halves(sample[first : first + TEXTS_AT_ONCE], ask)
    return SampledVocabulary(torch.cat(kept), _vocabulary_size(model), num_sampled)


def _vocabulary_size(model: ClimateTextForCausalLM) -> int:
    return int(model.config.get_text_config().vocab_size)


def make_trainer(setup: Run, *, spent: float = 0.0, progress: bool = True) -> ClimateTextTrainer:
    """Make the trainer of a run.

    Args:
        setup: What it trains.
        spent: Seconds that preparation took: `training.max_seconds` is a limit on both together.
        progress: Show the line of progress.
    """
    config = setup.config
    if config.training.max_seconds is not None:
        left = max(config.training.max_seconds - spent, 1.0)
        config = replace(config, training=replace(config.training, max_seconds=left))

    def card() -> str:
        counts = window_statistics(setup.train)
        return model_card(
            setup.model.config,
            {
                "Trained on": f"{setup.config.data.source}: {counts['texts']:,} texts about "
                f"{counts['windows']:,} windows",
                "License of the data": setup.store.license or "see the source",
            },
        )

    splits = {"train": setup.train, "validation": setup.validation}
    # There may be no test times, or no texts about them: nothing is asked then.
    with suppress(ClimafuseError):
        splits["test"] = make_examples(setup.store, "test", setup.config)
    content = {"the content of the backbone": setup.model.backbone_identity["content_hash"]}
    trained_on = describe(setup.store, splits, **content)
    trainer = ClimateTextTrainer(
        setup.model,
        config,
        train_dataset=ExampleDataset(setup.train),
        eval_dataset=ExampleDataset(setup.validation),
        train_loader=_gap_loader(setup),
        data_collator=ExampleCollator(setup.processor, setup.thinning),
        processing_class=setup.processor,
        card=card,
        identity=trained_on.identity,
        trained_on=trained_on,
        describe_sample=lambda number: farthest_value(_window(setup.train, number), setup.store.statistics),
        progress=progress,
    )
    trainer.config = setup.config  # what is written beside the weights is what was configured
    return trainer


def _gap_loader(setup: Run) -> DataLoader[Any] | None:
    """Training examples at even distances, with all their labels."""
    num = min(setup.config.training.gap_windows, len(setup.train))
    if not num:
        return None
    chosen = np.linspace(0, len(setup.train) - 1, num).round().astype(int).tolist()
    return DataLoader(
        Subset(ExampleDataset(setup.train), chosen),
        batch_size=setup.config.evaluation.windows_per_batch,
        collate_fn=ExampleCollator(setup.processor),
    )


def _window(examples: Examples, sample: int) -> Window:
    return next(example.window for example in examples if example.sample == sample)


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON keeps them."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def _keep_silent(line: str) -> None:
    """Of several processes, the first speaks."""


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
