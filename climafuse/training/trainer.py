"""ClimateTextTrainer: the Hugging Face Trainer with the gaps closed that would let a run fail quietly.

What is different, and why:

- A loss or gradient that is not finite stops the run *before* the optimizer step and names the samples. The
  Trainer hides it from the log and takes the step.
- Checkpoints appear whole or not at all, are verified, and hold no pickle (`checkpoint.py`, `state.py`).
- Weights load strictly. The Trainer's `strict=False` resumes from half a checkpoint without a word.
- Gates have their own learning rate; the gradient norm is known for every part of the model.
- The evaluation loss is a mean over answer tokens, not a mean of batch means.
- A microbatch that does not fit into memory is halved, and its step done again (`memory_guard.py`).
- `max_seconds` ends a run cleanly: evaluated, saved, resumable. So does a signal such as a cluster sends.
- A resumed run is the uninterrupted one bit for bit: weights, moments, random numbers, order of the samples,
  and the losses in the log. Neither evaluation nor the number of loader processes moves the random numbers of
  training. (Where a run ends by `max_seconds`, and a rate that goes by seconds, depend on the clock.)

The model computes its own loss (shifted, answer tokens only) and divides it by `num_items_in_batch`, so that
accumulation over microbatches changes nothing. Dataset and collator must be pure functions of the sample
number: batches are fetched one ahead, so one that drew from a global random generator could not be resumed
exactly.

Several processes (`group.py`) train as one does: the same effective batches, each sample in one process (`shares.py`),
the loss and its gradient over all labels of all of them. They act as one: on a signal to any of them, a time limit, a
loss that is not finite. The first writes and speaks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import TrainOutput

from climafuse.errors import (
    CheckpointError,
    MemoryExhaustedError,
    NonFiniteError,
    RunInterruptedError,
)
from climafuse.memory import out_of_memory, peak_memory_gb
from climafuse.model.card import CARD_FILE
from climafuse.model.folder import read_weights
from climafuse.training.arguments import training_arguments
from climafuse.training.callbacks import (
    LOG_FILE,
    Advance,
    EarlyStopping,
    JsonLinesLog,
    Progress,
    RunClock,
    TensorBoardLog,
    TimeLimit,
)
from climafuse.training.checkpoint import (
    checkpoint_path,
    list_checkpoints,
    newest_good_checkpoint,
    remove_unfinished,
    rotate_checkpoints,
    verify_checkpoint,
    write_folder,
)
from climafuse.training.config import CONFIG_FILE, RunConfig, TrainingConfig
from climafuse.training.group import join
from climafuse.training.interruption import StopOnSignal, StopSignals, outlive_stop_signals
from climafuse.training.launch import check_spread
from climafuse.training.main_guard import check_main_guard
from climafuse.training.memory_guard import Batch, MemoryGuard
from climafuse.training.meter import Meter
from climafuse.training.nonfinite import SAMPLE_KEY, non_finite_step, of_all
from climafuse.training.optim import gradient_norms, make_optimizer, make_scheduler, trainable_parts
from climafuse.training.output import check_output
from climafuse.training.precision import in_bfloat16, products
from climafuse.training.read_ahead import ReadAheadSampler, ReadsAhead
from climafuse.training.replicas import make_alike
from climafuse.training.same_run import check_same_run, flat_settings
from climafuse.training.sharding import is_sharded, load_whole, whole
from climafuse.training.shares import Share
from climafuse.training.state import (
    load_optimizer,
    load_random,
    optimizer_moments,
    random_state,
    read_state,
    save_optimizer,
    save_random,
    write_state,
)
from climafuse.training.surface import check_hooks, check_model
from climafuse.training.trained_on import TrainedOn
from climafuse.training.zero import Zero, engine_settings

TRAINER_STATE_FILE = "trainer_state.json"


class ClimateTextTrainer(Trainer):
    """Trains the encoder and the fusion of a climate-text model around its frozen backbone.

    Args:
        model: A model with `forward(**batch)` returning `.loss`, `trainable_state_dict()`,
            `save_pretrained(folder)` and `load_trainable(folder)`; where it has `gate_values()`, they are
            logged.
        config: The run; its `training`, `evaluation` and `output` sections are used here, and the whole of it
            is written beside every checkpoint. Sections alone will do: see `RunConfig`.
        train_dataset: Samples by number; one sample is one climate window with its texts.
        data_collator: Samples → batch of tensors. An entry `sample` (one number for each window) names the
            culprits of a non-finite loss and does not reach the model.
        sampler: Order of the samples: iterated anew each epoch after `set_epoch(epoch)`, a pure function of
            seed and epoch. None for `data.batch.EpochSampler` with the seed of the configuration.
        eval_dataset: Validation samples; without them nothing is evaluated and the last step is the best.
        train_loader: Batches of some training samples, with all their labels. Their loss is measured as that of the
            validation samples (`eval_train_loss` in the log): the loss of training steps is not comparable.
        processing_class: Processor saved with every checkpoint and model.
        card: Writes the text of the model card, anew on every save.
        extra_metrics: Computes more evaluation metrics from the model, such as the share of right facts.
        identity: What the run is made of beside its settings, such as texts and backbone: a SHA-256 by name. A run
            is not resumed with others.
        trained_on: The data, for `data.json` beside all weights that are saved.
        describe_sample: Says what a sample is, for errors that name it.
        callbacks: More callbacks.
        progress: Show the line of progress.
        clock: Clock of the run, for tests.

    Raises:
        TrainingError: The model lacks part of that surface, or the installed transformers lacks a hook this
            class relies on.
        ConfigurationError: The microbatches cannot be shared by the processes; or DeepSpeed is asked for otherwise than
            the run is configured, see `zero.engine_settings`.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RunConfig,
        *,
        train_dataset: Dataset[Any],
        data_collator: Callable[[list[Any]], dict[str, Any]],
        sampler: Sampler[int] | None = None,
        eval_dataset: Dataset[Any] | None = None,
        train_loader: DataLoader[Any] | None = None,
        processing_class: Any = None,
        card: Callable[[], str] | None = None,
        extra_metrics: Callable[[nn.Module], Mapping[str, float]] | None = None,
        identity: Mapping[str, str] | None = None,
        trained_on: TrainedOn | None = None,
        describe_sample: Callable[[int], str] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        progress: bool = True,
        clock: RunClock | None = None,
    ) -> None:
        check_hooks()
        check_model(model)
        self.config = config
        self.settings: TrainingConfig = config.training
        self.output = Path(config.output.directory)
        self.card = card
        self.train_loader = train_loader
        self.extra_metrics = extra_metrics
        self.identity = dict(identity or {})
        self.trained_on = trained_on
        self.describe_sample = describe_sample
        self.clock = clock if clock is not None else RunClock()
        self.group = join(config.training.timeout_seconds)
        self.stopped_by: str | None = None
        self._sampler = (
            sampler if sampler is not None else _epoch_sampler(train_dataset, config.training.seed)
        )
        super().__init__(
            model=model,
            args=training_arguments(config, evaluate=eval_dataset is not None, group=self.group),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            processing_class=processing_class,
        )
        self._zero: Zero | None = None
        if self.is_deepspeed_enabled:
            self._zero = Zero(
                engine_settings(
                    self.accelerator.state.deepspeed_plugin.deepspeed_config,
                    microbatch=self.args.per_device_train_batch_size,
                    accumulation=self.settings.accumulation,
                    size=self.group.size,
                    max_norm=self.settings.max_gradient_norm,
                    in_bfloat16=in_bfloat16(self.settings.precision, self.args.device),
                )
            )
            self.is_deepspeed_enabled = (
                False  # what the Trainer would do otherwise: pickles, for the most part
            )
        make_alike(model, self.identity, self.group, seed=config.training.seed)
        # Both would be guessed from the class, and a wrong guess changes the scale of the loss without a
        # word.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True

        self._module: Any = model  # self.model, which the Trainer types as optional
        self._gathered: dict[str, Tensor] | None = None
        self._note_parts()
        self._may_omit_logits = "return_logits" in signature(model.forward).parameters
        self._meter = Meter(self.clock)
        self._microbatches: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._norms: dict[str, float] = {}
        self._evaluated = (0.0, 0)
        self._share: Share | None = None  # of the newest loader; None where one process reads all
        self._train_share: Share | None = None
        self._eval_share: Share | None = None
        self._borrowed: Any = None  # a microbatch that another process counts
        self._weightless = False
        self._batches_left = 0
        self._signals = StopSignals()
        self._guard = MemoryGuard(
            self.args.per_device_train_batch_size,
            config.evaluation.windows_per_batch,
            device=self.args.device,
        )
        self._add_callbacks(callbacks or [], progress)

    def _add_callbacks(self, callbacks: list[TrainerCallback], progress: bool) -> None:
        settings = self.settings
        self.remove_callback(PrinterCallback)
        self._time_limit = (
            TimeLimit(self.clock, settings.max_seconds) if settings.max_seconds is not None else None
        )
        self._early_stopping = None
        if settings.patience is not None and self.eval_dataset is not None:
            self._early_stopping = EarlyStopping(
                settings.patience,
                f"eval_{settings.best_metric}",
                greater_is_better=bool(self.args.greater_is_better),
                minimum_improvement=settings.minimum_improvement,
            )
        own: list[TrainerCallback | None] = [
            _GoOn(self),
            _TellSplits(self),
            Advance(self.group),
            StopOnSignal(self._signals),
            self._time_limit,
            self._early_stopping,
        ]
        if self.group.is_first:
            own.append(JsonLinesLog(self.output / LOG_FILE))
            if self.config.output.tensorboard:
                own.append(TensorBoardLog(self.output / "tensorboard"))
            if progress:
                own.append(Progress(self.clock, max_seconds=settings.max_seconds))
        for callback in [*own, *callbacks]:
            if callback is not None:
                self.add_callback(callback)

    # ---- A run ---------------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains.

        Args:
            resume_from_checkpoint: A checkpoint folder to go on from, or True for the newest whole one in the
                output folder (from the beginning where there is none yet).
            trial: See `transformers.Trainer.train`.
            ignore_keys_for_eval: See `transformers.Trainer.train`.

        Returns:
            Steps done, mean training loss, metrics.

        Raises:
            NonFiniteError: A loss or gradient was not finite; the weights are those before that step.
            CheckpointError: The checkpoint is damaged, or was written with other settings; or saving failed.
            TrainingError: The output folder holds another run.
            MemoryExhaustedError: Memory ran out, and smaller microbatches cannot help.
            RunInterruptedError: SIGTERM or SIGUSR1 asked the process to end (in the main thread; a second one
                ends it at once). The step was finished and saved.
        """
        if self.settings.workers:
            check_main_guard()
        with self.group, self._signals, self._guard.watching(self._module):
            found = self.group.first(lambda: self._begin_at(resume_from_checkpoint))
            checkpoint = None if found is None else Path(found)
            self._resumed: dict[str, Any] = {}
            if checkpoint is not None:
                self._resumed = read_state(checkpoint)
                check_same_run(checkpoint.name, self._resumed, self.config, self.identity)
            memory = self._resumed.get("memory", {})
            # Where nothing was halved, it only tells how many processes there were.
            self._guard.load(memory if memory.get("splits") else {})
            self.args.eval_on_start = (
                self.settings.evaluate_first and checkpoint is None and self.eval_dataset is not None
            )
            self.stopped_by = None
            self.clock.start(self._resumed.get("seconds", 0.0))
            if self.group.size > 1:
                self.clock.agree(self._resumed.get("seconds", 0.0))
                self._signals.agree(None)
            self._meter.reset()
            try:
                output = super().train(found, trial, ignore_keys_for_eval)
            except MemoryExhaustedError as error:
                error.remedy += self._saved()
                raise
            except (RuntimeError, MemoryError) as error:
                # A loader that was starting when all processes of the job were told to end.
                if self._signals.received is not None and self.group.size == 1:
                    raise self._interrupted() from error
                reason = out_of_memory(error)  # of the optimizer, or while saving
                if reason is None:
                    raise
                raise self._guard.exhausted(self.state.global_step + 1, {}, reason, self._saved()) from error
            finally:
                self.is_in_train = False
                self._microbatches, self._losses = [], []
                if self._zero is not None:
                    self._zero.let_go()
                    self.model_wrapped, self.optimizer = self._module, None
                # Their processes would wait for another epoch.
                self.callback_handler.train_dataloader = None
                self._eval_dataloaders: dict[str, Any] = {}
            if self.stopped_by in self._signals.names:
                raise self._interrupted()
        return output._replace(training_loss=self._mean_loss())

    def _begin_at(self, resume_from_checkpoint: str | Path | bool | None) -> str | None:
        """The checkpoint to go on from; without one, the output folder is made ready for this run."""
        remove_unfinished(self.output)
        checkpoint: Path | None = None
        if resume_from_checkpoint is True:
            checkpoint = newest_good_checkpoint(self.output, with_best=self.settings.keep_best)
        elif resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
            verify_checkpoint(checkpoint)
        if checkpoint is None:
            self._claim_output()
        return None if checkpoint is None else str(checkpoint)

    def _interrupted(self) -> RunInterruptedError:
        return RunInterruptedError(
            str(self._signals.acted_on or self._signals.received),
            expected=f"{self.state.max_steps} steps",
            received=f"a request to end at step {self.state.global_step}",
            remedy=self._saved(),
        )

    @property
    def memory(self) -> dict[str, Any]:
        """Most windows in a microbatch and in an evaluation batch, and what was halved for want of memory."""
        return self._guard.state()

    def _saved(self) -> str:
        """What can be gone on from, as a sentence."""
        saved = list_checkpoints(self.output)
        if not saved:
            return "No checkpoint was saved before: start again."
        return f"Go on from {saved[-1][1]} with --resume."

    def _claim_output(self) -> None:
        """Makes sure that what will stand in the output folder comes from this run alone."""
        check_output(self.config.output)
        for path in [*(path for _, path in list_checkpoints(self.output)), self.output / "tensorboard"]:
            if path.is_dir():
                shutil.rmtree(path)

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Lets the checkpoint say where the run stands, but not how often to log, evaluate and save."""
        epoch, batch = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        self.state.train_batch_size = self._train_batch_size  # that of now, as accumulation may be another
        self._note_best()
        if self.settings.keep_best and self.state.best_global_step and not self.state.best_model_checkpoint:
            raise CheckpointError(
                str(checkpoint_path(self.output, self.state.best_global_step)),
                expected="the checkpoint of the best step so far, with whose weights the run shall end",
                received="no such folder",
                remedy="Copy it back, or resume with training.keep_best=false to end with the last weights.",
            )
        if self.state.global_step:
            self.group.first(self._rotate)  # what a killed process had no time for
        ends: list[TimeLimit | EarlyStopping | None] = [self._time_limit, self._early_stopping]
        over = [end.look(self.state) for end in ends if end is not None]
        if self.state.global_step >= max_steps or (self.state.global_step and any(over)):
            return self.state.num_train_epochs, 0  # nothing is left; the Trainer would take one step more
        return epoch, batch

    def _note_best(self) -> None:
        if self.state.best_global_step:
            best = checkpoint_path(self.output, self.state.best_global_step)
            found = self.group.first(best.is_dir)
            self.state.best_model_checkpoint = str(best) if found else None

    def _rotate(self) -> None:
        best = self.state.best_model_checkpoint
        rotate_checkpoints(
            self.output,
            keep=self.config.output.keep_checkpoints,
            newest=self.state.global_step,
            protect=[Path(best)] if best else [],
        )

    def _mean_loss(self) -> float:
        """Over all steps of the run, those before it was resumed included."""
        return float(self._total_loss_scalar) / max(self.state.global_step, 1)

    def _note_parts(self) -> None:
        self._parts = trainable_parts(self._module)
        self._trainable = [parameter for parameters in self._parts.values() for parameter in parameters]

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[nn.Module, DataLoader[Any]]:
        """Wraps the model for several processes; FSDP puts other parameters in the places of its own."""
        if self._zero is not None:
            check_spread(weight.dtype for weight in self._trainable)
            with replaced(self.accelerator, "prepare", self._zero.prepare):
                self.accelerator.deepspeed_engine_wrapped = self._zero
                prepared = super()._prepare_for_training(*args, **kwargs)
        else:
            prepared = super()._prepare_for_training(*args, **kwargs)
        self._note_parts()
        if is_sharded(self._module):
            check_spread(weight.dtype for weight in self._trainable)
        return cast("tuple[nn.Module, DataLoader[Any]]", prepared)

    def create_accelerator_and_postprocess(self) -> None:
        """Makes the accelerator; with DDP, gradients are views of its buckets, or they would be held twice."""
        super().create_accelerator_and_postprocess()
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.gradient_as_bucket_view = True

    # ---- Optimization --------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the trainable parameters; see `optim.parameter_groups`."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self._module, self.settings)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Warmup, then the schedule of the configuration; see `optim.schedule_factor`."""
        if self.lr_scheduler is None:
            self.lr_scheduler = make_scheduler(
                cast("Any", optimizer or self.optimizer), self.settings, lambda: self.clock.agreed
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Collects the microbatches of a step, and remembers them until the step is done."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._microbatches, self._losses = batches, []
        return batches, num_items

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """The labels of a step, over all processes; a microbatch that another process counts has none."""
        if self.group.size == 1:
            return super()._get_num_items_in_batch(batch_samples, device)
        if self._eval_share is not None:
            return None  # of an evaluation, each process divides by its own, and the sums meet at the end
        self._borrowed = None
        if (
            batch_samples
            and cast("Share", self._train_share).borrows
            and self.accelerator.gradient_state.end_of_dataloader
        ):
            self._borrowed = batch_samples[-1]
            empty = {"labels": torch.full_like(self._borrowed["labels"], -100)}
            batch_samples = [*batch_samples[:-1], empty]
        return super()._get_num_items_in_batch(batch_samples, device)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one microbatch, in parts if it does not fit into memory."""
        one_pass = super().training_step
        self._weightless = inputs is self._borrowed

        def compute(part: Batch, *, last: bool) -> Tensor:
            # Several processes exchange gradients once a step.
            apart = self.accelerator.sync_gradients and not last
            with self.accelerator.no_sync(model) if apart else contextlib.nullcontext():
                return one_pass(model, cast("dict[str, Any]", part), *args, **kwargs)

        def start_over() -> None:
            model.zero_grad()
            self._meter.forget()

        before = list(self._losses)
        again = self._guard.accumulate(
            self._microbatches[: len(before) + 1],
            self._losses,
            compute,
            start_over,
            step=self.state.global_step + 1,
            alone=self.group.size == 1,
        )
        if self.group.size > 1:
            return torch.zeros_like(self._losses[-1])  # `_agree_on_step` adds the loss of all
        # The Trainer adds up what it is given; of a step that was started over it has added other losses.
        return sum(self._losses, torch.zeros(())) - sum(before) if again else self._losses[-1]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's own loss; counts the climate tokens where the output tells them."""
        loss, outputs = super().compute_loss(model, inputs, True, cast("Tensor", num_items_in_batch))
        if model.training and self._weightless:
            loss = loss * 0.0
        elif model.training:
            self._meter.count_climate(outputs)
        return (loss, outputs) if return_outputs else loss

    def compute_loss_context_manager(self) -> contextlib.AbstractContextManager[object]:  # type: ignore[override]
        """Matrix products of a training step in the configured type; an evaluation is in float32."""
        if not self._module.training:
            return contextlib.nullcontext()
        return products(self.settings.precision, self.args.device)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Moves a batch to the device and leaves out what is not for the model."""
        return super()._prepare_inputs({key: value for key, value in inputs.items() if key != SAMPLE_KEY})

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted here: 6 × parameters × tokens is wrong around a frozen backbone."""
        return 0

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return self._inspect_gradients(self.settings.max_gradient_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return grad_norm if grad_norm is not None else self._inspect_gradients(None)

    def _inspect_gradients(self, max_norm: float | None) -> Tensor:
        """Between backward and step: refuses what is not finite, notes the norm of every part, clips.

        One transfer from the device a step, which is also what makes the refusal possible before the step.
        """
        find_norms = gradient_norms if self._zero is None else self._zero.gradient_norms
        by_part, total = find_norms(self._parts)
        values = torch.cat(
            [torch.stack([total, *(loss.to(total) for loss in self._losses)]), by_part]
        ).tolist()
        num_losses = len(self._losses)
        norm, losses, norms = values[0], values[1 : 1 + num_losses], values[1 + num_losses :]
        suspects = [] if all(map(math.isfinite, values)) else [0]
        if self.group.size > 1:
            suspects = self._agree_on_step(losses, norm)
        if suspects:
            if self._zero is not None:
                self._zero.let_go()  # samples are looked at in one process alone
            self._module.zero_grad()
            error = None
            if self.group.rank in suspects:
                error = non_finite_step(
                    self.state.global_step + 1,
                    self._microbatches,
                    losses,
                    norm,
                    model=self._module,
                    trainable=self._trainable,
                    prepare=self._prepare_inputs,
                    describe=self.describe_sample,
                )
            raise of_all(error, self.group)
        self._norms = dict(zip((f"gradient_norm/{part}" for part in self._parts), norms, strict=True))
        self._norms["gradient_norm"] = norm
        if max_norm is not None and norm > max_norm and self._zero is None:  # which clips in its step
            nn.utils.clip_grads_with_norm_(self._trainable, max_norm, total)
        for batch in self._microbatches:
            if batch is not self._borrowed:
                self._meter.count(batch)
        self._meter.settle()
        self._microbatches, self._losses = [], []
        return total

    def _agree(self, *own: float) -> list[list[float]]:
        """Numbers of all processes; from here on all act on a signal to any, and go by the clock of the first."""
        names = self._signals.names
        received = self._signals.received
        code = names.index(received) + 1 if received is not None else 0
        rows = self.group.gather([float(code), self.clock.seconds, *own])
        code = int(max(row[0] for row in rows))
        self._signals.agree(names[code - 1] if code else None)
        self.clock.agree(rows[0][1])
        return [row[2:] for row in rows]

    def _agree_on_step(self, losses: list[float], norm: float) -> list[int]:
        """Adds the loss of all processes to the running one; returns the processes where it is not finite."""
        rows = self._agree(sum(losses), norm)
        # Each was scaled up by their number, so that DDP's mean of gradients is the gradient of the sum.
        self._tr_loss += sum(loss for loss, _ in rows) / self.group.size
        bad = [rank for rank, (loss, _) in enumerate(rows) if not math.isfinite(loss)]
        return bad or [rank for rank, row in enumerate(rows) if not math.isfinite(row[1])]

    # ---- Evaluation ----------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates on the validation samples.

        Returns:
            Metrics, `eval_loss` being the mean over answer tokens.

        Raises:
            NonFiniteError: The loss is not finite.
        """
        # However often it is evaluated, the run draws the same random numbers.
        with self.group, self._meter.paused(), torch.random.fork_rng():
            metrics = super().evaluate(*args, **kwargs)
            if self.train_loader is not None:
                loader = self._shared_loader(self.train_loader)
                seen = self.evaluation_loop(loader, "training", metric_key_prefix="eval_train")
                self.log(cast("dict[str, Any]", seen.metrics))
            return metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The Trainer's loop with a loss by token; logits are kept only for `compute_metrics`."""
        self._evaluated = (0.0, 0)
        if self.compute_metrics is None:
            prediction_loss_only = True
        was_training = self._module.training
        if self.group.size > 1:
            self._eval_share, self._batches_left = cast("Any", dataloader).share, len(dataloader)
        result = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        self._eval_share = None
        loss_sum, num_tokens = self._evaluated
        if self.group.size > 1:
            loss_sum, num_tokens = map(sum, zip(*self._agree(*self._evaluated), strict=True))
        metrics = cast("dict[str, float]", result.metrics)
        if num_tokens:
            metrics[f"{metric_key_prefix}_loss"] = _finite_loss(loss_sum / num_tokens, self.state.global_step)
        if self.extra_metrics is not None:
            more = self.group.exchange(dict(self.extra_metrics(self._module)))[0]
            metrics.update({f"{metric_key_prefix}_{name}": float(value) for name, value in more.items()})
        self._module.train(was_training)
        return result

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """One evaluation batch, its loss weighted by its answer tokens."""
        self._batches_left -= 1
        borrowed = self._eval_share is not None and self._eval_share.borrows and not self._batches_left
        whole = super().prediction_step
        fewer = {"return_logits": False} if prediction_loss_only and self._may_omit_logits else {}
        kept: list[Any] = []

        def compute(part: Batch) -> tuple[float, int]:
            nonlocal kept
            loss, *kept = whole(model, {**part, **fewer}, prediction_loss_only, ignore_keys)
            num_tokens = int(part["labels"][..., 1:].ne(-100).sum())
            return (0.0, 0) if loss is None or borrowed else (loss.item() * num_tokens, num_tokens)

        # Logits of parts would have to be put together.
        parts = (
            self._guard.evaluate(
                inputs, compute, step=self.state.global_step, alone=not is_sharded(self._module)
            )
            if prediction_loss_only
            else [compute(inputs)]
        )
        loss_sum, num_tokens = map(sum, zip(*parts, strict=True))
        self._evaluated = (self._evaluated[0] + loss_sum, self._evaluated[1] + num_tokens)
        if self.group.size > 1:
            return None, *kept  # the sums of all processes meet at the end
        return torch.tensor(loss_sum / max(num_tokens, 1), device=self.args.device), *kept

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any = None) -> bool:
        """Notes a new best step, and has it saved."""
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            self.control.should_save = True
        return is_best

    # ---- Data ----------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        size = self.args.per_device_train_batch_size
        return self._reading_ahead(self._shared(self._sampler, size), self.train_dataset, size)

    def _get_eval_sampler(self, eval_dataset: Dataset[Any]) -> Sampler[int] | None:
        sampler = super()._get_eval_sampler(eval_dataset)
        if sampler is None:
            if self.group.size == 1:
                return None
            sampler = SequentialSampler(cast("Any", eval_dataset))
        size = self.args.per_device_eval_batch_size
        return self._reading_ahead(self._shared(sampler, size), eval_dataset, size)

    def _shared(self, sampler: Sampler[int], batch_size: int) -> Sampler[int]:
        """The samples of this process, where there are several."""
        group = self.group
        if group.size == 1:
            return sampler
        self._share = Share(sampler, batch_size * group.size, rank=group.rank, size=group.size)
        return self._share

    def _shared_loader(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """A loader of some samples in order, of which each process evaluates its share."""
        size = loader.batch_size
        if self.group.size == 1 or size is None:
            return loader
        sampler = self._shared(SequentialSampler(cast("Any", loader.dataset)), size)
        own: Any = DataLoader(loader.dataset, size, sampler=sampler, collate_fn=loader.collate_fn)
        own.share = self._share
        return cast("DataLoader[Any]", own)

    def _reading_ahead(self, sampler: Sampler[int], dataset: Any, batch_size: int) -> Sampler[int]:
        if (
            not isinstance(dataset, ReadsAhead) or self.args.dataloader_num_workers
        ):  # workers are ahead anyway
            return sampler
        return ReadAheadSampler(sampler, dataset, batch_size)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """The Trainer's loader, apart from the random numbers of training and from signals to the process."""
        if self.group.size == 1:
            loader: Any = super()._get_dataloader(*args, **kwargs)
        else:
            # accelerate would share the batches once more, and fill up the last with samples of the first.
            alone = partial(
                prepare_data_loader,
                device=self.args.device,
                num_processes=1,
                process_index=0,
                put_on_device=True,
            )
            with replaced(self.accelerator, "prepare", alone):
                loader = super()._get_dataloader(*args, **kwargs)
            loader.share = self._share
            if kwargs.get("is_training"):
                self._train_share = self._share
        base = getattr(loader, "base_dataloader", loader)  # out of accelerate's wrapper
        # A loader draws a seed for its processes whenever they start.
        base.generator = torch.Generator()
        base.worker_init_fn = outlive_stop_signals
        return cast("DataLoader[Any]", loader)

    # ---- Log -----------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Passes one line to the callbacks, completed with norms, gates, speed and memory.

        Evaluations are kept in `state.log_history`, which every checkpoint holds; training lines go to
        `log.jsonl` only, as a history of a hundred thousand steps in every checkpoint would outweigh the
        weights.
        """
        line = dict(logs)
        if "loss" in line:
            line.pop("grad_norm", None)
            line.update(self._norms)
            if hasattr(self._module, "gate_values"):
                line.update(
                    {f"gate/{site}": float(value) for site, value in self._module.gate_values().items()}
                )
            rates = self._meter.rates()
            peaks = {"peak_memory_gb": peak_memory_gb()}
            if torch.cuda.is_available():
                peaks["peak_device_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
            # Rates of all processes together, the memory of the one that takes most.
            columns = list(zip(*self.group.gather([*rates.values(), *peaks.values()]), strict=True))
            line.update(zip(rates, map(sum, columns), strict=False))
            line.update(zip(peaks, map(max, columns[len(rates) :]), strict=True))
        else:
            self.state.log_history.append({**line, "step": self.state.global_step})
        if "train_runtime" in line:
            line["train_loss"] = self._mean_loss()
            line["stopped_by"] = self.stopped_by = self._why_stopped()
        line["seconds"] = self.clock.seconds
        line["epoch"] = self.state.epoch
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, line)

    def _why_stopped(self) -> str:
        if self.state.global_step >= self.state.max_steps:
            return "steps"
        if self._time_limit is not None and self._time_limit.reached:
            return "max_seconds"
        if self._early_stopping is not None and self._early_stopping.reached:
            return "patience"
        return self._signals.acted_on or "callback"

    # ---- Saving and loading --------------------------------------------------------------------------------

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """Saves the model for its users: weights, configuration, processor, card, manifest; verified.

        Args:
            output_dir: The folder; None for `model` in the output folder.

        Raises:
            CheckpointError: Saving failed, or the folder holds something else. What was there before is
                untouched.
        """
        folder = Path(output_dir) if output_dir is not None else self.output / "model"
        with self.group, self._weights_gathered():
            self.group.first(lambda: self._write_to(folder, "model", self._write_model, self._weight_bytes()))

    def _write_to(
        self, folder: Path, kind: str, write: Callable[[Path], None], size: int, **details: Any
    ) -> None:
        details = {"step": self.state.global_step, **details}
        write_folder(folder, write, kind=kind, details=details, bytes_needed=size)

    def _write_model(self, folder: Path) -> None:
        gathered = {} if self._gathered is None else {"state_dict": self._gathered}
        self._module.save_pretrained(str(folder), **gathered)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(str(folder))
        (folder / CONFIG_FILE).write_text(self.config.to_yaml(), encoding="utf-8")
        if self.trained_on is not None:
            self.trained_on.write(folder)
        if self.card is not None:
            (folder / CARD_FILE).write_text(self.card(), encoding="utf-8")

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Saves everything a resumed run needs, then lets go of older checkpoints."""
        path = checkpoint_path(self.output, self.state.global_step)
        # Weights and two moments in float32.
        size = self._weight_bytes() + 8 * sum(weight.numel() for weight in self._trainable)
        with self._meter.paused(), self._weights_gathered():
            optimizer = self._plain_optimizer()
            moments = optimizer_moments(optimizer, self._module)
            random = self.group.exchange(random_state())
            write = partial(self._write_checkpoint, random, optimizer, moments)
            best_step = self.state.best_global_step
            self.group.first(lambda: self._write_to(path, "checkpoint", write, size, best_step=best_step))
            self._note_best()
            self.group.first(self._rotate)
            if self.group.size > 1:
                self._agree()  # a signal may have come meanwhile

    @contextlib.contextmanager
    def _weights_gathered(self) -> Iterator[None]:
        """Has the weights whole while this lasts, where they are spread over the processes."""
        if is_sharded(self._module):
            own = self._module.trainable_state_dict()
            self._gathered = {name: whole(tensor).cpu() for name, tensor in own.items()}
        try:
            yield
        finally:
            self._gathered = None

    def _load_weights(self, folder: str) -> None:
        """Loads trainable weights strictly, spread or not."""
        if is_sharded(self._module):
            own = self._module.trainable_state_dict()
            load_whole(own, read_weights(Path(folder), own))
        else:
            self._module.load_trainable(folder)

    def _write_checkpoint(
        self,
        random: list[dict[str, Any]],
        optimizer: torch.optim.Optimizer,
        moments: dict[str, Tensor],
        folder: Path,
    ) -> None:
        self._write_model(folder)
        content = {
            "step": self.state.global_step,
            "seconds": self.clock.seconds,
            "settings": flat_settings(self.config),
            "identity": self.identity,
            # Of the steps since the last log line, and of all before it: log lines and the mean come out the same.
            "loss": [self._tr_loss.item(), self._total_loss_scalar, self._globalstep_last_logged],
            "memory": self._guard.state(),
            "optimizer": save_optimizer(folder, optimizer, self._module, moments),
            "scheduler": {
                key: value
                for key, value in cast("Any", self.lr_scheduler).state_dict().items()
                if key in ("base_lrs", "last_epoch", "_last_lr", "_step_count")
            },
            "random": save_random(folder, random),
        }
        write_state(folder, content)
        # A path would be wrong as soon as the run is moved; the best step says as much.
        dataclasses.replace(self.state, best_model_checkpoint=None).save_to_json(
            str(folder / TRAINER_STATE_FILE)
        )

    def _weight_bytes(self) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in self._trainable)

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        if self._zero is not None:
            return self._zero.whole_optimizer()
        optimizer: Any = self.optimizer
        return getattr(optimizer, "optimizer", optimizer)  # out of accelerate's wrapper

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads the trainable weights, strictly."""
        self._load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Ends with the weights of the best step."""
        best = Path(cast("str", self.state.best_model_checkpoint))
        verify_checkpoint(best)
        self._load_weights(str(best))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = read_state(Path(checkpoint))
        optimizer = make_optimizer(self._module, self.settings) if self._zero else self._plain_optimizer()
        load_optimizer(Path(checkpoint), state["optimizer"], optimizer, self._module)
        if self._zero is not None:
            self._zero.load_optimizer(optimizer)
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None] * len(scheduler.base_lrs)})

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            rest = read_state(Path(checkpoint))["random"]
            load_random(Path(checkpoint), rest, rank=self.group.rank, size=self.group.size)


