"""Models of the Hugging Face hub: from its cache without a network, or downloaded at one commit."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import BackboneError, BackboneNotFoundError
from .identity import weight_files

HUB_TIMEOUT = 5.0  # seconds until the hub must have answered its first question

# What of a model directory is needed: configuration, safetensors, tokenizer. Never code, never pickles.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def hub_snapshot(name: str, revision: str | None) -> Path | None:
    """Return a model's directory in the Hugging Face cache, or None; never touches the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    try:
        return path if weight_files(path) else None
    except BackboneError:  # a download that was cut short, or pickles only: the hub may have better
        return None


def fetch_from_hub(
    name: str, revision: str | None, *, known: Sequence[str], progress: Callable[[str], None]
) -> Path:
    """Download a model's weights, configuration and tokenizer at one commit into the Hugging Face cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    info = _ask_hub(name, revision, known)
    files = [sibling.rfilename for sibling in info.siblings or []]
    if not any(re.fullmatch(r"model[^/]*\.safetensors", file) for file in files):
        raise BackboneError(
            name,
            expected="weights as safetensors",
            received="a hub repository without them",
            remedy="Use a revision or copy that has safetensors; pickled weights are never loaded.",
        )
    progress(f"downloading {name} at {info.sha}")
    try:
        return Path(snapshot_download(name, revision=info.sha, allow_patterns=list(MODEL_FILES)))
    except (HfHubHTTPError, OSError) as error:
        raise BackboneError(
            name,
            expected="a complete download from the hub",
            received=f"{type(error).__name__}: {error}",
            remedy="Try again; if the model asks for consent, accept its terms on the hub and log in first.",
        ) from error


def _ask_hub(name: str, revision: str | None, known: Sequence[str]) -> Any:
    """Ask the hub about a model, or say within a few seconds that it cannot be asked.

    In a thread of its own: a name server that does not answer blocks longer than any timeout of the client.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HFValidationError

    def not_found(received: str) -> BackboneNotFoundError:
        return BackboneNotFoundError(
            name,
            expected=f"a directory, a backbone of the catalog or cache ({', '.join(known)}), or a hub model",
            received=received,
            remedy="Check the name, or copy the model here and give its directory.",
        )

    if is_offline_mode() or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise not_found("none of these, and the hub is switched off (HF_HUB_OFFLINE)")
    answer: dict[str, Any] = {}

    def ask() -> None:
        try:
            api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
            answer["info"] = api.model_info(name, revision=revision, timeout=HUB_TIMEOUT)
        except Exception as error:  # carried over to the caller's thread
            answer["error"] = error

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT)
    if "info" in answer:
        return answer["info"]
    error = answer.get("error")
    if isinstance(error, HFValidationError):
        raise not_found("none of these") from error
    if error is not None:
        raise not_found(
            f"none of these, and from the hub {type(error).__name__}: {str(error)[:120]}"
        ) from error
    raise not_found(f"none of these, and no answer from the hub within {HUB_TIMEOUT:.0f} s")
