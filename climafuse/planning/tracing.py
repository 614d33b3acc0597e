"""What code would hold in memory and compute, found by running it on tensors without values.

Numbers that decide what runs (tokens, masks, positions, labels) are computed for real: they are small. Everything in
floating point has a shape and a type only (`FakeTensorMode`): a model of billions of parameters takes seconds and no
memory. What is traced is the very code that trains, so that the plan of a new fusion, encoder or architecture needs
nothing of its own here.

Memory counts storages from the operation that makes them to the moment when nothing holds them any more, those that
autograd saves for the backward pass included. What an operation needs for itself alone (workspace of a kernel) is not
seen.

Reference:
    `torch.distributed._tools.mem_tracker` counts storages in the same way.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten

LARGEST_IN_HEAP = 32 << 20  # glibc's limit of the dynamic mmap_threshold
ATTENTION = "attention"  # the kind of products of states with states
TRAINABLE = "trainable"  # of gradients of weights, beside what is marked so

# Operations whose result shares the numbers of one matrix, possibly in another type: its kind goes with it.
_SAME_MATRIX = frozenset(
    {"t", "transpose", "permute", "view", "_unsafe_view", "reshape", "expand", "slice", "detach", "alias"}
    | {"unsqueeze", "squeeze", "_to_copy", "clone", "contiguous", "as_strided", "index"}
)
_BY_MASK = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor)


class Trace(TorchDispatchMode):
    """While this lasts, floating-point tensors have no values, and what is held and computed is counted.

    Attributes:
        slack: What a piece takes of the allocator's heap in units of its size, from now on; larger ones than
            `LARGEST_IN_HEAP` are asked of the system and given back.
        live: Bytes held now.
        peak: Most bytes held at a time since `reset_peak`.
        flops: Floating-point operations of matrix products by kind (see `mark`): a multiplication and an addition are
            two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slack = 1.0
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.live = 0
        self.peak = 0
        self.flops: dict[str, int] = {}
        self._held: weakref.WeakSet[Any] = weakref.WeakSet()
        self._marks: weakref.WeakKeyDictionary[Any, tuple[str, str]] = weakref.WeakKeyDictionary()

    def add(self, kind: str, flops: int) -> None:
        """Count operations that are no operation of torch."""
        self.flops[kind] = self.flops.get(kind, 0) + flops

    def mark(self, matrix: Tensor, kind: str, without_gradient: str | None = None) -> None:
        """Say of which kind products with a matrix are.

        Args:
            matrix: Weights.
            kind: Of the products that a gradient passes through.
            without_gradient: Of the others; None for the same.
        """
        self._marks[matrix.untyped_storage()] = (kind, without_gradient or kind)

    def reset(self) -> None:
        """Let the peak begin at what is held now, and the rest at nothing."""
        self.peak = self.live
        self.flops = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Trace:
        """Itself: what is copied is counted in the same place."""
        return self

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to say so at every operation takes a tenth of the time

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):
            if func in (aten._local_scalar_dense.default, aten.equal.default):
                return 1  # a number that only the values would tell
            out = func(*((args[0], _as_numbers(args[1]), *args[2:]) if func in _BY_MASK else args), **kwargs)
            self._count(func, args, kwargs, tensors, out)
        else:
            out = self._with_values(func, args, kwargs, of_nothing=not tensors)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._hold(leaf)
        return out

    def _with_values(self, func: Any, args: Any, kwargs: Any, *, of_nothing: bool) -> Any:
        """Compute whole numbers, and what follows from them; new floating-point tensors get no values."""
        if of_nothing:
            with self.fake:
                out = func(*args, **kwargs)
            if isinstance(out, Tensor) and out.is_floating_point():
                return out
        return func(*args, **kwargs)

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._held:
            return
        num = storage.nbytes()
        self._held.add(storage)
        if not num:
            return
        if num < LARGEST_IN_HEAP:
            num = int(num * self.slack)
        weakref.finalize(storage, self._let_go, num)
        self.live += num
        self.peak = max(self.peak, self.live)

    def _let_go(self, num: int) -> None:
        self.live -= num

    def _count(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], out: Any) -> None:
        packet = func._overloadpacket
        if packet.__name__ in _SAME_MATRIX:
            kinds = self._marks.get(tensors[0].untyped_storage())
            if kinds is not None and isinstance(out, Tensor):
                self._marks[out.untyped_storage()] = kinds
            return
        formula = _FLOPS.get(packet)
        if formula is None:
            return
        # While a gradient is computed there is no node to make, so that "requires a gradient" says nothing.
        backward = torch._C._current_graph_task_id() != -1
        gradient = backward or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        marks = (self._marks.get(tensor.untyped_storage()) for tensor in tensors)
        kinds = next((mark for mark in marks if mark is not None), None)
        if kinds is not None:
            kind = kinds[0 if gradient else 1]
        else:
            kind = TRAINABLE if backward and packet in _WEIGHTS else ATTENTION
        self.add(kind, int(formula(*args, **kwargs, out_val=out)))


def _attention_on_cpu(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_on_cpu_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


_WEIGHTS = (aten.mm, aten.addmm)  # products of two matrices: with a gradient, those of a linear layer
_FLOPS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_on_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_on_cpu_backward,
}


def _as_numbers(indices: Any) -> list[Tensor | None]:
    """Masks as the numbers of what they choose: without them the shape of the result would depend on values."""
    found: list[Tensor | None] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            found.extend(index.nonzero(as_tuple=True))
        else:
            found.append(index)
    return found


@contextlib.contextmanager
def traced() -> Iterator[Trace]:
    """Trace what runs while this lasts."""
    fast, swap = torch.backends.mha.get_fastpath_enabled(), torch.utils.swap_tensors
    # The fused layer of torch has no shapes without values; it holds less, in evaluation only.
    torch.backends.mha.set_fastpath_enabled(False)
    # `nn.Module.to` would swap parameters, which refuses those that anything refers to weakly, as what makes tensors
    # without values does.
    torch.utils.swap_tensors = _take_over
    try:
        # What is warned of here is that tensors have no values: no address, no gradient yet.
        with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]), Trace() as trace:
            yield trace
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.utils.swap_tensors = swap


def _take_over(tensor: Tensor, other: Tensor) -> None:
    tensor.data = other.data
