"""A saved model on the Hugging Face hub: there, and back.

What is published is the folder that `save_pretrained` writes with the processor's files beside it, and nothing of the
machine it was written on: a backbone that is known by the path of a folder only is named by the folder's name. Whoever
loads the model says where theirs is (`backbone=`); its hash tells whether it is the same.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from climafuse.errors import CheckpointError, ConfigurationError
from climafuse.model.card import CARD_FILE, add_grounding, model_card
from climafuse.model.configuration import ClimateTextConfig
from climafuse.model.processing import ClimateTextProcessor

if TYPE_CHECKING:
    from climafuse.model.modeling import ClimateTextForCausalLM


def public_config(config: ClimateTextConfig) -> ClimateTextConfig:
    """Return a configuration that names no place of this machine."""
    public = copy.deepcopy(config)
    identity = dict(public.backbone or {})
    name = PurePath(str(identity.get("id")))
    public.backbone = {**identity, "id": name.name} if name.is_absolute() else identity
    return public


def push_to_hub(
    model: ClimateTextForCausalLM,
    processor: ClimateTextProcessor,
    repo_id: str,
    *,
    license: str = "unknown",
    evaluation: Mapping[str, Any] | None = None,
    commit_message: str = "Upload climate-text model",
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    **refused: Any,
) -> str:
    """Publish a model with its processor: trained weights, configurations, tokenizer and card.

    Args:
        model: The model.
        processor: Its processor.
        repo_id: Name of the repository on the hub, `user/name`; made if need be.
        license: Of the trained weights, as the hub spells it, for the card.
        evaluation: What `climafuse evaluate` wrote to `evaluation.json`, for the grounding table of the card.
        commit_message: Of the commit.
        commit_description: Of the commit.
        private: Whether a new repository is private.
        token: Of the account; None for that of `hf auth login`.
        revision: Branch.
        create_pr: Whether to open a pull request instead of committing.
        **refused: Other options of transformers.

    Returns:
        Address of the commit.

    Raises:
        ConfigurationError: An option that would be ignored.
    """
    if refused:
        raise ConfigurationError(
            ", ".join(sorted(refused)),
            expected="options of climafuse's push_to_hub",
            received="others",
            remedy="Leave them out: a model is one file of weights, and its tags are those of its card.",
        )
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory(prefix="climafuse-") as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder)
        config = public_config(ClimateTextConfig.from_pretrained(folder))
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / CARD_FILE).write_text(model_card(config, {}, license=license), encoding="utf-8")
        if evaluation is not None:
            add_grounding(folder, evaluation)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit.commit_url)


def local_folder(name: str | Path, *, files: Sequence[str], **hub: Any) -> Path:
    """Return the folder of a saved model: itself, or what was downloaded of a model on the hub.

    Args:
        name: A folder, or `user/name` on the hub where there is no such folder.
        files: What is needed of a repository; nothing else is downloaded.
        **hub: For the download: `cache_dir`, `revision`, `token`, ….

    Raises:
        CheckpointError: There is no such folder, and the hub does not have it or cannot be asked.
    """
    folder = Path(name)
    if folder.is_dir() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name)):
        return folder
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(files), **hub))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            str(name),
            expected="the folder of a saved model, or a model on the hub",
            received=f"no such folder, and from the hub {type(error).__name__}: {str(error)[:160]}",
            remedy="Give the folder that `climafuse train` or save_pretrained wrote, or check name and login.",
        ) from error
