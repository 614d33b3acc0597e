"""Gridded climate fields fused into a frozen language model, and proof that the words came from the fields.

Public names are imported when first used (PEP 562): `import climafuse` costs nothing, and `climafuse --help`
never waits for torch. Everything public is listed in the table below; `tests/test_exports.py` locks it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from climafuse.errors import ClimafuseError as ClimafuseError

__version__ = "0.1.0"

# Public name -> module that defines it.
_EXPORTS = {
    "ClimafuseError": "climafuse.errors",
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
