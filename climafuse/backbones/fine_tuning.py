"""Full fine-tuning: weights of a language model that are trained themselves, all of them or those of some blocks.

The model that is given stays what it is: what is trained is copied, the rest is shared. In float32, products may still
be in bfloat16 (mixed precision); weights in bfloat16 need an optimizer that rounds at random (`training/rounding.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigurationError
from .blocks import Site, find_blocks
from .lora import adapted_layers, carries_adapters, resolve_blocks, sharing_copy
from .mapped_files import MappedFiles
from .quantization import QuantizedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL = "all"
_ARGUMENT = "backbone.trainable"


def with_trained_weights(model: PreTrainedModel, trainable: Any) -> PreTrainedModel:
    """Return a model some of whose weights are its own and are trained; it shares all others with the given one.

    Args:
        model: A frozen causal language model; unchanged.
        trainable: `all`: every weight, embeddings and head included; or blocks, written as sites are: numbers,
            {"last": n}, {"every": n}.

    Returns:
        The copy. The chosen weights, and nothing else, require a gradient; they keep their type.

    Raises:
        ConfigurationError: No such blocks, or weights in which small steps would be lost.
        BackboneError: The model carries adapters.
    """
    if adapted_layers(model):
        raise carries_adapters(type(model).__name__)
    own = sharing_copy(model)
    layout = find_blocks(own)
    if trainable == ALL:
        parts: list[torch.nn.Module] = [own]
    else:
        numbers = resolve_blocks(trainable, layout.num_blocks, argument=_ARGUMENT)
        parts = [layout.blocks[number] for number in numbers]
    # All of the model: below a trained block, gradients through quantized ones would be right, but what is saved would
    # belong to a backbone in these bits only.
    if any(isinstance(module, QuantizedLinear) for module in own.modules()):
        raise ConfigurationError(
            _ARGUMENT,
            expected="null, as the weights are held in 8 or 4 bits, in which no step of training would be seen",
            received=repr(trainable),
            remedy="Load the language model without quantization, or train adapters in it (backbone.lora).",
        )
    mapped = MappedFiles()
    for parameter in dict.fromkeys(parameter for part in parts for parameter in part.parameters()):
        if parameter.dtype not in (torch.float32, torch.bfloat16):
            raise ConfigurationError(
                "backbone.dtype",
                expected="float32 or bfloat16 for weights that are trained; in float16, small gradients are zero",
                received=str(parameter.dtype).removeprefix("torch."),
                remedy="Set backbone.dtype: float32 (products may be in bfloat16 all the same) or bfloat16.",
            )
        given = parameter.detach()
        parameter.data = given.clone()
        parameter.requires_grad_(True)
        mapped.let_go(given)  # else the pages of its file count for as long as the given model lives
    return own


def first_trained_site(model: PreTrainedModel) -> Site | None:
    """Return the site up to which states depend on frozen weights alone, or None where nothing is trained.

    It is that of the lowest block which is trained or holds an adapter; the input where embeddings are trained.
    """
    layout = find_blocks(model)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if not trained:
        return None
    in_blocks = {id(parameter) for parameter in layout.blocks.parameters()}
    if trained - in_blocks:
        return "input"
    return next(
        number
        for number, block in enumerate(layout.blocks)
        if any(parameter.requires_grad for parameter in block.parameters())
    )
