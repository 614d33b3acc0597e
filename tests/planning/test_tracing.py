"""Tracing: bytes and operations of a computation small enough to count by hand."""

from __future__ import annotations

import torch
from torch import nn

from climafuse.planning.tracing import ATTENTION, LARGEST_IN_HEAP, TRAINABLE, traced


def test_bytes_and_operations_of_two_layers():
    with traced() as trace:
        frozen, trained = nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False)
        assert trace.live == 4 * (8 * 16 + 16 * 4)
        frozen.weight.requires_grad_(False)
        trace.mark(frozen.weight, "with", "without")
        trace.mark(trained.weight, TRAINABLE)
        x = torch.zeros(10, 8)
        trace.reset()
        hidden = frozen(x)  # [10, 16]
        out = trained(hidden)  # [10, 4]
        assert trace.live - trace.peak == 0
        held = 4 * (8 * 16 + 16 * 4 + 10 * 8)
        assert trace.live == held + 4 * (10 * 16 + 10 * 4)
        out.sum().backward()
        del out
        # No gradient passes the frozen layer: 2 operations a weight and row, and 2 + 2 of the trained one.
        assert trace.flops == {"without": 2 * 10 * 8 * 16, TRAINABLE: (2 + 2) * 10 * 16 * 4}
        del hidden
        assert trace.live == held + 4 * 16 * 4  # the gradient stays
        assert trace.peak > held + 4 * (10 * 16 + 10 * 4)


def test_a_gradient_through_frozen_weights_costs_four_a_weight():
    with traced() as trace:
        layer = nn.Linear(8, 16).requires_grad_(False)
        trace.mark(layer.weight, "with", "without")
        trace.reset()
        layer(torch.zeros(10, 8, requires_grad=True)).sum().backward()
        assert trace.flops == {"with": 4 * 10 * 8 * 16}


def test_products_of_states_are_attention():
    with traced() as trace:
        a, b = torch.zeros(3, 5, 7), torch.zeros(3, 7, 2)
        trace.reset()
        _ = a @ b
        assert trace.flops == {ATTENTION: 2 * 3 * 5 * 7 * 2}


def test_what_decides_is_computed_and_what_does_not_is_not():
    with traced():
        mask = torch.tensor([[True, False, True], [False, False, True]])
        states = torch.zeros(2, 3, 4)
        assert states[mask].shape == (3, 4)
        assert mask.sum().item() == 3
        assert int(torch.zeros(()).item()) == 1  # nobody knows


def test_small_pieces_take_the_slack_of_the_heap_and_large_ones_do_not():
    with traced() as trace:
        trace.slack = 1.5
        small = torch.zeros(1000)
        assert trace.live == 6000
        large = torch.zeros(LARGEST_IN_HEAP // 4)
        assert trace.live == 6000 + LARGEST_IN_HEAP
        del small, large
        assert trace.live == 0


def test_nothing_is_left_behind():
    torch.manual_seed(3)
    before = torch.rand(2)
    torch.manual_seed(3)
    with traced():
        torch.rand(10)
        torch.randint(5, (10,))
    assert torch.equal(torch.rand(2), before)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.ones(2).sum().item() == 2.0
