"""One picture of a window: the fields, the wind, the coast, and where the model attended.

Every cell is drawn as the cell it is, with no smoothing between cells, so that the picture shows what the
model was given. Lightness changes evenly with the value; what is centered on zero gets diverging colors.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from climafuse.data.files import check_destination, whole_file
from climafuse.data.times import format_time
from climafuse.data.variables import VARIABLES
from climafuse.data.window import Window
from climafuse.errors import MissingValuesError, ModelInputError, UsageError
from climafuse.facts import SPOKEN_VARIABLES
from climafuse.report.coastlines import coast_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

_INK = "#1b2733"
_MISSING = "#d5d8dc"
_ACCENT = "#7a4fa3"
_BOX = "#e3342f"
# How far a panel is stretched at most towards a pole: a box at 89° would be a needle otherwise.
_MAX_STRETCH = 3.0
_FINE_COAST_BELOW = 70.0  # degrees of longitude; wider windows get the coarse coastline

# The page, in inches.
_PANEL_AREA, _MIN_WIDTH, _MAX_WIDTH, _MAX_HEIGHT = 15.0, 2.6, 8.5, 5.4
_MIN_PAGE_WIDTH = 5.0  # of letters
_KEY_BESIDE_TIME = 2.5  # width of a panel
_LEFT, _RIGHT, _GAP = 0.62, 0.45, 0.85
_HEADING, _PANEL_TITLE, _PANEL_FOOT, _LINE = 0.5, 0.5, 0.82, 0.2
_CHARACTER = 0.079  # width of an average character of the caption
_HEAD_CHARACTER = 0.098  # the same of a panel's heading
_DETAIL_CHARACTER = 0.068  # and of the line under it


@dataclass(frozen=True)
class _Frame:
    """Edges of the window in one unbroken run of longitudes, and the cell edges to draw with."""

    longitude_edges: np.ndarray  # [W + 1] degrees east, ascending without a jump
    latitude_edges: np.ndarray  # [H + 1] degrees north

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """West, east, south, north."""
        return (
            float(self.longitude_edges[0]),
            float(self.longitude_edges[-1]),
            float(self.latitude_edges[0]),
            float(self.latitude_edges[-1]),
        )

    def unwrap(self, longitude: np.ndarray) -> np.ndarray:
        """Any longitudes, in the run of this window."""
        west, east, _, _ = self.extent
        margin = (360 - (east - west)) / 2  # the seam lies opposite the window
        return west - margin + (np.asarray(longitude, dtype=np.float64) - west + margin) % 360


@dataclass(frozen=True, eq=False)
class Layer:
    """A panel beside the fields, of numbers on the cells of the window.

    Args:
        title: Heading of the panel.
        detail: A line under it, such as what the numbers are.
        values: [H, W]; NaN is left blank.
        unit: Beside the color bar.
        centered: Whether zero is the middle of the colors; otherwise they begin there.
        least: How far the colors reach at least: what is next to nothing shall not look like much.
    """

    title: str
    detail: str
    values: np.ndarray
    unit: str = ""
    centered: bool = False
    least: float = 1e-6


def draw_map(
    window: Window,
    variable: str | Sequence[str],
    *,
    path: str | Path,
    attention: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    layers: Sequence[Layer] = (),
    title: str | None = None,
    caption: str | None = None,
    caption_color: str | None = None,
    place: tuple[float, float] | None = None,
    cross: tuple[float, float] | None = None,
    outline: np.ndarray | None = None,
    panel_area: float = _PANEL_AREA,
    headings: bool = True,
) -> Path:
    """Draws fields of a window at its valid time, side by side, and writes one picture.

    Where the window holds `u10` and `v10`, the first panel carries wind arrows.

    Args:
        window: What to draw; SI units, NaN is missing. The last time is drawn.
        variable: One canonical name, or several for several panels.
        path: Where to write, whole or not at all; the suffix chooses the format (.png, .pdf, .svg, .webp).
        attention: Where the model attended: latitude [M] and longitude [M] of the climate tokens in degrees,
            and the weight [M] of each. Those about the whole box (NaN) count in the total but have no place on
            the map. Weights at one place (several times) are added up and shown as shares
            of the whole. Tokens on a regular grid are drawn as the patches they stand for, others as discs.
        layers: Further panels.
        title: Heading.
        caption: Text under the maps, such as what the model said.
        caption_color: Of the bar beside it; None for that of attention.
        place: Latitude and longitude in degrees of a point to mark with a star.
        cross: Likewise, with a cross.
        outline: [H, W] bool, a rectangle of cells to outline in every panel.
        panel_area: Of a panel, in square inches; letters keep their size.
        headings: Whether panels are named; not where the page around them does so.

    Returns:
        The path.

    Raises:
        VariableNotFoundError: The window does not hold the variable.
        MissingValuesError: The field has no value at all.
        ModelInputError: The attention arrays do not fit together, or a layer is not of the window's cells.
        UsageError: The suffix is no picture format.
    """
    path = Path(path)
    variables = (variable,) if isinstance(variable, str) else tuple(variable)
    check_picture(path)
    _check_cells(window, layers, outline)
    order = _unbroken(window)
    layers = [replace(layer, values=layer.values[:, order]) for layer in layers]
    outline = None if outline is None else outline[:, order]
    window = replace(window, fields=window.fields[..., order], longitude=window.longitude[order])
    fields = [spoken_field(window, name) for name in variables]  # before anything is drawn
    frame = _frame(window)
    shares = None if attention is None else _attention_shares(*attention)

    west, east, south, north = frame.extent
    stretch = min(1 / np.cos(np.deg2rad((south + north) / 2)), _MAX_STRETCH)
    ratio = (north - south) * stretch / (east - west)  # height over width of a panel
    size = float(np.sqrt(panel_area / _PANEL_AREA))
    width = float(np.clip(np.sqrt(panel_area / ratio), size * _MIN_WIDTH, size**2 * _MAX_WIDTH))
    height = width * ratio
    if height > size * _MAX_HEIGHT:
        width, height = size * _MAX_HEIGHT / ratio, size * _MAX_HEIGHT

    num_panels = len(variables) + (shares is not None) + len(layers)
    num_columns = 1 if width > 5.4 else min(num_panels, 3)
    num_rows = -(-num_panels // num_columns)
    heads = [*map(_long_name, variables), *(layer.title for layer in layers)]
    if shares is not None:
        heads.append("Where the model attended")
    details = [layer.detail for layer in layers]
    if shares is not None:
        details.append(_attention_detail(shares[2]))
    # Of a panel towards a pole, what stands over it is wider.
    widest = _HEAD_CHARACTER * max(map(len, heads), default=0)
    widest = max(widest, _DETAIL_CHARACTER * max(map(len, details), default=0)) if headings else 0.0
    pitch = max(width + _GAP, widest + 0.3)
    panel_title = _PANEL_TITLE if headings else 0.12
    page_width = _LEFT + (num_columns - 1) * pitch + max(width + _RIGHT, widest + 0.1)
    title, caption = _drawable(title or ""), _drawable(caption or "")
    if title or caption:
        page_width = max(page_width, _MIN_PAGE_WIDTH)
    lines = textwrap.wrap(caption, width=int((page_width - 0.6) / _CHARACTER), break_on_hyphens=False)
    foot = 0.3 + _LINE * len(lines) if lines else 0.0
    page_height = (_HEADING if title else 0.1) + num_rows * (panel_title + height + _PANEL_FOOT) + foot

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(page_width, page_height))

        def panel(index: int) -> Axes:
            row, column = divmod(index, num_columns)
            left = _LEFT + column * pitch
            lower = page_height - (_HEADING if title else 0.1) - row * (panel_title + height + _PANEL_FOOT)
            lower -= panel_title + height
            return figure.add_axes(
                (left / page_width, lower / page_height, width / page_width, height / page_height)
            )

        def dress(axes: Axes, heading: str, detail: str, *, hollow: bool = False) -> None:
            _dress(axes, frame, stretch, outline)
            _mark(axes, frame, place, cross, hollow=hollow)
            if headings:
                _head(axes, heading, detail)

        # Wind belongs with pressure, which drives it.
        windy = variables.index("msl") if "msl" in variables else 0
        for index, (name, (values, unit)) in enumerate(zip(variables, fields, strict=True)):
            axes = panel(index)
            _draw_field(axes, frame, name, values, unit)
            if index == windy and {"u10", "v10"} <= set(window.variables):
                _draw_wind(axes, frame, window.field("u10")[-1], window.field("v10")[-1], key_above=headings)
            dress(axes, _long_name(name), time_label(window.time[-1]))
        if shares is not None:
            axes = panel(len(variables))
            _draw_attention(axes, frame, *shares)
            dress(axes, "Where the model attended", _attention_detail(shares[2]), hollow=True)
        for index, layer in enumerate(layers, num_panels - len(layers)):
            axes = panel(index)
            _draw_layer(axes, frame, layer)
            dress(axes, layer.title, layer.detail, hollow=True)
        if title:
            figure.text(
                0.2 / page_width,
                1 - 0.3 / page_height,
                title,
                size=14,
                weight="bold",
                color=_INK,
                va="center",
                parse_math=False,
            )
        if lines:
            bar = (0.2 / page_width, 0.2 / page_height), 0.045 / page_width, (foot - 0.22) / page_height
            figure.add_artist(Rectangle(*bar, color=caption_color or _ACCENT, linewidth=0))
            x, y = 0.36 / page_width, (foot - 0.06) / page_height
            text = "\n".join(lines)
            figure.text(x, y, text, size=10.5, color=_INK, va="top", linespacing=1.35, parse_math=False)
        _write(figure, path)
    return path


def drawn_variables(variables: Sequence[str]) -> list[str]:
    """Which fields to draw: at most two, temperature and pressure first; wind is drawn as arrows."""
    preferred = ("t2m", "msl", "sst", "sst_anomaly", "sp", "tp", "tprate", "z500")
    chosen = [name for name in preferred if name in variables][:2]
    return chosen or list(variables[:2])


def _drawable(text: str) -> str:
    """A text with a box for each character that the font lacks: a model may say anything."""
    font = get_font(findfont(FontProperties(family=["sans-serif"])))
    return "".join(
        character if character in " \n\t" or font.get_char_index(ord(character)) else "\u25a1"
        for character in text
    )


_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.linewidth": 0.8,
    "axes.facecolor": _MISSING,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "svg.hashsalt": "climafuse",
}


def _colormap(name: str, unit: str) -> tuple[Colormap | str, bool]:
    """Colormap of a variable, and whether zero is its middle."""
    if "anomaly" in name or re.fullmatch(r"[uv]\d+", name):
        return "RdBu_r", True
    if unit == "°C":
        return _part_of("magma", 0.12, 1.0), False
    if unit == "hPa":
        return _part_of("viridis", 0.12, 1.0), False
    return "YlGnBu", False


def _part_of(name: str, start: float, stop: float) -> Colormap:
    """A colormap without its darkest end, on which a coastline could not be seen."""
    return LinearSegmentedColormap.from_list(name, mpl.colormaps[name](np.linspace(start, stop, 256)))


def _long_name(name: str) -> str:
    text = VARIABLES[name].long_name if name in VARIABLES else name
    return text[:1].upper() + text[1:]


def spoken_field(window: Window, name: str) -> tuple[np.ndarray, str]:
    """The field [H, W] at the valid time in the unit people say, and that unit."""
    values = window.field(name)[-1].astype(np.float64)
    if np.isnan(values).all():
        raise MissingValuesError(
            name,
            expected="at least one value in the window",
            received="nothing but missing values",
            remedy="Choose another variable, time or place.",
        )
    if name in SPOKEN_VARIABLES:
        spoken = SPOKEN_VARIABLES[name]
        return values * spoken.scale + spoken.offset, spoken.unit
    return values, VARIABLES[name].units if name in VARIABLES else ""


def _check_cells(window: Window, layers: Sequence[Layer], outline: np.ndarray | None) -> None:
    shape = len(window.latitude), len(window.longitude)
    named = {layer.title: layer.values for layer in layers} | (
        {} if outline is None else {"outline": outline}
    )
    for name, values in named.items():
        if values.shape != shape or (name == "outline" and not values.any()):
            raise ModelInputError(
                name,
                expected=f"a value for each cell of the window, {shape}",
                received=f"shape {values.shape}" if values.shape != shape else "no cell at all",
                remedy="Make it for this window.",
            )


def _unbroken(window: Window) -> np.ndarray:
    """The order of columns that begins at 180°W where they go all the way around, so that continents are whole."""
    spacing = float(np.median(np.diff(window.longitude))) if len(window.longitude) > 1 else 360.0
    if len(window.longitude) * abs(spacing) < 360 - 1e-3:
        return np.arange(len(window.longitude))
    return np.argsort((window.longitude + 180) % 360, kind="stable")


def _frame(window: Window) -> _Frame:
    longitude = np.unwrap(window.longitude, period=360)
    return _Frame(_edges(longitude), np.clip(_edges(window.latitude), -90, 90))


def _edges(centers: np.ndarray) -> np.ndarray:
    """Cell edges halfway between centers; a lone cell is one degree wide."""
    if len(centers) == 1:
        return np.array([centers[0] - 0.5, centers[0] + 0.5])
    middle = (centers[:-1] + centers[1:]) / 2
    return np.concatenate([[centers[0] - (middle[0] - centers[0])], middle, [2 * centers[-1] - middle[-1]]])


def _draw_field(axes: Axes, frame: _Frame, name: str, values: np.ndarray, unit: str) -> None:
    colormap, centered = _colormap(name, unit)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if centered:
        high = max(abs(low), abs(high))
        low = -high
    if low == high:
        low, high = low - 1, high + 1
    mesh = axes.pcolormesh(
        frame.longitude_edges,
        frame.latitude_edges,
        np.ma.masked_invalid(values),
        cmap=colormap,
        vmin=low,
        vmax=high,
    )
    mesh.set_rasterized(True)
    _color_bar(axes, mesh, unit)


def _color_bar(axes: Axes, drawn: ScalarMappable, label: str) -> None:
    """A slim bar under the panel, of the panel's width, with its unit at the right end."""
    width, height = _inches(axes)
    bar = axes.figure.colorbar(
        drawn, cax=axes.inset_axes((0, -0.45 / height, 1, 0.11 / height)), orientation="horizontal"
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, pad=2)
    bar.ax.xaxis.set_major_locator(MaxNLocator(max(3, int(width / 0.5)), steps=[1, 2, 2.5, 5, 10]))
    bar.ax.text(1 + 0.08 / width, 0.5, label, transform=bar.ax.transAxes, size=8.5, color=_INK, va="center")


