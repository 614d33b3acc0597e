"""The pointing game. Oracle: by hand; models that read one place, everything, or nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from climafuse.climate_tokens import ClimateTokens
from climafuse.encoders import ClimateEncoder
from climafuse.evaluation.planting import SIGNALS, Signal, plant
from climafuse.evaluation.pointing import Pointing, hit, pointing, pointing_game, widened
from tests.evaluation.test_attribution import reader_of
from tests.evaluation.test_planting import real
from tests.model.build import VARIABLES, make_model

WINDOWS = [real(seed, names=VARIABLES) for seed in range(6)]
HIGHEST = [signal for signal in SIGNALS if signal.name == "maximum/t2m"]


def _box(rows, columns, shape=(4, 5)):
    box = np.zeros(shape, dtype=bool)
    box[slice(*rows), slice(*columns)] = True
    return box


def test_a_hit_is_the_share_of_the_highest_cells_in_the_box():
    map_ = np.zeros((4, 5))
    map_[1, 1] = 2
    assert hit(map_, _box((1, 2), (0, 2))) == 1
    assert hit(map_, _box((2, 4), (0, 5))) == 0
    map_[3, 3] = 2
    assert hit(map_, _box((1, 2), (0, 2))) == 0.5
    # Nothing is higher than anything: chance, 6 of 20 cells.
    assert hit(np.zeros((4, 5)), _box((0, 2), (0, 3))) == pytest.approx(0.3)


def test_a_box_is_widened_inside_the_window():
    assert (widened(_box((1, 2), (2, 3)), 1) == _box((0, 3), (1, 4))).all()
    assert (widened(_box((0, 1), (4, 5)), 2) == _box((0, 3), (2, 5))).all()
    assert (widened(_box((1, 2), (2, 3)), 0) == _box((1, 2), (2, 3))).all()


def test_accuracy_and_both_levels_of_chance_by_hand():
    boxes = [_box((1, 2), (1, 2), (9, 9)), _box((7, 8), (7, 8), (9, 9)), _box((4, 5), (4, 5), (9, 9))]
    maps = [np.zeros((9, 9)) for _ in boxes]
    maps[0][2, 2] = 1  # beside its box: a hit
    maps[1][2, 2] = 1  # in the box of the first
    maps[2][0, 8] = 1  # in none
    found = pointing(maps, boxes)
    assert (found.hits, found.num) == (1, 3)
    assert found.area == pytest.approx(9 / 81)
    assert found.elsewhere == pytest.approx(
        1 / 6
    )  # of six pairs of a map and another's box, map 1 hits box 0
    # Wilson's interval of 1 in 3, as tables have it.
    assert found.interval == pytest.approx((0.0615, 0.7923), abs=1e-4)
    assert found.to_dict()["accuracy"] == pytest.approx(1 / 3)


def test_without_a_map_there_is_no_figure():
    found = pointing([], [])
    assert math.isnan(found.accuracy)
    assert found.to_dict() == {
        "accuracy": None,
        "interval": None,
        "hits": 0,
        "num": 0,
        "chance_area": None,
        "chance_other_boxes": None,
    }
    low, high = Pointing(hits=10, num=10, area=0.1, elsewhere=0.1).interval
    assert (low, high) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1, abs=1e-9))


class Furnace(ClimateEncoder):
    """Says whether it is as hot as nowhere on Earth in any cell, and nothing else."""

    def __init__(self, channels, width=8, hot=1.0):
        super().__init__(channels, width)
        torch.manual_seed(1)
        self.hot = hot
        self.direction = nn.Parameter(torch.randn(width))

    def forward(self, fields, mask, latitude, longitude, time):
        celsius = fields[:, -1, 0] * self.channels.scale[0] + self.channels.offset[0]
        seen = (celsius.amax(dim=(-2, -1)) > 80).float()[:, None, None]
        place = torch.full((len(fields), 1), torch.nan)
        sure = torch.ones(len(fields), 1, dtype=torch.bool)
        return ClimateTokens(self.hot * (2 * seen - 1) * self.direction, sure, place, place, time[:, -1:])


def _furnace(soil, name):
    """One cell in the middle of the box."""
    row, column = np.unravel_index(soil.hill.argmax(), soil.hill.shape)
    soil.field(name)[:, row, column] = 273.15 + 100


def test_a_model_that_reads_the_signal_is_pointed_at_and_one_that_reads_nothing_is_at_chance():
    planted = plant(WINDOWS[:4], signals=[Signal("maximum", "t2m", _furnace, ("t2m",))])
    channels = make_model().config.channels()
    # Whether the heat makes the words likelier or not is a matter of the random weights, so one of two signs.
    games = [
        pointing_game(reader_of(Furnace(channels, hot=sign)), planted, only_right=False, sizes=[4])
        for sign in (1.0, -1.0)
    ]
    accuracy = sorted(game.table["all"]["occlusion"].accuracy for game in games)
    assert accuracy[1] == 1
    assert accuracy[0] < 0.4  # it points to all the cells that do not matter
    # Its token has no place: attention points nowhere, which is chance.
    found = games[0].table["all"]["attention"]
    assert found.accuracy == pytest.approx(found.area)
    assert 0.1 < found.area < 0.26
    # And a model before training, whose gates are closed.
    closed = pointing_game(reader_of(gates=0.0), planted, only_right=False, sizes=[4]).table["all"][
        "occlusion"
    ]
    assert closed.accuracy == pytest.approx(found.area)
    assert closed.elsewhere == pytest.approx(found.area)


def test_only_windows_with_a_right_answer_count():
    """A tiny model says nothing right; one that is told the answer does in every other window."""
    planted = plant(WINDOWS[:4], signals=HIGHEST)
    reader = reader_of(gates=1.0)
    game = pointing_game(reader, planted, sizes=[8])
    assert game.planted == {"maximum/t2m": 4, "all": 4}
    assert game.right == {"maximum/t2m": 0, "all": 0}
    assert game.table == {"maximum/t2m": {}, "all": {}}

    class Prompter(type(reader)):
        def answer(self, windows, prompts, *, index=None):
            number = [next(i for i, one in enumerate(planted) if one.window is w) for w in windows]
            return [planted[n].answer if n % 2 else "I do not know." for n in number]

    told = Prompter(reader.model, reader.processor)
    seen = []
    game = pointing_game(told, planted, sizes=[8], windows_per_batch=3, progress=lambda *at: seen.append(at))
    assert game.right["all"] == 2
    assert game.table["all"]["occlusion"].num == game.table["all"]["attention"].num == 2
    assert seen == [(1, 2), (2, 2)]
    assert game.to_dict()["all"]["planted"] == 4


def test_a_fusion_that_does_not_attend_is_in_the_table_by_occlusion_alone():
    planted = plant(WINDOWS[:2], signals=HIGHEST)
    game = pointing_game(reader_of(fusion="film"), planted, only_right=False, sizes=[8])
    assert list(game.table["all"]) == ["occlusion"]
