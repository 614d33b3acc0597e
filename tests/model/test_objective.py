"""The loss. Oracles: loops by hand, the full softmax, Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch

from climafuse.errors import ModelInputError
from climafuse.model import SampledVocabulary
from climafuse.model.chunked_loss import row_loss
from climafuse.model.objective import IGNORED, cross_entropy, labeled_positions

VOCABULARY = 40


def test_labeled_positions_are_those_before_the_labels() -> None:
    # Text a b c d: labels at c and d are predicted at b and c. A label at the very first token has no position.
    labels = torch.tensor([[IGNORED, IGNORED, 7, 8], [5, IGNORED, IGNORED, 6]])
    positions, targets = labeled_positions(labels)
    assert positions.tolist() == [[False, True, True, False], [False, False, True, False]]
    assert targets.tolist() == [7, 8, 6]


@pytest.mark.parametrize("labels", [[[IGNORED, IGNORED]], [[3, IGNORED]]])
def test_nothing_to_learn_is_refused(labels: list[list[int]]) -> None:
    with pytest.raises(ModelInputError, match="at least one answer token"):
        labeled_positions(torch.tensor(labels))


def loss_of(sampled: SampledVocabulary, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return row_loss(logits, sampled.columns(targets), count=1, added=sampled.added)


def test_cross_entropy_by_hand() -> None:
    # Two equal logits: -log 1/2; logits log 3 and 0: the second has 1/4. In float32 whatever comes in.
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], dtype=torch.bfloat16)
    loss = cross_entropy(logits, torch.tensor([0, 1]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(2) + math.log(4), rel=2e-3)


def logits_of(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(count, VOCABULARY, generator=generator), torch.tensor([3, 9, 4])[:count]


@pytest.mark.parametrize("kept", [list(range(VOCABULARY)), [9, 3, 4, 3]])
def test_with_every_token_it_is_the_full_cross_entropy(kept: list[int]) -> None:
    logits, targets = logits_of()
    sampled = SampledVocabulary(torch.tensor(kept), VOCABULARY, num_sampled=1000)
    tokens = sampled.draw()
    assert sorted(tokens.tolist()) == list(range(VOCABULARY))
    loss = loss_of(sampled, logits[:, tokens], targets)
    torch.testing.assert_close(loss, cross_entropy(logits, targets))


def test_kept_tokens_are_always_in_and_others_are_drawn_anew() -> None:
    torch.manual_seed(0)
    sampled = SampledVocabulary(torch.tensor([4, 9, 3]), VOCABULARY, num_sampled=5)
    draws = [sampled.draw() for _ in range(20)]
    for tokens in draws:
        assert tokens[:3].tolist() == [3, 4, 9]
        assert len(tokens) == 8
        assert not set(tokens[3:].tolist()) & {3, 4, 9}
    assert len({tuple(tokens.tolist()) for tokens in draws}) > 15
    drawn = set(torch.cat([tokens[3:] for tokens in draws]).tolist())
    assert len(drawn) > 25  # of 37


def test_the_estimated_sum_over_the_vocabulary_has_no_bias() -> None:
    # loss = log(sum) - logit of the target, so exp(loss + logit) is the estimated sum. Its mean over n draws
    # must lie within four standard errors of the true sum.
    torch.manual_seed(1)
    logits, targets = logits_of(1)
    sampled = SampledVocabulary(torch.tensor([3, 4, 9]), VOCABULARY, num_sampled=4)
    sums = []
    for _ in range(4000):
        loss = loss_of(sampled, logits[:, sampled.draw()], targets)
        sums.append(math.exp(loss.item() + logits[0, 3].item()))
    estimate = torch.tensor(sums, dtype=torch.float64)
    error = estimate.std() / len(sums) ** 0.5
    true = logits[0].double().exp().sum()
    assert error < 0.02 * true
    assert abs(estimate.mean() - true) < 4 * error
    # And it does estimate: without the weight of the drawn ones it would be far off.
    only_kept = logits[0, [3, 4, 9]].exp().sum()
    assert only_kept < 0.5 * true


def test_without_drawn_tokens_the_vocabulary_is_the_kept_one() -> None:
    logits, targets = logits_of()
    sampled = SampledVocabulary(torch.tensor([3, 4, 9]), VOCABULARY, num_sampled=0)
    narrow = logits[:, sampled.draw()]
    expected = torch.nn.functional.cross_entropy(narrow, torch.tensor([0, 2, 1]), reduction="sum")
    torch.testing.assert_close(loss_of(sampled, narrow, targets), expected)


def test_a_target_that_is_not_kept_is_refused() -> None:
    logits, _ = logits_of()
    sampled = SampledVocabulary(torch.tensor([3, 4, 9]), VOCABULARY, num_sampled=100)
    with pytest.raises(ModelInputError, match=r"received token 5"):
        loss_of(sampled, logits[:, sampled.draw()], torch.tensor([3, 5, 4]))


@pytest.mark.parametrize("kept", [[], [-1, 3], [3, VOCABULARY]])
def test_tokens_outside_the_vocabulary_are_refused(kept: list[int]) -> None:
    with pytest.raises(ModelInputError, match="tokens from 0 to 39"):
        SampledVocabulary(torch.tensor(kept, dtype=torch.long), VOCABULARY, num_sampled=2)


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ModelInputError, match="num_sampled"):
        SampledVocabulary(torch.tensor([1]), VOCABULARY, num_sampled=-1)
