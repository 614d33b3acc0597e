"""The folder of a saved model: trained weights in safetensors beside the configuration; read whole, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import CONFIG_NAME

from climafuse.errors import CheckpointError
from climafuse.json_file import read_object
from climafuse.manifest import MANIFEST_NAME, sha256, verify_folder
from climafuse.model.configuration import ClimateTextConfig

WEIGHTS_FILE = "model.safetensors"


def model_folder(checkpoint: str | Path) -> Path:
    """The folder of a saved model, of which what a run left may be given, too.

    Args:
        checkpoint: It, or the folder of the run that saved it.

    Returns:
        The folder; what was given, where there is no model/ in it. Whether a model is there is for `check_folder`.
    """
    folder = Path(checkpoint)
    within = folder / "model"
    return within if within.is_dir() and not (folder / CONFIG_NAME).is_file() else folder


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write trained weights."""
    on_disk = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}
    save_file(on_disk, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def read_weights(folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read trained weights, strictly: every tensor, no other tensor, each of the right shape and type.

    Args:
        folder: Where they lie.
        expected: The tensors of the model they are for.

    Raises:
        CheckpointError: The file is missing, damaged, or holds other weights.
    """
    path = folder / WEIGHTS_FILE
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            str(path),
            expected="a file of trained weights",
            received=f"{type(error).__name__}: {error}",
            remedy="Give the folder of a saved model, or copy it again.",
        ) from error
    wrong = [f"no {name}" for name in expected.keys() - weights.keys()]
    wrong += [f"an unknown {name}" for name in weights.keys() - expected.keys()]
    wrong += [
        f"{name} {tuple(weights[name].shape)} {weights[name].dtype}"
        for name in expected.keys() & weights.keys()
        if (weights[name].shape, weights[name].dtype) != (expected[name].shape, expected[name].dtype)
    ]
    if wrong:
        raise CheckpointError(
            str(path),
            expected=f"exactly the {len(expected)} trained tensors of this model",
            received="; ".join(sorted(wrong)[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""),
            remedy="Load it into the model it was saved from: same encoder, fusion and sites.",
        )
    return weights


def check_folder(folder: Path) -> ClimateTextConfig:
    """Check a folder of a saved model before anything is built, and read its configuration.

    Raises:
        CheckpointError: No saved model, or one that is incomplete or altered.
    """
    if not (folder / CONFIG_NAME).is_file() or not (folder / WEIGHTS_FILE).is_file():
        of_run = (folder / "model" / WEIGHTS_FILE).is_file()
        raise CheckpointError(
            str(folder),
            expected=f"the folder of a saved model, with {CONFIG_NAME} and {WEIGHTS_FILE}",
            received="a folder without them"
            if folder.is_dir()
            else "a file"
            if folder.exists()
            else "no such folder",
            remedy=f"Give {folder / 'model'}."
            if of_run
            else "Give the folder that `climafuse train` or save_pretrained wrote.",
        )
    if (folder / MANIFEST_NAME).is_file():
        verify_folder(folder)
    try:
        read_object(folder / CONFIG_NAME)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not isinstance(config, ClimateTextConfig):
            raise TypeError(f"a configuration of {config.model_type}")
        if not all(isinstance(name, str) for name in config.variables):
            raise TypeError(f"variables {config.variables}")
        identity = config.backbone or {}
        absent = {"id", "content_hash", "architecture"} - identity.keys()
        if absent:
            raise ValueError(f"no {', '.join(sorted(absent))} of its backbone")
        if not isinstance(identity["id"], str):
            raise TypeError(f"a backbone named {identity['id']!r}")
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(
            str(folder / CONFIG_NAME),
            expected="the configuration of a climate-text model",
            received=f"{type(error).__name__}: {error}",
            remedy="Copy the folder again from its source.",
        ) from error
    if config.weights_sha256 is not None and sha256(folder / WEIGHTS_FILE) != config.weights_sha256:
        raise CheckpointError(
            str(folder / WEIGHTS_FILE),
            expected=f"SHA-256 {config.weights_sha256[:16]}…, as {CONFIG_NAME} has it",
            received="another content",
            remedy="The file is damaged or of another model: copy the folder again from its source.",
        )
    return config
