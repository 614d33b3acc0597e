"""Examples: wholly inside their split, made of nothing but the configuration, one window with its texts."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
import xarray as xr
from torch.utils.data import DataLoader

from climafuse.data.batch import EpochSampler
from climafuse.data.pairs import Pair, write_pairs
from climafuse.data.store import prepare
from climafuse.data.window import Box
from climafuse.errors import ConfigurationError, PairsError
from climafuse.facts import Fact, agrees, extract
from climafuse.model import ClimateTextProcessor
from climafuse.model.objective import IGNORED
from climafuse.training.dataset import (
    Example,
    ExampleCollator,
    ExampleDataset,
    make_examples,
    open_store,
    window_statistics,
)
from climafuse.training.thinning import LabelThinning
from tests.model.build import make_model, random_window
from tests.training.loading import TellingCollator
from tests.training.runs import TIMES, make_config, write_climate

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def climate(tmp_path_factory):
    return write_climate(tmp_path_factory.mktemp("climate") / "fields.nc")


def _config(climate, **changes):
    return make_config(climate, "no-backbone", "no-output", **changes)


@pytest.fixture(scope="module")
def examples(climate):
    config = _config(climate, data={"train_windows": 60, "validation_windows": 30, "test_windows": 30})
    store = open_store(config)
    return store, {split: make_examples(store, split, config) for split in SPLITS}


def test_windows_use_times_of_their_split_only_history_included(examples):
    store, by_split = examples
    used = {}
    for split, made in by_split.items():
        used[split] = {time for example in made for time in example.window.time}
        assert used[split] == set(store.time[store.splits.indices(split)])  # all of them are used
        assert all(len(example.window.time) == 2 for example in made)
        assert all(example.split == split for example in made)
    # 20 half days: two gaps of a day each take a step; 18 steps make 11 + 4 + 3 (60, 20 and 20 %).
    gap = np.timedelta64(24, "h")
    assert max(used["train"]) + gap <= min(used["validation"])
    assert max(used["validation"]) + gap <= min(used["test"])


def test_windows_hold_the_values_of_the_file(examples, climate):
    _, by_split = examples
    with xr.open_dataset(climate) as dataset:
        for example in by_split["test"][:5]:
            window = example.window
            for index, name in enumerate(window.variables):
                cells = dataset[name].sel(
                    time=window.time.astype("datetime64[ns]"),
                    latitude=window.latitude,
                    longitude=window.longitude,
                )
                assert np.array_equal(window.fields[:, index], cells.values)


def test_texts_tell_facts_of_their_window(examples):
    for made in examples[1].values():
        for example in made:
            exact = {fact.key: fact for fact in extract(example.window)}
            for pair in example.pairs:
                (fact,) = (Fact.from_dict(fact) for fact in pair.facts)
                assert fact.kind == "absent" or agrees(fact, exact[fact.key])
                assert pair.times == (example.window.time[0], example.window.time[-1])


def _altered(climate, path, first, last):
    with xr.open_dataset(climate) as dataset:
        changed = dataset.load()
    for name in ("t2m", "msl"):
        changed[name].loc[{"time": slice(TIMES[first], TIMES[last])}] *= 1.01
    changed.to_netcdf(path)
    return path


def _same(one, other):
    return len(one) == len(other) and all(
        a.pairs == b.pairs and np.array_equal(a.window.fields, b.window.fields)
        for a, b in zip(one, other, strict=True)
    )


def test_nothing_of_other_times_reaches_training(climate, tmp_path):
    """Other fields after the last training time: the same statistics, windows and texts."""
    config = _config(climate)
    store = open_store(config)
    last = store.splits.train[-1]
    altered = _config(_altered(climate, tmp_path / "altered.nc", last + 1, -1))
    other = open_store(altered)
    assert store.statistics.equals(other.statistics)
    assert store.statistics.attrs["num_times"] == len(store.splits.train)
    assert _same(make_examples(store, "train", config), make_examples(other, "train", altered))
    assert not _same(make_examples(store, "test", config), make_examples(other, "test", altered))
    before = open_store(_config(_altered(climate, tmp_path / "before.nc", 0, last)))
    assert not store.statistics.equals(before.statistics)


def test_examples_follow_from_the_configuration(climate):
    config = _config(climate)
    assert _same(*(make_examples(open_store(config), "train", config) for _ in range(2)))
    other = _config(climate, data={"seed": 1})
    assert not _same(
        make_examples(open_store(other), "train", other), make_examples(open_store(config), "train", config)
    )
    more = _config(climate, data={"train_windows": 20})
    assert _same(
        make_examples(open_store(more), "train", more)[:12],
        make_examples(open_store(config), "train", config),
    )


def test_no_split_has_the_places_of_another(examples):
    places = {
        split: {(e.window.latitude[0], e.window.longitude[0], e.window.latitude[-1]) for e in made[:8]}
        for split, made in examples[1].items()
    }
    assert places["train"] != places["validation"] != places["test"] != places["train"]


def test_kinds_of_which_the_fields_tell_nothing_are_refused(climate):
    config = _config(climate, facts={"kinds": ["nino34"], "abstention_fraction": 0.0})
    with pytest.raises(PairsError, match="nothing to say of any train window"):
        make_examples(open_store(config), "train", config)


# ---- Pairs of the user ---------------------------------------------------------------------------------------


PERIODS = {
    "train": ("2026-03-01", "2026-03-04"), "validation": ("2026-03-06", "2026-03-07"),
    "test": ("2026-03-09", "2026-03-10"),
}  # fmt: skip


@pytest.fixture(scope="module")
def anomalies(tmp_path_factory):
    rng = np.random.default_rng(5)
    latitude, longitude = np.arange(-85.0, 90, 10), np.arange(0.0, 360, 10)
    values = rng.normal(0.3, 1, (len(TIMES), len(latitude), len(longitude))).astype("float32")
    path = tmp_path_factory.mktemp("anomalies") / "anomalies.nc"
    xr.Dataset(
        {"sst_anomaly": (("time", "latitude", "longitude"), values, {"units": "K"})},
        {"time": TIMES, "latitude": latitude, "longitude": longitude},
    ).to_netcdf(path)
    return path, values


def _anomaly_config(path, **data):
    settings = {"variables": ("sst_anomaly",), "box_degrees": (20.0, 60.0), "train_windows": 80, **data}
    return _config(
        path, data=settings, facts={"kinds": ("anomaly", "anomaly_class"), "abstention_fraction": 0.0}
    )


def test_periods_places_and_anomalies_of_the_configuration(anomalies):
    path, values = anomalies
    config = _anomaly_config(path, periods=PERIODS, anomalies="all", places={"0,180": 0.4, "Paris, FR": 0.2})
    store = open_store(config)
    assert [store.splits.indices(split).tolist() for split in SPLITS] == [
        list(range(8)), list(range(10, 14)), list(range(16, 20)),
    ]  # fmt: skip
    np.testing.assert_allclose(store.fields[:, 0], values - values[:8].mean(axis=0), atol=1e-6)
    assert store.statistics.attrs["anomalies"] == "all"
    made = make_examples(store, "train", config)
    assert {example.window.fields.shape for example in made if abs(example.window.latitude[0]) < 60} == {
        (2, 1, 2, 6)
    }
    centers = [(example.window.latitude.mean(), example.window.longitude.mean()) for example in made]
    # On the grid, 20 by 60 degrees around 0, 180 are rows at 5°S and 5°N and columns from 150 to 200.
    assert centers.count((0, 175)) / len(made) == pytest.approx(0.4, abs=0.15)
    assert len(set(centers)) > 20
    (fact,) = [Fact.from_dict(f) for p in made[0].pairs for f in p.facts if f["kind"] == "anomaly"][:1]
    assert agrees(fact, {f.key: f for f in extract(made[0].window)}[fact.key])


def test_a_training_store_keeps_its_splits_and_its_anomalies(anomalies, tmp_path):
    path, _ = anomalies
    prepare(path, tmp_path / "store", splits=PERIODS, anomalies="all")
    store = open_store(_anomaly_config(tmp_path / "store", anomalies="all"))
    plain = open_store(_anomaly_config(path, periods=PERIODS, anomalies="all"))
    np.testing.assert_array_equal(store.window(19).fields, plain.window(19).fields)
    assert open_store(_anomaly_config(tmp_path / "store")).statistics.attrs["anomalies"] == "all"
    with pytest.raises(ConfigurationError, match=r"data\.anomalies.*prepared with: all"):
        open_store(_anomaly_config(tmp_path / "store", anomalies="month"))
    open_store(_anomaly_config(tmp_path / "store", periods=PERIODS))
    with pytest.raises(ConfigurationError, match=r"data\.periods.*the splits of the training store"):
        open_store(
            _anomaly_config(tmp_path / "store", periods=PERIODS | {"test": ("2026-03-09", "2026-03-09")})
        )


def _pairs(steps):
    box = Box(10, 20, 40, 40)
    times = [(TIMES[step].astype("datetime64[s]"),) * 2 for step in steps]
    return [
        Pair(time, box, f"Question {step}?", f"Answer {step}.", (), step)
        for time, step in zip(times, steps, strict=True)
    ]


def _write(path, pairs):
    write_pairs(pairs, path)
    return str(path)


def test_pairs_go_to_the_split_that_holds_their_whole_window(climate, tmp_path):
    config = _config(climate, data={"pairs": _write(tmp_path / "pairs.csv", _pairs(range(20)))})
    store = open_store(config)
    for split in SPLITS:
        made = make_examples(store, split, config)
        indices = store.splits.indices(split).tolist()
        # With a history of two, the first time of a split has its history outside it.
        assert [e.pairs[0].prompt for e in made] == [f"Question {n}?" for n in indices[1:]]
        for example in made:
            step = int(example.pairs[0].prompt.split()[1].rstrip("?"))
            assert np.array_equal(example.window.time, TIMES[step - 1 : step + 1].astype("datetime64[s]"))


def test_pairs_about_one_window_share_it(climate, tmp_path):
    rows = ["time,place,prompt,text"]
    rows += [f'{TIMES[n]},"10,20,40,40",{word}?,{word}.' for n in range(20) for word in ("One", "Two")]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    config = _config(climate, data={"pairs": str(tmp_path / "pairs.csv")})
    made = make_examples(open_store(config), "validation", config)
    assert [[pair.text for pair in example.pairs] for example in made] == [["One.", "Two."]] * len(made)


def test_a_split_without_pairs_is_refused_with_its_times(climate, tmp_path):
    config = _config(climate, data={"pairs": _write(tmp_path / "pairs.jsonl", _pairs(range(5)))})
    store = open_store(config)
    assert make_examples(store, "train", config)
    with pytest.raises(PairsError, match=r"about the validation times, 2026-03-\d\d"):
        make_examples(store, "validation", config)


def test_a_training_store_with_pairs_and_with_others(climate, tmp_path):
    prepare(climate, tmp_path / "store", variables=["t2m", "msl"], pairs=_pairs(range(20)))
    config = _config(tmp_path / "store")
    assert open_store(config).all_pairs[0].prompt == "Question 0?"
    others = [dataclasses.replace(pair, prompt="Other?") for pair in _pairs(range(20))]
    config = _config(tmp_path / "store", data={"pairs": _write(tmp_path / "other.parquet", others)})
    assert {pair.prompt for pair in open_store(config).all_pairs} == {"Other?"}
    outside = [dataclasses.replace(_pairs([0])[0], times=(np.datetime64("2001-01-01"),) * 2)]
    config = _config(tmp_path / "store", data={"pairs": _write(tmp_path / "outside.jsonl", outside)})
    with pytest.raises(PairsError, match=r"outside\.jsonl, line 1: time"):
        open_store(config)


def test_a_training_store_of_other_variables_is_refused(climate, tmp_path):
    prepare(climate, tmp_path / "store", variables=["t2m"])
    with pytest.raises(ConfigurationError, match=r"data\.variables.*\[t2m\]; received \[t2m, msl\]"):
        open_store(_config(tmp_path / "store"))


# ---- Batches -------------------------------------------------------------------------------------------------


def _example(number, *pairs, split="train"):
    time = np.datetime64("2026-03-25T12:00:00")
    return Example(
        split,
        number,
        random_window(number),
        tuple(
            Pair((time, time), None, prompt, text, (), number, withheld) for prompt, text, withheld in pairs
        ),
    )


@pytest.fixture(scope="module")
def processor() -> ClimateTextProcessor:
    model = make_model()
    return ClimateTextProcessor.of(model.config, model.tokenizer)


def test_a_window_comes_once_for_all_its_texts_and_again_without_what_is_withheld(processor):
    batch = ExampleCollator(processor)(
        [
            _example(4, ("a?", "It is 5 °C.", ()), ("b?", "None.", ("msl",)), ("c?", "It is 6 °C.", ())),
            _example(9, ("d?", "It is 7 °C.", ())),
        ]
    )
    assert batch["climate_fields"].shape[0] == 3
    assert batch["climate_index"].tolist() == [0, 1, 0, 2]
    assert batch["sample"].tolist() == [4, 4, 9]
    t2m, msl = 0, 1
    assert batch["climate_mask"][:, :, msl].flatten(1).any(dim=1).tolist() == [True, False, True]
    assert (batch["climate_fields"][1, :, msl] == 0).all()
    assert torch.equal(batch["climate_fields"][0, :, t2m], batch["climate_fields"][1, :, t2m])
    texts = [
        processor.tokenizer.decode(row[row != IGNORED], skip_special_tokens=True) for row in batch["labels"]
    ]
    assert [text.strip() for text in texts] == ["It is 5 °C.", "None.", "It is 6 °C.", "It is 7 °C."]


def test_training_thins_labels_and_evaluation_keeps_all(processor):
    texts = [("a?", f"It is {n} °C.", ()) for n in (5, 5, 7, 7)]
    thinning = LabelThinning([processor.encode(*text[:2]) for text in texts], kept=0.0, seed=0)
    collate = ExampleCollator(processor, thinning)

    def count(split):
        return int((collate([_example(1, *texts, split=split)])["labels"] != IGNORED).sum())

    everything = sum(len(tokens) - start for tokens, start in (processor.encode(*text[:2]) for text in texts))
    assert count("train") == 4  # the digit of each
    assert count("validation") == count("test") == everything


def test_a_batch_follows_from_its_examples(processor):
    one = [_example(1, ("a?", "It is 5 °C.", ()))]
    collate = ExampleCollator(processor)
    assert all(torch.equal(collate(one)[name], tensor) for name, tensor in collate(one).items())


def test_counts(climate):
    time = TIMES[3].astype("datetime64[s]")
    told = [(0, "a?", "x."), (7, "b?", "x."), (0, "a?", "x."), (7, "a?", "y."), (0, "c?", "z.")]
    boxes = {0: Box(10, 20, 40, 40), 7: Box(10, 60, 40, 40)}
    pairs = [Pair((time, time), boxes[sample], *texts, sample=sample) for sample, *texts in told]
    config = _config(climate)
    made = make_examples(open_store(config).with_pairs(pairs), "train", config)
    assert [[pair.prompt for pair in example.pairs] for example in made] == [["a?", "a?", "c?"], ["b?", "a?"]]
    assert made.texts() == [("a?", "x."), ("a?", "x."), ("c?", "z."), ("b?", "x."), ("a?", "y.")]
    assert window_statistics(made) == {"windows": 2, "texts": 5, "distinct": 4}


# ---- Loaders -------------------------------------------------------------------------------------------------


def test_examples_are_a_sequence(examples):
    made = examples[1]["validation"]
    assert [example.sample for example in made[2:5]] == [made[n].sample for n in (2, 3, 4)]
    assert made[-1].pairs == made[len(made) - 1].pairs
    with pytest.raises(IndexError):
        made[len(made)]
    assert made[0].window is not made[0].window  # cut anew


@pytest.mark.parametrize("kind", ["facts", "pairs"])
def test_what_is_sent_to_a_worker_makes_the_same_examples(climate, tmp_path, kind):
    prepare(
        climate,
        tmp_path / "store",
        variables=["t2m", "msl"],
        pairs=_pairs(range(20)) if kind == "pairs" else (),
    )
    config = _config(tmp_path / "store")
    made = make_examples(open_store(config), "train", config)
    sent = pickle.dumps(made)
    assert _same(pickle.loads(sent), made)
    assert len(sent) < 50_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of one core
def test_spawned_workers_give_the_same_batches_in_the_same_order(climate, tmp_path, processor):
    prepare(climate, tmp_path / "store", variables=["t2m", "msl"], pairs=_pairs(range(20)))
    config = _config(tmp_path / "store")
    made = make_examples(open_store(config), "train", config)

    def batches(workers):
        return list(
            DataLoader(
                ExampleDataset(made),
                batch_size=3,
                sampler=EpochSampler(len(made), seed=1),
                collate_fn=TellingCollator(processor),
                num_workers=workers,
                multiprocessing_context="spawn" if workers else None,
            )
        )

    here, there = batches(0), batches(2)
    assert len(here) == len(there) == 4
    for one, other in zip(here, there, strict=True):
        # Climate files are none of a worker's business, and Dask starts threads.
        assert not {"dask", "zarr", "netCDF4"} & set(other.pop("modules"))
        del one["modules"]
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
