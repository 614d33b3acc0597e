"""What is said of the samples that make a loss or gradient infinite. The search itself is in `test_trainer.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from climafuse.data.window import Window
from climafuse.errors import NonFiniteError
from climafuse.training.nonfinite import farthest_value
from climafuse.training.pipeline import assemble, make_trainer, prepare_reuse
from tests.training.runs import TIMES, make_config, save_backbone, write_climate


def statistics() -> xr.Dataset:
    return xr.Dataset(
        {
            "mean": ("variable", [280.0, 101000.0]),
            "std": ("variable", [10.0, 1000.0]),
            "units": ("variable", ["K", "Pa"]),
        },
        coords={"variable": ["t2m", "msl"]},
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1e30, "msl is 1e+30 Pa at 2026-03-01T12:00:00, latitude -70, longitude 10: 1e+27 standard"),
        (np.inf, "msl is inf Pa at 2026-03-01T12:00:00, latitude -70, longitude 10: inf standard"),
        (102000.0, "t2m is 295 K at 2026-03-01T00:00:00, latitude -80, longitude 0: 1.5 standard"),
    ],
)
def test_the_value_farthest_out_is_named(value: float, said: str) -> None:
    """In standard deviations: 295 K is (295 − 280) / 10 = 1.5 of them, 102,000 Pa only 1."""
    fields = np.full((2, 2, 3, 4), np.nan, dtype=np.float32)
    fields[:, 0], fields[:, 1] = 281.0, 101100.0
    fields[0, 0, 0, 0] = 295.0
    fields[0, 1, 0, 0] = np.nan
    fields[1, 1, 1, 1] = value
    window = Window(
        fields,
        ("t2m", "msl"),
        TIMES[:2].astype("datetime64[s]"),
        np.arange(-80.0, -50, 10),
        np.arange(0.0, 40, 10),
    )
    assert said in farthest_value(window, statistics())


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_a_run_stops_before_the_step_and_names_variable_and_time(tmp_path: Path, value: float) -> None:
    """One variable at one training time, after the statistics were taken, as a fault in memory would.

    Infinite fields do not come this far: making the batch refuses them, by variable and time.
    """
    step = 5
    climate, backbone = write_climate(tmp_path / "fields.nc"), save_backbone(tmp_path / "backbone")
    config = make_config(climate, backbone, tmp_path / "run", data={"train_windows": 40})
    setup = assemble(config, say=lambda line: None)
    setup.store.fields[step, 1] = value  # [T, V, H, W]; everywhere, so that every box at that time holds it
    prepare_reuse(setup, say=lambda line: None)
    trainer = make_trainer(setup, progress=False)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    said = str(caught.value)
    assert "alone; sample" in said
    assert f"msl is {np.float32(value):g} Pa at {TIMES[step].astype('datetime64[s]')}, latitude" in said
    assert "\n" not in said
    assert all(torch.isfinite(tensor).all() for tensor in setup.model.trainable_state_dict().values())
    assert caught.value.argument == f"step {trainer.state.global_step + 1}"
