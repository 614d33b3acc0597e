"""Saved and loaded. Oracle: the same bits; whatever is not whole and the same is refused by name."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from climafuse.backbones import LoadedBackbone, load_backbone
from climafuse.backbones.cache import MANIFEST_NAME
from climafuse.backbones.synthesize import write_random
from climafuse.encoders import ConvEncoder, GridTransformerEncoder
from climafuse.errors import (
    BackboneMismatchError,
    BackboneNotFoundError,
    CheckpointError,
    ClimafuseError,
    ConfigurationError,
)
from climafuse.manifest import write_manifest
from climafuse.model import ClimateTextConfig, ClimateTextForCausalLM, channels_of
from climafuse.model.folder import WEIGHTS_FILE
from tests.fusion.small import open_gates
from tests.model.build import ENCODER, VARIABLES, climate_of, make_batch, make_model, statistics
from tests.model.test_modeling import OwnEncoder, OwnFusion
from tests.tiny import tiny_backbone, tiny_config, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def backbone() -> LoadedBackbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def model() -> ClimateTextForCausalLM:
    return make_model(sites=[1, "output"])


@pytest.fixture
def folder(model: ClimateTextForCausalLM, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


FILES = {"README.md", "config.json", "generation_config.json", WEIGHTS_FILE}


def assert_equal(one: ClimateTextForCausalLM, other: ClimateTextForCausalLM) -> None:
    weights, others = one.trainable_state_dict(), other.trainable_state_dict()
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name
        assert tensor.dtype == others[name].dtype == torch.float32
    batch = make_batch(one)
    with torch.no_grad():
        assert torch.equal(one.eval()(**batch).logits, other.eval()(**batch).logits)


# ---- There and back


def test_a_loaded_model_is_the_saved_one_bit_for_bit(
    model: ClimateTextForCausalLM, backbone: LoadedBackbone, folder: Path
) -> None:
    torch.manual_seed(99)  # nothing of what is loaded is made at random after it was read
    loaded = ClimateTextForCausalLM.from_pretrained(folder, backbone=backbone)
    assert_equal(model, loaded)
    assert not loaded.training
    written = dict.fromkeys(("weights_sha256", "architectures", "_name_or_path"))
    assert loaded.config.to_dict() | written == model.config.to_dict() | written
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == set(
        loaded.trainable_state_dict()
    )


def test_a_synthesized_backbone_is_found_again_and_its_copy_is_random_still(tmp_path: Path) -> None:
    source = write_random("tiny", tiny_config("llama"), tiny_tokenizer(), tmp_path / "source")
    model = ClimateTextForCausalLM.from_backbone(
        load_backbone(source), statistics=statistics(), encoder_options=ENCODER
    )
    model.save_pretrained(tmp_path / "model")
    loaded = ClimateTextForCausalLM.from_pretrained(tmp_path / "model")  # by the path that it recorded
    assert_equal(model, loaded)
    copied = shutil.copytree(source, tmp_path / "copy", ignore=shutil.ignore_patterns(MANIFEST_NAME))
    content = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(content | {"random_weights": False}))
    shutil.rmtree(source)
    with pytest.raises(BackboneNotFoundError):
        ClimateTextForCausalLM.from_pretrained(tmp_path / "model")
    loaded = ClimateTextForCausalLM.from_pretrained(tmp_path / "model", backbone=copied)
    assert loaded.backbone_identity["random_weights"]  # the checkpoint knows


def test_the_auto_classes_load_it_too(
    model: ClimateTextForCausalLM, backbone: LoadedBackbone, folder: Path
) -> None:
    assert type(AutoConfig.from_pretrained(folder)) is ClimateTextConfig
    loaded = AutoModelForCausalLM.from_pretrained(folder, backbone=backbone)
    assert type(loaded) is ClimateTextForCausalLM
    assert loaded.backbone is backbone.model
    assert copy.deepcopy(backbone) is backbone  # as the Auto classes do: no second set of weights in memory
    assert_equal(model, loaded)


@pytest.mark.parametrize("fusion", ["cross_attention", "gated_addition"])
@pytest.mark.parametrize("sites", ["input", {"last": 2}, ["input", 2, -1, "output"]], ids=str)
def test_every_way_to_write_sites_survives(fusion: str, sites: Any, tmp_path: Path) -> None:
    model = make_model(fusion=fusion, sites=sites)
    model.save_pretrained(tmp_path)
    loaded = ClimateTextForCausalLM.from_pretrained(tmp_path, backbone=tiny_backbone())
    assert loaded.sites == model.sites
    assert_equal(model, loaded)


def test_the_file_holds_trained_weights_only(model: ClimateTextForCausalLM, folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    assert weights.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in weights} == {"encoder", "fusions"}
    assert {path.name for path in folder.iterdir()} == FILES


def test_saving_changes_nothing_and_repeats_itself(model: ClimateTextForCausalLM, tmp_path: Path) -> None:
    before = model.config.to_dict()
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name)
    assert model.config.to_dict() == before
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_loaded_model_can_be_saved_again(backbone: LoadedBackbone, folder: Path, tmp_path: Path) -> None:
    loaded = ClimateTextForCausalLM.from_pretrained(folder, backbone=backbone)
    loaded.save_pretrained(tmp_path / "again")
    for file in FILES:
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_the_configuration_holds_statistics_units_and_order(folder: Path) -> None:
    config = ClimateTextConfig.from_pretrained(folder)
    assert tuple(config.variables) == VARIABLES
    assert config.channels() == channels_of(statistics())
    assert config.normalization().equals(statistics())
    # JSON sorts the names; the order of the channels is that of the list.
    assert list(json.loads((folder / "config.json").read_text())["statistics"]["variables"]) == sorted(
        VARIABLES
    )


def test_a_configuration_without_statistics_is_refused() -> None:
    for config in (ClimateTextConfig(), ClimateTextConfig(variables=["t2m"])):
        with pytest.raises(ConfigurationError, match="statistics"):
            config.channels()


def test_the_backbone_is_found_by_its_recorded_path(tmp_path: Path) -> None:
    from climafuse.backbones import load_backbone

    tiny_model().save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    backbone = load_backbone(tmp_path / "backbone", dtype="float32")
    model = ClimateTextForCausalLM.from_backbone(
        tmp_path / "backbone", dtype="float32", statistics=statistics(), encoder_options={"width": 16}
    )
    open_gates(model.fusions, 0.5)
    model.save_pretrained(tmp_path / "model")
    for given in (None, tmp_path / "backbone", str(tmp_path / "backbone"), backbone):
        loaded = ClimateTextForCausalLM.from_pretrained(tmp_path / "model", backbone=given)
        assert loaded.backbone.dtype == torch.float32  # as recorded, not the default
        assert_equal(model, loaded)
    assert_equal(model, AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    shutil.move(tmp_path / "backbone", tmp_path / "moved")
    with pytest.raises(BackboneNotFoundError, match="backbone"):
        ClimateTextForCausalLM.from_pretrained(tmp_path / "model")
    moved = ClimateTextForCausalLM.from_pretrained(tmp_path / "model", backbone=tmp_path / "moved")
    assert_equal(model, moved)


def test_how_it_generates_is_the_models_own_and_is_saved(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    make = {"statistics": statistics(), "encoder_options": {"width": 16}}
    model = ClimateTextForCausalLM.from_backbone(backbone, **make)
    batch = make_batch(model, answers=None)
    length = batch["input_ids"].shape[1]
    model.generation_config.eos_token_id = None
    model.generation_config.max_new_tokens = 3
    assert model.generate(**batch).shape[1] == length + 3
    assert model.generate(**batch, max_new_tokens=5).shape[1] == length + 5  # an argument wins
    with model.conditioned(model.encode_climate(**climate_of(batch))) as conditioned:
        text = {name: batch[name] for name in ("input_ids", "attention_mask")}
        assert conditioned.generate(**text).shape[1] == length + 3
    # Not that of another model on the same backbone, nor of the backbone itself.
    other = ClimateTextForCausalLM.from_backbone(backbone, **make)
    for untouched in (other, backbone.model):
        assert untouched.generation_config.max_new_tokens is None
        assert untouched.generation_config.eos_token_id == backbone.tokenizer.eos_token_id
    model.save_pretrained(tmp_path)
    loaded = ClimateTextForCausalLM.from_pretrained(tmp_path, backbone=backbone)
    assert loaded.generate(**batch).shape[1] == length + 3
    assert backbone.model.generation_config.max_new_tokens is None


@pytest.mark.parametrize(
    "option",
    [
        {"max_shard_size": "1MB"}, {"safe_serialization": False}, {"push_to_hub": True}, {"variant": "fp16"},
        {"state_dict": {}}, {"is_main_process": False}, {"token": "x"}, {"anything": 1},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_saving_that_would_be_ignored_are_refused(
    model: ClimateTextForCausalLM, tmp_path: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        model.save_pretrained(tmp_path / "model", **option)
    assert not (tmp_path / "model").exists()


def test_options_of_saving_at_their_defaults_are_taken(model: ClimateTextForCausalLM, tmp_path: Path) -> None:
    # Every one that transformers has: a new one is looked at before it is passed over.
    parameters = inspect.signature(PreTrainedModel.save_pretrained).parameters
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    assert {"max_shard_size", "push_to_hub", "variant"} <= defaults.keys()
    model.save_pretrained(tmp_path, **defaults, safe_serialization=True)


# ---- Parts of one's own


def test_parts_that_are_not_registered_are_given_again(backbone: LoadedBackbone, tmp_path: Path) -> None:
    encoder = OwnEncoder(channels_of(statistics()))
    model = ClimateTextForCausalLM.from_backbone(
        backbone, statistics=statistics(), encoder=encoder, fusion=OwnFusion, sites=[1, "output"],
        fusion_options={"factor": 0.5},
    )  # fmt: skip
    open_gates(model.fusions, 0.5)
    model.save_pretrained(tmp_path)
    for load in (ClimateTextForCausalLM, AutoModelForCausalLM):
        loaded = load.from_pretrained(
            tmp_path,
            backbone=tiny_backbone(),
            encoder=OwnEncoder(channels_of(statistics())),
            fusion=OwnFusion,
        )
        assert loaded.fusions["1"].factor == 0.5
        assert_equal(model, loaded)
    with pytest.raises(ConfigurationError, match="OwnEncoder"):
        ClimateTextForCausalLM.from_pretrained(tmp_path, backbone=backbone)
    with pytest.raises(ConfigurationError, match="OwnFusion"):
        ClimateTextForCausalLM.from_pretrained(
            tmp_path, backbone=backbone, encoder=OwnEncoder(channels_of(statistics()))
        )


def test_an_encoder_given_as_an_instance_is_made_again_with_its_options(
    backbone: LoadedBackbone, tmp_path: Path
) -> None:
    # As many heads or another pooling leave no mark on the shapes of the weights.
    channels = channels_of(statistics())
    encoders = [
        GridTransformerEncoder(channels, 16, 1, heads=8, pooling="time", summary=False),
        ConvEncoder(channels, width=16, pooling="none"),
    ]
    for number, encoder in enumerate(encoders):
        model = ClimateTextForCausalLM.from_backbone(
            backbone, statistics=statistics(), encoder=encoder, sites=2
        )
        open_gates(model.fusions, 0.5)
        model.save_pretrained(tmp_path / str(number))
        loaded = ClimateTextForCausalLM.from_pretrained(tmp_path / str(number), backbone=tiny_backbone())
        assert loaded.encoder.options == encoder.options
        assert_equal(model, loaded)


# ---- What is not whole, or not the same


def rewrite(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """Change the weights and make the checksum fit, as somebody with a script would."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS_FILE)
        change(weights)
        save_file(weights, folder / WEIGHTS_FILE)
        edit(weights_sha256=None)(folder)

    return damage


