"""Architectures by name: the exact counts of the published models, and nothing allocated for them."""

from __future__ import annotations

import pytest

from climafuse.backbones.architectures import (
    ARCHITECTURES,
    architecture,
    config_of,
    count_parameters,
    skeleton,
)
from climafuse.errors import ConfigurationError

# As published; of the Llama ones worked out by hand below.
PUBLISHED = {
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "dialogpt-large": 774_030_080,
    "opt-1.3b": 1_315_758_080,
    "gpt-neo-1.3b": 1_315_575_808,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3-8b": 8_030_261_248,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_counts_are_exact(name):
    assert count_parameters(config_of(name)) == ARCHITECTURES[name].num_parameters
    assert ARCHITECTURES[name].num_parameters == PUBLISHED.get(name, ARCHITECTURES[name].num_parameters)


def test_the_published_ones_are_all_there_and_can_be_written():
    assert all(not architecture(name).planning_only for name in PUBLISHED)
    assert {"llama-2-13b", "opt-30b", "llama-30b"} == ARCHITECTURES.keys() - PUBLISHED.keys()


def test_llama_3_8b_by_hand():
    d, f, kv, vocabulary = 4096, 14_336, 8 * 128, 128_256
    block = 2 * d * d + 2 * d * kv + 3 * d * f + 2 * d
    assert PUBLISHED["llama-3-8b"] == 32 * block + 2 * vocabulary * d + d
    config = config_of("llama-3-8b")
    assert (config.rope_parameters["rope_theta"], config.tie_word_embeddings) == (500_000, False)


def test_a_skeleton_holds_nothing():
    model = skeleton(config_of("llama-30b"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigurationError, match=r"Llama-3-7B.*Did you mean 'llama-3-8b'"):
        architecture("Llama-3-7B")
    assert architecture("GPT2-XL").name == "gpt2-xl"
