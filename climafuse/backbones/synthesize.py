"""A language model of an exact architecture with random weights, written as a sharded model directory.

For capacity work where the real weights are out of reach: it takes the memory and the time of the real one, loads the
same way, and knows nothing. Its manifest says so, and with it everything that is made of it.

Weights are drawn by transformers' own rules, a block at a time, and written a shard at a time: no more than one of each
is ever in memory. The tokenizer is another model's, without its chat template: these are no models to chat with.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.files import whole_folder
from ..errors import BackboneError, ConfigurationError, OutputError
from ..pace import every
from .architectures import architecture, config_of, skeleton
from .blocks import find_blocks
from .cache import write_manifest
from .catalog import DEFAULT_BACKBONE
from .fetching import Progress
from .loading import DTYPES, check_vocabulary, find_backbone, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SHARD_BYTES = 1 << 30  # of the largest shard; a single larger matrix makes one of its own


def synthesize(
    name: str,
    directory: str | Path,
    *,
    dtype: str = "bfloat16",
    tokenizer: str | Path = DEFAULT_BACKBONE,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = logger.info,
) -> Path:
    """Write a model of an exact architecture with random weights.

    Args:
        name: A name of `architectures.ARCHITECTURES`.
        directory: Where; must not exist.
        dtype: Type of the weights.
        tokenizer: Backbone whose tokenizer is taken; its tokens must fit into the architecture's vocabulary.
        seed: Of the weights.
        shard_bytes: Most bytes of a shard.
        progress: Called with one line every few seconds.

    Returns:
        The directory.

    Raises:
        ConfigurationError: The name or type is unknown, or the architecture is there for plans only.
        BackboneError: The tokenizer does not fit.
        OutputError: The directory exists or cannot be written.
    """
    found = architecture(name)
    if found.planning_only:
        raise ConfigurationError(
            "config",
            expected="an architecture that is written with random weights",
            received=f"{found.name}, of {found.num_parameters:,} parameters, which is there for plans only",
            remedy="Choose a smaller one, or plan with it: climafuse plan.",
        )
    if dtype not in DTYPES:
        raise ConfigurationError(
            "dtype", expected=" or ".join(DTYPES), received=repr(dtype), remedy="Choose one of these."
        )
    source = load_tokenizer(find_backbone(tokenizer, progress=progress))
    source.chat_template = None
    return write_random(
        found.name,
        config_of(found.name),
        source,
        directory,
        dtype=dtype,
        seed=seed,
        shard_bytes=shard_bytes,
        progress=progress,
    )


def write_random(
    name: str,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = logger.info,
) -> Path:
    """Write a model of any configuration with random weights; see `synthesize`.

    Args:
        name: The id it has for checkpoints.
        config: Its configuration; changed to the tokenizer's special tokens.
        tokenizer: Its tokenizer.
        directory: Where; must not exist.
        dtype: Type of the weights.
        seed: Of the weights.
        shard_bytes: Most bytes of a shard.
        progress: Called with one line every few seconds.

    Returns:
        The directory.

    Raises:
        BackboneError: The tokenizer does not fit.
        OutputError: The directory exists or cannot be written.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, token, getattr(tokenizer, token))
    model = skeleton(config).to(getattr(torch, dtype))
    check_vocabulary(name, model, tokenizer)
    shapes = _stored(model)
    shards = _shards(shapes, shard_bytes)
    directory = Path(directory)
    _check_place(directory, sum(shapes.values()))
    tell = every(5.0, lambda done, all_: progress(f"{name}: {done / 1e9:.1f} of {all_ / 1e9:.1f} GB written"))
    total, done = sum(map(sum, (shard.values() for shard in shards))), 0
    with whole_folder(directory) as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        waiting: dict[str, Tensor] = {}
        values = _random_tensors(model, shapes)
        for number, shard in enumerate(shards, start=1):
            while not shard.keys() <= waiting.keys():
                key, tensor = next(values)
                waiting[key] = tensor
            file = folder / _shard_name(number, len(shards))
            save_file({key: waiting.pop(key) for key in shard}, file, metadata={"format": "pt"})
            file.chmod(0o644)  # written private; a shared cache must be readable
            done += sum(shard.values())
            tell(done, total)
        if len(shards) > 1:
            _write_index(folder, shards, total)
        config.architectures = [type(model).__name__]
        config.dtype = dtype
        config.random_weights = True  # see `identity.marked_random`
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        GenerationConfig(
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        ).save_pretrained(folder)
        write_manifest(
            folder,
            id=f"{name}-random",
            revision=None,
            license=None,
            source=f"random weights of the architecture {name}, seed {seed}, torch {torch.__version__}",
            random_weights=True,
        )
    return directory


def _check_place(directory: Path, size: int) -> None:
    """Refuse a place before anything is written that could not stay there."""
    if directory.exists() or directory.is_symlink():
        raise OutputError(
            str(directory),
            expected="a directory that does not exist yet",
            received="one that does" if directory.is_dir() else "a file",
            remedy="Choose another place, or remove what is there.",
        )
    nearest = next(path for path in directory.absolute().parents if path.exists())
    free = shutil.disk_usage(nearest).free
    if size > free:
        raise OutputError(
            str(directory),
            expected=f"room for {size / 1e6:,.1f} MB",
            received=f"{free / 1e6:,.1f} MB free",
            remedy="Choose another place, or make room.",
        )


def _stored(model: PreTrainedModel) -> dict[str, int]:
    """Bytes of each tensor that a file holds: parameters and persistent buffers, tied ones once."""
    persistent = model.state_dict().keys()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.nbytes for name, tensor in tensors.items() if name in persistent}


def _shards(sizes: dict[str, int], most: int) -> list[dict[str, int]]:
    """Cut tensors into shards of at most so many bytes, in their order."""
    shards: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if shards[-1] and sum(shards[-1].values()) + size > most:
            shards.append({})
        shards[-1][name] = size
    return shards


def _random_tensors(model: PreTrainedModel, wanted: dict[str, int]) -> Iterator[tuple[str, Tensor]]:
    """Values of all tensors, made a block at a time by the model's own rules, and forgotten after."""
    layout = find_blocks(model)
    prefix = f"{layout.path}."
    # The order of `wanted` is that of the modules: whatever stands before the blocks comes first.
    units: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        block = name.startswith(prefix) and name.count(".") == prefix.count(".")
        alone = not name.startswith(prefix) and (module._parameters or module._buffers)
        if block or alone:
            units.append((name, module))
    seen: set[str] = set()
    for name, unit in units:
        unit.to_empty(device="cpu", recurse=name.startswith(prefix))
        for module in [*reversed(list(unit.modules()))] if name.startswith(prefix) else [unit]:
            model._init_weights(module)
        tensors = {**dict(unit.named_parameters()), **dict(unit.named_buffers())}
        for own, tensor in tensors.items():
            full = f"{name}.{own}" if name else own
            if full in wanted and full not in seen:
                seen.add(full)
                yield full, tensor.detach()
        unit.to_empty(device="meta", recurse=name.startswith(prefix))
    if seen != wanted.keys():
        raise BackboneError(
            type(model).__name__,
            expected=f"values of {len(wanted)} tensors",
            received=f"none of {min(wanted.keys() - seen)}",
            remedy="This architecture keeps its weights in a way that is not known here; please report it.",
        )


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _write_index(folder: Path, shards: list[dict[str, int]], total: int) -> None:
    index: dict[str, Any] = {
        "metadata": {"total_size": total},
        "weight_map": {
            name: _shard_name(number, len(shards))
            for number, shard in enumerate(shards, start=1)
            for name in shard
        },
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
