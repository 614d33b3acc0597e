"""The bundled samples: unaltered, documented, and really what they say they are."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from climafuse.data import samples
from climafuse.data.samples import SAMPLES, sample_path
from climafuse.data.sources import open_climate
from climafuse.errors import ClimateFileError, UsageError

README = (Path(__file__).parents[2] / "data" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def era5():
    with open_climate(sample_path("era5")) as dataset:
        return dataset.load()


@pytest.fixture(scope="module")
def sst_anomaly():
    with open_climate(sample_path("sst_anomaly")) as dataset:
        return dataset.load()


def _mean(field):
    return field.weighted(np.cos(np.deg2rad(field["latitude"]))).mean(("latitude", "longitude"))


@pytest.mark.parametrize("name", SAMPLES)
def test_files_are_those_of_the_table_and_of_the_readme(name):
    content = sample_path(name).read_bytes()
    sample = SAMPLES[name]
    assert hashlib.sha256(content).hexdigest() == sample.sha256
    assert len(content) == sample.size
    assert sample.sha256 in README
    assert f"{sample.size:,}" in README
    assert sample.license in README


def test_together_under_ten_megabytes():
    assert sum(path.stat().st_size for path in sample_path("era5").parent.iterdir()) < 10e6


def test_an_altered_or_missing_sample_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_FOLDERS", (tmp_path,))
    with pytest.raises(ClimateFileError, match="no such file"):
        sample_path("era5")
    (tmp_path / "era5_sample.nc").write_bytes(b"CDF")
    with pytest.raises(ClimateFileError, match="sha256"):
        sample_path("era5")
    with pytest.raises(UsageError, match="era5, sst_anomaly"):
        sample_path("era6")


def test_a_wheel_finds_its_own_copy_first(tmp_path, monkeypatch):
    original = sample_path("sst_anomaly")
    copy = tmp_path / original.name
    copy.write_bytes(original.read_bytes())
    monkeypatch.setattr(samples, "_FOLDERS", (tmp_path, original.parent))
    assert sample_path("sst_anomaly") == copy


def test_attributes_tell_source_and_license():
    for name, sample in SAMPLES.items():
        with xr.open_dataset(sample_path(name)) as dataset:
            assert dataset.attrs["license"] == sample.license
            assert re.search(r"sha256 [0-9a-f]{64}", dataset.attrs["source"])
            assert "Changed" in dataset.attrs["comment"]


def test_era5_axes(era5):
    assert dict(era5.sizes) == {"time": 24, "latitude": 181, "longitude": 360}
    assert list(era5.data_vars) == ["t2m", "u10", "v10", "msl", "tp"]
    assert str(era5["time"].values[0]) == "2026-03-25T00:00:00"
    assert str(era5["time"].values[-1]) == "2026-03-31T23:00:00"
    assert set(np.diff(era5["time"].values) // np.timedelta64(1, "h")) == {7, 8}
    assert not any(np.isnan(era5[name]).any() for name in era5.data_vars)


def test_the_decoded_time_puts_the_heat_of_the_day_after_noon(era5):
    """Independent of the source's word: over dry land temperature peaks at 12 to 17 h local solar time."""
    for longitude, south, north in ((10, 16, 30), (75, 18, 26), (285, -40, -20), (20, -28, -18)):
        box = era5["t2m"].sel(longitude=slice(longitude - 3, longitude + 3), latitude=slice(south, north))
        anomaly = box.mean(("latitude", "longitude")).values
        local = era5["time"].dt.hour.values + longitude / 15
        # First harmonic of the day, by least squares.
        angle = 2 * np.pi * local / 24
        design = np.stack([np.ones(24), np.cos(angle), np.sin(angle)], axis=1)
        (_, cosine, sine), *_ = np.linalg.lstsq(design, anomaly, rcond=None)
        peak = np.arctan2(sine, cosine) / (2 * np.pi) * 24 % 24
        assert 12 < peak < 17, (longitude, peak)


