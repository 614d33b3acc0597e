"""Asking about a time and a place, without a page: what is said, checked, drawn, and refused."""

from __future__ import annotations

import io
import shutil
import threading
import time as clock

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from scipy.ndimage import uniform_filter

from climafuse.data.window import Box, Window
from climafuse.errors import CheckpointError, OutOfRangeError, PlaceError, UsageError
from climafuse.facts import answer_to, extract
from climafuse.model.inference import Reader
from climafuse.report import inquiry as module
from climafuse.report.inquiry import LONGEST_PROMPT, Inquiry
from climafuse.report.locator import draw_locator, point_at
from climafuse.training.config import load_config
from climafuse.training.dataset import open_store
from tests.training.runs import write_climate

TIME, PLACE = "2026-03-09T12:00", "10,20"


@pytest.fixture(scope="module")
def run(finished_run):
    return finished_run / "run"


@pytest.fixture(scope="module")
def trained(run):
    return Inquiry.open(run)


@pytest.fixture
def saying(trained, monkeypatch):
    """The inquiry with a model that says what it is told to."""

    def say(text):
        monkeypatch.setattr(Reader, "answer", lambda self, windows, prompts, **_: [text for _ in prompts])
        return trained

    return say


def _mean(run, time=TIME):
    """Mean temperature in °C by hand: cells of the file whose centers lie in the box, weighted by the cosine."""
    with xr.open_dataset(run.parent / "fields.nc") as fields:
        box = fields["t2m"].sel(time=time, latitude=slice(-10, 29)).load()
        box = box.sel(longitude=[0, 10, 20, 30])
    return float(box.weighted(np.cos(np.deg2rad(box["latitude"]))).mean()) - 273.15


def test_the_test_times_of_the_run_are_asked_about(run, trained):
    store = open_store(load_config(run / "model" / "run.yaml"))
    steps = store.splits.valid_times("test", history=2)
    assert trained.fields.times() == [str(time)[:16] for time in store.time[steps].astype("datetime64[m]")]
    assert trained.beginning()[0] == trained.fields.times()[0]
    with pytest.raises(OutOfRangeError, match="time"):
        trained.window("2026-03-01T12:00", PLACE)  # a time of training


def test_other_fields_are_asked_about_at_all_their_times(run, trained, tmp_path):
    other = Inquiry.open(run, climate=str(write_climate(tmp_path / "other.nc", seed=3)))
    assert len(other.fields.times()) == 19  # 20, less the first: the model reads two together
    np.testing.assert_array_equal(
        other.window(TIME, PLACE).latitude, trained.window(trained.fields.times()[0], PLACE).latitude
    )
    same = Inquiry.open(run / "model", climate=str(run.parent / "fields.nc"))
    time = trained.fields.times()[-1]
    np.testing.assert_allclose(same.window(time, PLACE).fields, trained.window(time, PLACE).fields, rtol=1e-6)


def test_facts_are_checked_against_the_field(run, saying):
    time = saying("").fields.times()[-1]
    exact = _mean(run, time)
    for said, right in ((round(exact), True), (round(exact) + 9, False)):
        told = saying(f"Mean temperature {said} °C.").ask(time, PLACE, "What is the mean temperature?")
        (check,) = told.checks
        assert (check["fact"], check["said"], check["right"]) == ("mean temperature", f"{said} °C", right)
        assert check["field"] == f"{exact:.0f} °C"
        assert check["exact"] == f"{exact:.2f} °C"
        assert "15°S to 25°N, 5°W to 35°E" in told.where
        assert f"{time.replace('T', ' ')} UTC" in told.where


def test_what_cannot_be_checked_is_said_so(saying):
    time = saying("").fields.times()[0]
    assert saying("Hello there.").ask(time, PLACE, "Hello?").checks == ()
    # The fields hold no wind: a statement about it is neither right nor wrong.
    (check,) = saying("The wind speed averages 7 m/s.").ask(time, PLACE, "How strong is the wind?").checks
    assert (check["right"], check["field"], check["exact"]) == (None, None, None)


