"""Gridded climate fields fused into a frozen language model, and proof that the words came from the fields.

Public names are imported when first used (PEP 562): `import climafuse` costs nothing, and `climafuse --help`
never waits for torch. Everything public is listed in the table below; `tests/test_exports.py` locks it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from climafuse import auto_classes

if TYPE_CHECKING:  # the same names again, for editors and type checkers
    from climafuse.backbones.loading import load_backbone as load_backbone
    from climafuse.data.pairs import Pair as Pair
    from climafuse.data.pairs import read_pairs as read_pairs
    from climafuse.data.pairs import write_pairs as write_pairs
    from climafuse.data.places import find_place as find_place
    from climafuse.data.samples import sample_path as sample_path
    from climafuse.data.sources import open_climate as open_climate
    from climafuse.data.store import TrainingStore as TrainingStore
    from climafuse.data.store import prepare as prepare
    from climafuse.data.window import Box as Box
    from climafuse.data.window import Window as Window
    from climafuse.data.window import select_window as select_window
    from climafuse.errors import ClimafuseError as ClimafuseError
    from climafuse.facts.describe import describe as describe
    from climafuse.facts.extract import extract as extract
    from climafuse.facts.parse import parse as parse
    from climafuse.facts.score import score as score
    from climafuse.model.configuration import ClimateTextConfig as ClimateTextConfig
    from climafuse.model.modeling import ClimateTextForCausalLM as ClimateTextForCausalLM
    from climafuse.model.processing import ClimateTextProcessor as ClimateTextProcessor
    from climafuse.report.maps import draw_map as draw_map

__version__ = "0.1.0"

# Public name -> module that defines it.
_EXPORTS = {
    "Box": "climafuse.data.window",
    "ClimafuseError": "climafuse.errors",
    "ClimateTextConfig": "climafuse.model.configuration",
    "ClimateTextForCausalLM": "climafuse.model.modeling",
    "ClimateTextProcessor": "climafuse.model.processing",
    "Pair": "climafuse.data.pairs",
    "TrainingStore": "climafuse.data.store",
    "Window": "climafuse.data.window",
    "describe": "climafuse.facts.describe",
    "draw_map": "climafuse.report.maps",
    "extract": "climafuse.facts.extract",
    "find_place": "climafuse.data.places",
    "load_backbone": "climafuse.backbones.loading",
    "open_climate": "climafuse.data.sources",
    "parse": "climafuse.facts.parse",
    "prepare": "climafuse.data.store",
    "read_pairs": "climafuse.data.pairs",
    "sample_path": "climafuse.data.samples",
    "score": "climafuse.facts.score",
    "select_window": "climafuse.data.window",
    "write_pairs": "climafuse.data.pairs",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'climafuse' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


auto_classes.announce()
