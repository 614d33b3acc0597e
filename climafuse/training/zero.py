"""Optimizer states (ZeRO-1) and gradients (ZeRO-2) spread over processes by DeepSpeed, with the steps of a plain run.

    ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_CONFIG_FILE=zero2.json torchrun …      # or accelerate launch

Accelerate would let DeepSpeed's engine take the step within the backward pass, and the Trainer would keep its states in
pickles. Here the engine is asked for what it is good for, one thing at a time: the backward pass, which leaves each
process its part of the gradients; then, once the trainer has looked at them, the step. Weights are whole in every
process. Moments are gathered for a checkpoint, which so is that of a run without DeepSpeed, and goes on with it or
without.

Nothing imports DeepSpeed but a run that is to train with it (accelerate does, wherever it is installed).

Reference:
    Rajbhandari et al. 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, arXiv:1910.02054.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, distributed, nn

from climafuse.errors import ConfigurationError, TrainingError

# What a DeepSpeed configuration may say. Whatever else it knows (offloading, fp16, its own optimizers and schedules,
# quantized gradients, …) changes what a step computes or where its parts lie.
_OF_A_RUN = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)
_FREE = ("steps_per_print", "zero_allow_untested_optimizer", "zero_optimization")
_FREE_OF_ZERO = (
    "stage",
    "allgather_bucket_size",
    "allgather_partitions",
    "contiguous_gradients",
    "overlap_comm",
    "reduce_bucket_size",
    "reduce_scatter",
)
_OFF = (None, False, "none", "auto")


def asked_for() -> bool:
    """Whether the launcher of this process asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1")


def check_request(size: int) -> None:
    """Refuse what a run by DeepSpeed cannot be, before anything is loaded for it.

    Args:
        size: How many processes there are.

    Raises:
        TrainingError: DeepSpeed is not installed.
        ConfigurationError: There is one process; the configuration cannot be read, or asks for what is not to be had.
    """
    if find_spec("deepspeed") is None:
        raise TrainingError(
            "accelerate",
            expected="DeepSpeed, which the launcher asks for",
            received="an environment without it",
            remedy="Install climafuse[deepspeed], or start it with examples/distributed/fsdp2.yaml.",
        )
    if size == 1:
        raise ConfigurationError(
            "accelerate",
            expected="several processes, over which DeepSpeed spreads optimizer states",
            received="one",
            remedy="Start more, or start it without DeepSpeed.",
        )
    if os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1"):
        raise ConfigurationError(
            "ACCELERATE_USE_CPU",
            expected="unset, as accelerate forgets DeepSpeed where it is set",
            received="true",
            remedy="Leave it out; without GPUs, DeepSpeed finds the processor.",
        )
    try:
        asked = DeepSpeedPlugin().deepspeed_config
    except (ValueError, OSError) as error:
        raise ConfigurationError(
            "accelerate",
            expected="a DeepSpeed configuration with zero_optimization",
            received=str(error),
            remedy="Start from examples/distributed/deepspeed_zero2.json.",
        ) from error
    _check(asked)


def stage() -> int:
    """What is spread, as the launcher asks for it: 1, moments; 2, gradients, too."""
    return int(DeepSpeedPlugin().deepspeed_config["zero_optimization"]["stage"])


