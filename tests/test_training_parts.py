"""Losses, batches and the training-time metric, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recfit import models
from recfit.models import Catalogue
from recfit.training import evaluate, losses
from recfit.training.batches import Batch, Draw, Sequences, crops, examples
from recfit.training.losses import Soft, candidate_loss, catalogue_loss, divergence, sampled_loss
from recfit.training.negatives import Unseen
from recfit.types import Interactions, Queries, Ragged


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(50, 6, generator=generator, requires_grad=True)
    table = torch.randn(11, 6, generator=generator, requires_grad=True)
    return vectors, table, torch.randint(11, (50,), generator=generator)


@pytest.mark.parametrize("block", [1, 16 * 11, 1 << 20])
@pytest.mark.parametrize("taught", [False, True])
def test_catalogue_loss_and_gradients(problem, block: int, taught: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    vectors, table, targets = problem
    monkeypatch.setattr(losses, "NUMBERS_AT_ONCE", block)
    teacher = torch.randn(50, 11, generator=torch.Generator().manual_seed(1))
    soft = Soft(teacher, None, temperature=3.0, weight=0.6) if taught else None
    loss = catalogue_loss(vectors, table, targets, weight=0.4, soft=soft, dtype=torch.float32)
    grads = torch.autograd.grad(2 * loss, (vectors, table))
    scores = vectors @ table.T
    expected = 0.4 * F.cross_entropy(scores, targets)
    if taught:
        wanted, given = (teacher / 3).softmax(1), (scores / 3).log_softmax(1)
        expected = expected + 0.6 * 9 * F.kl_div(given, wanted, reduction="batchmean")
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(grads, torch.autograd.grad(2 * expected, (vectors, table)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_teacher_given_as_vectors_equals_its_scores(problem) -> None:  # type: ignore[no-untyped-def]
    vectors, table, targets = problem
    theirs, rows = torch.randn(50, 3), torch.randn(11, 3)
    softs = [Soft(theirs, rows, 2.0, 0.5), Soft(theirs @ rows.T, None, 2.0, 0.5)]
    found = [catalogue_loss(vectors, table, targets, soft=soft, dtype=torch.float32) for soft in softs]
    torch.testing.assert_close(found[0], found[1])


def test_bf16_is_close(problem) -> None:  # type: ignore[no-untyped-def]
    vectors, table, targets = problem
    exact, low = (catalogue_loss(vectors, table, targets, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    torch.testing.assert_close(exact, low, rtol=0.02, atol=0.02)


def test_sampled_loss_masks_accidental_hits(problem) -> None:  # type: ignore[no-untyped-def]
    vectors, table, targets = problem
    everything = sampled_loss(vectors, table, targets, torch.arange(11))
    torch.testing.assert_close(everything, F.cross_entropy(vectors @ table.T, targets))


def test_candidate_losses() -> None:
    scores = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
    softmax = -(2 - torch.tensor([2.0, -1.0, 0.5]).logsumexp(0)), np.log(3)
    assert candidate_loss(scores, "sampled") == pytest.approx(float(-softmax[0] * -1 + softmax[1]) / 2, abs=1e-6)
    parts = F.softplus(torch.tensor([-2.0, -1.0, 0.5])).sum() + 3 * np.log(2)
    assert candidate_loss(scores, "bce") == pytest.approx(float(parts) / 2, abs=1e-6)


def test_divergence_is_zero_for_equals_and_grows() -> None:
    scores = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert divergence(scores, scores + 3.0, 2.0) == pytest.approx(0.0, abs=1e-6)
    assert divergence(scores, -scores, 2.0) > 0.1


@pytest.fixture
def sequences() -> Sequences:
    """User 0 saw 0..9, user 1 saw 10 only, user 2 saw 11..13, user 3 nothing."""
    user = np.array([0] * 10 + [1] + [2] * 3, np.int32)
    item = np.arange(14, dtype=np.int32)
    ids = tuple("abcd")
    events = Interactions("t", user, item, np.ones(14, np.float32), np.arange(14.0), ids, tuple(map(str, range(14))))
    return Sequences.of(events)


def test_only_users_with_two_events_are_chosen(sequences: Sequences) -> None:
    assert sequences.chosen(1.0, 0).tolist() == [0, 2]
    assert len(sequences.chosen(0.5, 0)) == 1


def test_crops_are_runs_of_the_users_own_events(sequences: Sequences) -> None:
    places: set[int] = set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        batches = list(crops(sequences, sequences.chosen(1.0, 0), Draw(4, 2, generator)))
        assert sum(len(batch) for batch in batches) == 2
        for user, window in zip(batches[0].user.tolist(), batches[0].window, strict=True):
            run = window[window > 0].tolist()
            assert run == list(range(run[0], run[0] + len(run)))
            assert window.tolist() == [0] * (len(window) - len(run)) + run
            assert 2 <= len(run) <= 5
            assert (run[0] >= 1 and run[-1] <= 10) if user == 1 else (run[0] >= 12 and run[-1] <= 14)
            places |= {run[-1]} if user == 1 else set()
    assert len(places) > 4, "windows of a long sequence end at different places"


def test_reversed_crops_are_the_same_runs_backwards(sequences: Sequences) -> None:
    batches = [next(iter(crops(sequences, torch.tensor([0, 2]), Draw(4, 2, _seeded()), share))) for share in (0.0, 1.0)]
    for forward, backward in zip(batches[0].window, batches[1].window, strict=True):
        run = forward[forward > 0]
        assert backward.tolist() == [0] * (len(forward) - len(run)) + run.flip(0).tolist()
    mixed = next(iter(crops(sequences, torch.zeros(200, dtype=torch.long), Draw(4, 200, _seeded()), 0.25))).window
    assert 0.1 < float((mixed[:, 0] > mixed[:, 1]).float().mean()) < 0.4


def test_negatives_are_all_items_but_the_users_own(sequences: Sequences) -> None:
    """Users 0 to 3 have seen the tokens 1 to 10, 11, 12 to 14 and none, of 14; all others come alike."""
    users = torch.tensor([3, 1, 4, 2, 1])
    drawn = Unseen.of(sequences, 14).draw(users, 2000)
    own = [range(12, 15), range(1, 11), range(0), range(11, 12), range(1, 11)]
    for line, seen in zip(drawn, own, strict=True):
        counts = torch.bincount(line, minlength=15)
        wanted = [token for token in range(1, 15) if token not in seen]
        assert torch.nonzero(counts)[:, 0].tolist() == wanted
        assert counts[wanted].min() > 0.7 * 2000 / len(wanted)


def test_negatives_of_repeated_events_and_of_who_has_seen_everything() -> None:
    tokens = torch.tensor([3, 1, 3, 3, 1, 2, 3, 2])
    seen = Sequences(tokens, torch.tensor([0, 4]), torch.tensor([4, 8]))
    drawn = Unseen.of(seen, 3).draw(torch.tensor([1, 2]), 300)
    assert set(drawn[0].tolist()) == {2}
    assert set(drawn[1].tolist()) == {1, 2, 3}, "nothing is left, so anything"


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_examples_are_every_event_with_what_came_before(sequences: Sequences) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = list(examples(sequences, sequences.chosen(1.0, 0), Draw(3, 4, generator)))
    found = {
        (int(user), tuple(window.tolist()))
        for batch in batches
        for user, window in zip(batch.user, batch.window, strict=True)
    }
    assert len(found) == 11
    assert {(3, (0, 0, 12, 13)), (3, (0, 12, 13, 14)), (1, (0, 0, 1, 2)), (1, (7, 8, 9, 10))} <= found
    users_only: list[Batch] = list(examples(sequences, sequences.chosen(1.0, 0), Draw(0, 4, generator)))
    assert sorted(int(t) for batch in users_only for t in batch.target) == [*range(1, 11), 12, 13, 14]


def test_an_epoch_of_half_the_examples_draws_new_ones_each_time(sequences: Sequences) -> None:
    users, generator = sequences.chosen(1.0, 0), _seeded()
    drawn = []
    for _ in range(20):
        batches = list(examples(sequences, users, Draw(3, 4, generator, share=0.5)))
        assert sum(len(batch) for batch in batches) == round(0.5 * 11)
        drawn += [tuple(window.tolist()) for batch in batches for window in batch.window]
    assert len(set(drawn)) == 11
    one_user = [len(batch) for batch in crops(sequences, users, Draw(4, 2, generator, share=0.5))]
    assert one_user == [1]


def test_metrics_by_hand() -> None:
    """Popularity scores 5, 4, 3, 2, 1, 0 for items 0..5."""
    model = models.build("popularity", {}, Catalogue(3, 6))
    model.counts.copy_(torch.tensor([[5.0], [4], [3], [2], [1], [0]]))  # type: ignore[attr-defined]
    queries = Queries(
        np.array([0, 1, 2], np.int32),
        Ragged.from_lists([[0], [0, 1, 2], []]),
        Ragged.from_lists([[1], [5], [0, 3]]),
    )
    # seen items leave: user 0 finds item 1 first; user 1 finds 5 third, outside k = 2; user 2 one of two at place 1
    found = evaluate(model, queries, k=2)
    assert found["hr@2"] == pytest.approx(2 / 3)
    assert found["ndcg@2"] == pytest.approx((1 + 0 + 1 / (1 + 1 / np.log2(3))) / 3)


def test_sampled_metrics_rank_among_the_sample_only() -> None:
    items = 500
    model = models.build("popularity", {}, Catalogue(40, items))
    model.counts.copy_(torch.arange(items, 0, -1.0)[:, None])  # type: ignore[attr-defined]
    targets = Ragged.from_lists([[250]] * 40)
    queries = Queries(np.arange(40, dtype=np.int32), Ragged.from_lists([[1]] * 40), targets)
    assert evaluate(model, queries, k=10)["hr@10"] == 0.0
    half = evaluate(model, queries, k=50, sampled=99)["hr@50"]
    assert 0.2 < half < 0.8, (
        "a target in the middle of the catalogue is in the better half of its sample half of the time"
    )
    assert evaluate(model, queries, k=50, sampled=99)["hr@50"] == half
