"""Maps: what is drawn is what is in the window, where it is."""

from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from matplotlib.text import Text

from climafuse.data.window import Window
from climafuse.errors import MissingValuesError, ModelInputError, UsageError, VariableNotFoundError
from climafuse.report import maps
from climafuse.report.maps import draw_map

NAMES = ("t2m", "msl", "u10", "v10")


def _window(latitude=(44.0, 46.0, 48.0, 50.0), longitude=(358.0, 0.0, 2.0, 4.0, 6.0)):
    latitude, longitude = np.array(latitude, dtype=float), np.array(longitude, dtype=float)
    fields = np.zeros((1, 4, len(latitude), len(longitude)), dtype=np.float32)
    fields[0, 0] = 273.15 + latitude[:, None]  # t2m in °C is the latitude
    fields[0, 1] = 101325
    fields[0, 2] = 8.0  # a west wind
    return Window(fields, NAMES, np.array(["2026-03-29T12:00"], dtype="datetime64[s]"), latitude, longitude)


class _Drawn:
    """The figure as drawn, kept instead of written."""

    def __init__(self, monkeypatch):
        self.figure = None
        monkeypatch.setattr(maps, "_write", lambda figure, path: setattr(self, "figure", figure))

    @property
    def panels(self):
        return [axes for axes in self.figure.axes if axes.get_aspect() != "auto"]

    def texts(self):
        return {text.get_text() for text in self.figure.findobj(Text)}


@pytest.fixture
def drawn(monkeypatch):
    return _Drawn(monkeypatch)


def _mesh(axes):
    return next(c for c in axes.collections if type(c).__name__ == "QuadMesh")


def test_field_is_drawn_cell_by_cell_in_spoken_units(drawn):
    draw_map(_window(), "t2m", path="map.png")
    (axes,) = drawn.panels
    mesh = _mesh(axes)
    # No smoothing: as many colors as cells, and each cell has its own value, 44 to 50 °C from south to north.
    assert mesh.get_array().shape == (4, 5)
    np.testing.assert_allclose(mesh.get_array()[:, 0], [44, 46, 48, 50], atol=1e-4)
    # Cells of 2° around their centers, in one run over Greenwich: 2°W - 1° = 357 to 6 + 1 = 367 = 7°E.
    edges = mesh.get_coordinates()
    np.testing.assert_allclose(edges[0, :, 0] - 360, [-3, -1, 1, 3, 5, 7])
    np.testing.assert_allclose(edges[:, 0, 1], [43, 45, 47, 49, 51])
    assert axes.get_ylim() == (43, 51)
    # One degree of longitude is cos 47° as long as one of latitude.
    assert axes.get_aspect() == pytest.approx(1 / np.cos(np.deg2rad(47)))
    assert "2026-03-29 12:00 UTC" in drawn.texts()
    assert "°C" in drawn.texts()


def test_labels_name_east_and_west():
    assert [maps._longitude_label(v) for v in (-2, 0, 358, 180, 181, 190)] == [
        "2°W",
        "0°",
        "2°W",
        "180°",
        "179°W",
        "170°W",
    ]
    assert [maps._latitude_label(v) for v in (-2.5, 0, 90)] == ["2.5°S", "0°", "90°N"]


def test_wind_arrows_point_where_the_wind_goes(drawn):
    draw_map(_window(), ("t2m", "msl"), path="map.png")
    arrows = [[c for c in axes.collections if type(c).__name__ == "Quiver"] for axes in drawn.panels]
    assert [len(found) for found in arrows] == [0, 1]  # on pressure only
    quiver = arrows[1][0]
    np.testing.assert_allclose(quiver.U, 8)
    np.testing.assert_allclose(quiver.V, 0)
    assert quiver.angles == "uv"  # on the page, not through the stretched axes
    assert set(quiver.XY[:, 0] - 360) <= {-2, 0, 2, 4, 6}


