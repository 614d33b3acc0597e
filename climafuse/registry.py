"""Names for the parts that a configuration file or the command line may choose.

In code, pass an instance or a class; nothing in the library asks a registry on behalf of a Python caller. A
registered part is only a string until somebody asks for it, so this module imports nothing heavy.

A new part is one file and one registration:

    from climafuse.registry import ENCODERS

    ENCODERS.register("my_encoder", "my_package.my_module:MyEncoder")   # or the class itself

Encoders and fusions are classes, which a configuration gives options to; data products are instances of `Product`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from climafuse.errors import ConfigurationError


class Registry:
    """A table from names to classes that are imported when first asked for.

    Args:
        kind: What the names stand for, as it reads in an error message: "encoder".
        entries: Name → "module:attribute".
    """

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind = kind
        self._entries: dict[str, Any] = dict(entries)

    def register(self, name: str, target: Any) -> None:
        """Adds a part under a new name.

        Args:
            name: The name configuration files use.
            target: The class (or the product), or "module:attribute" to import it from when it is first needed.

        Raises:
            ConfigurationError: The name is taken by something else; replacing it silently would change what
                an existing configuration means.
        """
        taken = self._entries.get(name, target)
        if taken != target:
            raise ConfigurationError(
                f"{self.kind} {name!r}",
                expected="a name that is not taken",
                received=f"a second registration (the first is {_describe(taken)})",
                remedy="Register it under another name.",
            )
        self._entries[name] = target

    def get(self, name: str) -> Any:
        """The class or product registered under a name.

        Raises:
            ConfigurationError: No such name; the message proposes the nearest one.
        """
        if name not in self._entries:
            near = get_close_matches(name, self._entries, n=1)
            remedy = (
                f"Did you mean {near[0]!r}?" if near else f"Register it with {self.kind.upper()}S.register."
            )
            raise ConfigurationError(
                self.kind,
                expected=f"one of {', '.join(self)}",
                received=repr(name),
                remedy=remedy,
            )
        target = self._entries[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(import_module(module), attribute)
            self._entries[name] = target
        return target

    def create(self, name: str, *arguments: Any, **options: Any) -> Any:
        """An instance of the class registered under a name.

        Args:
            name: The name.
            *arguments: What the library itself passes, such as the channels of an encoder.
            **options: What the configuration sets.

        Raises:
            ConfigurationError: No such name, or no such option; the message proposes the nearest one.
        """
        self.check(name, options, given=len(arguments))
        return self.get(name)(*arguments, **options)

    def check(self, name: str, options: Mapping[str, Any], *, given: int) -> None:
        """Checks a name and its options before anything is made.

        Args:
            name: The name.
            options: What the configuration sets.
            given: How many arguments the library itself passes, before the options.

        Raises:
            ConfigurationError: No such name or option (the message proposes the nearest one), or an option of
                another type than the class says.
        """
        part = self.get(name)
        parameters = list(inspect.signature(part).parameters.values())[given:]
        known = {p.name: p for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        for option, value in options.items():
            if option in known:
                wanted = known[option].annotation
                wanted = wanted if isinstance(wanted, str) else getattr(wanted, "__name__", "")
                if wanted in _SPELLED and type(value).__name__ not in (wanted, *_ALSO.get(wanted, ())):
                    raise ConfigurationError(
                        f"{self.kind}.options.{option}",
                        expected=_SPELLED[wanted],
                        received=repr(value),
                        remedy=f"See the options of {name}: {', '.join(known)}.",
                    )
            elif not takes_any:
                near = get_close_matches(option, known, n=1)
                raise ConfigurationError(
                    f"{self.kind}.options",
                    expected=f"options of {name}: {', '.join(known) or 'none'}",
                    received=repr(option),
                    remedy=f"Did you mean {near[0]!r}?" if near else "Remove it.",
                )

    def name_of(self, part: type) -> str:
        """The name a class is registered under, for writing a configuration down.

        Raises:
            ConfigurationError: The class is not registered, so a configuration could not name it.
        """
        for name, target in self._entries.items():
            if target is part or target == _describe(part):
                return name
        raise ConfigurationError(
            self.kind,
            expected="a registered class",
            received=_describe(part),
            remedy=f"Call {self.kind.upper()}S.register(name, {part.__name__}) first.",
        )

    def __iter__(self) -> Iterator[str]:
        """Names in alphabetical order."""
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries


# Plain types only, and by name: annotations may be strings, and those of users may not resolve here.
_SPELLED = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
_ALSO = {"float": ("int",)}


def _describe(target: Any) -> str:
    if isinstance(target, str):
        return target
    return f"{target.__module__}:{target.__qualname__}" if isinstance(target, type) else repr(target)


ENCODERS = Registry(
    "encoder",
    {
        "blind": "climafuse.encoders.blind:BlindEncoder",
        "conv": "climafuse.encoders.conv:ConvEncoder",
        "grid_transformer": "climafuse.encoders.grid_transformer:GridTransformerEncoder",
    },
)

FUSIONS = Registry(
    "fusion",
    {
        "cross_attention": "climafuse.fusion.cross_attention:CrossAttentionFusion",
        "film": "climafuse.fusion.film:FiLMFusion",
        "gated_addition": "climafuse.fusion.gated:GatedAdditionFusion",
        "prefix": "climafuse.fusion.prefix:PrefixFusion",
    },
)

PRODUCTS = Registry(
    "product",
    {
        "arco_era5": "climafuse.data.products.arco_era5:ARCO_ERA5",
        "cf": "climafuse.data.products.cf:CF",
        "cmip6": "climafuse.data.products.cmip6:CMIP6",
        "era5": "climafuse.data.products.era5:ERA5",
        "merra2": "climafuse.data.products.merra2:MERRA2",
        "ncep": "climafuse.data.products.ncep:NCEP",
    },
)
