"""Attribution. Oracle: an encoder that reads one cell, the same change made by hand in the window, and sums."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from climafuse.climate_tokens import ClimateTokens
from climafuse.encoders import ClimateEncoder
from climafuse.errors import UsageError
from climafuse.evaluation import attribution as module
from climafuse.evaluation.attribution import FILLS, attention, hide, occlusion, spread
from climafuse.evaluation.value_tokens import value_tokens
from climafuse.facts import Fact
from climafuse.model import ClimateTextForCausalLM
from climafuse.model.inference import Reader
from tests.fusion.small import SMALL, open_gates
from tests.model.build import MEAN, STD, VARIABLES, make_model, make_processor, random_window, statistics
from tests.tiny import tiny_backbone

PROMPT, ANSWER = "What is the mean temperature?", "Mean temperature 12 °C."
FACT = Fact("mean", "t2m", 12.0)
CELL = (3, 2)  # row and column that the toy encoder reads
TEMPERATURE = 0


class OneCell(ClimateEncoder):
    """Reads the temperature of one cell at the last time, and nothing else."""

    def __init__(self, channels, width=8):
        super().__init__(channels, width)
        torch.manual_seed(1)
        self.direction = nn.Parameter(torch.randn(width))

    def forward(self, fields, mask, latitude, longitude, time):
        value = fields[:, -1, TEMPERATURE, *CELL, None, None]  # [B, 1, 1]
        nowhere = torch.full(value.shape[:2], torch.nan)
        return ClimateTokens(
            torch.cat([value * self.direction, torch.ones_like(value) + 0 * self.direction], dim=1),
            torch.ones(len(value), 2, dtype=torch.bool),
            *[nowhere.expand(-1, 2)] * 2,
            time[:, -1:].expand(-1, 2),
            ("the cell", "nothing"),
        )


def reader_of(encoder=None, *, fusion="cross_attention", sites="output", gates=1.0, **options):
    if encoder is None:
        model = make_model(fusion=fusion, sites=sites, gates=gates, history=2, **options)
        return Reader(model, make_processor(model))
    model = ClimateTextForCausalLM.from_backbone(
        tiny_backbone(),
        statistics=statistics(),
        encoder=encoder,
        fusion=fusion,
        fusion_options=SMALL[fusion],
        sites=sites,
        history=2,
    )
    open_gates(model.fusions, gates)
    return Reader(model.eval(), make_processor(model))


@pytest.fixture(scope="module")
def one_cell():
    model = make_model()
    return reader_of(OneCell(model.config.channels()))


@pytest.fixture
def window():
    return random_window(3, height=6, width=7, steps=2)


def _log_probability(reader, window):
    """The plain way: the model itself on the window as it is, and the softmax written out."""
    batch = reader.processor([window], [PROMPT], [ANSWER])
    tokens, words = value_tokens(reader.processor, PROMPT, ANSWER, FACT)
    with torch.no_grad():
        logits = reader.model(**{k: v for k, v in batch.items() if k != "labels"}).logits[0].double()
    total = torch.logsumexp(logits, dim=-1)
    return sum(float(logits[w - 1, tokens[w]] - total[w - 1]) for w in words)


# ---- Occlusion


@pytest.mark.parametrize("fill", FILLS)
def test_occlusion_finds_exactly_the_cell_that_is_read(one_cell, window, fill):
    found = occlusion(one_cell, window, PROMPT, ANSWER, FACT, fill=fill, sizes=[1])
    elsewhere = np.ones(found.drop.shape, dtype=bool)
    elsewhere[CELL] = False
    np.testing.assert_allclose(found.drop[elsewhere], 0, atol=1e-5)
    assert abs(found.drop[CELL]) > 1e-3
    # One view of the bare window, one a cell, three variables, two times.
    assert found.num_views == 1 + 6 * 7 + 3 + 2


def test_the_drop_is_what_the_same_change_of_the_window_costs(one_cell, window):
    found = occlusion(one_cell, window, PROMPT, ANSWER, FACT, sizes=[1])
    weight = np.cos(np.deg2rad(window.latitude))[:, None] * np.ones((6, 7))
    field = window.fields[-1, TEMPERATURE].astype(float)
    weight[CELL], weight[np.isnan(field)] = 0, 0
    changed = window.fields.copy()
    changed[-1, TEMPERATURE][CELL] = (np.nan_to_num(field) * weight).sum() / weight.sum()
    bare = _log_probability(one_cell, window)
    assert found.log_probability == pytest.approx(bare, abs=1e-4)
    without = _log_probability(one_cell, dataclasses.replace(window, fields=changed))
    assert found.drop[CELL] == pytest.approx(bare - without, abs=1e-4)
    # And the training mean, which is zero once normalized.
    changed[-1, TEMPERATURE][CELL] = MEAN[0]
    climatology = occlusion(one_cell, window, PROMPT, ANSWER, FACT, fill="climatology", sizes=[1])
    without = _log_probability(one_cell, dataclasses.replace(window, fields=changed))
    assert climatology.drop[CELL] == pytest.approx(bare - without, abs=1e-4)


def test_larger_regions_count_where_they_cover_and_sizes_are_averaged(one_cell, window):
    coarse = occlusion(one_cell, window, PROMPT, ANSWER, FACT, fill="climatology", sizes=[2])
    fine = occlusion(one_cell, window, PROMPT, ANSWER, FACT, fill="climatology", sizes=[1])
    both = occlusion(one_cell, window, PROMPT, ANSWER, FACT, fill="climatology", sizes=[2, 1])
    np.testing.assert_allclose(both.drop, (coarse.drop + fine.drop) / 2, atol=1e-5)
    # All four regions of two by two cells that cover the cell cost the same; of a neighbor's four, two do.
    assert coarse.drop[CELL] == pytest.approx(fine.drop[CELL], abs=1e-4)
    assert coarse.drop[CELL[0] - 1, CELL[1]] == pytest.approx(fine.drop[CELL] / 2, abs=1e-4)
    assert coarse.drop[0, 6] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("fill", FILLS)
def test_only_the_variable_and_the_time_that_are_read_are_needed(one_cell, window, fill):
    found = occlusion(one_cell, window, PROMPT, ANSWER, FACT, fill=fill, sizes=[1])
    assert abs(found.by_variable["t2m"]) > 1e-3
    assert [found.by_variable[name] for name in ("msl", "ws10")] == pytest.approx([0, 0], abs=1e-5)
    assert found.by_step[0] == pytest.approx(0, abs=1e-5)
    assert found.by_step[1] == pytest.approx(found.by_variable["t2m"], abs=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_any_fusion_at_any_site_and_none_of_its_texts_states_are_kept(name, window):
    sites = "input" if name == "prefix" else (1, "output")
    model = make_model(fusion=name.split()[0], sites=sites, gates=1.0, history=2)
    reader = Reader(model, make_processor(model))
    found = occlusion(reader, window, PROMPT, ANSWER, FACT, sizes=[2])
    assert np.isfinite(found.drop).all()
    assert np.abs(found.drop).max() > 1e-4
    assert found.log_probability == pytest.approx(_log_probability(reader, window), abs=1e-3)
    assert model.prefix_store is None
    assert (attention(reader, window, PROMPT, ANSWER, FACT) is None) == (not name.startswith("cross"))


def test_a_model_with_closed_gates_needs_nothing(window):
    found = occlusion(reader_of(gates=0.0), window, PROMPT, ANSWER, FACT)
    np.testing.assert_array_equal(found.drop, 0)
    assert set(found.by_variable.values()) == {0.0}


def test_words_are_those_of_the_fact(window):
    """Of two facts in one answer each has its own probability; together they are that of both."""
    reader = reader_of()
    text = "The temperature averages 12 °C. The pressure averages 1013 hPa."
    facts = [Fact("mean", "t2m", 12.0), Fact("mean", "msl", 1013.0)]
    one, other = (occlusion(reader, window, "Describe the weather.", text, fact, sizes=[6]) for fact in facts)
    assert one.log_probability != pytest.approx(other.log_probability, abs=1e-3)


def test_how_many_views_at_a_time_does_not_matter(window, monkeypatch):
    reader = reader_of()
    one = occlusion(reader, window, PROMPT, ANSWER, FACT)
    monkeypatch.setattr(module, "VIEWS", 3)
    other = occlusion(reader, window, PROMPT, ANSWER, FACT)
    np.testing.assert_allclose(one.drop, other.drop, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"fill": "zero"}, "mean or surroundings or climatology or missing"),
        ({"sizes": [0]}, "from 1 to 6"),
        ({"sizes": [7]}, "from 1 to 6"),
        ({"sizes": []}, "from 1 to 6"),
    ],
)
def test_refusals(one_cell, window, options, named):
    with pytest.raises(UsageError, match=named):
        occlusion(one_cell, window, PROMPT, ANSWER, FACT, **options)


def _view(fill, *, missing=False):
    """2 x 4 cells at the equator and 60°N, whose weights are 1 and a half; the second column is hidden."""
    fields = torch.tensor([[[[[1.0, 9.0, 3.0, 5.0], [2.0, 9.0, 4.0, 6.0]]]]])
    mask = torch.ones_like(fields, dtype=torch.bool)
    if missing:
        mask[..., 0, 1] = False
        fields[..., 0, 1] = 0
    hidden = torch.zeros_like(mask)
    hidden[..., 1] = True
    return hide(fields, mask, torch.tensor([[0.0, 60.0]]), hidden, fill)


def test_what_stands_in_hidden_cells():
    # Mean of the rest: (1 + 3 + 5 + (2 + 4 + 6) / 2) / 4.5 = 10 / 3; of the rim, columns 0 and 2: (1 + 3 + 3) / 3.
    for fill, value in (("mean", 10 / 3), ("surroundings", 7 / 3), ("climatology", 0), ("missing", 0)):
        fields, mask = _view(fill)
        torch.testing.assert_close(fields[0, 0, 0, :, 1], torch.full((2,), float(value)), msg=fill)
        assert fields[0, 0, 0, :, [0, 2, 3]].tolist() == [[1, 3, 5], [2, 4, 6]]
        assert mask.all() == (fill != "missing")
        assert mask[..., [0, 2, 3]].all()
    # What is missing stays missing, whatever stands in for the others.
    for fill in FILLS:
        fields, mask = _view(fill, missing=True)
        assert not mask[0, 0, 0, 0, 1]
        assert fields[0, 0, 0, 0, 1] == 0


@pytest.mark.parametrize("fill", FILLS)
def test_what_stands_in_a_region_does_not_depend_on_the_others(fill):
    """Views are made together for speed only: a large region beside a small one changes nothing of it."""
    fields = torch.randn(1, 2, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(fields, dtype=torch.bool)
    latitude = torch.linspace(0, 55, 12)[None]
    hidden = torch.zeros(3, 2, 2, 12, 12, dtype=torch.bool)
    hidden[0, :, :, 4:6, 4:6] = True
    hidden[1, :, :, 2:10, 2:10] = True
    hidden[2, :, 0] = True
    together, _ = hide(fields, mask, latitude, hidden, fill)
    for number in range(3):
        alone, _ = hide(fields, mask, latitude, hidden[number : number + 1], fill)
        torch.testing.assert_close(together[number : number + 1], alone)


def test_all_of_a_variable_is_hidden_by_the_training_mean():
    fields = torch.arange(8.0).view(1, 1, 2, 2, 2) + 1
    mask = torch.ones_like(fields, dtype=torch.bool)
    hidden = torch.zeros_like(mask)
    hidden[:, :, 0] = True
    for fill in ("mean", "surroundings"):
        shown, _ = hide(fields, mask, torch.tensor([[0.0, 1.0]]), hidden, fill)
        assert not shown[:, :, 0].any()
        torch.testing.assert_close(shown[:, :, 1], fields[:, :, 1])


# ---- Attention


def test_attention_is_shared_out_among_cells_and_the_whole_box(window):
    found = attention(reader_of(sites=(1, "output")), window, PROMPT, ANSWER, FACT)
    assert found.share.shape == (2, 6, 7)
    assert (found.share >= 0).all()
    assert found.share.sum() + found.whole_box == pytest.approx(1, abs=1e-5)
    assert 0 < found.whole_box < 1
    shares = [share for _, share in found.tokens]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_an_encoder_without_places_looks_at_the_whole_box(one_cell, window):
    found = attention(one_cell, window, PROMPT, ANSWER, FACT)
    assert found.whole_box == pytest.approx(1)
    assert not found.share.any()
    assert {name for name, _ in found.tokens} == {"the cell", "nothing"}


def test_the_words_of_another_fact_look_elsewhere(window):
    reader = reader_of()
    text = "The temperature averages 12 °C. The pressure averages 1013 hPa."
    one, other = (
        attention(reader, window, "Describe the weather.", text, fact)
        for fact in (Fact("mean", "t2m", 12.0), Fact("mean", "msl", 1013.0))
    )
    assert not np.allclose(one.share, other.share)


def _tokens(latitude, longitude, days, extent):
    tensors = [torch.tensor([values], dtype=torch.float64) for values in (latitude, longitude, days)]
    size = len(latitude)
    return ClimateTokens(
        torch.zeros(1, size, 1),
        torch.ones(1, size, dtype=torch.bool),
        *tensors,
        extent=None if extent is None else torch.tensor([extent]),
    )


def test_a_patch_is_spread_over_its_cells_and_a_point_is_one_cell():
    window = random_window(0, height=4, width=6, steps=2)  # columns 350 to 355
    window = dataclasses.replace(window, longitude=np.array([358.0, 359, 0, 1, 2, 3]))
    south, days = window.latitude[0], np.array([20537.5, 20538.5])  # 2026-03-25 and 26, noon
    nan = float("nan")
    tokens = _tokens(
        # A patch of 2 by 3 cells over Greenwich; a point between cells; whole box; a patch that is cut to one column.
        [south + 0.5, south + 3.2, nan, south + 2.5],
        [0.0, 358.4, nan, 3.0],
        [days[0], days[1], days[1], days[1]],
        [[2.0, 3.0], [0.0, 0.0], [0.0, 0.0], [2.0, 1.0]],
    )
    share, whole_box = spread(tokens, np.array([0.6, 0.2, 0.1, 0.1]), window)
    assert whole_box == pytest.approx(0.1)
    expected = np.zeros((2, 4, 6))
    expected[0, :2, 1:4] = 0.1  # columns 359, 0, 1
    expected[1, 3, 0] = 0.2
    expected[1, 2:, 5] = 0.05
    np.testing.assert_allclose(share, expected, atol=1e-12)
    points = dataclasses.replace(tokens, extent=None)
    share, _ = spread(points, np.array([0.6, 0.2, 0.1, 0.1]), window)
    assert share[0].max() == pytest.approx(0.6)
    assert np.count_nonzero(share) == 3


@pytest.mark.parametrize(("height", "width"), [(6, 7), (4, 4), (1, 5), (3, 1)])
def test_patches_tile_the_window(height, width):
    """Every cell belongs to one patch of each time, the cut ones at the edges included: patches here are of 3 cells."""
    model = make_model(history=2)
    window = random_window(1, height=height, width=width, steps=2)
    window = dataclasses.replace(window, fields=np.nan_to_num(window.fields, nan=float(MEAN[0] + STD[0])))
    with torch.no_grad():
        tokens = model.encode_climate(**make_processor(model)([window]))
    patches = torch.tensor([label.startswith("patch") for label in tokens.labels])
    assert patches.sum() == 2 * -(-height // 3) * -(-width // 3)
    for patch in patches.nonzero()[:, 0].tolist():
        weights = np.zeros(len(patches))
        weights[patch] = 1.0
        share, _ = spread(tokens, weights, window)
        place, at = tokens.labels[patch].removeprefix("patch ").split(" at step ")
        (row, column), step = map(int, place.split(",")), int(at)  # the last step is 0
        expected = np.zeros((2, height, width))
        expected[step + 1, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3] = 1
        np.testing.assert_allclose(share, expected / expected.sum(), atol=1e-12)
    assert set(VARIABLES) <= {label.split()[0] for label in np.array(tokens.labels)[~patches.numpy()]}
