"""The loss in chunks. Oracle: torch's own cross-entropy over all logits, and its gradients."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from climafuse.model import SampledVocabulary, chunked_loss
from tests.model.build import make_batch, make_model
from tests.tiny import in_every_architecture

P, D, V = 37, 16, 50


def parts(dtype: torch.dtype, *, trained: bool = False) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(D, V, dtype=dtype).requires_grad_(trained)
    return head, torch.randn(P, D).to(dtype), torch.randint(V, (P,))


def whole(head: nn.Linear, states: Tensor, targets: Tensor, count: int) -> tuple[Tensor, list[Tensor]]:
    """As a plain loop does it."""
    states = states.clone().requires_grad_()
    loss = functional.cross_entropy(head(states).float(), targets, reduction="sum") / count
    loss.backward()
    return loss.detach(), [
        states.grad,
        *(weight.grad for weight in head.parameters() if weight.requires_grad),
    ]  # type: ignore[list-item]


def chunked(head: nn.Linear, states: Tensor, targets: Tensor, count: int) -> tuple[Tensor, list[Tensor]]:
    head.zero_grad()
    states = states.clone().requires_grad_()
    weights = [weight for weight in head.parameters() if weight.requires_grad]
    loss = chunked_loss.chunked_loss(head, states, targets, num_columns=V, count=count, weights=weights)
    loss.backward()
    return loss.detach(), [states.grad, *(weight.grad for weight in weights)]  # type: ignore[list-item]


def one_chunk(head: nn.Linear, states: Tensor, targets: Tensor, count: int) -> tuple[Tensor, list[Tensor]]:
    head.zero_grad()
    states = states.clone().requires_grad_()
    loss = chunked_loss.row_loss(head(states), targets, count=count)
    loss.backward()
    return loss.detach(), [states.grad]  # type: ignore[list-item]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_(chunk: int, rows: int) -> None:
        monkeypatch.setattr(chunked_loss, "CHUNK", chunk)
        monkeypatch.setattr(chunked_loss, "ROWS", rows)

    return set_


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("chunk", "rows"), [(10 * V, 3 * V), (10 * V, 100 * V), (V, 1), (36 * V, V)])
def test_loss_and_gradients_are_those_of_the_whole(
    dtype: torch.dtype, trained: bool, chunk: int, rows: int, sizes: Any
) -> None:
    given = parts(dtype, trained=trained)
    loss, gradients = whole(*given, 29)
    gradients = [gradient.clone() for gradient in gradients]
    sizes(chunk, rows)
    found, others = chunked(*given, 29)
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=0)
    share = 1e-5 if dtype is torch.float32 else 0.02
    assert len(others) == len(gradients) == 1 + 2 * trained
    for one, other in zip(gradients, others, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= share * one.abs().max()
        assert one.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_chunk_gives_the_same_bits(dtype: torch.dtype, sizes: Any) -> None:
    given = parts(dtype)
    loss, (gradient,) = whole(*given, 29)
    for way in (chunked, one_chunk):
        sizes(P * V, P * V)
        found, (other,) = way(*given, 29)
        assert torch.equal(found, loss)
        assert torch.equal(other, gradient)
        sizes(P * V, 3 * V)  # some rows at a time: of the gradient, still the same bits
        found, (other,) = way(*given, 29)
        torch.testing.assert_close(found, loss, rtol=1e-6, atol=0)
        assert torch.equal(other, gradient)


def test_the_gradient_is_that_of_what_is_made_of_the_loss(sizes: Any) -> None:
    head, states, targets = parts(torch.float32)
    sizes(10 * V, 3 * V)
    results = []
    for share in (1.0, 0.25):
        leaf = states.clone().requires_grad_()
        loss = chunked_loss.chunked_loss(head, leaf, targets, num_columns=V, count=1)
        (loss * share).backward()
        results.append(leaf.grad)
    assert results[0] is not None
    torch.testing.assert_close(results[1], results[0] / 4)


def test_without_a_graph_there_is_no_gradient(sizes: Any) -> None:
    head, states, targets = parts(torch.float32)
    sizes(10 * V, 3 * V)
    expected = functional.cross_entropy(head(states), targets)
    for leaf in (states, states.clone().requires_grad_()):
        with torch.no_grad():
            loss = chunked_loss.chunked_loss(head, leaf, targets, num_columns=V, count=P)
        assert not loss.requires_grad
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("sites", [2, "output"], ids=str)
@in_every_architecture
def test_a_model_learns_the_same_in_chunks(architecture: str, sites: Any, sizes: Any) -> None:
    # Oracle: `return_logits`, with which the loss is made of all logits at once. Gemma 3 caps its logits.
    model = make_model(architecture, sites=sites).train()
    batch = make_batch(model)
    number = int((batch["labels"][:, 1:] != -100).sum())
    kept = batch["labels"][batch["labels"] != -100]
    size = int(model.backbone.config.vocab_size)
    sizes(size * 3, size * 2)
    for sampled in (None, SampledVocabulary(kept, size, num_sampled=size)):
        model.sampled_vocabulary = sampled
        results = []
        for return_logits in (True, False, None):
            model.zero_grad()
            output = model(**batch, return_logits=return_logits, num_items_in_batch=number + 2)
            assert (output.logits is not None) == bool(return_logits)
            output.loss.backward()
            results.append([output.loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
        for others in results[1:]:
            for one, other in zip(results[0], others, strict=True):
                torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()) + 1e-8)
    assert model.eval()(**batch).logits.shape == (number, size)
    sizes(size * number, size)  # one chunk
    assert model.train()(**batch).logits.shape == (number, size)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3"])  # of both the head is the embeddings
def test_a_head_that_is_trained_learns_the_same_in_chunks(architecture: str, sizes: Any) -> None:
    model = make_model(architecture, sites=2, backbone_trainable="all").train()
    batch = make_batch(model)
    size = int(model.backbone.config.vocab_size)
    kept = batch["labels"][batch["labels"] != -100]
    sizes(size * 3, size * 2)
    for sampled in (None, SampledVocabulary(kept, size, num_sampled=size)):
        model.sampled_vocabulary = sampled
        results = []
        for return_logits in (True, False):
            model.zero_grad()
            model(**batch, return_logits=return_logits).loss.backward()
            results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        whole, in_chunks = results
        assert whole.keys() == in_chunks.keys()
        assert any(name.startswith("backbone.") for name in whole)
        for name, one in whole.items():
            torch.testing.assert_close(
                in_chunks[name], one, rtol=1e-3, atol=1e-5 * float(one.abs().max()) + 1e-8
            )


PEAK = """
import sys, torch
from climafuse.model import chunked_loss as module
from climafuse.model.objective import cross_entropy
from scripts.benchmarks.measure import peak_gb, reset_peak
torch.set_num_threads(1)
V, D, P = 128256, 8, 200
head = torch.nn.Linear(D, V, bias=False, dtype=torch.bfloat16).requires_grad_(False)
states, targets = torch.randn(P, D, dtype=torch.bfloat16, requires_grad=True), torch.randint(V, (P,))
module.CHUNK = int(sys.argv[1])
def step(number):
    part, its = states[:number], targets[:number]
    if module.CHUNK:
        loss = module.chunked_loss(head, part, its, num_columns=V, count=number)
    else:
        loss = cross_entropy(head(part), its) / number
    loss.backward()
step(2)
reset_peak()
before = peak_gb()
step(P)
print((peak_gb() - before) * 1e9 / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a peak cannot be reset: a child begins with its parent's"
)
def test_peak_memory_is_that_of_a_chunk() -> None:
    # Whole: logits and their gradient in bfloat16 and float32, 2 + 4 + 4 + 4 + 2 bytes each, less what was freed.
    def peak(chunk: int) -> float:
        command = [sys.executable, "-c", PEAK, str(chunk)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    plain, in_chunks = peak(0), peak(2**22)  # of 32 positions
    assert plain > 200  # MiB
    assert in_chunks < 100
