"""Weights of the language model that are trained. Oracles: the model that was given, autograd on the bare model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from climafuse.backbones import first_trained_site, hash_parameters, load_backbone, with_trained_weights
from climafuse.backbones.mapped_files import MappedFiles
from climafuse.errors import (
    BackboneMismatchError,
    CheckpointError,
    ConfigurationError,
    ModelInputError,
    TrainingError,
)
from climafuse.model import ClimateTextForCausalLM, PrefixStore
from climafuse.model.objective import SampledVocabulary
from climafuse.training import load_config
from climafuse.training.config import TrainingConfig
from climafuse.training.optim import gradient_norms, parameter_groups, trainable_parts
from climafuse.training.surface import check_model
from tests.model.build import make_batch, make_model
from tests.tiny import ARCHITECTURES, tiny_backbone, tiny_model
from tests.training.runs import save_backbone


def names_of(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("trainable", "site"), [("all", "input"), ({"last": 2}, 2), ([1], 1), ({"every": 3}, 0)], ids=str
)
@pytest.mark.sampled(3)
def test_what_is_chosen_is_trained_and_the_given_model_stays(
    architecture: str, trainable: Any, site: Any
) -> None:
    given = tiny_backbone(architecture).model
    before = hash_parameters(given)
    own = with_trained_weights(given, trainable)
    blocks = {"all": None, "{'last': 2}": {2, 3}, "[1]": {1}, "{'every': 3}": {0, 3}}[str(trainable)]
    expected = {
        name
        for name, _ in given.named_parameters()
        if blocks is None or any(f".{kind}.{n}." in name for n in blocks for kind in ("layers", "h"))
    }
    assert names_of(own) == expected != set()
    assert first_trained_site(own) == site
    for name, parameter in own.named_parameters():
        shared = parameter.data_ptr() == given.get_parameter(name).data_ptr()
        assert shared == (name not in expected), name
    ids = torch.arange(4, 12).view(1, 8)
    assert torch.equal(own(input_ids=ids).logits, given(input_ids=ids).logits)
    with torch.no_grad():
        for parameter in own.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert hash_parameters(given) == before
    assert names_of(given) == set()
    assert (own.get_output_embeddings().weight is own.get_input_embeddings().weight) == (
        given.get_output_embeddings().weight is given.get_input_embeddings().weight
    )


@pytest.mark.parametrize(
    ("trainable", "message"),
    [("output", "backbone.trainable.*no blocks"), ([9], "blocks from -4 to 3"), ("some", "received .*some")],
)
def test_blocks_that_are_not_there_are_refused(trainable: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_model(backbone_trainable=trainable)


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "backbone")
    quantized = load_backbone(folder, dtype="bfloat16", quantization="int8").model
    with pytest.raises(ConfigurationError, match=r"backbone\.trainable.*8 or 4 bits.*backbone\.lora"):
        with_trained_weights(quantized, "all")
    with pytest.raises(ConfigurationError, match=r"backbone\.dtype.*float16.*received float16"):
        with_trained_weights(tiny_backbone(dtype=torch.float16).model, "all")
    with pytest.raises(ConfigurationError, match="both"):
        make_model(backbone_trainable="all", lora={"rank": 2})
    for other in ("lora={rank: 2}", "quantization=int8"):
        with pytest.raises(ConfigurationError, match=r"backbone\.trainable"):
            load_config(None, ["backbone.trainable=all", f"backbone.{other}"])
    assert load_config(None, ["backbone.trainable={last: 2}"]).backbone.trainable == {"last": 2}
    assert load_config(None).backbone.trainable is None


# ---- What is computed


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("chunks", [False, True])
def test_gradients_are_those_of_the_bare_model(
    sampled: bool, chunks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With closed gates the model is the bare one: its gradients by autograd of transformers' own logits."""
    model = make_model(sites="output", gates=0.0, backbone_trainable="all").train()
    batch = make_batch(model)
    kept = batch["input_ids"].unique()
    if sampled:
        model.sampled_vocabulary = SampledVocabulary(kept, model.config.get_text_config().vocab_size, 0)
    if chunks:
        monkeypatch.setattr("climafuse.model.chunked_loss.CHUNK", 1000)  # a few positions each
    model(**batch).loss.backward()
    bare = tiny_model()
    logits = bare(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    if sampled:
        hidden = torch.full((logits.shape[-1],), -torch.inf).index_fill(0, kept, 0.0)
        logits = logits + hidden
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    for name, parameter in bare.named_parameters():
        found = model.backbone.get_parameter(name).grad
        assert found is not None, name
        scale = parameter.grad.abs().max()
        torch.testing.assert_close(found / scale, parameter.grad / scale, rtol=0, atol=1e-5, msg=name)


def test_states_below_the_trained_blocks_are_stored_and_no_others() -> None:
    model = make_model(sites="output", backbone_trainable={"last": 2})
    assert model.prefix_site == 2
    batch = make_batch(model)
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.prefix_store = PrefixStore(model.backbone, 2)
    stored = model(**batch).loss
    stored.backward()
    torch.testing.assert_close(stored, loss, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5, msg=name)
    assert len([name for name in gradients if name.startswith("backbone.")]) == 2 * 9
    for site in (3, "output"):
        with pytest.raises(ModelInputError, match="prefix_site"):
            PrefixStore(model.backbone, site)
    whole = make_model(sites="output", backbone_trainable="all")
    assert whole.prefix_site == "input"
    whole.prefix_store = model.prefix_store  # there is nothing to reuse, and it is not used
    assert whole(**batch).loss.item() == pytest.approx(loss.item(), rel=1e-5)


# ---- What is saved


def test_a_checkpoint_holds_what_is_trained_and_loads_strictly(tmp_path: Path) -> None:
    model = make_model(backbone_trainable={"last": 1})
    identity = dict(model.backbone_identity)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn(parameter.shape))
    batch = make_batch(model)
    expected = model(**batch).logits
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    inside = {name for name in saved if name.startswith("backbone.")}
    assert inside == {f"backbone.{name}" for name in names_of(model.backbone)}
    assert all(".layers.3." in name for name in inside)
    backbone = tiny_backbone()
    loaded = ClimateTextForCausalLM.from_pretrained(tmp_path, backbone=backbone)
    assert torch.equal(loaded(**batch).logits, expected)
    assert loaded.backbone_identity == identity  # it is still known what was trained
    assert hash_parameters(backbone.model) == backbone.identity["content_hash"]
    with pytest.raises(BackboneMismatchError):
        ClimateTextForCausalLM.from_pretrained(tmp_path, backbone=tiny_backbone(seed=1))
    with pytest.raises(CheckpointError, match=r"no backbone\.model\.layers\.2"):
        make_model(backbone_trainable={"last": 2}).load_trainable(tmp_path)
    with pytest.raises(CheckpointError, match="an unknown backbone"):
        make_model().load_trainable(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "A fine-tuned language model" in card
    assert "fine-tuned in blocks last 1" in card
    assert "frozen" not in card
    assert "frozen" in _card(make_model(), tmp_path / "other")


def _card(model: ClimateTextForCausalLM, folder: Path) -> str:
    model.save_pretrained(folder)
    return (folder / "README.md").read_text()


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    model = make_model(backbone_trainable="all", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert "backbone.lm_head.weight" not in saved
    assert saved["backbone.model.embed_tokens.weight"].dtype == torch.bfloat16
    loaded = ClimateTextForCausalLM.from_pretrained(tmp_path, backbone=tiny_backbone(dtype=torch.bfloat16))
    assert loaded.backbone.lm_head.weight is loaded.backbone.model.embed_tokens.weight
    batch = make_batch(model)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


# ---- How it is trained


def test_the_backbone_has_a_rate_and_a_part_of_its_own() -> None:
    model = make_model(backbone_trainable="all", dtype=torch.bfloat16)
    config = TrainingConfig(learning_rate=1e-2, backbone_learning_rate_scale=0.5, weight_decay=0.1)
    groups = {group["name"]: group for group in parameter_groups(model, config)}
    for name, decay in (("backbone", 0.1), ("backbone_vectors", 0.0)):
        assert (groups[name]["lr"], groups[name]["weight_decay"]) == (5e-3, decay)
    assert all(parameter.ndim == 2 for parameter in groups["backbone"]["params"])
    embeddings = model.backbone.model.embed_tokens.weight
    assert any(parameter is embeddings for parameter in groups["backbone_vectors"]["params"])
    num = sum(len(groups[name]["params"]) for name in ("backbone", "backbone_vectors"))
    assert num == len(names_of(model.backbone))
    assert set(trainable_parts(model)) == {"encoder", "fusions.1", "fusions.output", "backbone"}
    check_model(model)
    with torch.no_grad():
        model.encoder.bfloat16()
    with pytest.raises(TrainingError, match=r"encoder\..*float32"):  # nothing else may be rounded
        parameter_groups(model, config)


def test_norms_of_coarse_gradients_are_told_in_float32() -> None:
    torch.manual_seed(0)
    coarse, fine = (torch.nn.Parameter(torch.zeros(999, dtype=d)) for d in (torch.bfloat16, torch.float32))
    coarse.grad, fine.grad = torch.randn(999).bfloat16(), torch.randn(999)
    by_part, total = gradient_norms({"coarse": [coarse], "fine": [fine]})
    expected = [p.grad.double().norm().item() for p in (coarse, fine)]
    assert by_part.tolist() == pytest.approx(expected, rel=1e-6)
    assert total.item() == pytest.approx((expected[0] ** 2 + expected[1] ** 2) ** 0.5, rel=1e-6)


def test_norms_of_coarse_gradients_are_taken_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("climafuse.training.rounding.PIECE", 70)
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16)) for shape in [(9, 40), (3,), ()]]
    for weight in weights:
        weight.grad = torch.randn(weight.shape).bfloat16()
    norms, total = gradient_norms({"one": weights[:1], "others": weights[1:]})
    exact = [float(weight.grad.double().square().sum()) for weight in weights]
    assert norms.tolist() == pytest.approx([exact[0] ** 0.5, (exact[1] + exact[2]) ** 0.5], rel=1e-6)
    assert float(total) == pytest.approx(sum(exact) ** 0.5, rel=1e-6)


def test_pages_of_weights_that_are_copied_are_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[int] = []
    monkeypatch.setattr(MappedFiles, "let_go", lambda self, tensor: gone.append(tensor.data_ptr()))
    given = tiny_model("llama")
    own = with_trained_weights(given, {"last": 1})
    places = {name: parameter.data_ptr() for name, parameter in given.named_parameters()}
    assert sorted(gone) == sorted(places[name] for name in names_of(own))
    assert not {own.get_parameter(name).data_ptr() for name in names_of(own)} & set(gone)
