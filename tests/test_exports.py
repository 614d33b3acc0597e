"""The public face: these names, no others, and they are what they say."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import climafuse

PUBLIC = {
    "__version__": None,
    # data
    "Box": "climafuse.data.window",
    "Pair": "climafuse.data.pairs",
    "TrainingStore": "climafuse.data.store",
    "Window": "climafuse.data.window",
    "find_place": "climafuse.data.places",
    "open_climate": "climafuse.data.sources",
    "prepare": "climafuse.data.store",
    "read_pairs": "climafuse.data.pairs",
    "sample_path": "climafuse.data.samples",
    "select_window": "climafuse.data.window",
    "write_pairs": "climafuse.data.pairs",
    # facts
    "describe": "climafuse.facts.describe",
    "extract": "climafuse.facts.extract",
    "parse": "climafuse.facts.parse",
    "score": "climafuse.facts.score",
    # model
    "ClimateTextConfig": "climafuse.model.configuration",
    "ClimateTextForCausalLM": "climafuse.model.modeling",
    "ClimateTextProcessor": "climafuse.model.processing",
    "load_backbone": "climafuse.backbones.loading",
    # report
    "draw_map": "climafuse.report.maps",
    # errors
    "ClimafuseError": "climafuse.errors",
}


def test_public_names_are_locked():
    """A change here is a change of the public interface: note it in the changelog."""
    assert set(climafuse.__all__) == set(PUBLIC)


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - {"__version__"}))
def test_public_name_is_the_object_of_its_module(name):
    found = getattr(climafuse, name)
    assert found is getattr(import_module(PUBLIC[name]), name)
    assert found.__module__ == PUBLIC[name]
    assert found.__doc__
    assert name in dir(climafuse)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        climafuse.nonsense  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(climafuse.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: module for name, module in PUBLIC.items() if module}


@pytest.mark.parametrize(
    "package",
    [
        "backbones",
        "data",
        "data.download",
        "encoders",
        "facts",
        "fusion",
        "model",
        "planning",
        "report",
        "training",
    ],
)
def test_every_name_a_subpackage_lists_exists(package):
    module = import_module(f"climafuse.{package}")
    for name in module.__all__:
        assert getattr(module, name) is not None
