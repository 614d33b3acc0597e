"""What every encoder keeps to. Oracle: the same window in another disguise gives the same tokens.

What an encoder does by its design stands in `DOES`. What it does not is tried, too: an encoder that shall not look at
something gives the same tokens, bit for bit, whatever it is.
"""

from __future__ import annotations

from dataclasses import fields as dataclass_fields

import numpy as np
import pytest
import torch
from torch import Tensor

from climafuse.climate_tokens import ClimateTokens, concatenate
from climafuse.data.batch import collate_windows
from climafuse.encoders import Channels, ClimateEncoder, ConvEncoder, GridTransformerEncoder
from climafuse.encoders.blind import BlindEncoder
from climafuse.encoders.summary import STATISTICS
from climafuse.errors import ConfigurationError, ModelInputError
from tests.encoders.windows import CHANNELS, VARIABLES, Inputs, encoders, inputs, padded

DOES = {
    "grid_transformer": {"patches", "values", "place"},
    "conv": {"patches", "values", "place"},
    "blind": set(),  # the text-only control
    "blind_place": {"place"},  # the control that knows places and times by heart
}
POOLINGS = ("none", "time")
every_encoder = pytest.mark.parametrize("name", DOES)


def encoders_with(trait: str) -> pytest.MarkDecorator:
    """Those whose tokens are those of patches, or that look at values and mask, or at places and times."""
    return pytest.mark.parametrize("name", [name for name, traits in DOES.items() if trait in traits])


def encoders_without(trait: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name, traits in DOES.items() if trait not in traits])


every_pooling = pytest.mark.parametrize("pooling", POOLINGS)


def encode(encoder: ClimateEncoder, given: Inputs) -> ClimateTokens:
    with torch.no_grad():
        return encoder(**given)


def check_shapes(tokens: ClimateTokens, batch: int, number: int, width: int) -> None:
    assert tokens.states.shape == (batch, number, width)
    assert tokens.states.dtype == torch.float32
    assert tokens.mask.dtype == torch.bool
    for where in (tokens.mask, tokens.latitude, tokens.longitude, tokens.time):
        assert where.shape == (batch, number)
    assert len(tokens.labels) == number
    assert tokens.states.isfinite().all()