def test_window_around_the_globe_begins_at_the_dateline(drawn):
    window = _window(longitude=np.arange(0, 360, 60))
    fields = window.fields.copy()
    fields[0, 0] = 273.15 + window.longitude
    draw_map(replace(window, fields=fields), "t2m", path="map.png")
    mesh = _mesh(drawn.panels[0])
    # 180, 240, 300, 0, 60, 120: values move with their longitudes.
    np.testing.assert_allclose(mesh.get_array()[0], [180, 240, 300, 0, 60, 120], atol=1e-3)
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0] - 360, [-210, -150, -90, -30, 30, 90, 150])


def test_attention_shows_patches_as_shares_of_the_whole(drawn):
    # 2 x 2 patches, two times each: places repeat, weights of one place add up.
    latitude = np.array([45, 45, 49, 49] * 2, dtype=float)
    longitude = np.array([359, 4, 359, 4] * 2, dtype=float)
    weight = np.array([1, 2, 3, 4, 0, 0, 3, 7]) / 100
    draw_map(_window(), "t2m", attention=(latitude, longitude, weight), path="map.png")
    mesh = _mesh(drawn.panels[1])
    # Sum 20: south 1/20 and 2/20, north (3 + 3)/20 and (4 + 7)/20.
    np.testing.assert_allclose(mesh.get_array(), [[5, 10], [30, 55]])
    edges = mesh.get_coordinates()
    np.testing.assert_allclose(edges[:, 0, 1], [43, 47, 51])  # halves, kept inside the window
    np.testing.assert_allclose(edges[0, :, 0] - 360, [-3, 1.5, 4 + 2.5])


def test_scattered_tokens_are_discs(drawn):
    attention = (np.array([45.0, 47.0, 49.0]), np.array([0.0, 4.0, 2.0]), np.array([1.0, 1.0, 2.0]))
    draw_map(_window(), "t2m", attention=attention, path="map.png")
    discs = next(c for c in drawn.panels[1].collections if type(c).__name__ == "PathCollection")
    np.testing.assert_allclose(discs.get_array(), [25, 25, 50])
    sizes = discs.get_sizes()
    assert sizes[2] == pytest.approx(2 * sizes[0])  # area, not radius, grows with the share


def test_missing_cells_are_left_out(drawn):
    window = _window()
    window.fields[0, 0, 1, 2] = np.nan
    draw_map(window, "t2m", path="map.png")
    values = _mesh(drawn.panels[0]).get_array()
    assert values.mask.sum() == 1
    assert values.mask[1, 2]


def test_writes_a_picture_and_nothing_else(tmp_path):
    path = draw_map(
        _window(), ("t2m", "msl"), path=tmp_path / "new" / "map.png", title="A", caption="word " * 60
    )
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 400
    assert picture.std() > 0.05  # not blank
    assert [p.name for p in path.parent.iterdir()] == ["map.png"]


def test_same_input_same_picture(tmp_path):
    first = draw_map(_window(), "t2m", path=tmp_path / "a.png").read_bytes()
    assert draw_map(_window(), "t2m", path=tmp_path / "b.png").read_bytes() == first


def test_refusals_write_nothing(tmp_path):
    window = _window()
    with pytest.raises(UsageError, match=r"map\.jpgx"):
        draw_map(window, "t2m", path=tmp_path / "map.jpgx")
    with pytest.raises(VariableNotFoundError, match="sst"):
        draw_map(window, "sst", path=tmp_path / "map.png")
    place = np.array([45.0])
    with pytest.raises(ModelInputError, match="one shape"):
        draw_map(window, "t2m", attention=(place, place, np.array([0.5, 0.5])), path=tmp_path / "map.png")
    with pytest.raises(ModelInputError, match="not all zero"):
        draw_map(window, "t2m", attention=(place, place, np.array([0.0])), path=tmp_path / "map.png")
    window.fields[0, 0] = np.nan
    with pytest.raises(MissingValuesError, match="t2m"):
        draw_map(window, "t2m", path=tmp_path / "map.png")
    assert list(tmp_path.iterdir()) == []


def test_a_model_may_say_anything(tmp_path):
    """Control characters, what the font lacks and unbalanced mathematics are drawn, without a warning."""
    path = draw_map(
        _window(), "t2m", path=tmp_path / "map.png", title="\x01 $", caption="\x02 \x1e 風 $_$ $\\frac"
    )
    assert path.stat().st_size > 0
