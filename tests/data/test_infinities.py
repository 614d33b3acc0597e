"""An infinite value is never weather: wherever fields are read, it is refused with its variable and time."""

import numpy as np
import pytest

from climafuse.data.batch import collate_windows
from climafuse.data.normalization import compute_statistics
from climafuse.data.sources import open_climate
from climafuse.data.window import Window
from climafuse.errors import CanonicalizationError, DataError, ModelInputError
from tests.data import fixtures


def _known(value):
    known = fixtures.truth("t2m", "msl", num_times=4)
    known.fields["msl"][2, 3, 4] = value  # 12:00 of the first day
    return known


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("make", [fixtures.era5, fixtures.merra2, fixtures.arco])
def test_reading_names_variable_and_time(make, value, tmp_path):
    path = fixtures.write(make(_known(value)), str(tmp_path / "fields.nc"), "netcdf4")
    dataset = open_climate(path)
    assert np.isfinite(dataset["msl"].isel(time=1).values).all()  # other times are as good as ever
    with pytest.raises(CanonicalizationError, match=r"at 2020-02-28T12:00: .* received 1 infinite") as caught:
        dataset["msl"].load()
    assert {"mean_sea_level_pressure", "msl", "SLP"} & set(str(caught.value).split("'"))


def test_an_infinite_fill_value_is_missing():
    stored = fixtures.era5(_known(np.inf))
    stored["msl"].attrs["_FillValue"] = np.float32(np.inf)
    assert np.isnan(open_climate(stored)["msl"].values[2, 3, 4])


def test_statistics_and_tensors_of_datasets_made_in_python():
    dataset = fixtures.canonical(_known(np.inf))
    with pytest.raises(DataError, match=r"'msl' at 2020-02-28T12:00"):
        compute_statistics(dataset, [0, 2])
    statistics = compute_statistics(dataset, [0, 1, 3])
    with pytest.raises(ModelInputError, match=r"'msl' at 2020-02-28T12:00"):
        collate_windows([Window.from_dataset(dataset)], statistics)
