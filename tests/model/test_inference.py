"""Inference: one answer for one question, whoever else is asked, and a clear word about what is not there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from climafuse.climate_tokens import ClimateTokens
from climafuse.errors import (
    ConfigurationError,
    MissingValuesError,
    OutOfRangeError,
    PlaceError,
    UsageError,
    VariableNotFoundError,
)
from climafuse.facts import asked
from climafuse.model.inference import Reader, answer, attended_tokens, placed
from tests.model.build import make_model, make_processor, random_window

TIMES = np.datetime64("2026-03-01", "ns") + np.arange(4) * np.timedelta64(6, "h")


def _reader(fusion="cross_attention", *, max_new_tokens=6, **options):
    model = make_model(fusion=fusion, gates=2.0, **options)
    return Reader(model, make_processor(model), max_new_tokens)


@pytest.fixture(scope="module")
def reader():
    return _reader(history=2, box_degrees=12.0)


def _dataset(**changes):
    """2° cells from 30 to 60°N, 350 to 10°E; temperature, pressure, wind speed."""
    latitude, longitude = np.arange(30.0, 61, 2), np.arange(-10.0, 11, 2)
    rng = np.random.default_rng(0)
    dims = ("time", "latitude", "longitude")
    shape = (4, len(latitude), len(longitude))
    fields = {
        "t2m": (dims, rng.normal(283, 8, shape).astype("float32"), {"units": "K"}),
        "msl": (dims, rng.normal(101300, 800, shape).astype("float32"), {"units": "Pa"}),
        "ws10": (dims, rng.gamma(2, 3, shape).astype("float32"), {"units": "m s-1"}),
    }
    return xr.Dataset(fields | changes, coords={"time": TIMES, "latitude": latitude, "longitude": longitude})


def test_an_answer_does_not_depend_on_the_company(reader):
    windows = [random_window(seed, steps=2) for seed in range(3)]
    prompts = ["Wind?", "What is the mean temperature over there?", "What is the wind speed?"]
    together = reader.answer(windows, prompts)
    assert together == [reader.answer([w], [p])[0] for w, p in zip(windows, prompts, strict=True)]
    assert together == reader.answer(windows[::-1], prompts, index=[2, 1, 0])
    assert len(set(together)) == 3


def test_an_answer_depends_on_the_fields(reader):
    answers = reader.answer([random_window(seed, steps=2) for seed in range(8)], ["Temperature?"] * 8)
    assert len(set(answers)) > 1


def test_an_answer_is_no_longer_than_asked_for(reader):
    window = random_window(0, steps=2)
    batch = reader.processor([window], ["Wind?"])
    generated = reader.model.generate(**batch, max_new_tokens=6, do_sample=False)
    prompt = batch["input_ids"].shape[1]
    for num_tokens in (2, 4):
        (text,) = Reader(reader.model, reader.processor, num_tokens).answer([window], ["Wind?"])
        assert [text] == reader.processor.decode_answers(generated[:, : prompt + num_tokens], prompt)


def test_asking_about_a_place(reader):
    found = answer(reader, _dataset(), time="2026-03-01T12:00", location="45,4", prompt="Wind?")
    # A box of 12° around 45°N 4°E: centers from 39 to 51 and from 358 to 10.
    assert found.window.latitude.tolist() == [40, 42, 44, 46, 48, 50]
    assert found.window.longitude.tolist() == [358, 0, 2, 4, 6, 8]
    assert found.window.time.tolist() == TIMES[1:3].astype("datetime64[s]").tolist()
    assert found.window.variables == ("t2m", "msl", "ws10")
    assert (found.place.latitude, found.place.longitude) == (45, 4)
    assert found.text == reader.answer([found.window], ["Wind?"])[0]
    assert found.attention is None


def test_without_a_prompt_it_is_asked_about_every_variable_one_by_one(reader):
    dataset = _dataset()
    dataset["msl"] = dataset["msl"].where(dataset["latitude"] > 99)
    found = answer(reader, dataset, time="2026-03-01T12:00", whole_grid=True)
    questions = [f"{question}?" for question in found.prompt.removesuffix("?").split("? ")]
    assert [asked(question)[:2] for question in questions] == [("mean", "t2m"), ("mean", "ws10")]
    assert found.text == " ".join(reader.answer([found.window] * 2, questions))


def test_asking_about_everywhere(reader):
    found = answer(reader, _dataset(), time="2026-03-01T06:00", whole_grid=True)
    assert found.place is None
    assert found.window.fields.shape == (2, 3, 16, 11)


def test_without_a_place_the_fields_must_be_about_as_large_as_the_boxes_of_training(reader):
    """The grid is 32° high and 22° wide, cells included; the boxes are 12°, so that at most 18° pass."""
    with pytest.raises(UsageError, match=r"fields of 32 by 22 degrees.*--location"):
        answer(reader, _dataset(), time="2026-03-01T12:00")
    part = _dataset().isel(latitude=slice(0, 9), longitude=slice(0, 9))  # 18° by 18°
    assert answer(reader, part, time="2026-03-01T12:00", prompt="Wind?").place is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"time": "2026-03-02T00:00"}, OutOfRangeError),
        ({"time": "2026-03-01T07:00"}, OutOfRangeError),  # never the nearest
        ({"time": "2026-03-01T00:00"}, OutOfRangeError),  # its history is not there
        ({"time": "2026-03-01T12:00", "location": "-30,100"}, OutOfRangeError),
        ({"time": "2026-03-01T12:00", "location": "Nowhere at All"}, PlaceError),
    ],
)
def test_what_is_not_there(reader, options, error):
    with pytest.raises(error):
        answer(reader, _dataset(), **options, whole_grid=True)


def test_fields_without_a_value_and_without_a_variable(reader):
    dataset = _dataset()
    with pytest.raises(VariableNotFoundError, match="msl"):
        answer(reader, dataset.drop_vars("msl"), time="2026-03-01T12:00", whole_grid=True)
    with pytest.raises(MissingValuesError):
        answer(reader, dataset.where(dataset["latitude"] > 99), time="2026-03-01T12:00", whole_grid=True)
    # Missing at the place asked about is missing, whatever there is elsewhere.
    with pytest.raises(MissingValuesError):
        answer(reader, dataset.where(dataset["latitude"] > 54), time="2026-03-01T12:00", location="36,0")
    # One variable of three is enough to be asked: what is missing can be said.
    dataset["t2m"] = dataset["t2m"].where(dataset["latitude"] > 99)
    assert answer(reader, dataset, time="2026-03-01T12:00", whole_grid=True).window.available() == (
        "msl",
        "ws10",
    )


def test_a_model_of_rebased_anomalies_is_shown_such(monkeypatch):
    # Trained on times 0 to 2, "all": what it is shown of time 3 is less the mean of these, in boxes of 8 by 12 degrees.
    from climafuse.data.anomalies import rebase
    from climafuse.data.normalization import compute_statistics, statistics_to_dict

    values = np.random.default_rng(3).normal(0.4, 1, (4, 16, 11)).astype("float32")
    dims = ("time", "latitude", "longitude")
    dataset = _dataset(sst_anomaly=(dims, values, {"units": "K"}))[["sst_anomaly"]]
    statistics = compute_statistics(rebase(dataset, np.arange(3), "all"), np.arange(3))
    reader = _reader(box_degrees=[8.0, 12.0], statistics=statistics)
    assert statistics_to_dict(statistics) == reader.model.config.statistics
    seen = []
    monkeypatch.setattr(
        Reader, "answer", lambda self, windows, prompts, *, index: seen.extend(windows) or [""] * len(prompts)
    )
    answer(reader, dataset, time=TIMES[3], location="45,0", prompt="What is the ENSO state?")
    (window,) = seen
    assert window.fields.shape == (1, 1, 4, 6)
    expected = (values[3] - values[:3].mean(axis=0))[6:10, 2:8]  # 41°N up to 49°N, 354°E up to 6°E
    np.testing.assert_allclose(window.fields[0, 0], expected, atol=1e-5)
    with pytest.raises(OutOfRangeError, match="fields that hold the 3 training times"):
        answer(
            reader,
            dataset.isel(time=[1, 2, 3]),
            time=TIMES[3],
            location="45,0",
            prompt="What is the ENSO state?",
        )
    with pytest.raises(UsageError, match="boxes of 8 by 12 degrees"):
        answer(reader, dataset, time=TIMES[3], prompt="What is the ENSO state?")
    reader.model.config.box_degrees = [8.0]
    with pytest.raises(ConfigurationError, match="box_degrees"):
        answer(reader, dataset, time=TIMES[3], location="45,0", prompt="What is the ENSO state?")


def test_attention_is_a_share_of_every_climate_token(reader):
    found = answer(reader, _dataset(), time="2026-03-01T12:00", location="45,4", attention=True)
    tokens, weights = attended_tokens(reader, found.window, found.prompt, found.text)
    assert weights.shape == (tokens.states.shape[1],)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-5)  # a mean of softmaxes
    latitude, longitude, on_map = found.attention
    assert len(latitude) == len(longitude) == len(on_map) > 0
    placed_ones = np.isfinite(latitude)
    assert placed_ones.any()
    assert not placed_ones.all()  # means are about the whole box
    assert (latitude[placed_ones] >= 40).all()
    assert (latitude[placed_ones] <= 50).all()
    assert on_map.sum() == pytest.approx(1, abs=1e-5)
    assert len(found.attended) == 5
    shares = [share for _, share in found.attended]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(weights.max())


def test_attention_is_that_of_the_answer_alone_and_moves_with_the_words(reader):
    window = random_window(0, steps=2)
    one, other = (attended_tokens(reader, window, "Wind?", text)[1] for text in ("It is -8 °C.", "calm"))
    assert not np.allclose(one, other)


def test_a_fusion_that_does_not_attend_has_no_attention():
    plain = _reader("gated_addition")
    assert attended_tokens(plain, random_window(0), "Wind?", "calm") is None
    found = answer(plain, _dataset(), time="2026-03-01T12:00", attention=True, whole_grid=True)
    assert found.attention is None
    assert found.attended == ()


def test_tokens_about_the_whole_box_have_no_place_on_the_map():
    nan = float("nan")
    tokens = ClimateTokens(
        torch.zeros(1, 3, 2),
        torch.ones(1, 3, dtype=torch.bool),
        latitude=torch.tensor([[50.0, nan, -10.0]]),
        longitude=torch.tensor([[-10.0, nan, 370.0]]),
        time=torch.zeros(1, 3),
    )
    latitude, longitude, weights = placed(tokens, np.array([0.5, 0.3, 0.2]))
    np.testing.assert_array_equal(latitude, [50, nan, -10])
    np.testing.assert_array_equal(longitude, [350, nan, 10])
    assert weights.tolist() == [0.5, 0.3, 0.2]