def test_era5_is_the_earth(era5):
    """Global means known from climatology; precipitation shows that tp is the sum of one hour."""
    assert float(_mean(era5["t2m"]).mean()) == pytest.approx(287.5, abs=1.5)
    assert float(_mean(era5["msl"]).mean()) == pytest.approx(101150, abs=150)
    # 2.7 to 3.0 mm a day in ERA5 are 0.11 to 0.125 mm an hour.
    assert 0.11e-3 < float(_mean(era5["tp"]).mean()) < 0.125e-3
    # Trade winds blow from the east, southern westerlies from the west.
    assert float(era5["u10"].sel(latitude=slice(-15, -10), longitude=slice(200, 240)).mean()) < -3
    assert float(era5["u10"].sel(latitude=slice(-55, -50)).mean()) > 3
    assert era5["tp"].attrs["cell_methods"].startswith("time: sum (interval: 1 hour")


@pytest.mark.parametrize(
    ("name", "step"), [("t2m", 0.01), ("u10", 0.02), ("v10", 0.02), ("msl", 2), ("tp", 1e-5)]
)
def test_stated_precision_is_that_of_the_packing(name, step):
    with xr.open_dataset(sample_path("era5"), decode_cf=False) as raw:
        assert raw[name].attrs["scale_factor"] == step
        assert raw[name].encoding["chunksizes"] == (1, 181, 360)
        stated = float(re.search(r"from the source ([\d.e-]+)", raw[name].attrs["precision"])[1])
        assert stated <= step / 2 * 1.02


def test_sst_anomaly_axes(sst_anomaly):
    assert dict(sst_anomaly.sizes) == {"time": 420, "latitude": 48, "longitude": 96}
    assert str(sst_anomaly["time"].values[-1]) == "2013-12-01T00:00:00"
    # Gaussian latitudes: arcsines of the roots of the Legendre polynomial of degree 48.
    roots, _ = np.polynomial.legendre.leggauss(48)
    np.testing.assert_allclose(sst_anomaly["latitude"].values, np.degrees(np.arcsin(roots)), atol=2e-3)
    assert sst_anomaly["sst_anomaly"].attrs["cell_methods"] == "time: mean"
    assert sst_anomaly["sst_anomaly"].attrs["baseline"].startswith("1981-2010")


def test_land_and_ice_are_missing_at_all_times(sst_anomaly):
    field = sst_anomaly["sst_anomaly"]
    missing = np.isnan(field.values)
    assert (missing == missing[0]).all()
    assert missing.mean() == pytest.approx(0.466, abs=0.001)
    assert np.nanmin(field.values) > -4.6  # with ice it was -23
    assert np.nanmax(field.values) < 5.1
    for latitude, longitude in (
        (51.0, 90.0),
        (87.0, 0.0),
        (-75.0, 200.0),
        (20.0, 15.0),
    ):  # Asia, ice, ice, Sahara
        assert np.isnan(field.sel(latitude=latitude, longitude=longitude, method="nearest")).all()
    for latitude, longitude in ((0.0, 200.0), (30.0, 320.0), (-45.0, 90.0)):
        assert not np.isnan(field.sel(latitude=latitude, longitude=longitude, method="nearest")).any()


def test_anomalies_refer_to_1981_to_2010(sst_anomaly):
    field = sst_anomaly["sst_anomaly"].sel(time=slice("1981-01-01", "2010-12-31"))
    monthly = field.values.reshape(30, 12, 48, 96).mean(axis=0)
    assert np.nanmax(np.abs(monthly)) < 1.5e-3  # of it 1e-3 by packing


def test_el_nino_of_1997_and_la_nina_of_1988(sst_anomaly):
    """Niño 3.4, rows strictly inside ±5°: +2.85 K in December 1997, computed from the unpacked source."""
    box = sst_anomaly["sst_anomaly"].sel(latitude=slice(-5, 5), longitude=slice(190, 240))
    assert box.sizes["latitude"] == 2  # ±1.86°
    index = _mean(box)
    assert float(index.sel(time="1997-12-01")) == pytest.approx(2.85, abs=0.005)
    assert float(index.sel(time="1988-12-01")) < -1.5
