"""The model card says what the model is, and what it is not."""

from __future__ import annotations

import re

import yaml
from huggingface_hub import ModelCard

from climafuse.model.card import add_grounding, grounding_section, model_card
from tests.model.build import make_model


def test_card_of_a_random_backbone():
    config = make_model("llama", history=2, box_degrees=16.0).config
    card = model_card(config, {"Trained on": "era5: 12 texts", "License of the data": "CC-BY-4.0"})
    _, metadata, body = card.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "library_name": "climafuse",
        "pipeline_tag": "text-generation",
        "license": "unknown",
        "tags": ["climate", "multimodal"],
    }
    for words in (
        "tiny-llama (LlamaForCausalLM",
        "random weights, for capacity only",
        config.backbone["content_hash"],
        f"{config.backbone['num_parameters']:,} parameters",
        "Fusion: cross_attention at [1, 'output']",
        "Encoder: grid_transformer, windows of 2 times, boxes of 16°",
        "Variables: t2m, msl, ws10",
        "- Trained on: era5: 12 texts",
        "- License of the data: CC-BY-4.0",
        "not forecasts",
    ):
        assert words in body


def test_a_pretrained_backbone_is_called_so():
    config = make_model("llama").config
    config.backbone = {**config.backbone, "random_weights": False}
    card = model_card(config, {})
    assert "pretrained" in card
    assert "random weights" not in card


def test_statistics_are_told_with_their_times():
    config = make_model("llama").config
    config.statistics = {
        **config.statistics,
        "provenance": {"source": "era5.nc", "first_time": "2026-03-25", "last_time": "2026-03-28"},
    }
    assert "- Statistics from: era5.nc, 2026-03-25 to 2026-03-28" in model_card(config, {})
    config.statistics["provenance"]["anomalies"] = "month"
    config.box_degrees = (11.0, 52.0)
    card = model_card(config, {})
    assert "- Anomalies against the same times, by month" in card
    assert "boxes of 11 by 52°" in card


def test_a_model_of_the_hub_is_the_base_model_and_a_name_of_the_catalog_is_not():
    def metadata(id, revision, **options):
        config = make_model("llama").config
        config.backbone = {**config.backbone, "id": id, "revision": revision}
        card = model_card(config, {}, **options)
        return yaml.safe_load(card.split("---\n", 2)[1]), card

    found, _ = metadata("HuggingFaceTB/SmolLM2-135M", "a1b2", license="apache-2.0")
    assert found["base_model"] == "HuggingFaceTB/SmolLM2-135M"
    assert found["base_model_relation"] == "adapter"
    assert found["license"] == "apache-2.0"
    for id, revision in (("smollm2-135m-instruct-q4_1", "1.0"), ("/home/me/llama", None), ("a/b", None)):
        found, card = metadata(id, revision)
        assert "base_model" not in found
        assert "/home/me" not in card
    assert "License of the backbone: Apache-2.0" in metadata("smollm2-135m-instruct-q4_1", "1.0")[1]


def test_the_hub_reads_the_metadata(tmp_path):
    # Oracle: the reader of huggingface_hub.
    card = ModelCard(model_card(make_model("llama", lora={"rank": 2}).config, {}))
    assert card.data.library_name == "climafuse"
    assert card.data.pipeline_tag == "text-generation"
    assert "lora" in card.data.tags
    assert "LoRA: rank 2" in card.text


def test_what_the_card_shows_is_python():
    card = model_card(make_model("llama").config, {})
    compile(card.split("```python\n")[1].split("```")[0], "README.md", "exec")


# ---- The grounding table -------------------------------------------------------------------------------------

EVALUATION = {
    "date": "2026-11-22T15:30:00+00:00",
    "data": {"source": "era5", "num_questions": 546, "num_windows": 96, "num_test_times": 3},
    "fact_f1": {"true": 0.921, "shuffled": 0.299},
    "conditions": {
        "true": {"label": "model, true field", "f1": 0.921, "interval": [0.9, 0.94], "token_loss": 0.25},
        "shuffled": {"f1": 0.299, "interval": None, "token_loss": None},
        "blank": {"f1": None},
    },
    "intervals": {"claimed": False, "why": "too few blocks"},
    "verdict": {"grounded": True},
}


def test_the_grounding_table_tells_every_condition_that_was_measured():
    section = grounding_section(EVALUATION)
    assert (
        "**Grounded.** Measured with `climafuse evaluate` on 2026-11-22T15:30:00+00:00, fields of era5"
        in section
    )
    assert "546 questions, 96 windows, 3 times" in section
    assert "| model, true field | 0.921 | 0.900 to 0.940 | 0.250 |" in section
    assert "| shuffled | 0.299 | – | – |" in section
    assert "blank" not in section
    assert "No interval is claimed. too few blocks" in section
    assert "**Not grounded.**" in grounding_section(EVALUATION | {"verdict": {"grounded": False}})
    assert "No verdict." in grounding_section({"verdict": {"grounded": [1]}})
    words = "cannot be told: too few samples (not measured: true - oracle)"
    assert f"No verdict. The verdict in full: {words}." in grounding_section(
        EVALUATION | {"verdict": {"grounded": None, "words": words}}
    )


def test_a_card_names_no_place_of_the_machine():
    section = grounding_section(EVALUATION | {"data": {"source": "/home/somebody/secret/fields.nc"}})
    assert "fields of fields.nc" in section
    assert "somebody" not in section


def test_a_card_holds_one_grounding_table_the_newest(tmp_path):
    path = tmp_path / "README.md"
    card = model_card(make_model("llama").config, {})
    path.write_text(card)
    assert add_grounding(tmp_path, EVALUATION) == path
    first = path.read_text()
    assert first.index("0.921") < first.index("```python")  # what it is worth, then how it is used
    add_grounding(tmp_path, EVALUATION)
    assert path.read_text() == first
    add_grounding(tmp_path, EVALUATION | {"conditions": {"true": {"f1": 0.125}}})
    second = path.read_text()
    assert "| true | 0.125 |" in second
    assert "0.921" not in second
    # Apart from the section, the card is what it was; the hub still reads its metadata.
    begin, end = second.index("<!-- grounding: begin"), second.index("<!-- grounding: end -->")
    assert second[:begin] + second[end + len("<!-- grounding: end -->\n\n") :] == card
    assert ModelCard(second).data.library_name == "climafuse"


def test_no_text_of_an_evaluation_is_markup():
    ill = "a | b\n\n# c <script>alert(1)</script> <!-- grounding: end --> [d](http://e.test) `f` *g* \u202e"
    section = grounding_section(
        {"date": ill, "data": {"source": ill}, "conditions": {ill: {"label": ill, "f1": 0.5}},
         "intervals": {"claimed": False, "why": ill}}
    )  # fmt: skip
    told = section.replace("`climafuse evaluate`", "").replace("`climafuse report`", "")
    assert not re.search(r"<|(?<!\\)[`*_\[\]]|\u202e", told.replace("**", "").replace("No verdict.", ""))
    assert [line for line in told.splitlines() if line.startswith("#")] == [
        "## Do the words come from the fields?"
    ]
    (row,) = [line for line in section.splitlines() if "0.500" in line]
    assert len([column for column in row.replace("\\|", "").split("|") if column.strip()]) == 4