@every_encoder
@pytest.mark.parametrize(
    ("steps", "height", "width", "spacing"),
    [(1, 1, 1, 1.0), (1, 4, 4, 0.25), (2, 7, 9, 1.0), (3, 5, 12, 2.5)],
)
def test_one_set_of_weights_serves_any_box_resolution_and_history(
    name: str, steps: int, height: int, width: int, spacing: float
) -> None:
    encoder = encoders(pooling="none", summary=False)[name]
    tokens = encode(encoder, inputs(steps=steps, height=height, width=width, spacing=spacing))
    size = {"grid_transformer": 3, "conv": 4}.get(name)
    # A token a patch; without patches always as many, three that are learned and seven of where and when.
    patches = 0 if size is None else steps * -(-height // size) * -(-width // size)  # ceilings
    check_shapes(tokens, 2, patches or {"blind": 3, "blind_place": 10}[name], 16)
    assert tokens.mask.all()


@encoders_with("patches")
def test_pooling_in_time_gives_one_token_a_step(name: str) -> None:
    tokens = encode(encoders(pooling="time", summary=False)[name], inputs(steps=3))
    check_shapes(tokens, 2, 3, 16)
    assert tokens.labels == ("step -2", "step -1", "step 0")
    torch.testing.assert_close(tokens.time, inputs(steps=3)["time"])


@encoders_with("patches")
def test_tokens_in_time_are_the_means_over_valid_patches(name: str) -> None:
    given = inputs(height=8, width=8)
    given["mask"][:, :, :, :4, :] = False  # whole rows of patches, for patches of 3 or 4 cells
    whole = encode(encoders(pooling="none", summary=False)[name], given)
    pooled = encode(encoders(pooling="time", summary=False)[name], given)
    states, mask = whole.states.view(2, 2, -1, 16), whole.mask.view(2, 2, -1)
    assert 0 < mask.sum() < mask.numel()
    for row in range(2):
        for step in range(2):
            expected = states[row, step][mask[row, step]].mean(dim=0)
            torch.testing.assert_close(pooled.states[row, step], expected)


@encoders_with("patches")
def test_summary_tokens_stand_before_the_others(name: str) -> None:
    tokens = encode(encoders(pooling="none", summary=True)[name], inputs())
    plain = encode(encoders(pooling="none", summary=False)[name], inputs())
    assert tokens.states.shape[1] == 3 * len(STATISTICS) + plain.states.shape[1]
    assert tokens.labels[:2] == ("t2m mean", "t2m maximum")
    assert tokens.labels[3 * len(STATISTICS) :] == plain.labels


@every_encoder
@every_pooling
def test_values_under_the_mask_do_not_matter(name: str, pooling: str) -> None:
    encoder = encoders(pooling=pooling, summary=True)[name]
    given = inputs(missing=0.4)
    other = dict(given)
    garbage = 1e15 * torch.randn(given["fields"].shape, generator=torch.Generator().manual_seed(9))
    garbage[..., ::2] = torch.nan
    other["fields"] = torch.where(given["mask"], given["fields"], garbage)
    assert other["fields"].isnan().any()
    assert_same(encode(encoder, other), encode(encoder, given))


@encoders_with("values")
def test_missing_is_not_zero(name: str) -> None:
    # A missing cell reaches the encoder as zero *and* a mask: the mean value is another thing.
    encoder = encoders(pooling="none", summary=False)[name]
    missing = inputs()
    missing["mask"][:, :, 0, 2, 2] = False
    missing["fields"][:, :, 0, 2, 2] = 0.0
    zero = {**missing, "mask": torch.ones_like(missing["mask"])}
    assert not torch.allclose(encode(encoder, missing).states, encode(encoder, zero).states, atol=1e-3)


@encoders_with("values")
@every_pooling
def test_a_window_without_any_value_tells_nothing_else_and_harms_no_other(name: str, pooling: str) -> None:
    encoder = encoders(pooling=pooling, summary=True)[name]
    given = inputs(missing=0.2)
    empty = {**given, "fields": given["fields"].clone(), "mask": given["mask"].clone()}
    empty["fields"][1], empty["mask"][1] = 0.0, False
    tokens = encode(encoder, empty)
    told = [label for label, valid in zip(tokens.labels, tokens.mask[1].tolist(), strict=True) if valid]
    assert told == [f"{variable} valid share" for variable in CHANNELS.names]
    assert tokens.states.isfinite().all()
    torch.testing.assert_close(tokens.states[0], encode(encoder, given).states[0], rtol=1e-4, atol=1e-5)


@encoders_with("patches")
def test_a_patch_is_valid_where_any_cell_is(name: str) -> None:
    size = 3 if name == "grid_transformer" else 4
    given = inputs(steps=1, height=2 * size, width=2 * size)
    given["mask"][:] = False
    given["mask"][0, 0, 2, 0, size] = True  # south-east patch, a single cell of a single variable
    tokens = encode(encoders(pooling="none", summary=False)[name], given)
    assert tokens.mask.tolist() == [[False, True, False, False], [False] * 4]


@encoders_with("patches")
def test_tokens_lie_where_their_cells_do(name: str) -> None:
    size = 3 if name == "grid_transformer" else 4
    given = inputs(steps=2, height=size + 1, width=size + 1, south=40, west=359)
    tokens = encode(encoders(pooling="none", summary=False)[name], given)
    # Whole patch: cells 40 … 40 + size - 1, mean 40 + (size - 1) / 2. Patch of one cell: its own place.
    first, rest = (size - 1) / 2, float(size)
    north = [40 + first, 40 + first, 40 + rest, 40 + rest]
    east = [(359 + first) % 360, 359 + rest - 360] * 2
    assert tokens.latitude[0].tolist() == pytest.approx(north * 2)
    assert tokens.longitude[0].tolist() == pytest.approx(east * 2)
    assert tokens.time[0].tolist() == [20500.25] * 4 + [20501.25] * 4
    assert tokens.labels[0] == "patch 0,0 at step -1"
    assert tokens.labels[-1] == "patch 1,1 at step 0"


@encoders_without("values")
def test_who_shall_not_look_sees_neither_values_nor_what_is_missing(name: str) -> None:
    encoder = encoders()[name]
    tokens = encode(encoder, inputs())
    assert tokens.mask.all()
    others = [inputs(seed=1), inputs(missing=0.5), {**inputs(), "mask": torch.zeros_like(inputs()["mask"])}]
    others[1]["mask"][:, :, 0] = False  # a variable withheld
    for other in others:
        same = encode(encoder, other)
        assert torch.equal(same.states, tokens.states)
        assert torch.equal(same.mask, tokens.mask)


@encoders_without("place")
def test_who_shall_not_know_where_and_when_has_one_state_for_all(name: str) -> None:
    encoder = encoders()[name]
    states = encode(encoder, inputs()).states
    assert torch.equal(states[0], states[1])
    later = inputs(south=-40, west=200, steps=3, height=2, spacing=0.5)
    later["time"] = later["time"] + 182.3
    assert torch.equal(encode(encoder, later).states, states)


@encoders_with("place")
def test_place_and_time_matter(name: str) -> None:
    encoder = encoders(pooling="none", summary=False)[name]
    states = encode(encoder, inputs()).states
    for moved in (inputs(south=-40), inputs(west=200)):
        assert not torch.allclose(encode(encoder, moved).states, states, atol=1e-2)
    later = inputs()
    later["time"] = later["time"] + 182
    assert not torch.allclose(encode(encoder, later).states, states, atol=1e-2)


def test_patches_that_change_places_change_tokens_alone() -> None:
    # Attention knows no order: where a patch stands in the grid is told by its coordinates only.
    encoder = encoders(pooling="none", summary=False)["grid_transformer"]
    given = inputs(height=6, width=6)
    swapped = {
        **given,
        "fields": given["fields"].roll(3, dims=-1),
        "mask": given["mask"].roll(3, dims=-1),
        "longitude": given["longitude"].roll(3, dims=-1),
    }
    # With longitudes 13 14 15 | 10 11 12 the second patch seems to lie a turn further east: the same place.
    states = encode(encoder, given).states.view(2, 2, 2, 2, 16)
    moved = encode(encoder, swapped).states.view(2, 2, 2, 2, 16)
    torch.testing.assert_close(moved, states.flip(dims=(3,)), rtol=1e-4, atol=1e-5)


@every_encoder
@every_pooling
def test_the_longitude_convention_does_not_matter(name: str, pooling: str) -> None:
    encoder = encoders(pooling=pooling, summary=True)[name]
    for west in (355.5, 177.5):  # over Greenwich, over the dateline
        given = inputs(west=west)
        assert (given["longitude"][0].diff() < 0).any() == (west > 350)
        signed = {**given, "longitude": (given["longitude"] + 180) % 360 - 180}
        assert_same(encode(encoder, signed), encode(encoder, given))


@every_encoder
@every_pooling
@pytest.mark.parametrize("larger", [(2, 8, 10), (4, 7, 9), (3, 20, 31)])
def test_padding_to_larger_windows_leaves_valid_tokens_alone(
    name: str, pooling: str, larger: tuple[int, int, int]
) -> None:
    encoder = encoders(pooling=pooling, summary=True)[name]
    given = inputs(missing=0.1)
    steps, height, width = larger
    tokens = encode(encoder, given)
    more = encode(encoder, padded(given, steps=steps, height=height, width=width))
    assert more.mask.sum() == tokens.mask.sum()
    # Valid tokens stand in the same order, between others that are masked.
    for row in range(2):
        kept, expected = more.mask[row], tokens.mask[row]
        torch.testing.assert_close(more.states[row][kept], tokens.states[row][expected], rtol=1e-4, atol=1e-5)
        for key in ("latitude", "longitude", "time"):
            assert torch.equal(
                getattr(more, key)[row][kept].nan_to_num(), getattr(tokens, key)[row][expected].nan_to_num()
            )
    assert more.states.isfinite().all()
    if pooling == "none" and "patches" in DOES[name]:
        assert more.latitude[:, 3 * len(STATISTICS) :].isfinite().all()


@every_encoder
def test_windows_of_unequal_size_in_one_batch_equal_each_alone(name: str) -> None:
    from tests.model.build import random_window, statistics

    windows = [random_window(1, height=4, width=4, steps=1), random_window(2, height=7, width=5, steps=2)]
    channels = Channels(VARIABLES, (10.0, 9.0, 5.0), (8.0, 1013.0, 0.0))
    encoder = encoders(channels, pooling="none", summary=True)[name]

    def tokens_of(batch: dict[str, Tensor]) -> ClimateTokens:
        return encode(encoder, {key.removeprefix("climate_"): tensor for key, tensor in batch.items()})

    together = tokens_of(collate_windows(windows, statistics()))
    for row, window in enumerate(windows):
        alone = tokens_of(collate_windows([window], statistics()))
        torch.testing.assert_close(
            together.states[row][together.mask[row]], alone.states[0][alone.mask[0]], rtol=1e-4, atol=1e-5
        )


@every_encoder
@every_pooling
def test_gradients_reach_every_parameter(name: str, pooling: str) -> None:
    encoder = encoders(pooling=pooling, summary=True)[name].train()
    tokens = encoder(**inputs(missing=0.1))
    weight = torch.randn(tokens.states.shape, generator=torch.Generator().manual_seed(1))
    (tokens.states * weight * tokens.mask.unsqueeze(-1)).sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 1e-5, parameter_name


@every_encoder
def test_training_and_evaluation_mode_agree(name: str) -> None:
    encoder = encoders()[name]
    evaluated = encode(encoder, inputs(missing=0.2))
    trained = encoder.train()(**inputs(missing=0.2))
    assert_same(trained, evaluated)


@every_encoder
def test_wrong_inputs_are_refused(name: str) -> None:
    encoder = encoders()[name]
    given = inputs()
    cases = {
        "climate_fields": {"fields": given["fields"][:, :, :2]},
        "climate_mask": {"mask": given["mask"][:, :, :, :, :3]},
        "climate_latitude": {"latitude": given["latitude"][:1]},
        "climate_longitude": {"longitude": given["latitude"]},
        "climate_time": {"time": given["time"][:, :1]},
    }
    for argument, change in cases.items():
        with pytest.raises(ModelInputError, match=f"^{argument}: "):
            encoder(**(given | change))
    with pytest.raises(ModelInputError, match=r"^climate_mask: expected bool"):
        encoder(**(given | {"mask": given["mask"].float()}))
    with pytest.raises(ModelInputError, match="t2m, msl, ws10"):
        encoder(**(given | {"fields": given["fields"][0]}))


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"pooling": "mean"}, "pooling"),
        ({"width": 10, "heads": 4}, "width"),
        ({"patch": 0}, "patch"),
        ({"heads": 0}, "heads"),
        ({"depth": 0}, "depth"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_options_without_sense_are_refused(options: dict[str, object], option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"encoder.options.{option}"):
        GridTransformerEncoder(CHANNELS, **options)


def test_options_of_the_convolutional_encoder() -> None:
    with pytest.raises(ConfigurationError, match=r"encoder\.options\.pooling"):
        ConvEncoder(CHANNELS, pooling="space")
    with pytest.raises(ConfigurationError, match=r"encoder\.options\.width"):
        ConvEncoder(CHANNELS, width=1)


def test_options_of_the_blind_encoder() -> None:
    with pytest.raises(ConfigurationError, match=r"encoder\.options\.tokens"):
        BlindEncoder(CHANNELS, tokens=0)


def test_an_encoder_knows_what_it_was_made_with() -> None:
    encoder = GridTransformerEncoder(CHANNELS, 32, patch=2)
    assert encoder.options == {
        "width": 32, "depth": 2, "heads": 4, "patch": 2, "pooling": "none", "summary": True, "dropout": 0.0,
    }  # fmt: skip

    class Own(ClimateEncoder):
        def __init__(self, channels: Channels, *, size: int, **more: int) -> None:
            super().__init__(channels, size)

        def forward(self, *args: Tensor) -> ClimateTokens:
            raise NotImplementedError

    assert Own(CHANNELS, size=4, depth=1).options == {"size": 4, "depth": 1}


@pytest.mark.parametrize(("names", "scale"), [((), ()), (("t2m",), (1.0, 2.0))])
def test_channels_need_a_scale_and_an_offset_each(names: tuple[str, ...], scale: tuple[float, ...]) -> None:
    with pytest.raises(ModelInputError, match="channels"):
        Channels(names, scale, (0.0,) * len(names))


def test_concatenation_keeps_all_attributes_of_tokens() -> None:
    tokens = encode(encoders(pooling="none", summary=False)["conv"], inputs())
    double = concatenate([tokens, tokens])
    for field in dataclass_fields(tokens):
        one, two = getattr(tokens, field.name), getattr(double, field.name)
        if isinstance(one, Tensor):
            np.testing.assert_array_equal(two.numpy(), np.concatenate([one.numpy()] * 2, axis=1))
    assert double.labels == tokens.labels * 2
    assert concatenate([tokens]) is tokens


def assert_same(one: ClimateTokens, other: ClimateTokens) -> None:
    assert torch.equal(one.mask, other.mask)
    valid = one.mask.unsqueeze(-1)
    torch.testing.assert_close(
        one.states.masked_fill(~valid, 0), other.states.masked_fill(~valid, 0), rtol=1e-4, atol=1e-5
    )
    for key in ("latitude", "longitude", "time"):
        torch.testing.assert_close(
            getattr(one, key)[one.mask], getattr(other, key)[one.mask], equal_nan=True, rtol=1e-6, atol=1e-4
        )
