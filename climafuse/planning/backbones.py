"""The architecture behind a backbone's name, without its weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from climafuse.backbones import find_backbone
from climafuse.backbones.architectures import ARCHITECTURES, config_of
from climafuse.backbones.cache import read_manifest
from climafuse.backbones.identity import marked_random, weight_files
from climafuse.errors import BackboneError, BackboneNotFoundError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Architecture:
    """What a plan needs of a backbone.

    Args:
        name: As it was given.
        config: Its configuration.
        random_weights: Whether its weights are known to be random, or there are none.
        directory: Where it lies; None for an architecture by name alone.
        file_bytes: Of its files of weights.
        file_dtype: Type of most weights in them.
    """

    name: str
    config: PreTrainedConfig
    random_weights: bool
    directory: Path | None = None
    file_bytes: int | None = None
    file_dtype: str | None = None


def find_architecture(name: str) -> Architecture:
    """Find the configuration of a backbone: of one that is on this machine, else of an architecture of that name.

    Args:
        name: As for `load_backbone`, or a name of `backbones.architectures`.

    Raises:
        BackboneNotFoundError: There is neither.
        BackboneError: Its configuration cannot be read.
    """
    from transformers import AutoConfig

    from climafuse.backbones.loading import stored_dtype

    try:
        directory = find_backbone(name, fetch=False)
    except BackboneNotFoundError as error:
        if name.lower() in ARCHITECTURES:
            return Architecture(name.lower(), config_of(name), random_weights=True)
        remedy = error.remedy.removesuffix(".")
        error.remedy = f"{remedy}. Architectures without weights: {', '.join(ARCHITECTURES)}."
        raise
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of a file that somebody else wrote
        raise BackboneError(
            str(directory),
            expected="the configuration of a causal language model",
            received=f"{type(error).__name__}: {str(error)[:300]}",
            remedy="Fetch the backbone again.",
        ) from error
    manifest = read_manifest(directory) or {}
    return Architecture(
        name=str(manifest.get("id", name)),
        config=config,
        random_weights=bool(manifest.get("random_weights", False)) or marked_random(config),
        directory=directory,
        file_bytes=sum(os.path.getsize(path) for path in weight_files(directory)),
        file_dtype=str(stored_dtype(directory)).removeprefix("torch."),
    )
