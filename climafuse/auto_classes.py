"""`import climafuse` is enough for the Auto classes of transformers to load a saved model, and costs nothing.

Registering a class needs the class, and with it torch. So the Auto classes are told of stand-ins, as soon as both they
and climafuse are imported, in whichever order: a stand-in imports the real class when it is first asked for something.
Importing `climafuse.model` registers the real classes in their place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MODEL_TYPE = "climate_text"  # of ClimateTextConfig


class _Config:
    """Stands for `ClimateTextConfig`: the first thing asked of a configuration class is to read a file."""

    @classmethod
    def from_dict(cls, *args: Any, **kwargs: Any) -> Any:
        from climafuse.model import ClimateTextConfig

        return ClimateTextConfig.from_dict(*args, **kwargs)


class _Processor:
    """Stands for `ClimateTextProcessor`; found by its name."""

    __name__ = "ClimateTextProcessor"
    __module__ = "climafuse.model.processing"

    def from_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        from climafuse.model import ClimateTextProcessor

        return ClimateTextProcessor.from_pretrained(*args, **kwargs)


_STAND_INS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": lambda module: module.AutoConfig.register(
        MODEL_TYPE, _Config
    ),
    "transformers.models.auto.processing_auto": lambda module: module.AutoProcessor.register(
        _Config, _Processor()
    ),
}


class _Finder(MetaPathFinder):
    """Lets the modules of `_STAND_INS` be found as ever, and registers once they are imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        register = _STAND_INS.get(fullname)
        spec = None if register is None else PathFinder.find_spec(fullname, path, target)
        if register is None or spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            register(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def announce() -> None:
    """Tell the Auto classes of the stand-ins: now where they are imported, else when they will be."""
    for name, register in _STAND_INS.items():
        if name in sys.modules:
            register(sys.modules[name])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
