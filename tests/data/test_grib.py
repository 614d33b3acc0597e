"""GRIB: whole files only, one field a time, nothing left behind."""

import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest

from climafuse.data.sources import load_fields, open_climate
from climafuse.errors import CanonicalizationError, ClimateFileError
from tests.data.layouts import ERA5_GRIB, ERA5_GRIB_2

LAYOUTS = [ERA5_GRIB, ERA5_GRIB_2]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.file)
def test_nothing_is_left_beside_the_file_and_datasets_travel(layout, tmp_path):
    known = layout.truth()
    opened = open_climate(layout.write(known, tmp_path / "files"), variables=["t2m", "t850", "tp"])
    copy = pickle.loads(pickle.dumps(opened))  # as to a worker
    for name, exact in (("t2m", known.fields["t2m"]), ("t850", known.fields["t"][:, 1])):
        np.testing.assert_allclose(copy[name].values, exact, atol=2e-3)
    assert opened["tp"].attrs["cell_methods"] == "time: sum (interval: 1 hour)"
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["download.grib"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.file)
def test_a_file_that_is_not_whole_is_refused(layout, tmp_path):
    """ecCodes passes over a message that is cut off, and over what lies between messages."""
    small = replace(layout, names={"t2m": "2t"})
    path = tmp_path / "download.grib"
    small.write(small.truth(num_times=4), tmp_path)
    content = path.read_bytes()
    for damaged in (
        content[:-1],
        content[: len(content) * 2 // 3],
        content[: len(content) // 2 - 20] + bytes(40) + content[len(content) // 2 + 20 :],
        content + b"and more",
        content[:20],
        content[:4],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ClimateFileError, match=r"download\.grib"):
            load_fields(open_climate(path))
    path.write_bytes(content + bytes(1000))  # zeros that fill up a block
    assert open_climate(path).sizes["time"] == 4


def test_several_forecasts_of_one_time_are_refused(tmp_path):
    layout = replace(ERA5_GRIB, names={"t2m": "2t"})
    layout.write(layout.truth(), tmp_path)
    path = tmp_path / "download.grib"
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(CanonicalizationError, match=r"'2t'.*2020-02-27T00:00:00"):
        open_climate(path)


def test_sums_over_different_intervals_are_no_one_variable(tmp_path):
    """From the start of the forecast, as in most forecasts: 0-6, 0-12 hours."""
    import eccodes

    layout = replace(ERA5_GRIB, names={"t2m": "2t", "tp": "tp"})
    layout.write(layout.truth(), tmp_path)
    path, changed = tmp_path / "download.grib", tmp_path / "changed.grib"
    with path.open("rb") as source, changed.open("wb") as target:
        while (message := eccodes.codes_grib_new_from_file(source)) is not None:
            if eccodes.codes_get(message, "shortName") == "tp":
                eccodes.codes_set(message, "startStep", 0)
            eccodes.codes_write(message, target)
            eccodes.codes_release(message)
    assert "t2m" in open_climate(changed, variables=["t2m"])
    with pytest.raises(CanonicalizationError, match="accum over 6 or 12 hours"):
        open_climate(changed)


def test_without_cfgrib_the_extra_is_named(tmp_path, monkeypatch):
    path = ERA5_GRIB.write(ERA5_GRIB.truth(), tmp_path)
    monkeypatch.setitem(sys.modules, "cfgrib", None)
    with pytest.raises(ClimateFileError, match=r"climafuse\[grib\]"):
        open_climate(path)
