"""The shape of a data product: names, units of its own, and what must be set right before it is understood."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from climafuse.errors import ConfigurationError
from climafuse.registry import PRODUCTS

if TYPE_CHECKING:
    import xarray as xr

Conversion: TypeAlias = tuple[float, float]  # (scale, offset): SI value = scale * value + offset


def _never(dataset: xr.Dataset) -> bool:
    return False


def _as_it_is(dataset: xr.Dataset) -> xr.Dataset:
    return dataset


@dataclass(frozen=True)
class Product:
    """What one data product calls the canonical variables.

    The names of all products are understood in every file, so that renamed and cut files open. Where two
    products give one name to different variables, the file must be recognized as of one of them; else it is
    refused.

    Args:
        title: For people: "MERRA-2".
        spellings: Canonical name -> names in files, case included (``T`` of MERRA-2 is not ``t``).
        channels: Canonical name of a variable on levels -> what stands before the level where the product
            writes single levels: ``{"t": ("T",)}`` reads ``T850`` as ``t850``.
        units: Quantity (a key of ``QUANTITIES``) -> unit as only this product spells it -> conversion to SI.
        recognize: Whether a dataset, as stored, is of this product. Only needed for a name that means
            something else elsewhere, and for ``adapt``.
        adapt: What to set right in a recognized dataset, as stored and not yet decoded, before it is
            understood: metadata only, as values are read on use. It returns a dataset of its own.
        other_fields: Names of fields that no canonical variable is, whatever their standard name says.
        no_standard_names: What it writes into ``standard_name`` where it knows none; understood in every file.
        own_standard_names: Whether recognized files have phrases of their own there, which CF does not know.
    """

    title: str
    spellings: Mapping[str, Sequence[str]]
    channels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    units: Mapping[str, Mapping[str, Conversion]] = field(default_factory=dict)
    recognize: Callable[[xr.Dataset], bool] = _never
    adapt: Callable[[xr.Dataset], xr.Dataset] = _as_it_is
    other_fields: Collection[str] = ()
    no_standard_names: Collection[str] = ()
    own_standard_names: bool = False


def get_product(name: str) -> Product:
    """A registered product.

    Args:
        name: As registered.

    Returns:
        The product.

    Raises:
        ConfigurationError: No such name, or something else than a product was registered.
    """
    product = PRODUCTS.get(name)
    if not isinstance(product, Product):
        raise ConfigurationError(
            f"product {name!r}",
            expected="an instance of climafuse.data.products.Product",
            received=repr(product),
            remedy="Register the product itself.",
        )
    return product


def recognized(dataset: xr.Dataset) -> list[str]:
    """Which products a dataset is of, by its content.

    Args:
        dataset: As stored.

    Returns:
        Registered names; usually one or none.
    """
    return [name for name in PRODUCTS if get_product(name).recognize(dataset)]