def edit(**values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(content))

    return damage


def flip(name: str, position: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[position] ^= 1
        (folder / name).write_bytes(content)

    return damage


def other_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    tiny_model().save_pretrained(folder)


NAME = "fusions.1.attention_gate"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), "a folder without them"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "a folder without them"),
    "a backbone's folder": (other_folder, "a configuration of llama"),
    "a flipped byte in a weight": (flip(WEIGHTS_FILE, -1), "SHA-256"),
    "a flipped byte in the header": (flip(WEIGHTS_FILE, 12), "SHA-256"),
    "truncated weights": (
        lambda folder: (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-40]),
        "SHA-256",
    ),
    "truncated weights, no checksum": (
        lambda folder: (
            edit(weights_sha256=None)(folder),
            (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-40]),
        ),
        "SafetensorError",
    ),
    "broken configuration": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "a wrong type in the configuration": (edit(history="two"), "history"),
    "an unknown kind of model": (edit(model_type="weather_text"), "weather_text"),
    "a configuration without a backbone": (edit(backbone=None), "no architecture, content_hash, id"),
    "half an identity": (edit(backbone={"id": "x"}), "no architecture, content_hash of"),
    "a tensor too few": (rewrite(lambda weights: weights.pop(NAME)), f"no {NAME}"),
    "a tensor too many": (
        rewrite(lambda weights: weights.update({"backbone.x": torch.zeros(1)})),
        "an unknown backbone.x",
    ),
    "another shape": (rewrite(lambda weights: weights.update({NAME: torch.zeros(31)})), rf"{NAME} \(31,\)"),
    "another type": (
        rewrite(lambda weights: weights.update({NAME: weights[NAME].bfloat16()})),
        f"{NAME}.*bfloat16",
    ),
    "other sites": (edit(sites=[2, "output"]), "exactly the"),
    "another width": (edit(encoder_options={"width": 20, "depth": 1, "heads": 2, "patch": 3}), "exactly the"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("auto", [False, True])
def test_a_damaged_folder_is_refused(backbone: LoadedBackbone, folder: Path, damage: str, auto: bool) -> None:
    change, message = DAMAGES[damage]
    change(folder)
    if not auto:
        with pytest.raises(CheckpointError, match=message) as caught:
            ClimateTextForCausalLM.from_pretrained(folder, backbone=backbone)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 1
        return
    # The Auto classes read the configuration themselves, so some of their own errors come first; none loads it.
    if damage == "a backbone's folder":
        return
    with pytest.raises((ClimafuseError, OSError, ValueError, StrictDataclassError)):
        AutoModelForCausalLM.from_pretrained(folder, backbone=backbone)


def test_weights_of_another_model_leave_this_one_unchanged(folder: Path) -> None:
    rewrite(lambda weights: weights.update({"more": torch.zeros(1)}))(folder)
    model = make_model(sites=[1, "output"], gates=0.1)
    before = {name: tensor.clone() for name, tensor in model.trainable_state_dict().items()}
    with pytest.raises(CheckpointError):
        model.load_trainable(folder)
    for name, tensor in model.trainable_state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_manifest_is_verified(backbone: LoadedBackbone, folder: Path) -> None:
    write_manifest(folder, kind="model")
    ClimateTextForCausalLM.from_pretrained(folder, backbone=backbone)
    edit(history=3)(folder)  # a plausible value, which no other check could find
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ClimateTextForCausalLM.from_pretrained(folder, backbone=backbone)


def test_a_configuration_at_hand_does_not_open_a_damaged_folder(
    model: ClimateTextForCausalLM, backbone: LoadedBackbone, folder: Path
) -> None:
    config = ClimateTextConfig.from_pretrained(folder)
    assert_equal(model, ClimateTextForCausalLM.from_pretrained(folder, backbone=backbone, config=config))
    flip(WEIGHTS_FILE, -1)(folder)
    with pytest.raises(CheckpointError, match="SHA-256"):
        ClimateTextForCausalLM.from_pretrained(folder, backbone=backbone, config=config)


@pytest.mark.parametrize(
    "other",
    [
        lambda: tiny_backbone(seed=1),  # the same architecture
        lambda: tiny_backbone("mistral"),
        lambda: tiny_backbone(dtype=torch.bfloat16),  # in memory, the bits decide
    ],
)
def test_another_backbone_is_refused(folder: Path, other: Callable[[], LoadedBackbone]) -> None:
    for load in (ClimateTextForCausalLM, AutoModelForCausalLM):
        with pytest.raises(BackboneMismatchError, match="tiny-llama"):
            load.from_pretrained(folder, backbone=other())


@pytest.mark.parametrize(
    "option",
    [
        {"dtype": torch.bfloat16}, {"device_map": "auto"}, {"quantization_config": object()},
        {"subfolder": "x"}, {"output_loading_info": True}, {"anything": 1},
    ],
)  # fmt: skip
def test_options_of_transformers_that_would_be_ignored_are_refused(
    backbone: LoadedBackbone, folder: Path, option: dict[str, Any]
) -> None:
    (name,) = option
    with pytest.raises(ConfigurationError, match=name):
        ClimateTextForCausalLM.from_pretrained(folder, backbone=backbone, **option)
    if name == "dtype":
        with pytest.raises(ConfigurationError, match=name):
            AutoModelForCausalLM.from_pretrained(folder, backbone=backbone, **option)


def test_loading_says_nothing(
    backbone: LoadedBackbone,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # A warning about weights that were not found would be either wrong, or an error.
    with caplog.at_level(logging.INFO, logger="transformers"):
        ClimateTextForCausalLM.from_pretrained(folder, backbone=backbone)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_file_does_not_hold_climate(folder: Path) -> None:
    # Constants of the configuration (units) are made again, not stored twice.
    model = make_model(sites=[1, "output"])
    assert not [name for name in load_file(folder / WEIGHTS_FILE) if name.endswith(("scale", "offset"))]
    assert climate_of(make_batch(model)).keys() == {
        "climate_fields", "climate_mask", "climate_latitude", "climate_longitude", "climate_time",
    }  # fmt: skip
