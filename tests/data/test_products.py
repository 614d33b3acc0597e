"""Products: their names do not collide, those of others may, and quirks are set right."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from climafuse.data.products import Product, recognized
from climafuse.data.sources import open_climate
from climafuse.data.variables import LEVELS, VARIABLES, find_variable, named_variable
from climafuse.errors import CanonicalizationError, ConfigurationError
from climafuse.registry import PRODUCTS, Registry
from tests.data.fixtures import era5, merra2, truth
from tests.data.layouts import GENERIC, LAYOUTS

BUILT_IN = tuple(PRODUCTS)  # before any test registers another


def _names(product):
    yield from ((name, canonical) for canonical, names in product.spellings.items() for name in names)
    for parent, prefixes in product.channels.items():
        yield from ((f"{p}{level}", f"{parent}{level}") for p in prefixes for level in LEVELS)


def test_no_name_of_the_built_in_products_means_two_variables():
    meanings = {name: {name} for name in VARIABLES}
    for key in BUILT_IN:
        for name, canonical in _names(PRODUCTS.get(key)):
            meanings.setdefault(name, set()).add(canonical)
            assert named_variable(name).name == canonical
    assert [names for names in meanings.values() if len(names) > 1] == []
    assert len(meanings) > 700


@pytest.mark.parametrize("key", BUILT_IN)
def test_every_built_in_product_has_a_layout(key):
    # One that has none would be tried on no file.
    own = set(_names(PRODUCTS.get(key)))
    assert [layout for layout in LAYOUTS if own & {(name, known) for known, name in layout.names.items()}]


@pytest.mark.parametrize(
    ("short_name", "expected"),
    [
        ("M2T1NXSLV", "time: mean"),
        ("M2I1NXASM", "time: point"),
        ("M2IMNPASM", "time: mean"),
        ("M2IUNPASM", "time: mean"),
        ("M2C0NXASM", "time: point"),  # nothing is said of constants
        ("other", "time: point"),
    ],
)
def test_the_short_name_of_merra2_tells_means_from_instants(short_name, expected):
    dataset = merra2(truth("t2m"), short_name=short_name)
    before = dict(dataset["T2M"].attrs)
    assert open_climate(dataset)["t2m"].attrs["cell_methods"] == expected
    assert dataset["T2M"].attrs == before  # what the caller holds is left alone
    stated = dataset.assign(T2M=dataset["T2M"].assign_attrs(cell_methods="time: point"))
    assert open_climate(stated)["t2m"].attrs["cell_methods"] == "time: point"


def test_phrases_of_merra2_are_understood_in_its_files_only():
    dataset = merra2(truth("t2m", "msl"))
    assert dataset["SLP"].attrs["standard_name"] == "sea_level_pressure"
    for kept in ({"ShortName": "M2T1NXSLV"}, {"Title": "MERRA2 tavg1_2d_slv_Nx: 2d,1-Hourly"}):
        assert set(open_climate(dataset.drop_attrs(deep=False).assign_attrs(kept)).data_vars) == {
            "t2m",
            "msl",
        }
    with pytest.raises(CanonicalizationError, match="delete it, if it is no CF name"):
        open_climate(dataset.drop_attrs(deep=False))
    dataset["SLP"].attrs["standard_name"] = "surface_air_pressure"  # a CF name, of another variable
    with pytest.raises(CanonicalizationError, match="surface_air_pressure"):
        open_climate(dataset)


@pytest.mark.parametrize("title", ["4x daily NMC reanalysis (2001)", "4x Daily NCEP/DOE Reanalysis 2"])
def test_phrases_of_ncep_are_understood_in_its_files_only(title):
    dataset = era5(truth("msl"))
    dataset["msl"].attrs["standard_name"] = "pressure"  # as mslp of Reanalysis 2 has it
    assert "msl" in open_climate(dataset.assign_attrs(title=title))
    with pytest.raises(CanonicalizationError, match="'pressure'"):
        open_climate(dataset)


def test_a_product_says_what_stands_for_no_standard_name(products):
    dataset = era5(truth("t2m"))
    dataset["t2m"].attrs["standard_name"] = "not given"
    with pytest.raises(CanonicalizationError, match="not given"):
        open_climate(dataset)
    products.register("nameless", Product("nameless", spellings={}, no_standard_names=("not given",)))
    assert "t2m" in open_climate(dataset)


# Products of others.


@pytest.fixture
def products(monkeypatch):
    """The registry, as it was again after the test."""
    monkeypatch.setattr(PRODUCTS, "_entries", dict(PRODUCTS._entries))
    return PRODUCTS


OWN = Product(
    "my model",
    spellings={"t2m": ("temp_at_2m", "T2M_C"), "d2m": ("slp",), "zg": ("z",)},  # slp is that of NCEP
    channels={"u": ("wind_x_",)},
    units={"temperature": {"Grad": (1.0, 273.15)}},
    recognize=lambda dataset: dataset.attrs.get("model") == "mine",
)


def test_an_own_product_is_one_call(products):
    products.register("mine", OWN)
    dataset = era5(truth("t2m")).rename(t2m="temp_at_2m")
    dataset["temp_at_2m"].attrs["units"] = "Grad"
    dataset["temp_at_2m"].values[:] -= 273.15
    np.testing.assert_allclose(open_climate(dataset)["t2m"].values, truth("t2m").fields["t2m"], rtol=1e-6)
    assert find_variable("wind_x_850").name == "u850"
    assert find_variable("T2M").name == "t2m"  # the others are still there


def test_a_unit_of_a_products_own_is_part_of_its_one_layout(products, tmp_path):
    unit = {"pressure": {"Hektopascal": (100.0, 0.0)}}
    products.register("german", Product("my model", spellings={"msl": ("druck",)}, units=unit))
    layout = replace(
        GENERIC,
        name="my model",
        names={"msl": "druck"},
        units={"msl": "Hektopascal"},
        conversions={"Hektopascal": (100.0, 0.0)},
        field_attributes=lambda name: {},
        packed=True,
        missing=(-32767, ("_FillValue",)),
    )
    known = layout.truth()
    with open_climate(layout.write(known, tmp_path / "files")) as opened:
        np.testing.assert_allclose(opened["msl"].values, known.fields["msl"], atol=layout.tolerance("msl"))


def test_a_name_of_two_products_is_settled_by_the_file_or_refused(products):
    products.register("mine", OWN)
    dataset = era5(truth("t2m")).rename(t2m="slp")
    with pytest.raises(CanonicalizationError, match=r"'slp'.*d2m in my model, msl in NCEP"):
        open_climate(dataset)
    with pytest.raises(CanonicalizationError, match="'slp'"):
        find_variable("slp")
    mine = dataset.assign_attrs(model="mine")
    assert recognized(mine) == ["mine"]
    assert list(open_climate(mine).data_vars) == ["d2m"]
    assert list(open_climate(mine, variables=["slp"]).data_vars) == ["d2m"]


def test_a_canonical_name_is_another_variable_only_in_a_file_of_that_product(products):
    products.register("mine", OWN)
    assert find_variable("z").name == "z"
    assert named_variable("z", ["mine"]).name == "zg"


@pytest.mark.parametrize(
    ("product", "match"),
    [
        (Product("bad", spellings={"t2n": ("temp",)}), "'t2n' .*'t2m'"),
        (Product("bad", spellings={}, channels={"T": ("T",)}), "'T'"),
        (Product("bad", spellings={"t2m": ("temp",), "d2m": ("temp",)}), "'temp' for two variables"),
        (Product("bad", spellings={}, units={"heat": {"K": (1.0, 0.0)}}), "'heat'"),
        (Product("bad", spellings={}, units={"temperature": {"degC": (1.0, 0.0)}}), "'degC' of temperature"),
    ],
)
def test_tables_that_contradict_are_refused(product, match, products):
    products.register("bad", product)
    with pytest.raises(ConfigurationError, match=match):
        find_variable("t2m")


def test_a_product_must_be_one(products):
    products.register("word", "collections:abc")
    with pytest.raises(ConfigurationError, match="Product"):
        find_variable("t2m")
    assert isinstance(products, Registry)


def test_adapting_is_for_recognized_files_only(products):
    def adapt(dataset: xr.Dataset) -> xr.Dataset:
        return dataset.rename(field="t2m")

    products.register("mine", Product("mine", spellings={}, recognize=lambda d: "field" in d, adapt=adapt))
    assert list(open_climate(era5(truth("t2m")).rename(t2m="field")).data_vars) == ["t2m"]
    assert list(open_climate(era5(truth("t2m"))).data_vars) == ["t2m"]