def test_pictures_tell_where_each_fact_comes_from(saying):
    inquiry = saying("Mean temperature 9 °C.")
    ask = inquiry.fields.times()[0], PLACE, "What is the mean temperature?"
    bare = inquiry.ask(*ask, explain=False)
    looked = inquiry.ask(*ask)
    needed = inquiry.ask(*ask, explain=False, occlude=True)
    assert [len(told.pictures) for told in (bare, looked, needed)] == [1, 2, 2]
    assert bare.attended == ()
    assert "looked" in looked.pictures[1].title
    assert "need" in needed.pictures[1].title
    assert sum(share for _, share in looked.attended) <= 1 + 1e-6
    for picture in looked.pictures:
        assert picture.content[:4] == b"RIFF"  # WebP
    two = saying("Mean temperature 9 °C. Mean pressure 1013 hPa.").ask(*ask)
    assert [check["fact"] for check in two.checks] == ["mean temperature", "mean pressure"]
    assert len(two.pictures) == 4
    assert "2 meter temperature" in two.pictures[0].alternative.lower().replace("2-meter", "2 meter")


def test_a_trained_model_answers(trained):
    told = trained.ask(trained.fields.times()[0], PLACE, "What is the mean temperature?")
    (expected,) = trained.reader.answer(
        [trained.window(trained.fields.times()[0], PLACE)], ["What is the mean temperature?"]
    )
    assert told.text == expected
    assert told.seconds > 0


def test_example_questions_are_about_what_the_fields_hold(trained):
    time = trained.fields.times()[0]
    questions = trained.examples(time, PLACE)
    assert questions == trained.examples(time, PLACE)
    assert len(questions) == 4  # mean, maximum, tendency; and one without an answer
    held = set(extract(trained.window(time, PLACE)))
    answered = [any(answer_to(question, fact) for fact in held) for question in questions]
    assert answered == [True, True, True, False]
    silent = Inquiry(trained.reader, trained.fields, kinds=["mean"], abstains=False)
    (only,) = silent.examples(time, PLACE)
    assert "temperature" in only or "pressure" in only or "warm" in only


@pytest.mark.parametrize(
    ("time", "place", "prompt", "error", "words"),
    [
        ("yesterday", PLACE, "Warm?", UsageError, "yesterday"),
        ("1999-01-01", PLACE, "Warm?", OutOfRangeError, "1999-01-01"),
        (None, "Nowherechester", "Warm?", PlaceError, "Nowherechester"),
        (None, "../../etc/passwd", "Warm?", PlaceError, "place"),
        (None, "", "Warm?", PlaceError, "place"),
        (None, PLACE, " \n", UsageError, "question"),
        (None, PLACE, "x" * (LONGEST_PROMPT + 1), UsageError, "501"),
        (None, "x" * (LONGEST_PROMPT + 1), "Warm?", UsageError, "501"),
        (None, PLACE, {"path": "/etc/passwd"}, UsageError, "dict"),
        (None, ["a"], "Warm?", UsageError, "list"),
    ],
)
def test_what_a_page_may_send_is_refused_in_one_line(trained, time, place, prompt, error, words):
    with pytest.raises(error) as caught:
        trained.ask(trained.fields.times()[0] if time is None else time, place, prompt)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_its_run_needs_fields(run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "model")
    for name in ("run.yaml", "manifest.json"):
        (tmp_path / "model" / name).unlink()
    with pytest.raises(CheckpointError, match="--climate"):
        Inquiry.open(tmp_path / "model")
    assert Inquiry.open(tmp_path / "model", climate=str(run.parent / "fields.nc")).kinds is None


