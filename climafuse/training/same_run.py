"""Whether a checkpoint and a configuration belong to the same run, so that one may go on from the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from climafuse.errors import CheckpointError
from climafuse.training.config import RunConfig

# Settings that may differ when a run is resumed: how long it goes on, how it is watched and where its inputs
# lie (`identity` says whether they are the same ones), not what it computes.
_MAY_CHANGE = frozenset(
    {
        "data.source",
        "data.pairs",
        "data.test_windows",
        "backbone.name",
        "backbone.num_threads",
        "training.steps",
        "training.max_seconds",
        "training.evaluation_interval",
        "training.evaluate_first",
        "training.gap_windows",
        "training.patience",
        "training.minimum_improvement",
        "training.logging_interval",
        "training.timeout_seconds",
        "training.workers",
        "training.keep_best",
        "training.check_memory",
        "training.accumulation",  # as memory has it halved on the way: the effective batch stays the same
        "training.checkpoint_activations",  # the same gradients, for less memory
        "training.prefix_store_gb",
    }
)
# Sections that say what a run computes; `evaluation` and `output` do not.
_SECTIONS = ("data", "facts", "backbone", "encoder", "fusion", "training")


def flat_settings(config: RunConfig) -> dict[str, Any]:
    """What a run computes: "section.key" -> value."""
    settings = {
        f"{section}.{key}": value
        for section in _SECTIONS
        for key, value in dataclasses.asdict(getattr(config, section)).items()
    }
    return settings | {"training.reuse_prefix": config.training.reuses_prefix}  # wherever they are kept


def check_same_settings(name: str, before: Mapping[str, Any], config: RunConfig) -> None:
    """Refuses settings that would make it another run; nothing has to be open for it.

    Args:
        name: Of the checkpoint.
        before: Its state: `settings` as of `flat_settings`.
        config: The configuration to go on with.

    Raises:
        CheckpointError: A setting differs that may not.
    """
    now = _plain(flat_settings(config))
    for key, value in before["settings"].items():
        if key not in _MAY_CHANGE and key in now and now[key] != value:
            raise CheckpointError(
                key,
                expected=f"{value!r}, as in {name}",
                received=repr(now[key]),
                remedy="Resume with the settings the run was started with, or start another run.",
            )


def check_same_run(
    name: str, before: Mapping[str, Any], config: RunConfig, identity: Mapping[str, str]
) -> None:
    """Refuses settings and inputs that would make it another run.

    Args:
        name: Of the checkpoint.
        before: Its state: `settings` as of `flat_settings`, and `identity`.
        config: The configuration to go on with.
        identity: What it would go on with beside settings: a SHA-256 by name.

    Raises:
        CheckpointError: A setting differs that may not, or an input does.
    """
    check_same_settings(name, before, config)
    known = before["identity"]
    for key in (*identity, *known):  # what only one of them knows is no reason to believe that it is the same
        if known.get(key) != identity.get(key):
            raise CheckpointError(
                key,
                expected=f"what {name} was trained on (SHA-256 {known.get(key, 'not recorded'):.12}…)",
                received=f"something else ({identity.get(key, 'not known'):.12}…)",
                remedy="Resume with the data the run was started with, or start another run.",
            )


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value
