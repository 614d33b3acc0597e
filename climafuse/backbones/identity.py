"""Which weights a backbone is made of: the hash of what it holds, not the name it goes by.

`hash_files` reads the safetensors shards (`sha256:…`), `hash_parameters` the tensors of a model in memory
(`tensors-sha256:…`). The two never compare equal: a checkpoint trained on a model in memory is checked
against a model in memory, one trained on files against files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from ..data.files import whole_file
from ..errors import BackboneError, BackboneMismatchError, OutputError
from ..json_file import read_object
from .cache import cache_directory, sha256_file
from .lora import adapted_layers, base_name

if TYPE_CHECKING:
    import torch
    from torch import nn

PICKLED = (".bin", ".pt", ".pth", ".ckpt")


class BackboneIdentity(TypedDict):
    """What a checkpoint records about the backbone it was trained on. Plain JSON values.

    Attributes:
        id: Name to load it by: a catalog name, an imported name, a hub id, or an absolute path.
        revision: Commit on the hub, or pinned package; None for a plain directory.
        content_hash: Hash of the weights; this alone decides whether two backbones are the same.
        architecture: Class of the model.
        num_parameters: Number of parameters, tied ones counted once.
        random_weights: True where the weights were never trained.
    """

    id: str
    revision: str | None
    content_hash: str
    architecture: str
    num_parameters: int
    random_weights: bool


def identify(
    model: nn.Module, *, id: str, content_hash: str, revision: str | None = None, random_weights: bool = False
) -> BackboneIdentity:
    """Return the identity of a model whose weights have the given hash; its configuration may call them random."""
    return BackboneIdentity(
        id=id,
        revision=revision,
        content_hash=content_hash,
        architecture=type(model).__name__,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        random_weights=random_weights or marked_random(getattr(model, "config", None)),
    )


def marked_random(config: object) -> bool:
    """Whether a configuration says that weights were never trained, as that of a synthesized model does.

    The mark goes where the weights go, be it without the manifest beside them.

    Args:
        config: A model's.
    """
    return getattr(config, "random_weights", False) is True


def weights_of(identity: Mapping[str, object]) -> str:
    """Say what the weights of a backbone are: pretrained, or random and good for nothing but capacity.

    Args:
        identity: Its identity.
    """
    return "random weights, for capacity only" if identity.get("random_weights") else "pretrained"


def labeled(text: str, identity: Mapping[str, object]) -> str:
    """A text about a backbone or of its words, which says so where its weights are random.

    Args:
        text: The text.
        identity: Of the backbone.
    """
    return f"{text} ({weights_of(identity)})" if identity.get("random_weights") else text


def check_identity(expected: Mapping[str, object], found: Mapping[str, object]) -> None:
    """Refuse a backbone whose weights are not the expected ones.

    The same weights under another name or in another directory pass.

    Args:
        expected: Identity that a checkpoint recorded.
        found: Identity of the backbone at hand.

    Raises:
        BackboneMismatchError: The weights or the architecture differ.
    """
    if all(expected[key] == found[key] for key in ("content_hash", "architecture")):
        return
    raise BackboneMismatchError(
        "backbone",
        expected=_describe(expected),
        received=_describe(found),
        remedy="Load the backbone that the checkpoint was trained on, or train a new checkpoint on this one.",
    )


def _describe(identity: Mapping[str, object]) -> str:
    kind, _, digest = str(identity["content_hash"]).partition(":")
    revision = f", revision {identity['revision']}" if identity.get("revision") else ""
    return f"{identity['id']} ({identity['architecture']}{revision}, {kind} {digest[:12]})"


def hash_parameters(model: nn.Module) -> str:
    """Return the hash of a model's tensors in memory: parameters and persistent buffers, by name.

    Two models agree exactly when every tensor has the same name, type, shape and bits, so it tells whether
    frozen weights are unchanged. Adapters that were put into the model do not count, nor do the names that their
    layers have taken.

    Args:
        model: Any module whose tensors hold data (on any device).
    """
    import torch

    digest = hashlib.sha256()
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())  # tied parameters appear once
    persistent = model.state_dict(keep_vars=True).keys()
    tensors.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    layers = adapted_layers(model)
    named = {base_name(name, layers): tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in named.items() if name is not None}
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"tensors-sha256:{digest.hexdigest()}"


def hash_files(directory: Path, *, verify: bool = False) -> str:
    """Return the hash of the weights in a directory: the SHA-256 of its shards' SHA-256, in name order.

    Args:
        directory: Directory with `model.safetensors`, or shards and their index.
        verify: Read every byte again, whatever size and modification time say.

    Raises:
        BackboneError: The weights are pickled, or a shard that the index names is absent.
    """
    return combine_hashes(hash_shard(shard, verify=verify) for shard in weight_files(directory))


def combine_hashes(digests: Iterable[str]) -> str:
    """Return the hash of a model from the SHA-256 of its shards, in name order."""
    combined = hashlib.sha256()
    for digest in digests:
        combined.update(bytes.fromhex(digest))
    return f"sha256:{combined.hexdigest()}"


def hash_shard(path: Path, *, verify: bool = False) -> str:
    """Return the SHA-256 of a file, remembered while its path, size and modification time stay the same."""
    path = path.resolve()
    status = path.stat()
    key = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    memory = cache_directory() / "hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    if not verify:
        with contextlib.suppress(OSError, ValueError):  # absent or damaged: it is only a memory, hash anew
            remembered = json.loads(memory.read_text(encoding="utf-8"))
            if all(remembered.get(name) == value for name, value in key.items()):
                return str(remembered["sha256"])
    digest = sha256_file(path)
    # A cache that cannot be written costs time at the next load, nothing else.
    with contextlib.suppress(OutputError), whole_file(memory) as temporary:
        temporary.write_text(json.dumps({**key, "sha256": digest}), encoding="utf-8")
    return digest


def weight_files(directory: Path) -> list[Path]:
    """List the safetensors files that hold a model's weights, in name order.

    Args:
        directory: A model directory in Hugging Face form.

    Returns:
        The files; none where the directory holds no weights of any kind.

    Raises:
        BackboneError: Weights are pickled or in GGUF form, the index is malformed, or a shard is absent.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(read_object(index)["weight_map"].values()))
            if not all(isinstance(name, str) for name in names):
                raise TypeError("a shard without a name")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise BackboneError(
                str(index),
                expected="an index with a weight_map from tensor to file",
                received=f"{type(error).__name__}: {error}",
                remedy="Fetch the backbone again.",
            ) from error
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):  # nor outside, nor to a pickle
                raise BackboneError(
                    str(index),
                    expected="shards named by plain file names that end in .safetensors",
                    received=repr(name),
                    remedy="Do not use this directory: its index points elsewhere.",
                )
            if len(name) > 255 or not (directory / name).is_file():
                raise BackboneError(
                    str(directory),
                    expected=f"all {len(names)} shards that the index names",
                    received=f"no {name}",
                    remedy="Copy or fetch the missing shard.",
                )
        return [directory / name for name in names]
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    pickled = (
        sorted(file.name for file in directory.iterdir() if file.suffix in PICKLED)
        if directory.is_dir()
        else []
    )
    if pickled:
        raise BackboneError(
            str(directory),
            expected="weights as safetensors",
            received=f"pickled weights ({pickled[0]}), which can run code when read",
            remedy="Convert them where you trust their origin: load with transformers' "
            "AutoModelForCausalLM.from_pretrained(DIR, use_safetensors=False) and save_pretrained(NEW_DIR).",
        )
    quantized = sorted(file.name for file in directory.glob("*.gguf"))
    if quantized:
        raise BackboneError(
            str(directory),
            expected="weights as safetensors",
            received=f"a GGUF file ({quantized[0]})",
            remedy=f"Run: climafuse backbone import {directory / quantized[0]} --name NAME",
        )
    return []
