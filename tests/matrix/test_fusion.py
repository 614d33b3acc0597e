"""Any fusion at any site of any language model: the contract that every pair passes.

One test is one check of one cell, a fusion at a kind of site in an architecture. The model is the real one, with its
encoder on real windows; only small, and its language model is random. A new fusion comes in by its line in
`tests/fusion/small.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from climafuse.backbones import find_blocks, hash_parameters
from climafuse.errors import BackboneMismatchError
from climafuse.model import ClimateTextForCausalLM
from tests.conftest import Cell
from tests.fusion.small import SMALL, changes_text
from tests.model.build import ANSWERS, ENCODER, PROMPTS, climate_of, make_batch, make_model
from tests.tiny import ARCHITECTURES, tiny_backbone, tiny_model

SITES: dict[str, Any] = {
    "input": "input",
    "output": "output",
    "blocks 1, 2": [1, 2],
    "last 2": {"last": 2},
    "every 2": {"every": 2},
    "input, 2, output": ["input", 2, "output"],
}
NEW = 3  # words to generate
Batch: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A cell of the table."""

    fusion: str
    sites: str
    architecture: str

    def model(self, *, gates: float = 0.5, summary: bool = True) -> ClimateTextForCausalLM:
        """A new model on a backbone of its own."""
        model = make_model(
            self.architecture,
            sites=SITES[self.sites],
            fusion=self.fusion,
            gates=gates,
            encoder_options={**ENCODER, "summary": summary},
        )
        model.generation_config.eos_token_id = None  # random models would stop anywhere
        return model

    def bare(self) -> Any:
        """A language model that was never wrapped, with the weights that a backbone has."""
        return tiny_model(self.architecture)


@functools.lru_cache(maxsize=1)  # for checks that change nothing; those of a cell follow one another
def shared(case: Case) -> ClimateTextForCausalLM:
    return case.model()


