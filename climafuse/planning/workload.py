"""What is to be trained, in numbers: the language model, what is put into it, and the shape of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn, optim

from climafuse.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Precision = Literal["bfloat16", "float32"]
Spread = Literal["moments", "gradients", "weights"]
TEXTS_AT_ONCE = 64  # as `model.reuse` and `training.pipeline` take them, where memory is not short


def adamw(parameters: list[nn.Parameter]) -> optim.Optimizer:
    """AdamW in one kernel."""
    return optim.AdamW(parameters, fused=True)


@dataclass(frozen=True)
class Workload:
    """A training run as far as memory and time depend on it.

    Args:
        name: Of the backbone.
        config: Its configuration.
        random_weights: Whether its weights are known to be random (an architecture by name, a synthesized folder).
        file_bytes: Of its files of weights; None where there are none here.
        file_dtype: Type of the weights in them; None where there are none here.
        dtype: Type of the frozen weights.
        widened: Whether the processor multiplies in float32 what is of this type, as it has no instructions for it.
        quantization: `int8`, `int4` or None.
        quantize_head: Whether the head is quantized, too.
        lora: Options of adapters, as of `backbones.with_lora`; None for none.
        backbone_trainable: Which of its weights are trained, as of `backbones.with_trained_weights`; None for none.
        variables: Canonical names of the fields.
        history: Time steps of a window.
        grid: Rows and columns of a window.
        encoder: Registered name of the encoder.
        encoder_options: Its arguments.
        fusion: Registered name of the fusion.
        fusion_options: Its arguments.
        sites: Where it sits, as for `backbones.resolve_sites`.
        windows: Climate windows in a step, over all microbatches.
        accumulation: Microbatches in a step.
        texts_per_window: Texts about a window.
        length: Tokens of a text, padding included.
        labels: Of these, how many have a label in a training step, on average.
        all_labels: How many have one in an evaluation.
        precision: Type of matrix products in a training step.
        checkpoint_activations: Whether activations are computed anew in the backward pass.
        reuse_prefix: Whether states of texts below the first site are stored.
        store_limit: Most bytes of them in memory, 0 where they go to the disk; None for a quarter of what there is.
        store_spills: Whether they go to the disk where they are more than that; else the rest is computed each time.
        stored_tokens: Tokens of all different texts, for the store of states; None for those of a step.
        distinct_tokens: How many different tokens the texts consist of.
        sampled_vocabulary: Tokens of the softmax of a training step; None for all.
        evaluation_windows: Windows in a batch of an evaluation; 0 for no evaluation.
        data_bytes: What fields and texts take in memory.
        varied: Whether batches are of various lengths, each as wide as its longest text.
        processes: How many of them one machine without a GPU carries: they share its memory, and mapped files in it.
        group: How many processes train together, on all machines.
        spread: What each of these has a part of: `moments` of the optimizer (ZeRO-1), `gradients`, too (ZeRO-2), or
            `weights`, frozen ones included, with all that belongs to them (FSDP); None where each has it whole (DDP).
        texts_at_once: Texts whose states are stored, or whose likely words are asked for, together.
        optimizer: What makes the optimizer of trained parameters, for its time.
    """

    name: str
    config: PreTrainedConfig
    random_weights: bool = False
    file_bytes: int | None = None
    file_dtype: str | None = None
    dtype: str = "bfloat16"
    widened: bool = False
    quantization: str | None = None
    quantize_head: bool = False
    lora: Mapping[str, Any] | None = None
    backbone_trainable: Any = None
    variables: tuple[str, ...] = ("t2m", "u10", "v10", "msl", "tp", "ws10")
    history: int = 2
    grid: tuple[int, int] = (16, 16)
    encoder: str = "grid_transformer"
    encoder_options: Mapping[str, Any] = field(default_factory=dict)
    fusion: str = "cross_attention"
    fusion_options: Mapping[str, Any] = field(default_factory=dict)
    sites: Any = "output"
    windows: int = 1
    accumulation: int = 1
    texts_per_window: float = 1
    length: int = 32
    labels: float = 10
    all_labels: float = 10
    precision: Precision = "bfloat16"
    checkpoint_activations: bool = False
    reuse_prefix: bool = False
    store_limit: int | None = None
    store_spills: bool = True
    stored_tokens: int | None = None
    distinct_tokens: int = 1000
    sampled_vocabulary: int | None = None
    evaluation_windows: int = 0
    data_bytes: int = 0
    varied: bool = False
    processes: int = 1
    group: int = 1
    spread: Spread | None = None
    texts_at_once: int = TEXTS_AT_ONCE
    optimizer: Callable[[list[nn.Parameter]], optim.Optimizer] = adamw

    def __post_init__(self) -> None:
        """Refuse what is no step."""
        for name in (
            "windows",
            "accumulation",
            "length",
            "history",
            "texts_per_window",
            "processes",
            "group",
        ):
            if getattr(self, name) <= 0:
                raise ConfigurationError(
                    name, expected="a number above 0", received=getattr(self, name), remedy="Correct it."
                )
        if self.windows % self.accumulation:
            raise ConfigurationError(
                "accumulation",
                expected=f"a divisor of {self.windows} windows a step",
                received=self.accumulation,
                remedy="Every microbatch holds the same number of windows.",
            )

    @property
    def microbatch(self) -> int:
        """Climate windows in a microbatch."""
        return self.windows // self.accumulation

    def texts(self, windows: int) -> int:
        """Texts about so many windows."""
        return max(round(windows * self.texts_per_window), 1)

    def smallest(self) -> Workload:
        """The same with all that can be done in smaller parts in the smallest: what is left after every halving."""
        return replace(
            self.with_microbatch(1), evaluation_windows=min(self.evaluation_windows, 1), texts_at_once=1
        )

    def with_microbatch(self, windows: int) -> Workload:
        """The same step, cut into microbatches of so many windows: a divisor of those of a step."""
        return replace(self, accumulation=self.windows // windows)
