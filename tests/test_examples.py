"""Every example runs from its command line to its result, on real fields with a tiny random backbone."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoProcessor

from climafuse import parse, read_pairs
from climafuse.backbones import QuantizedLinear
from climafuse.data.window import Window
from climafuse.encoders import Channels
from climafuse.errors import ClimateFileError
from climafuse.facts import Fact
from climafuse.manifest import MANIFEST_NAME
from climafuse.registry import FUSIONS
from climafuse.training import load_config
from climafuse.training.pipeline import run
from tests.encoders.windows import CHANNELS, inputs, padded
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
LLAMAS = ("llama3_gated_addition", "llama3_cross_attention")


def _blocks(document: str, language: str) -> list[str]:
    """Code blocks of a document."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


def example(name: str) -> ModuleType:
    """The module of an example, imported once: a class registered twice would be two classes."""
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_every_example_is_tested_and_tells_how_to_run_it() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {
        *(
            "quickstart",
            "own_pairs",
            "own_fusion",
            "own_encoder",
            "own_product",
            "own_model",
            "caught",
            "merra2",
            "enso",
        ),
        *LLAMAS,
    }
    for name in names:
        assert f"python examples/{name}.py" in example(name).__doc__


def test_quickstart_trains_where_there_is_no_model_then_answers(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quickstart = example("quickstart")
    run = [f"--output={tmp_path}/run", f"--backbone={backbone}", "--steps=2"]
    checked = quickstart.main([f"--model={tmp_path}/none", *run])
    assert "training one for 2 steps" in capsys.readouterr().out
    assert [question for question, _, _ in checked] == list(quickstart.QUESTIONS)
    assert not any(right for _, _, right in checked)  # two steps on random weights

    # The session of the README, with the same model. By xarray the weighted mean there is 10.576 °C.
    names: dict[str, Any] = {}
    session, auto_classes = _blocks("README.md", "python")
    exec(session.replace("runs/demo", f"{tmp_path}/run"), names)
    assert re.search(r"\[Fact\(kind='mean', variable='t2m', value=10\.57", capsys.readouterr().out)

    exec(auto_classes.replace("runs/demo/model", f"{tmp_path}/run/model"), names)
    assert capsys.readouterr().out == f"[{names['answer']!r}]\n"

    # Where there is a model, it is asked, and what it says is checked against the fields.
    # By xarray, means over 8°S to 7°N, 172°E to 173°W: 27.3 °C and 1006.9 hPa.
    said = {"temperature": "Mean temperature 27 °C.", "pressure": "Mean pressure 1005 hPa."}
    monkeypatch.setattr(
        "climafuse.model.inference.Reader.answer",
        lambda self, windows, prompts, *, index: [said.get(p.split()[-1].rstrip("?"), "") for p in prompts],
    )
    place = ["--location=0,180", "--time=2026-03-31T15:00"]
    answers = quickstart.main([f"--model={tmp_path}/run/model", *place])
    assert "training" not in capsys.readouterr().out
    facts = [parse(text, question) for question, text, _ in answers]
    assert facts == [[Fact("mean", "t2m", 27.0)], [Fact("mean", "msl", 1005.0)], [], []]
    assert [right for _, _, right in answers] == [True, False, False, False]


@pytest.mark.slow
def test_models_that_do_not_look_are_caught(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caught = example("caught")
    settings = [
        f"backbone.name={backbone}",
        f"output.directory={tmp_path}/run",
        "training.steps=2",
        "data.train_windows=8",
        "data.validation_windows=4",
        "data.test_windows=12",
        "data.box_degrees=[8, 8]",
    ]
    folder = Path(run(load_config(None, settings))["model"])

    assert caught.main([str(tmp_path / "run"), f"--output={tmp_path}/out", "--steps=2"]) == 3
    printed = capsys.readouterr().out
    assert re.findall(r"^(\w+): not grounded", printed, re.MULTILINE) == ["cut", "memory", "leak"]
    leaked = list(read_pairs(tmp_path / "out" / "leak" / "pairs.jsonl"))
    assert all(pair.prompt.endswith(pair.text) and pair.facts for pair in leaked)

    # Only gates were closed, and the fields reach nothing then: answers are those without any.
    before, after = (
        load_file(place / "model.safetensors") for place in (folder, tmp_path / "out" / "cut" / "model")
    )
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(after[name], torch.zeros_like(weight) if name.endswith("gate") else weight), name
    assert any(name.endswith("gate") and weight.any() for name, weight in before.items())
    figures = json.loads((tmp_path / "out" / "cut" / "evaluation" / "evaluation.json").read_text())
    assert figures["data"]["unseen"] is True  # closed gates have learned from the same times
    losses = {
        row["token_loss"] for name, row in figures["conditions"].items() if name in ("true", "shuffled")
    }
    assert len(losses) == 1


@pytest.mark.parametrize(
    ("last", "code"), [(False, 3), (None, 1), (True, 1)], ids=["caught", "cannot be told", "grounded"]
)
def test_only_who_is_called_not_grounded_is_caught(
    last: bool | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught = example("caught")
    verdicts = iter([False, False, last])

    def evaluated(*_: object, **__: object) -> SimpleNamespace:
        verdict = {"grounded": next(verdicts), "words": "", "checks": []}
        return SimpleNamespace(record={"verdict": verdict, "fact_f1": {}})

    monkeypatch.setattr(caught, "evaluate_checkpoint", evaluated)
    monkeypatch.setattr(caught, "load_config", lambda path: None)
    monkeypatch.setattr(caught, "model_folder", lambda run: run)
    for name in ("cut", "memory", "leak"):
        monkeypatch.setattr(caught, name, lambda *_: tmp_path)
    assert caught.main([str(tmp_path)]) == code


@pytest.mark.slow
def test_own_pairs_are_written_trained_on_and_asked_for(backbone: str, tmp_path: Path) -> None:
    own_pairs = example("own_pairs")
    arguments = [f"--output={tmp_path}", f"--backbone={backbone}", "--steps=3", "--windows=12"]
    result = own_pairs.main(arguments)
    pairs = read_pairs(result["pairs"])
    texts = [pair.text for pair in pairs]
    assert texts[:8] == [row["text"] for row in own_pairs.BULLETINS]
    assert len(pairs) == 8 + 3 * (12 + 4)
    assert (pairs[0].place.latitude, pairs[0].place.height) == (pytest.approx(48.85, abs=0.1), 16.0)
    trained = result["trained"]
    # Two of the eight are about validation times.
    assert trained["train"]["texts"] == 6 + 3 * 12
    assert trained["validation"]["texts"] == 2 + 3 * 4
    assert (Path(trained["model"]) / MANIFEST_NAME).is_file()
    assert len(result["texts"]) == 2
    assert result["score"].num_referenced == 1


@pytest.fixture(scope="module")
def granules(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return list(example("merra2").write_granules(tmp_path_factory.mktemp("granules")))


@pytest.mark.slow
def test_merra2_from_granules_to_a_checked_answer(
    backbone: str,
    granules: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merra2 = example("merra2")
    seen: list[float] = []

    def answer(reader: object, windows: list[Window], prompts: list[str], *, index: list[int]) -> list[str]:
        weights = np.cos(np.deg2rad(windows[0].latitude))[:, None] * np.ones(len(windows[0].longitude))
        seen.append(float(np.average(windows[0].field("t2m")[-1], weights=weights)) - 273.15)
        return [f"Mean temperature {seen[-1]:.0f} °C."]

    monkeypatch.setattr("climafuse.model.inference.Reader.answer", answer)
    arguments = [f"--output={tmp_path}/out", f"--backbone={backbone}", "--steps=2", "--windows=12"]
    result = merra2.main([*map(str, granules), *arguments])
    said = capsys.readouterr().out
    assert "no files given" not in said
    assert f"in the fields: {seen[0]:.1f} °C; the answer is right" in said
    assert (result["files"], result["right"]) == (granules, True)
    assert result["store"].variables == merra2.VARIABLES
    assert (Path(result["trained"]["model"]) / MANIFEST_NAME).is_file()
    assert result["map"].stat().st_size > 10_000


def test_merra2_without_files_says_what_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    merra2 = example("merra2")
    monkeypatch.setattr(merra2, "write_granules", lambda folder: [folder / "a.nc4"])
    with pytest.raises(ClimateFileError, match=r"granules/a.nc4"):
        merra2.main([f"--output={tmp_path}"])
    assert "no files given: wrote the bundled ERA5 sample in MERRA-2's layout" in capsys.readouterr().out


def test_the_granules_of_the_example_are_the_sample_in_the_layout_of_merra2(granules: list[Path]) -> None:
    import xarray as xr

    from climafuse import open_climate, sample_path

    names = [path.name for path in granules]
    assert names[1] == "MERRA2_400.tavg1_2d_slv_Nx.20260325.nc4"
    assert len(granules) == 2 * 8  # from 23:30 of the day before the first to 31 March
    with xr.open_dataset(granules[1], decode_cf=False) as stored:
        assert {"T2M", "U10M", "V10M", "SLP"} == set(stored.data_vars)
        assert stored["T2M"].dims == ("time", "lat", "lon")
        assert (stored["lon"].values[0], stored["lon"].values[-1]) == (-180, 179)
        assert stored["T2M"].attrs["_FillValue"] == np.float32(1e15)
        assert stored["time"].attrs["units"].endswith(":30:00")

    # As open_climate reads both: the same fields half an hour earlier, and precipitation as a rate.
    sample, opened = open_climate(sample_path("era5")).load(), open_climate(granules).load()
    assert (sample["time"].values - opened["time"].values == np.timedelta64(30, "m")).all()
    np.testing.assert_array_equal(opened["longitude"], sample["longitude"])
    for name in ("t2m", "u10", "v10", "msl"):
        np.testing.assert_array_equal(opened[name], sample[name])
    np.testing.assert_allclose(opened["tprate"] * 3.6, sample["tp"], rtol=1e-6)  # kg m-2 s-1 · 3600 s / 1000
    assert opened["t2m"].attrs["cell_methods"].startswith("time: mean")


def test_what_the_bulletins_say_is_true() -> None:
    # Nobody should learn from texts that the fields contradict: each number and wind within the tolerances.
    from climafuse import Box, extract, find_place, open_climate, sample_path, select_window
    from climafuse.facts import agrees

    own_pairs = example("own_pairs")
    fields = open_climate(sample_path("era5"), variables=["t2m", "ws10", "u10", "v10"])
    for row in own_pairs.BULLETINS:
        place = find_place(row["place"])
        window = select_window(fields, time=row["time"], box=Box(place.latitude, place.longitude, 16, 16))
        exact = {fact.variable: fact for fact in extract(window, kinds=["mean", "direction"])}
        weather, wind = row["text"].split(" on average, a ")
        degrees = float(weather.split(": ")[1].split(" degree")[0].replace("minus ", "-"))
        direction, speed = wind.split("erly of ")
        for stated in (
            Fact("mean", "t2m", degrees),
            Fact("mean", "ws10", float(speed.split(" ")[0])),
            Fact("direction", "wd10", direction),
        ):
            assert agrees(stated, exact[stated.variable]), (row, exact[stated.variable])


@pytest.fixture(scope="module")
def nino34() -> tuple[np.ndarray, np.ndarray]:
    """Niño 3.4 index of all months from 1979 by xarray, against 1979 to 2004; the state as -1, 0 or 1."""
    from climafuse import open_climate, sample_path

    field = open_climate(sample_path("sst_anomaly"))["sst_anomaly"].load().astype(np.float64)
    normal = field.sel(time=slice("1979", "2004")).groupby("time.month").mean()
    region = (field.groupby("time.month") - normal).sel(latitude=slice(-5, 5), longitude=slice(190, 240))
    index = region.weighted(np.cos(np.deg2rad(region.latitude))).mean(("latitude", "longitude")).values
    return index, np.where(index >= 0.5, 1, np.where(index <= -0.5, -1, 0))


@pytest.mark.slow
def test_enso_is_trained_on_early_years_and_asked_about_every_late_month(
    backbone: str, tmp_path: Path, nino34: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["data.train_windows=20", "data.validation_windows=6", "training.windows_per_step=4"]
    settings = [word for setting in small for word in ("--set", setting)]
    found = example("enso").main([f"--output={tmp_path}", f"--backbone={backbone}", "--steps=2", *settings])
    assert found["months"] == 84
    assert (
        found["right"]["model"] == found["confusion"]["neutral"].get("neutral", 0) == 0
    )  # two steps, random weights
    _, state = nino34
    test = slice(28 * 12, 35 * 12)
    before, last = state[28 * 12 - 1 : 35 * 12 - 1], state[26 * 12 - 1]
    assert found["right"]["state of the month before"] == (before == state[test]).sum()
    assert found["right"]["state of the last training month"] == (last == state[test]).sum()
    # Of the 312 training months most are neutral.
    assert found["right"]["most frequent state of training"] == (state[test] == 0).sum()
    assert "state of the month before                           69   82.1%" in capsys.readouterr().out

    from climafuse.model.inference import load_model

    config = load_model(tmp_path / "run" / "model").model.config
    assert config.statistics["provenance"]["anomalies"] == "month"
    assert config.statistics["provenance"]["last_time"] == "2004-12-01T00:00"
    assert config.box_size == (11, 52)


def test_enso_tells_who_reads_from_who_remembers(nino34: tuple[np.ndarray, np.ndarray]) -> None:
    from climafuse.training import load_config
    from climafuse.training.dataset import open_store

    enso = example("enso")
    store = open_store(load_config(None, enso.SETTINGS))
    index, state = nino34
    names = {-1: "La Niña", 0: "neutral", 1: "El Niño"}

    class Remembers:
        def value(self, window: Window) -> float:
            months = window.time[-1].astype("datetime64[M]").astype(int) - 9 * 12
            return float(index[months])

        def answer(self, windows: list[Window], prompts: list[str]) -> list[str]:
            values = [self.value(window) for window in windows]
            states = [names[1 if v >= 0.5 else -1 if v <= -0.5 else 0] for v in values]
            said = {
                "What is the ENSO state?": "ENSO state: {}.",
                "In which state is the tropical Pacific?": "The tropical Pacific is in {} state.",
                "Which ENSO phase do the fields show?": "The ENSO phase is neutral.",
                "Is there El Niño, La Niña or neither?": "{}, they say.",
                "What is the Niño 3.4 index?": "Niño 3.4 index {:+.1f} °C.",
            }
            given = values if "index" in prompts[0] else states
            return [said[prompt].format(value) for prompt, value in zip(prompts, given, strict=True)]

    class Reads(Remembers):
        def value(self, window: Window) -> float:
            weights = np.cos(np.deg2rad(window.latitude))[:, None] * np.ones(len(window.longitude))
            return float(np.average(window.field("sst_anomaly")[-1], weights=weights))

    true = "model"
    swapped, against_these = (f"model, values of another month{which}" for which in ("", ", against these"))
    read, remembered = (enso.evaluate(reader(), store) for reader in (Reads, Remembers))
    for found in (read, remembered):
        assert found["right"][true] == 84
        assert found["index_error"]["model"] == pytest.approx(0.025, abs=0.005)  # rounded to tenths
        late = index[28 * 12 :]
        assert found["index_error"]["normal"] == pytest.approx(np.abs(late).mean(), abs=1e-4)
        assert found["effective_months"] < 10
        # Fields of the region stay alike for four and a half months: seven years hold nine blocks of nine.
        assert found["effective_blocks"] == pytest.approx(9, abs=0.5)
        assert found["interval"] is None
        assert found["wrong"] == []
        assert [*found["asked_otherwise"].values()] == [
            84,
            0,
            37,
        ]  # the second states nothing, the third is guessing
    assert read["right"][against_these] == remembered["right"][swapped] == 84
    assert read["right"][swapped] == remembered["right"][against_these] < 42
    late_states = state[28 * 12 :]
    assert read["confusion"] == {names[s]: {names[s]: (late_states == s).sum()} for s in (-1, 0, 1)}


def test_own_fusion_is_the_bare_backbone_until_it_is_trained(backbone: str, tmp_path: Path) -> None:
    own_fusion = example("own_fusion")
    arguments = [f"--output={tmp_path}", f"--backbone={backbone}", "--steps=30", "--windows=32"]
    result = own_fusion.main(arguments)
    assert result["bare_equal"]
    assert np.mean(result["losses"][-5:]) < result["losses"][0] - 0.5
    assert FUSIONS.get("bilinear") is own_fusion.BilinearFusion

    # The saved model is found by the registered name, and its gates have opened.
    from climafuse.model.inference import load_model

    model = load_model(result["model"]).model
    assert model.config.fusion == "bilinear"
    assert isinstance(model.fusions["output"], own_fusion.BilinearFusion)
    assert model.gate_values()["output.gate"] > 0.01


def test_own_fusion_keeps_the_contract_of_fusions() -> None:
    from tests.fusion.test_fusion import C, D, climate, text

    torch.manual_seed(0)
    fusion = example("own_fusion").BilinearFusion(D, C)
    assert torch.equal(fusion(text(), climate()), text())
    torch.nn.init.normal_(fusion.gate)
    fused = fusion(text(), climate())
    assert (fused - text())[:2].abs().amax(dim=(1, 2)).min() > 0.1
    assert torch.equal(fused[2], text()[2])  # a row without a valid token
    hidden = climate()
    hidden.states[1, [0, 4]] = 1e6  # tokens that are not valid
    assert torch.equal(fusion(text(), hidden), fused)


@pytest.mark.slow
def test_own_encoder_is_trained_saved_and_loaded(backbone: str, tmp_path: Path) -> None:
    result = example("own_encoder").main(
        [f"--output={tmp_path}/model", f"--backbone={backbone}", "--steps=15", "--windows=32"]
    )
    before, after = result["losses"]
    assert after < before - 0.3
    assert result["answers"][0] == result["answers"][1]
    # The encoder itself has learned, not only the fusion behind it.
    torch.manual_seed(0)
    untrained = example("own_encoder").ZonalMeanEncoder(Channels(("",) * 6, (1.0,) * 6, (0.0,) * 6), width=64)
    weights = load_file(result["model"] / "model.safetensors")
    assert (weights["encoder.values.weight"] - untrained.values.weight).abs().max() > 1e-4
    names = {path.name for path in result["model"].iterdir()}
    assert names == {"README.md", "config.json", "generation_config.json", "model.safetensors"}


def test_own_encoder_keeps_the_contract_of_encoders() -> None:
    torch.manual_seed(0)
    encoder = example("own_encoder").ZonalMeanEncoder(CHANNELS, width=16)
    given = inputs(missing=0.3)
    tokens = encoder(**given)
    assert tokens.states.shape == (2, 2 * 7, 16)
    assert len(tokens.labels) == 14
    # Padding and what stands under the mask change nothing.
    larger = encoder(**padded(given, steps=2, height=9, width=12))
    kept = larger.mask.view(2, 2, 9)
    assert not kept[:, :, 7:].any()
    states = larger.states.view(2, 2, 9, 16)[:, :, :7].reshape(2, 14, 16)
    torch.testing.assert_close(states, tokens.states)
    garbage = dict(given, fields=given["fields"].masked_fill(~given["mask"], torch.nan))
    torch.testing.assert_close(encoder(**garbage).states, tokens.states)


@pytest.mark.slow
@pytest.mark.parametrize(
    "few_bits", [[], pytest.param(["--quantization=int8"], marks=pytest.mark.slow)], ids=["plain", "int8"]
)
def test_llama_with_gated_addition_is_composed_trained_and_asked(
    backbone: str, tmp_path: Path, few_bits: list[str]
) -> None:
    run = [f"--output={tmp_path}", f"--backbone={backbone}", "--steps=8", "--windows=32", *few_bits]
    result = example("llama3_gated_addition").main(run)
    assert result["bare_equal"]
    assert result["losses"][-1] < result["losses"][0] - 0.1
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.fusion == "gated_addition"
    layer = model.backbone.model.layers[0].mlp.up_proj
    assert isinstance(layer, QuantizedLinear) == bool(few_bits)  # as saved, so loaded
    assert model.sites == (0, 1, 2, 3)  # of the four blocks of the tiny Llama; of 32, the last four
    assert all(value > 0 for value in model.gate_values().values())
    assert AutoProcessor.from_pretrained(tmp_path).feature_extractor.variables == model.config.variables


@pytest.mark.slow
@pytest.mark.parametrize(
    "lora",
    [
        [],
        pytest.param(["--lora=2"], marks=pytest.mark.slow),
        pytest.param(["--lora=2", "--quantization=int4"], marks=pytest.mark.slow),
    ],
    ids=["plain", "lora", "lora-int4"],
)
def test_llama_with_cross_attention_is_trained_from_a_configuration_and_asked(
    backbone: str, tmp_path: Path, lora: list[str]
) -> None:
    run = [f"--output={tmp_path}", f"--backbone={backbone}", "--steps=4", "--windows=16", *lora]
    result = example("llama3_cross_attention").main(run)
    assert result["losses"][-1] < result["losses"][0] - 0.05
    model = result["reader"].model
    assert model.sites == (0, 2)
    adapters = [tensor for name, tensor in model.trainable_state_dict().items() if ".lora_B." in name]
    assert len(adapters) == (28 if lora else 0)
    assert all(tensor.any() for tensor in adapters)


@pytest.mark.parametrize("name", LLAMAS)
def test_without_the_weights_the_examples_say_how_to_get_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="accept its licence") as caught:
        example(name).main([f"--output={tmp_path}/run", "--windows=2"])
    for words in ("meta-llama/Meta-Llama-3-8B", "hf auth login", "HF_HOME", "--backbone"):
        assert words in str(caught.value)
    assert "8.03 billion parameters of two bytes (bfloat16), 16.1 GB" in example(name).__doc__


def test_the_weights_of_llama_3_8b_are_as_large_as_the_examples_say() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8,
    )  # fmt: skip
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters())
    assert parameters == 8_030_261_248
    assert round(2 * parameters / 1e9, 1) == 16.1


def test_own_product_reads_its_files_like_those_of_others(tmp_path: Path) -> None:
    from climafuse import open_climate, sample_path

    result = example("own_product").main([f"--output={tmp_path}"])
    fields = result["fields"]
    assert list(fields.data_vars) == ["t2m", "msl", "tp", "ws10"]
    assert fields["tp"].attrs["cell_methods"] == "time: sum (interval: 1 hour)"
    reference = open_climate(sample_path("era5")).sel(latitude=slice(35, 65), longitude=slice(0, 30))
    for name in ("msl", "tp"):
        np.testing.assert_allclose(fields[name].values, reference[name].values, rtol=3e-7)
    assert np.isnan(fields["t2m"].values[:, 0, 0]).all()
    np.testing.assert_allclose(fields["t2m"].values[:, 1:], reference["t2m"].values[:, 1:], atol=1e-4)
    assert [fact.variable for fact in result["facts"]] == ["t2m", "msl", "ws10"]
    # In files of others the name means what it did.
    from climafuse.data import find_variable

    assert find_variable("q").standard_name == "specific_humidity"


def _commands() -> list[str]:
    lines = "\n".join(_blocks("README.md", "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("climafuse ")]


@pytest.mark.parametrize("line", _commands())
def test_every_command_of_the_readme_parses(line: str) -> None:
    # Commands, options and the types of their values; nothing is run.
    import typer

    from climafuse.cli.app import app

    command, words = typer.main.get_command(app), shlex.split(line, comments=True)[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("climafuse", words)


def test_settings_of_the_readme_are_settings() -> None:
    from climafuse.training import load_config

    words = [shlex.split(line, comments=True) for line in _commands()]
    settings = [line[n + 1] for line in words for n, word in enumerate(line) if word == "--set"]
    assert len(settings) >= 2
    load_config(None, settings)


def test_what_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:climafuse|tests|examples|scripts|\.ci)/[\w./]*)`", text))
    assert len(paths) > 10
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    compile(_blocks("CONTRIBUTING.md", "python")[0], "CONTRIBUTING.md", "exec")


@pytest.mark.slow
def test_own_model_is_told_of_the_fields_and_judged(
    backbone: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_model = example("own_model")
    # Nothing that random weights say is a fact, however long.
    monkeypatch.setattr(own_model, "PromptedModel", partial(own_model.PromptedModel, max_new_tokens=6))
    figures = own_model.main(["--windows=12", f"--backbone={backbone}"])
    assert figures["num_windows"] == 12
    assert figures["fact_f1"]["oracle"] == 1.0
    assert not figures["verdict"]["grounded"]  # a tiny random model
    assert figures["verdict"]["words"] in capsys.readouterr().out
    # What it is told is what the fields say.
    rng = np.random.default_rng(0)
    time = np.datetime64("2026-03-25T12:00") + np.arange(2) * np.timedelta64(8, "h")
    fields = 280 + rng.normal(size=(2, 1, 3, 3)).astype(np.float32)
    fields[-1] += 285.15 - fields[-1].mean()
    window = Window(fields, ("t2m",), time, np.array([-1.0, 0.0, 1.0]), np.array([5.0, 6.0, 7.0]))
    assert "mean temperature 12 °C" in own_model.describe(window)