def text_of(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def row_of(batch: Batch, row: int) -> Batch:
    """One text with its window, without padding."""
    keep = batch["attention_mask"][row].bool()
    texts = {name: tensor[row : row + 1, keep] for name, tensor in text_of(batch).items()}
    return texts | {name: tensor[row : row + 1] for name, tensor in climate_of(batch).items()}


def gradients(model: ClimateTextForCausalLM, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> None:
    """Equal but for a part of the size of the second."""
    size = float(other.detach().abs().max())
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * size + 1e-7)


# ---- The checks


@torch.no_grad()
def zero_gates_are_the_bare_backbone(case: Case, folder: Path) -> None:
    # Bit for bit. A prefix has no gate, and its own check below.
    model = case.model(gates=0.0)
    for answers in (ANSWERS, None):  # padded on the right, and on the left
        batch = make_batch(model, answers=answers)
        expected = case.bare()(**text_of(batch)).logits
        assert torch.equal(model(**text_of(batch), **climate_of(batch)).logits, expected)


@torch.no_grad()
def without_any_value_it_is_the_bare_backbone(case: Case, folder: Path) -> None:
    # Without summary tokens, too: they would say that there is no value.
    model = case.model(summary=False)
    batch = make_batch(model)
    climate = climate_of(batch)
    climate["climate_mask"] = torch.zeros_like(climate["climate_mask"])
    found, expected = model(**text_of(batch), **climate).logits, case.bare()(**text_of(batch)).logits
    if changes_text(case.fusion):
        assert torch.equal(found, expected)
    else:  # what stands before the text is masked: other sums, the same result
        words = batch["attention_mask"].bool()
        close(found[words], expected[words])


@torch.no_grad()
def climate_decides_and_only_that_of_its_own_text(case: Case, folder: Path) -> None:
    model = shared(case)
    batch = make_batch(model)
    other = climate_of(batch)
    other["climate_fields"] = other["climate_fields"].clone()
    other["climate_fields"][1] += 1.0
    before = model(**text_of(batch), **climate_of(batch)).logits
    after = model(**text_of(batch), **other).logits
    close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 0.01


@torch.no_grad()
def texts_share_a_window(case: Case, folder: Path) -> None:
    model = shared(case)
    index = [1, 0, 0]
    batch = make_batch(model, prompts=(*PROMPTS, "Wind?"), answers=("one", "two two", "3"), index=index)
    separate = {name: tensor for name, tensor in batch.items() if not name.startswith("climate_")}
    separate |= {name: tensor[index] for name, tensor in climate_of(batch).items()}
    close(model(**batch).logits, model(**separate).logits)


def frozen_weights_do_not_change(case: Case, folder: Path) -> None:
    model = case.model().train()
    before = hash_parameters(model.backbone)
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == model.trainable_state_dict().keys()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(**make_batch(model)).loss.backward()
        optimizer.step()
    assert hash_parameters(model.backbone) == before == hash_parameters(case.bare())
    still = {name for name, p in model.named_parameters() if name in trained and p.equal(trained[name])}
    assert still == set()


def gradients_reach_every_trainable_part(case: Case, folder: Path) -> None:
    model = shared(case).train()
    found = gradients(model, make_batch(model))
    model.eval()
    assert found.keys() == model.trainable_state_dict().keys()
    assert {name for name, gradient in found.items() if not gradient.any()} == set()
    assert all(gradient.isfinite().all() for gradient in found.values())


def gradients_equal_finite_differences(case: Case, folder: Path) -> None:
    # Of the loss of a training call, against a loss by hand from the logits of all positions, in float64 but for the
    # norms of some architectures. The direction has a part in every parameter, and its own gradient in it.
    model = case.model().double()
    for module in model.encoder.modules():
        if isinstance(module, nn.Linear):  # features of positions are float32, and constant
            module.register_forward_pre_hook(lambda linear, args: (args[0].to(linear.weight.dtype),))
    batch = make_batch(model)
    batch = {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}
    slopes = gradients(model, batch)
    generator = torch.Generator().manual_seed(0)
    direction = {}
    for name, gradient in slopes.items():
        noise = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        direction[name] = gradient / gradient.norm() + noise / noise.norm()
    expected = sum(float((slopes[name] * direction[name]).sum()) for name in slopes)
    parameters = dict(model.named_parameters())
    labels = batch.pop("labels")[:, 1:]

    @torch.no_grad()
    def loss(step: float) -> float:
        for name, part in direction.items():
            parameters[name].add_(step * part)
        logits = model(**batch).logits[:, :-1]
        for name, part in direction.items():
            parameters[name].sub_(step * part)
        return float(functional.nll_loss(logits.log_softmax(-1)[labels != -100], labels[labels != -100]))

    # OPT has kinks (ReLU), which only a small step does not meet; norms in float32 would drown that in their rounding.
    # Four values instead of two: what bends in a large step bends the result by its fourth power, not its second.
    step = 1e-7 if case.architecture == "opt" else 2e-4
    once, twice = (loss(h) - loss(-h) for h in (step, 2 * step))
    found = (8 * once - twice) / (12 * step)
    assert found == pytest.approx(expected, rel=1e-3)


def recomputed_activations_give_equal_gradients(case: Case, folder: Path) -> None:
    model = case.model().train()
    batch = make_batch(model)
    expected = gradients(model, batch)
    modules = find_blocks(model.backbone).blocks[-1].modules()
    inner = next(module for module in modules if not list(module.children()) and list(module.parameters()))
    calls: list[int] = []
    inner.register_forward_pre_hook(lambda *args: calls.append(1))
    model.activation_checkpointing_enable({"use_reentrant": False})
    found = gradients(model, batch)
    # Behind the last block there is no graph of blocks, and nothing to recompute.
    assert len(calls) == (1 if case.sites == "output" else 2)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def greedy(model: ClimateTextForCausalLM, row: Batch) -> tuple[list[int], Tensor]:
    """The words after one prompt, each by a forward call over all that stands before it; their logits."""
    ids, climate = row["input_ids"], climate_of(row)
    found = []
    for _ in range(NEW):
        logits = model(input_ids=ids, **climate).logits[0, -1]
        found.append(logits)
        ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
    return ids[0, -NEW:].tolist(), torch.stack(found)


@torch.no_grad()
def padded_prompts_go_on_as_alone_with_and_without_cache(case: Case, folder: Path) -> None:
    model = shared(case)
    batch = make_batch(model, answers=None)
    assert batch["attention_mask"][0, 0] == 0  # padded on the left
    alone = [greedy(model, row_of(batch, row)) for row in range(2)]
    for cached in (True, False):
        found = model.generate(
            **batch, max_new_tokens=NEW, do_sample=False, use_cache=cached,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        assert torch.equal(found.sequences[:, :-NEW], batch["input_ids"])
        for row, (words, logits) in enumerate(alone):
            assert found.sequences[row, -NEW:].tolist() == words
            close(torch.stack(found.logits, dim=1)[row], logits, 1e-3)


@torch.no_grad()
def beams_are_scored_as_the_forward_call_scores_them(case: Case, folder: Path) -> None:
    model = shared(case)
    batch = make_batch(model, answers=None)
    found = model.generate(
        **batch, max_new_tokens=NEW, do_sample=False, num_beams=2, length_penalty=0.0,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert found.sequences.shape == (2, batch["input_ids"].shape[1] + NEW)
    for row in range(2):
        alone = row_of(batch, row)
        words = found.sequences[row, -NEW:]
        ids = torch.cat([alone["input_ids"], words[None]], dim=1)
        shares = model(input_ids=ids, **climate_of(alone)).logits[0].log_softmax(dim=-1)
        score = float(shares[-NEW - 1 : -1].gather(1, words[:, None]).sum())
        assert float(found.sequences_scores[row]) == pytest.approx(score, abs=2e-3)


@torch.no_grad()
def saved_and_loaded_it_is_bit_equal(case: Case, folder: Path) -> None:
    model = shared(case)
    model.save_pretrained(folder)
    loaded = ClimateTextForCausalLM.from_pretrained(folder, backbone=tiny_backbone(case.architecture))
    batch = make_batch(model)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    del batch["labels"]
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def another_backbone_is_refused(case: Case, folder: Path) -> None:
    shared(case).save_pretrained(folder)
    with pytest.raises(BackboneMismatchError):
        ClimateTextForCausalLM.from_pretrained(folder, backbone=tiny_backbone(case.architecture, seed=1))


Check: TypeAlias = Callable[[Case, Path], None]
CHECKS: tuple[Check, ...] = (
    zero_gates_are_the_bare_backbone,
    without_any_value_it_is_the_bare_backbone,
    climate_decides_and_only_that_of_its_own_text,
    texts_share_a_window,
    frozen_weights_do_not_change,
    gradients_reach_every_trainable_part,
    gradients_equal_finite_differences,
    recomputed_activations_give_equal_gradients,
    padded_prompts_go_on_as_alone_with_and_without_cache,
    beams_are_scored_as_the_forward_call_scores_them,
    saved_and_loaded_it_is_bit_equal,
    another_backbone_is_refused,
)


# ---- The table


def every_case() -> list[Case]:
    """A fusion that changes the text at every kind of site, one that stands before it at the input."""
    return [
        Case(fusion, sites, architecture)
        for fusion in SMALL
        if " " not in fusion
        for sites in (SITES if changes_text(fusion) else ["input"])
        for architecture in ARCHITECTURES
    ]


def sample(cases: list[Case]) -> list[Case]:
    """Few cells in which each fusion, kind of site and architecture comes: each next one brings the most of them."""

    def brings(case: Case) -> int:
        return len({case.fusion, case.sites, case.architecture} - seen)

    chosen: list[Case] = []
    seen: set[str] = set()
    while brings(best := max(cases, key=brings)):
        chosen.append(best)
        seen |= {best.fusion, best.sites, best.architecture}
    return chosen


def checks_of(case: Case) -> Iterator[Check]:
    return (c for c in CHECKS if changes_text(case.fusion) or c is not zero_gates_are_the_bare_backbone)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "check" in metafunc.fixturenames:
        cases = every_case() if metafunc.config.option.thorough else sample(every_case())
        tests = [
            pytest.param(case, check, id=f"{case.fusion}-{case.sites}-{case.architecture}-{check.__name__}")
            for case in cases
            for check in checks_of(case)
        ]
        metafunc.parametrize(("case", "check"), tests)


@pytest.mark.sampled(2)
def test_every_fusion_at_every_site_of_every_language_model(
    case: Case, check: Check, cell: Cell, tmp_path: Path
) -> None:
    cell("fusion", f"{case.fusion} @ {case.sites}", case.architecture)
    torch.manual_seed(0)
    check(case, tmp_path)


def test_the_sample_has_every_fusion_site_and_architecture() -> None:
    chosen = sample(every_case())
    assert {case.fusion for case in chosen} == {name for name in SMALL if " " not in name}
    assert {case.sites for case in chosen} == set(SITES)
    assert {case.architecture for case in chosen} == set(ARCHITECTURES)
    assert len(chosen) <= 10
