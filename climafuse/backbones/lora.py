"""Low-rank adapters (LoRA) in the blocks of a frozen language model, through PEFT.

An adapter adds `scaling · B A x` to what a linear layer W makes of x. W stays frozen; A and B are trained, and B
starts at zero, so that an untrained adapter changes nothing, bit for bit. `with_lora` puts adapters into a copy of
the model's structure that shares its weights: the model it is given stays what it is.

PEFT wraps a layer `q_proj` and calls the frozen one `q_proj.base_layer`. `base_name` tells the two kinds of tensors
of a wrapped layer apart; the hash of a backbone is that of the tensors it had before.

Reference:
    Hu et al. 2021, LoRA, arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import BackboneError, ConfigurationError
from .blocks import BlockLayout, find_blocks, replaced_forward, resolve_sites

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoraOptions:
    """Options of adapters.

    Args:
        rank: Rank of A and B.
        alpha: What the adapters add is scaled by `alpha / rank`.
        dropout: Share of an adapter's inputs that are dropped in training.
        target_modules: Names of the linear layers inside a block, such as `q_proj` or `self_attn.q_proj`;
            None for all of them.
        layers: Blocks to adapt, written as sites are: numbers, {"last": n}, {"every": n}; None for all.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: Sequence[str] | None = None
    layers: Any = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> LoraOptions:
        """Read a mapping.

        Raises:
            ConfigurationError: An option is unknown, or a number out of its bounds.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(options.keys() - set(known))
        if unknown:
            raise _wrong("lora", f"options among {', '.join(known)}", ", ".join(unknown))
        made = cls(**options)
        if type(made.rank) is not int or made.rank < 1:
            raise _wrong("lora.rank", "a whole number of 1 or more", repr(made.rank))
        if type(made.alpha) not in (int, float) or made.alpha <= 0:
            raise _wrong("lora.alpha", "a number above 0", repr(made.alpha))
        if type(made.dropout) not in (int, float) or not 0 <= made.dropout < 1:
            raise _wrong("lora.dropout", "a number from 0 to below 1", repr(made.dropout))
        return made


def with_lora(model: PreTrainedModel, options: Mapping[str, Any] = {}) -> PreTrainedModel:
    """Return a model with adapters in its blocks; it shares all frozen weights with the given one.

    Args:
        model: A frozen causal language model; unchanged.
        options: Those of `LoraOptions`.

    Returns:
        The copy. Its adapters, and nothing else, require a gradient; they are float32.

    Raises:
        ConfigurationError: PEFT is not installed, or an option does not fit the model.
        BackboneError: The model carries adapters already.
    """
    given = LoraOptions.of(options)
    peft = _peft()
    if adapted_layers(model):
        raise carries_adapters(type(model).__name__)
    layout = find_blocks(model)
    blocks = resolve_blocks(given.layers, layout.num_blocks, argument="lora.layers")
    names = _resolve_targets(given.target_modules, layout, blocks)
    adapted = sharing_copy(model)
    config = peft.LoraConfig(
        r=given.rank,
        lora_alpha=given.alpha,
        lora_dropout=given.dropout,
        target_modules=names,
        fan_in_fan_out=not any(isinstance(model.get_submodule(name), nn.Linear) for name in names),
    )
    with warnings.catch_warnings():
        # PEFT corrects fan_in_fan_out layer by layer, where a model mixes both kinds, and says so each time.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        try:
            peft.inject_adapter_in_model(config, adapted)
        except ValueError as error:  # layers of its own list that cannot be adapted
            raise _wrong("lora.target_modules", "linear layers that PEFT can adapt", str(error)) from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # PEFT gives adapters the type of the weights they adapt
    return adapted


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers of a model that PEFT has wrapped, by name."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")  # nothing can be wrapped by what was never imported
    if tuners is None:
        return {}
    return {name: part for name, part in model.named_modules() if isinstance(part, tuners.BaseTunerLayer)}


def base_name(name: str, layers: dict[str, Any]) -> str | None:
    """Return the name that a tensor of an adapted model had before, or None for a tensor of an adapter.

    Args:
        name: Name of a parameter or buffer.
        layers: The model's `adapted_layers`.
    """
    layer, found, rest = name.partition(".base_layer.")
    if found and layer in layers:
        return f"{layer}.{rest}"
    parts = name.split(".")
    inside = any(".".join(parts[:length]) in layers for length in range(1, len(parts)))
    return None if inside else name


@contextlib.contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Let a model compute without its adapters while this lasts."""
    with contextlib.ExitStack() as stack:
        for layer in adapted_layers(model).values():
            stack.enter_context(replaced_forward(layer, layer.base_layer.__call__))
        yield


