"""The registry: names to classes, loaded late, wrong names answered with the nearest."""

import pytest

from climafuse.errors import ConfigurationError
from climafuse.registry import ENCODERS, FUSIONS, Registry


class Part:
    def __init__(self, channels, *, width=4, depth=2):
        self.channels, self.width, self.depth = channels, width, depth


def _registry():
    registry = Registry("encoder", {"ordered": "collections:OrderedDict"})
    registry.register("part", Part)
    return registry


def test_names_become_classes_and_back():
    from collections import OrderedDict

    registry = _registry()
    assert list(registry) == ["ordered", "part"]
    assert registry.name_of(OrderedDict) == "ordered"  # before it was ever imported through the registry
    assert registry.get("ordered") is OrderedDict
    assert registry.name_of(OrderedDict) == "ordered"  # and after
    assert "part" in registry


def test_wrong_name_proposes_the_nearest():
    with pytest.raises(
        ConfigurationError, match=r"one of ordered, part; received 'parts'\. Did you mean 'part'"
    ):
        _registry().get("parts")
    with pytest.raises(ConfigurationError, match=r"ENCODERS\.register"):
        _registry().get("something else")


def test_options_are_checked_by_name():
    part = _registry().create("part", "four channels", width=8)
    assert (part.channels, part.width, part.depth) == ("four channels", 8, 2)
    with pytest.raises(
        ConfigurationError, match=r"options of part: width, depth; received 'widht'\. .*'width'"
    ):
        _registry().create("part", "four channels", widht=8)
    with pytest.raises(
        ConfigurationError, match="received 'channels'"
    ):  # not an option: the library passes it
        _registry().create("part", "four channels", channels=3)


def test_a_taken_name_is_not_replaced():
    registry = _registry()
    registry.register("part", Part)  # the same again is fine: a module may be imported twice
    with pytest.raises(ConfigurationError, match="not taken"):
        registry.register("part", dict)


def test_unregistered_class_has_no_name():
    with pytest.raises(ConfigurationError, match=r"ENCODERS\.register\(name, dict\)"):
        _registry().name_of(dict)


@pytest.mark.parametrize("registry", [ENCODERS, FUSIONS], ids=lambda registry: registry.kind)
def test_every_built_in_part_exists(registry):
    for name in registry:
        assert registry.name_of(registry.get(name)) == name
