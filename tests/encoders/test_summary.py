"""Summary tokens. Oracle: the facts, which numpy computes in double precision from the window itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from climafuse.data.batch import collate_windows
from climafuse.data.window import Window
from climafuse.encoders import Channels, SummaryTokens
from climafuse.encoders.numbers import number_features
from climafuse.encoders.summary import STATISTICS, TURNS, directions, summarize
from climafuse.facts.extract import summarize as summarize_facts
from climafuse.model import channels_of
from tests.encoders.windows import CHANNELS, Inputs, inputs, padded
from tests.model.build import MEAN, STD, VARIABLES, statistics

INDEX = {name: number for number, name in enumerate(STATISTICS)}


def window(
    rng: np.random.Generator, *, height: int, width: int, steps: int, west: float, missing: float
) -> Window:
    noise = rng.standard_normal((steps, 3, height, width))
    fields = np.array(MEAN)[:, None, None] + np.array(STD)[:, None, None] * noise
    fields[rng.random(fields.shape) < missing] = np.nan
    # A Gaussian grid is not quite even: the middle row then belongs to one half.
    uneven = 0.01 * rng.standard_normal(height) if height % 2 else np.zeros(height)
    return Window(
        fields.astype(np.float32),
        VARIABLES,
        np.datetime64("2026-03-25T12:00:00") + np.arange(steps) * np.timedelta64(8, "h"),
        rng.uniform(-80, 60) + 1.5 * np.arange(height) + uneven,
        (west + 1.5 * np.arange(width)) % 360,
    )


def natural(batch: Inputs) -> tuple[torch.Tensor, ...]:
    channels = channels_of(statistics())
    scale, offset = torch.tensor(channels.scale), torch.tensor(channels.offset)
    fields = batch["climate_fields"] * scale[:, None, None] + offset[:, None, None]
    return fields, batch["climate_mask"], batch["climate_latitude"], batch["climate_longitude"]


@pytest.mark.parametrize("seed", range(12))
def test_summaries_are_the_facts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = {
        "height": int(rng.integers(1, 9)),
        "width": int(rng.integers(1, 9)),
        "steps": int(rng.integers(1, 4)),
    }
    west = [350.0, 175.0, 20.0][seed % 3]  # over Greenwich, over the dateline, neither
    given = window(rng, **shape, west=west, missing=[0.0, 0.3][seed % 2])
    facts = summarize_facts(given)
    values, known, (latitude, longitude) = summarize(*natural(collate_windows([given], statistics())))
    tolerance = {"t2m": 2e-5, "msl": 3e-4, "ws10": 2e-5}  # float32 near 300 K, 1013 hPa
    for v, name in enumerate(VARIABLES):
        value = dict(zip(STATISTICS, values[0, v].double().tolist(), strict=True))
        valid = dict(zip(STATISTICS, known[0, v].tolist(), strict=True))
        close = {"abs": tolerance[name]}
        if name not in facts.mean:
            assert not known[0, v, : INDEX["valid share"]].any()
            assert value["valid share"] == 0
            assert valid["valid share"]
            continue
        assert valid["mean"]
        assert value["mean"] == pytest.approx(facts.mean[name], **close)

        lowest, lowest_at, highest, highest_at = facts.extremes[name]
        for kind, extreme, at in (("minimum", lowest, lowest_at), ("maximum", highest, highest_at)):
            row, column = divmod(at, shape["width"])
            east = (given.longitude[column] + 180) % 360 - 180
            assert valid[kind]
            assert value[kind] == pytest.approx(extreme, **close)
            assert value[f"latitude of {kind}"] == pytest.approx(given.latitude[row], abs=1e-5)
            assert value[f"longitude of {kind}"] == pytest.approx(east, abs=1e-4)
            for statistic in (kind, f"latitude of {kind}", f"longitude of {kind}"):
                index = INDEX[statistic]
                assert latitude[0, v, index].item() == pytest.approx(given.latitude[row], abs=1e-5)
                assert longitude[0, v, index].item() == pytest.approx(east, abs=1e-4)

        north, south, west_half, east_half = facts.halves[name]
        for kind, difference in (
            ("north minus south", north - south),
            ("east minus west", east_half - west_half),
        ):
            assert valid[kind] == (not np.isnan(difference)), kind
            if valid[kind]:
                assert value[kind] == pytest.approx(difference, abs=2 * tolerance[name])

        assert valid["change"] == (name in facts.change)
        if valid["change"]:
            assert value["change"] == pytest.approx(facts.change[name], abs=2 * tolerance[name])
        weight = np.cos(np.deg2rad(given.latitude))[:, None] * np.ones(shape["width"])
        share = (weight * np.isfinite(given.fields[-1, v])).sum() / weight.sum()
        assert value["valid share"] == pytest.approx(share, abs=1e-5)
        whole = [INDEX[kind] for kind in ("mean", "north minus south", "east minus west", "change")]
        assert latitude[0, v, whole].isnan().all()


def test_the_random_windows_hold_every_case() -> None:
    # What the test above promises to cover is there: empty halves, no change, missing cells, both borders.
    seen = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        height, width, steps = (int(rng.integers(1, top)) for top in (9, 9, 4))
        seen |= {
            f"steps {steps}",
            f"odd {height % 2}",
            "row" if height == 1 else "",
            "column" if width == 1 else "",
        }
    assert {"steps 1", "steps 2", "steps 3", "odd 0", "odd 1"} <= seen


def test_a_window_by_hand() -> None:
    # Rows at 0° and 60° weigh 1 and 1/2. Mean (1 * (1 + 3) + 1/2 * (5 + 11)) / 3 = 4; north half 8, south 2;
    # east (3 + 11/2) / 1.5 = 17/3, west (1 + 5/2) / 1.5 = 7/3. Before, all was 1: the change is 3.
    fields = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 3.0], [5.0, 11.0]]).view(1, 2, 1, 2, 2)
    values, known, _ = summarize(
        fields,
        torch.ones(1, 2, 1, 2, 2, dtype=torch.bool),
        torch.tensor([[0.0, 60.0]]),
        torch.tensor([[359.0, 0.0]]),
    )
    assert known.all()
    found = dict(zip(STATISTICS, values[0, 0].tolist(), strict=True))
    assert found == pytest.approx(
        {
            "mean": 4, "maximum": 11, "latitude of maximum": 60, "longitude of maximum": 0,
            "minimum": 1, "latitude of minimum": 0, "longitude of minimum": -1,
            "north minus south": 6, "east minus west": 10 / 3, "change": 3,
            "valid share": 1,
        },
        abs=1e-5,
    )  # fmt: skip


def test_means_keep_hundredths_of_a_hectopascal_over_many_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    fields = 1013 + 5 * torch.randn(1, 1, 1, 60, 60, generator=generator)
    mask = torch.rand(fields.shape, generator=generator) > 0.3
    latitude = torch.linspace(-60, 60, 60)[None]
    values, *_ = summarize(fields, mask, latitude, torch.arange(60.0)[None])
    weight = np.cos(np.deg2rad(latitude[0].double().numpy()))[:, None] * mask[0, 0, 0].numpy()
    expected = (fields[0, 0, 0].double().numpy() * weight).sum() / weight.sum()
    assert values[0, 0, 0].item() == pytest.approx(expected, abs=2e-4)


def test_normalized_fields_and_channels_give_natural_units_back() -> None:
    # 2 standard deviations of 12 °C above 5 °C are 29 °C; the token of the mean is that of the number 29.
    summary = SummaryTokens(CHANNELS, 8)
    given = {**inputs(steps=1), "fields": torch.full((2, 1, 3, 7, 9), 2.0)}
    tokens = summary(**given)
    for v, mean in enumerate((29.0, 1031.0, 12.5)):
        expected = (
            summary.number(number_features(torch.tensor(mean)))
            + summary.variable[v, 0]
            + summary.statistic[0]
        )
        torch.testing.assert_close(tokens.states[0, v * len(STATISTICS)], expected, rtol=1e-4, atol=1e-4)


def test_channels_of_statistics_are_in_spoken_units() -> None:
    # t2m 281.15 ± 10 K is 8 ± 10 °C; msl 101300 ± 900 Pa is 1013 ± 9 hPa; wind stays in m/s.
    channels = channels_of(statistics())
    assert channels.names == VARIABLES
    assert channels.scale == pytest.approx((10.0, 9.0, 5.0))
    assert channels.offset == pytest.approx((8.0, 1013.0, 0.0))


def test_a_shorter_history_keeps_its_valid_time_and_knows_no_false_change() -> None:
    summary = SummaryTokens(CHANNELS, 8)
    one, two = inputs(steps=1, missing=0.2), inputs(steps=2, missing=0.2)
    for given in (one, two):
        tokens = summary(**given)
        more = summary(**padded(given, steps=4, height=7, width=9))
        assert torch.equal(more.mask, tokens.mask)
        assert torch.equal(more.time, tokens.time)
        torch.testing.assert_close(more.states[more.mask], tokens.states[tokens.mask])
    change = INDEX["change"]
    assert not summary(**padded(one, steps=2, height=7, width=9)).mask[:, change].any()
    assert summary(**two).mask[:, change].all()


def test_only_the_first_and_the_valid_time_are_spoken_of() -> None:
    summary = SummaryTokens(CHANNELS, 8)
    given = inputs(steps=3)
    changed = {**given, "fields": given["fields"].clone()}
    changed["fields"][:, 1] += 5
    torch.testing.assert_close(summary(**changed).states, summary(**given).states)
    changed["fields"][:, 2] += 5
    assert not torch.allclose(summary(**changed).states, summary(**given).states)


def test_constants_are_not_in_the_checkpoint() -> None:
    summary = SummaryTokens(CHANNELS, 8)
    assert set(summary.state_dict()) == {"number.weight", "number.bias", "variable", "statistic"}
    assert summary.labels[:2] == ("t2m mean", "t2m maximum")
    assert len(summary.labels) == 3 * len(STATISTICS)


# ---- Vectors

WIND = Channels(("t2m", "v10", "u10"), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
# Eastward and northward mean, and where such a wind comes from.
WINDS = [(0, -5, 0), (-5, 0, 90), (0, 5, 180), (5, 0, 270), (3, 3, 225), (-0.2, 0.2, 135)]


@pytest.mark.parametrize(("east", "north", "degrees"), WINDS)
def test_the_direction_of_a_vector_is_where_it_comes_from(east: float, north: float, degrees: float) -> None:
    # Rows at 0° and 60° weigh 1 and 1/2: three times the mean in the second row, none in the first.
    components = torch.zeros(1, 1, 2, 2, 3)
    components[0, 0, 0, 1], components[0, 0, 1, 1] = 3.0 * east, 3.0 * north
    features, known = directions(
        components, torch.ones(1, 1, 2, 3, dtype=torch.bool), torch.tensor([[0.0, 60.0]])
    )
    angles = np.deg2rad(degrees) * np.array(TURNS)
    expected = [*np.sin(angles), *np.cos(angles), np.tanh(np.hypot(east, north) / 0.5)]
    assert known.all()
    np.testing.assert_allclose(features[0, 0].numpy(), expected, atol=1e-5)


def test_a_vector_counts_where_both_components_are_there() -> None:
    summary = SummaryTokens(WIND, 8)
    rng = np.random.default_rng(0)
    fields = torch.from_numpy(rng.normal(0, 5, (2, 1, 3, 4, 4))).float()
    given = {
        "fields": fields,
        "mask": torch.ones(2, 1, 3, 4, 4, dtype=torch.bool),
        "latitude": torch.linspace(0, 30, 4).expand(2, -1),
        "longitude": torch.linspace(5, 8, 4).expand(2, -1),
        "time": torch.zeros(2, 1, dtype=torch.float64),
    }
    tokens = summary(**given)
    assert summary.labels[-1] == "u10, v10 direction"
    assert tokens.states.shape[1] == len(summary.labels) == 3 * len(STATISTICS) + 1
    assert tokens.mask.all(dim=0)[-1]
    # What stands where one component is missing changes nothing, and neither does temperature.
    masked = {**given, "mask": given["mask"].clone(), "fields": fields.clone()}
    masked["mask"][0, 0, 1, 2, 2] = False
    before = summary(**masked).states[:, -1]
    masked["fields"][0, 0, :, 2, 2] += 100
    masked["fields"][:, 0, 0] += 7
    torch.testing.assert_close(summary(**masked).states[:, -1], before)
    assert not torch.allclose(before[0], tokens.states[0, -1])
    torch.testing.assert_close(before[1], tokens.states[1, -1])
    masked["mask"][0, 0, 2] = False
    assert summary(**masked).mask[:, -1].tolist() == [False, True]


def test_without_both_components_there_is_no_vector() -> None:
    assert "direction" not in " ".join(SummaryTokens(CHANNELS, 8).labels)