def test_one_answer_at_a_time(trained, monkeypatch):
    inside, most = [], []

    def answer(self, windows, prompts, **_):
        inside.append(1)
        most.append(len(inside))
        clock.sleep(0.02)
        inside.pop()
        return ["Yes."]

    monkeypatch.setattr(Reader, "answer", answer)
    monkeypatch.setattr(module, "field_picture", lambda *_: None)
    ask = trained.fields.times()[0], PLACE, "Warm?"
    threads = [threading.Thread(target=trained.ask, args=ask, kwargs={"explain": False}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


# ---- The map to choose a place on -----------------------------------------------------------------------------------


GRIDS = {
    "globe": (np.arange(-89.5, 90), np.arange(0.5, 360), (-180, 180, -90, 90)),
    "globe with poles": (np.linspace(-90, 90, 19), np.arange(0.0, 360, 10), (-180, 180, -90, 90)),
    "over Greenwich": (np.arange(30.0, 61, 2), np.r_[0:11:2, 350:360:2].astype(float), (-11, 11, 29, 61)),
    "over the dateline": (np.arange(-10.0, 11, 5), np.arange(160.0, 201, 5), (157.5, 202.5, -12.5, 12.5)),
    "Asia": (np.array([20.0, 21, 22]), np.array([100.0, 101, 102]), (99.5, 102.5, 19.5, 22.5)),
    "one cell": (np.array([5.0]), np.array([7.0]), (6.5, 7.5, 4.5, 5.5)),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_corners_and_middle_of_the_map(grid):
    latitude, longitude, (west, east, south, north) = GRIDS[grid]
    for (x, y), expected in {
        (0, 0): (north, west),
        (1, 1): (south, east),
        (0.5, 0.5): ((north + south) / 2, (west + east) / 2),
    }.items():
        np.testing.assert_allclose(point_at(latitude, longitude, x, y), expected, atol=1e-9)


@pytest.mark.parametrize("x", [-0.1, 1.5, float("nan"), float("inf"), "0", None, True, [0.5]])
def test_a_point_off_the_map(x):
    latitude, longitude, _ = GRIDS["globe"]
    with pytest.raises(UsageError, match="point on the map"):
        point_at(latitude, longitude, x, 0.5)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.sampled(3)
def test_the_map_shows_what_is_where(grid):
    """A field with one warm cell: on the picture it is where `point_at` says that the cell is."""
    latitude, longitude, (west, east, south, north) = GRIDS[grid]
    rows, columns = len(latitude), len(longitude)
    fields = np.zeros((1, 1, rows, columns), dtype=np.float32)
    row, column = rows // 3, columns // 3
    reach = rows // 20, columns // 20
    fields[0, 0, row - reach[0] : row + reach[0] + 1, column - reach[1] : column + reach[1] + 1] = 30.0
    window = Window(
        fields + 270, ("t2m",), np.array(["2026-03-29T12:00"], dtype="datetime64[s]"), latitude, longitude
    )
    far = Box(float(latitude[-1]), float(longitude[-1]), 0.01, 0.01)
    picture = draw_locator(window, "t2m", far, place=(float(latitude[-1]), float(longitude[-1])))
    image = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(float)
    height, width, _ = image.shape
    assert abs(width / height - (east - west) / (north - south)) < 0.05 * width / height
    yellow = image[..., 0] + image[..., 1] - 2 * image[..., 2]  # the warm end of the colors
    if rows * columns > 1:
        y, x = np.unravel_index(_smooth(yellow).argmax(), yellow.shape)
        found = point_at(latitude, longitude, (x + 0.5) / width, (y + 0.5) / height)
        cell = (north - south) / rows, (east - west) / columns
        assert abs(found[0] - latitude[row]) <= cell[0] * (reach[0] + 1)
        turn = (found[1] - longitude[column] + 180) % 360 - 180
        assert abs(turn) <= cell[1] * (reach[1] + 1)


def _smooth(values, size=9):
    return uniform_filter(values, size)
