"""The trained controls of a run: what is learned without looking at the fields, and without a language model.

- text_only: the same language model, fusion, texts and steps around an encoder that sees nothing (`encoders/blind.py`).
  It learns what the questions give away; if it does well, the prompts hold the answers.
- place_only: the same, told where and when: geography and calendar by heart.
- regressor: the same encoder and examples with heads in place of the language model (`regressor.py`).

Each is trained for as many steps as the model itself, with its seed and its schedule (by steps), and kept in
`RUN/evaluation/controls/NAME`. One that is there is used again if settings, data, language model and steps are the
same, one that was interrupted goes on, and any other is made anew.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from climafuse.backbones import LoadedBackbone, check_identity
from climafuse.data.files import whole_file
from climafuse.errors import CheckpointError, ConfigurationError, OutputError, UsageError
from climafuse.evaluation.asking import ReadsClimate
from climafuse.evaluation.regressor import Regressor, train_regressor
from climafuse.json_file import read_object
from climafuse.json_values import number, table
from climafuse.manifest import verify_folder
from climafuse.model import channels_of
from climafuse.model.folder import check_folder, model_folder
from climafuse.model.inference import load_model
from climafuse.registry import ENCODERS
from climafuse.training.checkpoint import list_checkpoints, newest_good_checkpoint
from climafuse.training.config import CONFIG_FILE, EncoderConfig, RunConfig, load_config
from climafuse.training.dataset import make_examples, open_store
from climafuse.training.identity import identify
from climafuse.training.own_files import EVALUATION
from climafuse.training.pipeline import Say, Shared, configured_backbone, run
from climafuse.training.same_run import flat_settings
from climafuse.training.state import read_state
from climafuse.training.trained_on import read_trained_on

FORMAT = 1  # of what is kept; raise it when controls must be made anew
RECORD = "control.json"
# Settings that change neither what a control learns nor for how long.
_OF_NO_ACCOUNT = frozenset(
    {
        "data.source",  # what it holds is compared
        "data.pairs",
        "data.test_windows",
        "backbone.name",
        "backbone.num_threads",
        "training.gap_windows",
        "training.logging_interval",
        "training.workers",
    }
)


@dataclass(frozen=True)
class Control:
    """A trained control.

    Args:
        name: A key of `CONTROLS`.
        label: What it is, in words.
        model: Folder of its weights.
        steps: How many steps it was trained for.
        seconds: How long that took, preparation included.
        reused: Whether it was there before.
        read: Makes the model that is asked.
    """

    name: str
    label: str
    model: Path
    steps: int
    seconds: float
    reused: bool
    read: Callable[[], ReadsClimate]


@dataclass(frozen=True)
class Recipe:
    """How a control is made.

    Args:
        label: What it is, in words.
        encoder: From the width of the model's encoder to that of the control; None for the model's own.
        language_model: Whether it has one.
        train: (configuration, resume, say, shared) → what `pipeline.run` returns.
        read: (folder, configuration, backbone) → the model that is asked.
    """

    label: str
    encoder: Callable[[int], EncoderConfig] | None
    language_model: bool
    train: Callable[..., Mapping[str, Any]]
    read: Callable[[Path, RunConfig, LoadedBackbone | None], ReadsClimate]


def _train_model(config: RunConfig, *, resume: bool, say: Say, shared: Shared) -> Mapping[str, Any]:
    return run(config, resume=resume, say=say, shared=shared)


def _read_model(folder: Path, config: RunConfig, backbone: LoadedBackbone | None) -> ReadsClimate:
    return load_model(folder, backbone=backbone, max_new_tokens=config.evaluation.max_new_tokens)


def _train_regressor(config: RunConfig, *, resume: bool, say: Say, shared: Shared) -> Mapping[str, Any]:
    return train_regressor(config, resume=resume, say=say)


def _read_regressor(folder: Path, config: RunConfig, backbone: LoadedBackbone | None) -> ReadsClimate:
    return Regressor.load(folder)


CONTROLS: dict[str, Recipe] = {
    "text_only": Recipe(
        "same language model and training, sees no field",
        lambda width: EncoderConfig("blind", {"width": width}),
        True,
        _train_model,
        _read_model,
    ),
    "place_only": Recipe(
        "same language model and training, sees where and when only",
        lambda width: EncoderConfig("blind", {"width": width, "place": True}),
        True,
        _train_model,
        _read_model,
    ),
    "regressor": Recipe(
        "same encoder with heads, no language model", None, False, _train_regressor, _read_regressor
    ),
}


def train_controls(
    checkpoint: str | Path,
    *,
    names: Sequence[str] = tuple(CONTROLS),
    config: RunConfig | None = None,
    backbone: LoadedBackbone | None = None,
    say: Say,
) -> dict[str, Control]:
    """Train the controls of a run, or find those that were trained before.

    Args:
        checkpoint: Folder of the run, or of the model in it.
        names: Which controls; keys of `CONTROLS`.
        config: Its configuration, where data or language model lie elsewhere now; None for the one beside the weights.
        backbone: Its language model, if it is loaded already.
        say: Told one line at each stage.

    Returns:
        The controls by name.

    Raises:
        UsageError: A name is unknown.
        CheckpointError: The folder holds no model of a run, or the data are not what the model was trained on.
        BackboneMismatchError: The language model is another one.
        ClimafuseError: A control cannot be trained.
        RunInterruptedError: Training was asked to end; called again, it goes on.
    """
    unknown = [name for name in names if name not in CONTROLS]
    if unknown:
        raise UsageError(
            "names", expected=f"some of {', '.join(CONTROLS)}", received=unknown[0], remedy="Choose of these."
        )
    folder = trained_folder(checkpoint)
    identity_of_backbone, steps = _trained(folder)
    config = load_config(folder / CONFIG_FILE) if config is None else config
    if steps > config.training.steps:
        raise CheckpointError(
            str(folder),
            expected=f"a model of at most {config.training.steps:,} steps, as its run was set to take",
            received=f"a manifest that tells of {steps:,}",
            remedy="The folder was altered: copy it again from its source, or evaluate without controls.",
        )
    store = open_store(config)
    data = identify(store, [make_examples(store, split, config) for split in ("train", "validation")])
    _check_data(folder, data)
    options = dict(config.encoder.options)
    width = ENCODERS.create(config.encoder.name, channels_of(store.statistics), **options).width
    if backbone is None and any(CONTROLS[name].language_model for name in names):
        backbone = configured_backbone(config.backbone, say)
    if backbone is not None:
        check_identity(identity_of_backbone, backbone.identity)
    shared = Shared(backbone)
    controls = {}
    for name in names:
        recipe, place = CONTROLS[name], own_folder(folder, "controls", name)
        encoder = config.encoder if recipe.encoder is None else recipe.encoder(width)
        own = control_config(replace(config, encoder=encoder), steps=steps, folder=place)
        identity = {
            "format": FORMAT,
            "settings": _settings(own),
            "the content of the backbone": identity_of_backbone["content_hash"],
            **data,
        }
        record, reused = _record(place, identity), True
        if record is None or record["seconds"] is None:
            reused = False
            record = _train(
                recipe, own, identity, resume=record is not None, say=_named(say, name), shared=shared
            )
        say(
            f"{name}: {record['steps']} steps in {record['seconds']:.0f} s"
            + (", trained before" if reused else "")
        )
        controls[name] = Control(
            name,
            recipe.label,
            place / "model",
            record["steps"],
            record["seconds"],
            reused,
            lambda recipe=recipe, place=place: recipe.read(place / "model", config, backbone),  # type: ignore[misc]
        )
    return controls


def control_config(config: RunConfig, *, steps: int, folder: Path) -> RunConfig:
    """The configuration of a control: that of the run, but by steps and for as many as it did.

    Args:
        config: The run, with the encoder of the control.
        steps: Steps the model was trained for.
        folder: Of the control.
    """
    training = config.training
    warmup = training.warmup_steps
    return replace(
        config,
        training=replace(
            training,
            steps=steps,
            warmup_steps=None if warmup is None else min(warmup, steps - 1),
            schedule_by="steps",
            max_seconds=None,
            patience=None,
        ),
        output=replace(config.output, directory=str(folder), overwrite=True, tensorboard=False),
    )


def trained_folder(checkpoint: str | Path) -> Path:
    """The folder of a model that tells how it was trained.

    Args:
        checkpoint: It, or the folder of the run.

    Raises:
        CheckpointError: There is no model there that a run has saved.
    """
    folder = model_folder(checkpoint)
    if (folder / CONFIG_FILE).is_file():
        return folder
    raise CheckpointError(
        str(checkpoint),
        expected=f"the folder of a run, or of its model with {CONFIG_FILE} beside the weights",
        received="a folder without them" if Path(checkpoint).is_dir() else "no such folder",
        remedy="Give the folder that `climafuse train` wrote; for another model there is no run to compare with.",
    )


def own_folder(folder: Path, *names: str) -> Path:
    """A folder beside the model that is written to, below `evaluation/`.

    Args:
        folder: Of the model.
        names: Below it.

    Raises:
        OutputError: It is a link: a run that somebody else made may lead anywhere.
    """
    place = folder.parent
    for name in (EVALUATION, *names):
        place /= name
        if place.is_symlink():
            raise OutputError(
                str(place),
                expected="a folder of the run itself, or none",
                received="a link",
                remedy="Remove the link, or put what it leads to in its place.",
            )
    return place


def _trained(folder: Path) -> tuple[dict[str, Any], int]:
    """Identity of the language model of a trained model, and for how many steps it was trained."""
    identity = check_folder(folder).backbone
    assert identity is not None  # check_folder has looked
    steps = table(verify_folder(folder), "details").get("step")
    if type(steps) is not int or steps < 1:
        raise CheckpointError(
            str(folder),
            expected="a manifest that tells the steps of training",
            received=repr(steps),
            remedy="Evaluate without controls, or train the model with this version of climafuse.",
        )
    return identity, steps


def _check_data(folder: Path, data: Mapping[str, str]) -> None:
    """Refuse data that the model was not trained on, where its run or a checkpoint of it still tells."""
    trained_on = read_trained_on(folder).identity
    if not trained_on:  # of an earlier version, and interrupted
        checkpoint = newest_good_checkpoint(folder.parent, with_best=False)
        trained_on = {} if checkpoint is None else read_state(checkpoint)["identity"]
    for name, found in data.items():
        if trained_on.get(name, found) != found:
            raise CheckpointError(
                name,
                expected=f"those that {folder} was trained on (SHA-256 {trained_on[name]!s:.12}…)",
                received=f"others ({found:.12}…)",
                remedy="Give back the data of the run, or evaluate without controls: on other data they would be none.",
            )


def _settings(config: RunConfig) -> dict[str, Any]:
    """What a control computes, as JSON gives it back."""
    settings = {key: value for key, value in flat_settings(config).items() if key not in _OF_NO_ACCOUNT}
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _record(place: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is known of a control: begun (without seconds) or finished; None where it must be made anew."""
    try:
        record = read_object(place / RECORD)
        if record["identity"] != identity or record.keys() != {"identity", "steps", "seconds"}:
            return None
        if record["seconds"] is not None:
            if number(record["seconds"]) is None or number(record["steps"]) is None:
                return None
            verify_folder(place / "model")
    except (OSError, ValueError, KeyError, CheckpointError):
        return None
    return record


