"""A collator that tells what its worker has imported. It imports nothing itself that a worker would not."""

from __future__ import annotations

import sys
from typing import Any

from climafuse.training.dataset import ExampleCollator


class TellingCollator(ExampleCollator):
    """Adds the names of the modules that were imported when the batch was made."""

    def __call__(self, examples: Any) -> dict[str, Any]:
        """Make a batch."""
        batch = super().__call__(examples)
        return {**batch, "modules": sorted({name.partition(".")[0] for name in sys.modules})}
