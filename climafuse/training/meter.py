"""How fast a run goes: windows and tokens a second, not counting the time spent evaluating and saving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from climafuse.training.callbacks import RunClock


class Meter:
    """Speed since the last log line, not counting the time spent evaluating and saving.

    Args:
        clock: The clock of the run.
    """

    def __init__(self, clock: RunClock) -> None:
        self.clock = clock
        self.reset()

    def reset(self) -> None:
        """Starts a new interval."""
        self._since = self.clock.seconds
        self._samples = self._text_tokens = self._climate_tokens = 0
        self.forget()

    def forget(self) -> None:
        """Drops the climate tokens of a step that is done again."""
        self._climate_tokens_of_step: Any = 0

    def settle(self) -> None:
        """Counts those of a step that is done."""
        self._climate_tokens += self._climate_tokens_of_step
        self.forget()

    def paused(self) -> _Pause:
        """A context whose duration does not count."""
        return _Pause(self)

    def count(self, inputs: Mapping[str, Any]) -> None:
        """Counts the windows and text tokens of a microbatch."""
        windows = next(
            (inputs[key] for key in ("climate_fields", "climate_states", "input_ids") if key in inputs), None
        )
        self._samples += len(windows) if windows is not None else 0
        if "attention_mask" in inputs:
            self._text_tokens += inputs["attention_mask"].sum()  # stays on the device until it is logged
        elif "input_ids" in inputs:
            self._text_tokens += inputs["input_ids"].numel()

    def count_climate(self, outputs: Any) -> None:
        """Notes climate tokens where the output tells: `num_climate_tokens` or `climate_mask`."""
        number = getattr(outputs, "num_climate_tokens", None)
        if number is None and getattr(outputs, "climate_mask", None) is not None:
            number = outputs.climate_mask.sum()
        if number is not None:
            self._climate_tokens_of_step += number

    def rates(self) -> dict[str, float]:
        """Rates a second over the interval, which ends here."""
        seconds = max(self.clock.seconds - self._since, 1e-9)
        rates = {
            "samples_per_second": float(self._samples) / seconds,
            "text_tokens_per_second": float(self._text_tokens) / seconds,
            "climate_tokens_per_second": float(self._climate_tokens) / seconds,
        }
        self.reset()
        return rates


class _Pause:
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def __enter__(self) -> None:
        self._begin = self.meter.clock.seconds

    def __exit__(self, *error: object) -> None:
        # Not before an interval that a log line inside the pause has begun.
        self.meter._since += self.meter.clock.seconds - max(self._begin, self.meter._since)