def carries_adapters(name: str) -> BackboneError:
    """The error for a model that cannot be a backbone, as its weights are not all its own."""
    return BackboneError(
        name,
        expected="a plain language model",
        received="one into which adapters were injected",
        remedy="Merge them first (PeftModel.merge_and_unload), or load the model anew and give lora= instead.",
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigurationError(
            "lora",
            expected="the package peft, which adapters are made with",
            received=str(error),
            remedy='Install it with: pip install "climafuse[lora]"',
        ) from error
    return peft


def _wrong(argument: str, expected: str, received: str) -> ConfigurationError:
    return ConfigurationError(argument, expected=expected, received=received, remedy="Correct it.")


def resolve_blocks(blocks: Any, num_blocks: int, *, argument: str) -> list[int]:
    """Return the numbers of blocks that are written as sites are, of all for None.

    Raises:
        ConfigurationError: There are no such blocks; the argument is named.
    """
    resolved = range(num_blocks) if blocks is None else resolve_sites(blocks, num_blocks)
    numbers = [number for number in resolved if isinstance(number, int)]
    if len(numbers) < len(resolved):
        raise ConfigurationError(
            argument,
            expected="blocks: numbers, {'last': n}, {'every': n}, or a list of these",
            received=repr(blocks),
            remedy="'input' and 'output' are no blocks.",
        )
    return numbers


def _resolve_targets(wanted: Sequence[str] | None, layout: BlockLayout, blocks: Sequence[int]) -> list[str]:
    """Full names of the layers to adapt."""
    from transformers.pytorch_utils import Conv1D

    linear = {
        number: [
            name
            for name, module in layout.blocks[number].named_modules()
            if isinstance(module, nn.Linear | Conv1D) and not _is_router(module)
        ]
        for number in blocks
    }
    known = sorted({name for names in linear.values() for name in names})
    if isinstance(wanted, str) or (wanted is not None and not wanted):
        raise ConfigurationError(
            "lora.target_modules",
            expected=f"a list of linear layers of a block ({', '.join(known)}), or none for all",
            received=repr(wanted),
            remedy="Give a list of names.",
        )
    unknown = [
        target
        for target in wanted or ()
        if not any(name == target or name.endswith(f".{target}") for name in known)
    ]
    if unknown or not known:
        raise ConfigurationError(
            "lora.target_modules",
            expected=f"linear layers of the adapted blocks: {', '.join(known) or 'there are none'}",
            received=", ".join(map(repr, unknown)) or "no name",
            remedy="Choose among them, by full name or by its last part.",
        )
    return [
        f"{layout.path}.{number}.{name}"
        for number, names in linear.items()
        for name in names
        if wanted is None or any(name == target or name.endswith(f".{target}") for target in wanted)
    ]


def _is_router(module: nn.Module) -> bool:
    """Whether a layer of transformers chooses among experts: it returns more than what a linear layer makes."""
    return type(module).__name__.endswith("Router")


def sharing_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model's structure; its tensors are the same memory until one of the two is moved."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = (
            nn.Parameter(parameter.detach(), requires_grad=False)
            if type(parameter) is nn.Parameter
            else parameter
        )
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach()
    return copy.deepcopy(model, memo)