def settle_device() -> None:
    """Tell DeepSpeed of processors, which it would find with a warning: accelerate imports it where it is installed."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def use_gloo() -> None:
    """Have DeepSpeed meet by gloo on processors."""
    from deepspeed import ops

    # It would compile a collective of its own on each machine, at the first run.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _check(asked: Mapping[str, Any]) -> None:
    zero = asked["zero_optimization"]
    if zero.get("stage") not in (1, 2):
        raise ConfigurationError(
            "zero_optimization.stage",
            expected="1 or 2",
            received=f"{zero.get('stage')!r}"
            + (", which spreads the frozen language model, too" if zero.get("stage") == 3 else ""),
            remedy="To spread the weights of the language model, start it with examples/distributed/fsdp2.yaml.",
        )
    other = [key for key, value in asked.items() if key not in (*_OF_A_RUN, *_FREE) and not _is_off(value)]
    other += [
        f"zero_optimization.{key}"
        for key, value in zero.items()
        if key not in _FREE_OF_ZERO and not _is_off(value)
    ]
    if other:
        raise ConfigurationError(
            other[0],
            expected=f"none but {', '.join((*_OF_A_RUN, *_FREE))}, and in the last {', '.join(_FREE_OF_ZERO)}",
            received="a setting that changes what a step computes, or where DeepSpeed keeps it",
            remedy="Leave it out; climafuse has its own optimizer, schedule and precision.",
        )


def _is_off(value: Any) -> bool:
    if isinstance(value, Mapping):
        key = "device" if "device" in value else "enabled"
        return value.get(key, True) in _OFF
    return value in _OFF


def engine_settings(
    asked: Mapping[str, Any],
    *,
    microbatch: int,
    accumulation: int,
    size: int,
    max_norm: float | None,
    in_bfloat16: bool,
) -> dict[str, Any]:
    """The configuration of the engine: what was asked for, with what follows from the run.

    Args:
        asked: The configuration that the launcher names, where the Trainer may have replaced "auto".
        microbatch: Windows that a process takes at a time.
        accumulation: Microbatches of a step.
        size: How many processes there are.
        max_norm: Norm to which gradients are clipped; None for as they are.
        in_bfloat16: Whether matrices are multiplied in bfloat16.

    Raises:
        ConfigurationError: It says otherwise than the run.
    """
    _check(asked)
    run = (microbatch * accumulation * size, microbatch, accumulation, max_norm or 0.0)
    for key, value in zip(_OF_A_RUN, run, strict=True):
        if asked.get(key, "auto") not in ("auto", value):
            raise ConfigurationError(
                key,
                expected=f"{value}, which follows from the configuration of the run",
                received=repr(asked[key]),
                remedy='Set it to "auto".',
            )
    zero = asked["zero_optimization"]
    settings = {
        "train_batch_size": microbatch * size,
        "train_micro_batch_size_per_gpu": microbatch,
        "gradient_accumulation_steps": 1,  # where a step ends, the engine is told at each backward pass
        "gradient_clipping": max_norm or 0.0,
        "zero_optimization": {key: zero[key] for key in _FREE_OF_ZERO if key in zero},
        "zero_allow_untested_optimizer": True,  # AdamW of torch
        "steps_per_print": float("inf"),
    }
    if in_bfloat16:
        # The engine switches off the autocast around it; gradients of no module are sent in bfloat16.
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        }
    return settings


class Zero:
    """A model and its optimizer in DeepSpeed's engine; stands in for accelerate's wrapper of it.

    Args:
        settings: `engine_settings`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._engine: Any = None

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, _StepsOnly]:
        """Stands in for `Accelerator.prepare`.

        Args:
            model: The model, on its device, with the weights from which training goes on.
            optimizer: Of its trainable weights. Its groups then hold what of them this process updates.

        Returns:
            The engine, to call for the forward pass, and an optimizer whose step is the engine's.
        """
        import deepspeed

        self._optimizer = optimizer
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        # A bucket is made in its full size: 2 GB, where nothing is said.
        total = sum(parameter.numel() for group in self._groups for parameter in group)
        spread = self._settings["zero_optimization"]
        asked = spread.get("reduce_bucket_size")
        spread["reduce_bucket_size"] = min(asked, total) if isinstance(asked, int | float) else total
        with _frozen_weights_stay():
            self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=self._settings)
        return self._engine, _StepsOnly(self._engine)

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        """Add to the gradients. After the last microbatch of a step, each process has the mean of all of its part.

        Args:
            loss: Of a microbatch.
            sync_gradients: Whether it is the last of a step.
            **kwargs: Of the engine.
        """
        self._engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self._engine.backward(loss, **kwargs)

    @torch.no_grad()
    def gradient_norms(self, parts: Mapping[str, list[nn.Parameter]]) -> tuple[Tensor, Tensor]:
        """See `optim.gradient_norms`; between the backward pass and the step."""
        device = next(parameter for parameters in parts.values() for parameter in parameters).device
        squares = torch.zeros(len(parts), dtype=torch.float64, device=device)  # [P]
        for number, parameters in enumerate(parts.values()):
            for parameter in parameters:
                own: Any = parameter
                if own._hp_mapping is not None:
                    gradient = own._hp_mapping.get_lp_grad_fragment(own._index_in_param_group)
                    squares[number] += torch.linalg.vector_norm(gradient, dtype=torch.float64) ** 2
        distributed.all_reduce(squares)
        return squares.sqrt().float(), squares.sum().sqrt().float()

    def whole_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer as one process would have it, on the processor; all processes must ask for it."""
        groups = [
            {**group, "params": own}
            for group, own in zip(self._optimizer.param_groups, self._groups, strict=True)
        ]
        optimizer = torch.optim.AdamW(groups, fused=True)
        for group, own in zip(self._optimizer.param_groups, self._groups, strict=True):
            (flat,) = group["params"]
            state = self._optimizer.state[flat]
            for parameter in own:
                optimizer.state[parameter] = {
                    key: value.cpu().clone() if key == "step" else _gathered(parameter, value).cpu()
                    for key, value in state.items()
                }
        return optimizer

    @torch.no_grad()
    def load_optimizer(self, whole: torch.optim.Optimizer) -> None:
        """Restore what `whole_optimizer` gave.

        Args:
            whole: It, in every process.
        """
        for spread, group in zip(self._optimizer.param_groups, whole.param_groups, strict=True):
            spread.update({key: value for key, value in group.items() if key != "params"})
            (flat,) = spread["params"]
            state: dict[str, Tensor] = {}
            for parameter in group["params"]:
                for key, value in whole.state[parameter].items():
                    if key == "step":
                        state[key] = value.clone()
                    else:
                        _spread(parameter, value, state.setdefault(key, torch.zeros_like(flat)))
            self._optimizer.state[flat] = state

    def let_go(self) -> None:
        """Take the engine off the model: its weights stay as they are, its gradients are its own again."""
        if self._engine is not None:
            self._engine.destroy()
            self._engine = None


class _StepsOnly(AcceleratedOptimizer):
    """What the Trainer takes for the optimizer."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine.optimizer, device_placement=False)
        self._engine = engine

    def step(self, closure: Any = None) -> None:
        """Clip the gradients, update, and have the weights of all parts in all processes."""
        self._engine.step()
        assert self._engine.was_step_applied()  # that gradients are finite has been seen before

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The step has done it."""


def _gathered(parameter: Any, flat: Tensor) -> Tensor:
    """What of a flat partition in each process belongs to a parameter, put together."""
    whole = torch.zeros(parameter.numel(), dtype=flat.dtype, device=flat.device)
    if parameter._hp_mapping is not None:
        here, there = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
        whole[here.start :][: here.numel] = flat[there.start :][: there.numel]
    distributed.all_reduce(whole)
    return whole.view_as(parameter)


def _spread(parameter: Any, whole: Tensor, flat: Tensor) -> None:
    """Put what of a parameter belongs to this process into its flat partition."""
    if parameter._hp_mapping is not None:
        here, there = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
        flat[there.start :][: there.numel] = whole.flatten()[here.start :][: here.numel]


@contextmanager
def _frozen_weights_stay() -> Iterator[None]:
    """Keeps the engine from sending frozen weights around: every process has mapped them from the same file."""
    from deepspeed import DeepSpeedEngine

    def send_trainable(engine: Any) -> None:
        for parameter in engine.module.parameters():
            if parameter.requires_grad:
                distributed.broadcast(parameter.detach(), 0)

    whole = DeepSpeedEngine._broadcast_model
    DeepSpeedEngine._broadcast_model = send_trainable
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model = whole