class _GoOn(TrainerCallback):
    """Sets the running losses of a resumed run to where they stood; the Trainer starts them at zero."""

    def __init__(self, trainer: ClimateTextTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer._resumed:
            running, total, step = self.trainer._resumed["loss"]
            self.trainer._tr_loss += running
            self.trainer._total_loss_scalar, self.trainer._globalstep_last_logged = total, step


class _TellSplits(TrainerCallback):
    """Has the log tell what was halved, once the step or evaluation is done in which it was."""

    def __init__(self, trainer: ClimateTextTrainer) -> None:
        self.trainer = trainer
        self._told = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._told = len(self.trainer._guard.splits)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        due = control.should_log
        for split in self.trainer._guard.splits[self._told :]:
            self.trainer.log({key: value for key, value in split.items() if key != "step"})
        self._told = len(self.trainer._guard.splits)
        control.should_log = due  # a line of its own does not stand for that of the step

    on_evaluate = on_step_end


def _finite_loss(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"evaluation at step {step}",
            expected="a finite loss",
            received=loss,
            remedy="Look at the validation samples for values far out of range, or lower the learning rate.",
        )
    return loss


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Gives one object another method for a while."""
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


def _epoch_sampler(dataset: Any, seed: int) -> Sampler[int]:
    from climafuse.data.batch import EpochSampler

    return EpochSampler(len(dataset), seed=seed)