def _train(
    recipe: Recipe, config: RunConfig, identity: Mapping[str, Any], *, resume: bool, say: Say, shared: Shared
) -> dict[str, Any]:
    place = Path(config.output.directory)
    if not resume:
        _make_room(place)
        _write(place, {"identity": identity, "steps": config.training.steps, "seconds": None})
    begin = time.perf_counter()
    result = recipe.train(config, resume=resume, say=say, shared=shared)
    if result["steps"] != config.training.steps:
        raise ConfigurationError(
            "steps",
            expected=f"{config.training.steps}, as the model did",
            received=result["steps"],
            remedy="Delete the folder of the control and evaluate again.",
        )
    record = {
        "identity": identity,
        "steps": result["steps"],
        "seconds": round(time.perf_counter() - begin, 1),
    }
    _write(place, record)
    for _, path in list_checkpoints(place):  # nothing is left to go on with
        shutil.rmtree(path)
    return record


def _make_room(place: Path) -> None:
    """An empty folder: what was there is of another control, or damaged."""
    try:
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)
    except OSError as error:
        raise OutputError(
            str(place),
            expected="a place where a control can be kept",
            received=error.strerror or str(error),
            remedy="Make room there, or evaluate without controls.",
        ) from error


def _write(place: Path, record: Mapping[str, Any]) -> None:
    with whole_file(place / RECORD) as path:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _named(say: Say, name: str) -> Say:
    return lambda line: say(f"{name}: {line}")
