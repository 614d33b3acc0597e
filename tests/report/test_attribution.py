"""The picture of an attribution: its numbers are those of the attribution, on the cells they belong to."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from climafuse.errors import ModelInputError
from climafuse.evaluation.attribution import Attention, Occlusion
from climafuse.facts import Fact, extract
from climafuse.report import maps
from climafuse.report.attribution import Marks, draw_attribution, field_of, marks_of
from climafuse.report.maps import Layer, draw_map
from tests.report.test_maps import _Drawn, _mesh, _window

SHARE = np.linspace(0, 0.03, 20).reshape(1, 4, 5)
ATTENTION = Attention(SHARE, whole_box=1 - SHARE.sum(), tokens=(("t2m maximum", 0.5),))
DROP = np.arange(20.0).reshape(4, 5) / 10
WORDS = {"prompt": "How high does the temperature get?", "answer": "The temperature reaches 12 °C."}


@pytest.fixture
def drawn(monkeypatch):
    return _Drawn(monkeypatch)


def _occlusion(drop=DROP):
    return Occlusion(drop, {"t2m": 1.0}, np.array([0.5]), log_probability=-0.1, num_views=9)


def test_field_attention_and_occlusion_side_by_side(drawn):
    draw_attribution(
        _window(),
        "t2m",
        attention=ATTENTION,
        occlusion=_occlusion(),
        path="a.png",
        right=True,
        truth="12 °C",
        **WORDS,
    )
    assert len(drawn.panels) == 3
    np.testing.assert_allclose(_mesh(drawn.panels[0]).get_array()[:, 0], [44, 46, 48, 50], atol=1e-4)
    np.testing.assert_allclose(_mesh(drawn.panels[1]).get_array(), 100 * SHARE[0])  # percent of all attention
    np.testing.assert_allclose(_mesh(drawn.panels[2]).get_array(), DROP)
    texts = " ".join(drawn.texts())
    assert "70% on whole-box statistics" in texts
    caption = " ".join(" ".join(text.split()) for text in drawn.texts())
    assert (
        "How high does the temperature get? The temperature reaches 12 °C. (right: the fields say 12 °C)"
        in caption
    )


@pytest.mark.parametrize(("right", "word"), [(True, "right"), (False, "wrong"), (None, "not to be checked")])
def test_right_and_wrong_are_told_in_words_and_in_color(drawn, right, word):
    draw_attribution(
        _window(), "t2m", attention=None, occlusion=_occlusion(), path="a.png", right=right, **WORDS
    )
    assert len(drawn.panels) == 2
    assert any(f"({word})" in " ".join(text.split()) for text in drawn.texts())
    (bar,) = [patch for patch in drawn.figure.findobj(Rectangle) if patch in drawn.figure.artists]
    red, green, blue = (int(to_hex(bar.get_facecolor())[i : i + 2], 16) for i in (1, 3, 5))
    assert (green > red, red > 1.5 * green) == (right is not False, right is False)
    assert abs(int(blue)) <= 255


def test_colors_of_drops_begin_at_zero_unless_hiding_helps(drawn):
    draw_attribution(_window(), "t2m", attention=None, occlusion=_occlusion(), path="a.png", **WORDS)
    assert _mesh(drawn.panels[1]).get_clim() == (0, 1.9)
    draw_attribution(_window(), "t2m", attention=None, occlusion=_occlusion(DROP - 1), path="a.png", **WORDS)
    assert _mesh(drawn.panels[1]).get_clim() == (-1, 1)
    draw_attribution(_window(), "t2m", attention=None, occlusion=_occlusion(0 * DROP), path="a.png", **WORDS)
    low, high = _mesh(drawn.panels[1]).get_clim()
    assert low == 0 < high


def test_a_box_is_outlined_in_every_panel(drawn):
    box = np.zeros((4, 5), dtype=bool)
    box[1:3, 0:2] = True  # 46 and 48°N, 2°W and 0°: edges 45 to 49°N and 3°W to 1°E
    draw_attribution(_window(), "t2m", attention=ATTENTION, occlusion=None, path="a.png", box=box, **WORDS)
    for axes in drawn.panels:
        frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert {(f.get_x() - 360, f.get_y(), f.get_width(), f.get_height()) for f in frames} == {
            (-3, 45, 4, 4)
        }


def test_layers_turn_with_a_window_around_the_globe(drawn):
    window = _window(longitude=np.arange(0, 360, 60))
    values = np.broadcast_to(window.longitude, (4, 6))
    draw_map(window, "t2m", path="a.png", layers=[Layer("a", "b", values)])
    np.testing.assert_allclose(_mesh(drawn.panels[1]).get_array()[0], [180, 240, 300, 0, 60, 120])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"layers": [Layer("looked", "", np.zeros((5, 4)))]}, "looked.*each cell"),
        ({"outline": np.zeros((4, 5), dtype=bool)}, "outline.*no cell at all"),
        ({"outline": np.ones((2, 2), dtype=bool)}, "outline.*shape"),
    ],
)
def test_what_is_not_of_the_window_is_refused(tmp_path, options, named):
    with pytest.raises(ModelInputError, match=named):
        draw_map(_window(), "t2m", path=tmp_path / "a.png", **options)
    assert list(tmp_path.iterdir()) == []


def test_writes_a_picture(tmp_path):
    path = draw_attribution(
        _window(),
        "t2m",
        attention=ATTENTION,
        occlusion=_occlusion(),
        path=tmp_path / "a.png",
        right=False,
        **WORDS,
    )
    assert matplotlib.image.imread(path).std() > 0.05


# ---- Marks ---------------------------------------------------------------------------------------------------


def _fact(kind, value, **changes):
    return Fact(kind, "t2m", value, **changes)


def test_marks_are_where_the_fields_have_it_and_where_the_answer_puts_it():
    window = _window()  # warmest in the north, 50 °C at 50°N, everywhere alike: the first cell is taken
    (truth,) = [f for f in extract(window, kinds=["maximum_position"]) if f.variable == "t2m"]
    assert marks_of(window, truth, []) == Marks(truth.value)
    near = _fact("maximum_position", (truth.value[0] - 2, truth.value[1]))  # the next cell counts
    assert marks_of(window, truth, [near]) == Marks(truth.value)
    far = _fact("maximum_position", (44.0, 2.0))
    assert marks_of(window, truth, [far]) == Marks(truth.value, (44.0, 2.0))
    assert "cross where the answer puts it" in marks_of(window, truth, [far]).words
    # What no map shows is not spoken of as if it did.
    for place in [(44.0, 60.0), (10.0, 2.0)]:
        beyond = marks_of(window, truth, [_fact("maximum_position", place)])
        assert beyond == Marks(truth.value, is_beyond=True)
        assert beyond.words == "the star is where the fields have it, the answer puts it outside this map"
    # The highest value has a place, though nobody asked for it; a mean has none.
    assert marks_of(window, _fact("maximum", 50.0), [_fact("maximum", 3.0)]) == Marks(truth.value)
    assert marks_of(window, _fact("mean", 47.0), [_fact("mean", 3.0)]) == Marks()
    assert marks_of(window, _fact("mean", 47.0), []).words == ""
    # What the fields have no value of has no place, and what is said of it is not set against them.
    assert marks_of(window, _fact("maximum_position", ""), []) == Marks()


def test_marks_are_in_every_panel_and_no_further(drawn):
    draw_attribution(
        _window(),
        "t2m",
        attention=ATTENTION,
        occlusion=None,
        path="a.png",
        marks=Marks((46.0, 2.0), (46.0, 60.0)),  # the cross lies far outside
        **WORDS,
    )
    for axes in drawn.panels:
        at = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines}
        markers = {line.get_marker() for line in axes.lines}
        assert at == {(362.0, 46.0)}
        assert markers == {"*"}
    assert any("the star is where the fields have it" in " ".join(text.split()) for text in drawn.texts())


def test_next_to_nothing_does_not_look_like_much(drawn):
    draw_attribution(
        _window(), "t2m", attention=None, occlusion=_occlusion(1e-3 * DROP), path="a.png", **WORDS
    )
    assert _mesh(drawn.panels[1]).get_clim() == (0.0, 0.1)  # nats
    assert "log-probability lost where hidden: nowhere as much as 0.1 nats" in drawn.texts()


def test_a_fact_is_drawn_on_its_own_field_and_wind_beside_what_it_tells_of():
    window = _window()
    assert {"t2m", "u10", "v10"} <= set(window.variables)
    without, name = field_of(window, _fact("mean", 47.0))
    assert name == "t2m"
    assert not {"u10", "v10"} & set(without.variables)
    windy, _ = field_of(window, Fact("direction", "wd10", 90.0))
    assert {"u10", "v10"} <= set(windy.variables)


def test_without_headings_the_page_names_the_panels(drawn):
    draw_map(_window(), "t2m", path="a.png", headings=False)
    assert not any("temperature" in text or "UTC" in text for text in drawn.texts())


def test_what_stands_over_narrow_panels_does_not_meet():
    """Towards a pole a panel is narrower than the line over it: letters of two panels, measured as drawn."""
    window = _window(latitude=(70.0, 74.0, 78.0, 82.0))
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "_write", lambda figure, path: figures.append(figure))
        draw_attribution(
            window, "t2m", attention=ATTENTION, occlusion=_occlusion(0 * DROP), path="a.png", **WORDS
        )
    (figure,) = figures
    FigureCanvasAgg(figure)
    starts = ("share of attention", "log-probability lost")
    boxes = [
        text.get_window_extent()
        for start in starts
        for text in figure.findobj(Text)
        if text.get_text().startswith(start)
    ]
    assert boxes[0].x1 < boxes[1].x0
    assert boxes[1].x1 <= figure.bbox.x1
