"""Data products x properties: whatever the product and however it is written, the same fields come out."""

from __future__ import annotations

import numpy as np
import pytest

from climafuse.data.sources import open_climate
from tests.data.layouts import LAYOUTS, ON_LEVELS, UNITS, Layout


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_opens(layout: Layout, cell, tmp_path):
    """Names, units, cell methods, times and coordinates are canonical, values those of the reference."""
    cell("data", layout.name, "opens")
    known = layout.truth()
    with open_climate(layout.write(known, tmp_path / "files")) as opened:
        assert set(opened.data_vars) == set(layout.names)
        np.testing.assert_array_equal(opened["time"].values, layout.times(known))
        np.testing.assert_array_equal(opened["latitude"].values, known.latitude)
        np.testing.assert_array_equal(opened["longitude"].values, known.longitude)
        for name, values in known.fields.items():
            field = opened[name]
            levels = ("level",) if name in ON_LEVELS else ()
            assert field.dims == ("time", *levels, "latitude", "longitude")
            assert field.dtype == np.float32
            assert field.attrs["units"] == UNITS[name]
            method = {"tp": "sum", "tprate": "mean"}.get(name, layout.method)
            assert field.attrs["cell_methods"].split(" (")[0].endswith(f"time: {method}")
            np.testing.assert_array_equal(np.isnan(field.values), np.isnan(values))
            np.testing.assert_allclose(field.values, values, rtol=0, atol=layout.tolerance(name))
            if levels:
                np.testing.assert_array_equal(opened["level"].values, known.level)