def _inches(axes: Axes) -> tuple[float, float]:
    figure = axes.get_figure(root=True)
    assert figure is not None  # every panel was added to one
    width, height = axes.get_position().size * figure.get_size_inches()
    return float(width), float(height)


def _head(axes: Axes, title: str, detail: str) -> None:
    """Title and detail on two lines above a panel."""
    for text, lift, style in (
        (title, 19, {"weight": "bold", "size": 10}),
        (detail, 6, {"size": 8.5, "alpha": 0.75}),
    ):
        axes.annotate(
            text, (0, 1), (0, lift), xycoords="axes fraction", textcoords="offset points", color=_INK, **style
        )


def _draw_wind(axes: Axes, frame: _Frame, u: np.ndarray, v: np.ndarray, *, key_above: bool) -> None:
    """Arrows at cell centers, every n-th cell, so that arrows are some 0.3 inches apart."""
    width, height = _inches(axes)
    longitude = (frame.longitude_edges[:-1] + frame.longitude_edges[1:]) / 2
    latitude = (frame.latitude_edges[:-1] + frame.latitude_edges[1:]) / 2
    across, up = (
        max(1, round(0.3 * n / inches)) for n, inches in ((len(longitude), width), (len(latitude), height))
    )
    rows, columns = slice(up // 2, None, up), slice(across // 2, None, across)
    u, v = u[rows, columns], v[rows, columns]
    speed = np.hypot(u, v)
    if not (np.nan_to_num(speed) > 0).any():
        return
    typical = max(float(np.nanpercentile(speed, 90)), 1.0)  # m/s; a calm window shows short arrows
    reference = next((s for s in (20, 10, 5, 2) if s <= typical), 1)
    arrows = axes.quiver(
        longitude[columns],
        latitude[rows],
        u,
        v,
        angles="uv",
        pivot="mid",
        scale_units="inches",
        scale=typical / 0.3,
        units="inches",
        width=0.018,
        headwidth=4,
        headlength=4.5,
        headaxislength=4,
        color="white",
        edgecolor=_INK,
        linewidth=0.4,
        zorder=4,
    )
    # Above the panel, at its right end; where there is no room or the time is in its way, under the color bar.
    above = 1 + 0.11 / height if key_above and width >= _KEY_BESIDE_TIME else -0.72 / height
    at = 1 - (0.02 + 0.3 * reference / typical) / width, above
    axes.quiverkey(
        arrows,
        *at,
        reference,
        f"{reference} m/s",
        labelpos="W",
        labelcolor=_INK,
        labelsep=0.06,
        fontproperties={"size": 8.5},
    )


def _attention_shares(
    latitude: np.ndarray, longitude: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places [P], [P] and their shares [P] of all attention, in percent; times at one place added up."""
    latitude, longitude, weight = (np.asarray(a, dtype=np.float64) for a in (latitude, longitude, weight))
    if not (latitude.ndim == 1 and latitude.shape == longitude.shape == weight.shape and len(weight)):
        raise ModelInputError(
            "attention",
            expected="latitude, longitude and weight of one shape [M], M > 0",
            received=f"shapes {latitude.shape}, {longitude.shape}, {weight.shape}",
            remedy="Give one position and one weight for each climate token.",
        )
    total = weight.sum()
    if not (np.isfinite(total) and total > 0 and (weight >= 0).all()):
        raise ModelInputError(
            "attention",
            expected="weights that are finite, not negative, and not all zero",
            received=f"a sum of {total:g}",
            remedy="Pass attention weights after the softmax, without masked tokens.",
        )
    somewhere = np.isfinite(latitude) & np.isfinite(longitude)
    latitude, longitude, weight = latitude[somewhere], longitude[somewhere], weight[somewhere]
    places, index = np.unique(np.stack([latitude, longitude % 360]).round(4), axis=1, return_inverse=True)
    shares = np.bincount(index.reshape(-1), weights=weight, minlength=places.shape[1])
    return places[0], places[1], 100 * shares / total


def _attention_detail(share: np.ndarray) -> str:
    """What the panel shows, and how much of the attention has no place on a map."""
    elsewhere = 100 - share.sum()
    return "share of all attention" + (
        f"; {elsewhere:.0f} % on whole-box statistics" if elsewhere >= 0.5 else ""
    )


def _draw_attention(
    axes: Axes, frame: _Frame, latitude: np.ndarray, longitude: np.ndarray, share: np.ndarray
) -> None:
    longitude = frame.unwrap(longitude)
    west, east, south, north = frame.extent
    rows, row = np.unique(latitude, return_inverse=True)
    columns, column = np.unique(longitude.round(4), return_inverse=True)
    drawn: ScalarMappable
    if len(rows) > 1 and len(columns) > 1 and len(rows) * len(columns) < 2 * len(share):
        grid = np.full((len(rows), len(columns)), np.nan)  # a patch without a token stays blank
        grid[row, column] = share
        drawn = axes.pcolormesh(
            np.clip(_edges(columns), west, east),
            np.clip(_edges(rows), south, north),
            np.ma.masked_invalid(grid),
            cmap="Purples",
            vmin=0,
            edgecolors="#ffffff",
            linewidth=0.6,
        )
    else:
        drawn = axes.scatter(
            longitude,
            latitude,
            s=900 * share / share.max(),
            c=share,
            cmap="Purples",
            vmin=0,
            edgecolor=_INK,
            linewidth=0.5,
            zorder=3,
            clip_on=False,  # as large as its share is, even at an edge
        )
    axes.set_facecolor("white")
    _color_bar(axes, drawn, "%")


def _draw_layer(axes: Axes, frame: _Frame, layer: Layer) -> None:
    values = np.ma.masked_invalid(layer.values)
    high = max(float(np.abs(values).max()) if values.count() else 0.0, layer.least)
    mesh = axes.pcolormesh(
        frame.longitude_edges,
        frame.latitude_edges,
        values,
        cmap="PuOr" if layer.centered else "Purples",
        vmin=-high if layer.centered else 0.0,
        vmax=high,
    )
    mesh.set_rasterized(True)
    axes.set_facecolor("white")
    _color_bar(axes, mesh, layer.unit)


def _dress(
    axes: Axes,
    frame: _Frame,
    stretch: float,
    outline: np.ndarray | None,
) -> None:
    """Coast, graticule, labels, the marked box, and limits exactly at the window's edges."""
    west, east, south, north = frame.extent
    coast = coast_in(west, east, south, north, "50m" if east - west < _FINE_COAST_BELOW else "110m")
    axes.add_collection(
        LineCollection(list(coast), colors="white", linewidths=2.0, alpha=0.7, capstyle="round")
    )
    axes.add_collection(LineCollection(list(coast), colors=_INK, linewidths=0.9, capstyle="round"))
    if outline is not None:
        rows, columns = (np.flatnonzero(outline.any(axis=axis)) for axis in (1, 0))
        left, right = frame.longitude_edges[columns[0]], frame.longitude_edges[columns[-1] + 1]
        lower, upper = frame.latitude_edges[rows[0]], frame.latitude_edges[rows[-1] + 1]
        for color, line in (("white", 3.2), (_BOX, 1.8)):
            axes.add_patch(
                Rectangle((left, lower), right - left, upper - lower, fill=False, ec=color, lw=line, zorder=6)
            )
    axes.set(xlim=(west, east), ylim=(south, north))
    axes.set_aspect(stretch)
    labels = int(np.clip(_inches(axes)[0] / 0.45, 2, 6))  # so many fit beside each other
    axes.xaxis.set_major_locator(MaxNLocator(labels, steps=[1, 2, 3, 5, 6, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 3, 5, 6, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: _longitude_label(value))
    axes.yaxis.set_major_formatter(lambda value, _: _latitude_label(value))
    axes.grid(color="white", linewidth=0.5, alpha=0.5, linestyle=(0, (4, 4)))


def _mark(
    axes: Axes,
    frame: _Frame,
    place: tuple[float, float] | None,
    cross: tuple[float, float] | None,
    *,
    hollow: bool,
) -> None:
    """A star and a cross at places of the window; the star hollow where the cell under it is what matters."""
    west, east, south, north = frame.extent
    for point, marker, size, color in ((cross, "X", 9, _BOX), (place, "*", 13, "#ffd23f")):
        if point is None:
            continue
        at = float(frame.unwrap(np.array(point[1]))), point[0]
        if not (west <= at[0] <= east and south <= at[1] <= north):
            continue
        open_ = hollow and marker == "*"
        edges = ((_INK, 2.8), (color, 1.4)) if open_ else ((_INK, 0.9),)
        for edge, line in edges:  # whole, even at an edge of the window
            style: dict[str, Any] = {"mfc": "none" if open_ else color, "mec": edge, "mew": line, "zorder": 5}
            axes.plot(*at, marker=marker, ms=size, clip_on=False, **style)


def time_label(time: object) -> str:
    """Readable, with the zone where it is known: dates of other calendars carry none."""
    text = format_time(time).replace("T", " ")
    return f"{text} UTC" if isinstance(time, np.datetime64) else text


def _longitude_label(value: float) -> str:
    value = round((value + 180) % 360 - 180, 6)
    if value in (0, -180):
        return f"{abs(value):g}°"
    return f"{abs(value):g}°{'E' if value > 0 else 'W'}"


def _latitude_label(value: float) -> str:
    value = round(value, 6)
    return f"{abs(value):g}°{'N' if value > 0 else 'S' if value < 0 else ''}"


def check_picture(path: Path) -> None:
    """Refuse a path that no picture can be written to, before there is one.

    Raises:
        UsageError: The suffix is no picture format.
        OutputError: It cannot be written there.
    """
    if path.suffix.lower() not in {".png", ".pdf", ".svg", ".webp"}:
        raise UsageError(
            str(path),
            expected="a picture file: .png, .pdf, .svg or .webp",
            received=path.suffix or "no suffix",
            remedy="Choose one of these suffixes.",
        )
    check_destination(path)


def _write(figure: Figure, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=160, facecolor="white")
