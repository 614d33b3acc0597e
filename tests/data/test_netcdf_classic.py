"""The size a classic header promises, against files that the NetCDF library wrote."""

import numpy as np
import pytest
import xarray as xr

from climafuse.data.netcdf_classic import expected_size

FORMATS = ["NETCDF3_CLASSIC", "NETCDF3_64BIT", "NETCDF3_64BIT_DATA"]


def _dataset(dtypes):
    return xr.Dataset(
        {
            f"v{i}": (("time", "x"), np.ones((5, 3), dtype=dtype), {"note": "ab" * i})
            for i, dtype in enumerate(dtypes)
        }
        | {"fixed": (("x",), np.ones(3, dtype=np.int8)), "scalar": ((), np.float64(1))},
        attrs={"title": "odd", "numbers": np.array([1, 2, 3], dtype=np.int16)},
    )


@pytest.mark.parametrize("unlimited", [[], ["time"]])
@pytest.mark.parametrize("dtypes", [["i1"], ["i2"], ["f4", "f8", "i2"], []])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_whole_file_has_the_size_its_header_promises(kind, dtypes, unlimited, tmp_path):
    path = tmp_path / "file.nc"
    unlimited = unlimited if dtypes else []
    _dataset(dtypes).to_netcdf(path, format=kind, engine="netcdf4", unlimited_dims=unlimited)
    # The library pads the last value to a multiple of four bytes.
    assert 0 <= path.stat().st_size - expected_size(path) < 4


@pytest.mark.parametrize("size", [4, 11, 40, 100])
def test_a_header_that_is_cut_off(size, tmp_path):
    path = tmp_path / "file.nc"
    _dataset(["f4"]).to_netcdf(path, format=FORMATS[0], engine="netcdf4")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="header"):
        expected_size(path)
