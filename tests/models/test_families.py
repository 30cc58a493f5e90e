"""What each family computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import N_ITEMS, N_USERS, chosen_matrix, requests
from recfit import models
from recfit.models import Catalogue, Model
from recfit.types import ConfigError, Split

Make = Callable[[str], Model]


def solved(kind: str, split: Split, **options: object) -> Model:
    model = models.build(kind, options, models.catalogue_of(split))
    model.solve(split)  # type: ignore[attr-defined]
    return model


def test_popularity_counts_events(split: Split, make: Make) -> None:
    given = models.scores(make("popularity"), {"history": torch.zeros(2, 1, dtype=torch.long)})
    counts = torch.from_numpy(np.bincount(split.train.item, minlength=N_ITEMS)).float()
    assert torch.equal(given, counts.expand(2, -1))


def test_ease_is_the_ridge_regression_with_zero_diagonal(split: Split) -> None:
    model = solved("ease", split, l2=5.0)
    chosen = torch.from_numpy(chosen_matrix(split)).double()
    weights = model.rows.double()  # type: ignore[attr-defined]
    assert weights.diagonal().abs().max() == 0
    # The gradient of |X - XB|^2 + l2 |B|^2 vanishes everywhere but on the diagonal, where B is held at 0.
    gradient = chosen.T @ (chosen @ weights - chosen) + 5.0 * weights
    gradient.fill_diagonal_(0.0)
    assert gradient.abs().max() < 1e-3


def test_sparse_ease_keeps_the_strongest_weights(split: Split) -> None:
    dense, every = solved("ease", split, l2=5.0), solved("ease", split, l2=5.0, neighbours=N_ITEMS)
    given = {"history": torch.tensor([[0, 3, 7, 20]])}
    torch.testing.assert_close(models.scores(every, given), models.scores(dense, given))
    few = solved("ease", split, l2=5.0, neighbours=2)
    rows = dense.rows  # type: ignore[attr-defined]
    best = rows[2].abs().topk(2).indices
    row = models.scores(few, {"history": torch.tensor([[3]])})[0]
    assert set(torch.nonzero(row)[:, 0].tolist()) == set(best.tolist())
    torch.testing.assert_close(row[best], rows[2][best])


def test_a_repeated_event_counts_once_in_dense_and_sparse_ease(split: Split) -> None:
    dense, sparse = solved("ease", split, l2=5.0), solved("ease", split, l2=5.0, neighbours=N_ITEMS)
    once = models.scores(dense, {"history": torch.tensor([[4, 9], [0, 4]])})
    for model in (dense, sparse):
        repeated = {"history": torch.tensor([[0, 9, 4, 9, 9], [0, 0, 4, 4, 4]])}
        torch.testing.assert_close(models.scores(model, repeated), once)


def test_a_repeated_event_votes_once_in_itemknn(split: Split) -> None:
    model = solved("itemknn", split, neighbours=3)
    found = [models.scores(model, {"history": torch.tensor([row])}) for row in ([4, 9], [9, 4, 9, 4])]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("similarity", ["cosine", "tfidf"])
def test_itemknn_scores_are_similarities(split: Split, similarity: str) -> None:
    model = solved("itemknn", split, similarity=similarity, neighbours=N_ITEMS, shrinkage=0.0)
    matrix = chosen_matrix(split).astype(np.float64)
    if similarity == "tfidf":
        matrix *= np.log((1 + N_ITEMS) / (1 + matrix.sum(1, keepdims=True))) + 1
    norms = np.linalg.norm(matrix, axis=0)
    expected = matrix[:, 4] @ matrix / (norms[4] * norms)
    expected[4] = 0.0
    np.testing.assert_allclose(models.scores(model, {"history": torch.tensor([[5]])})[0], expected, atol=1e-5)


def test_als_fold_in_solves_the_normal_equations(make: Make) -> None:
    model = make("als")
    history = torch.tensor([[0, 0, 0, 0, 3], [1, 2, 3, 9, 8], [5, 5, 6, 7, 20]])
    factors, alpha, l2 = model.factors.double(), model.config.alpha, model.config.l2  # type: ignore[attr-defined]
    for row, vector in zip(history, model.encode(history=history), strict=True):  # type: ignore[attr-defined]
        chosen = factors[row[row > 0] - 1]
        system = factors.T @ factors + alpha * chosen.T @ chosen + l2 * torch.eye(6)
        exact = torch.cholesky_solve(((1 + alpha) * chosen.sum(0))[:, None], torch.linalg.cholesky(system))[:, 0]
        torch.testing.assert_close(vector.double(), exact, rtol=1e-4, atol=1e-5)


def test_als_prefers_what_similar_users_chose(split: Split, make: Make) -> None:
    model = make("als")
    given = models.scores(model, {"history": torch.tensor([[10, 11, 13]])})[0]
    near, far = given[10:16].mean(), given[[0, 1, 2, 20, 21, 22]].mean()
    assert near > far


def test_neumf_knows_an_unknown_user(make: Make) -> None:
    model = make("neumf")
    given = models.scores(model, {"user": torch.tensor([0, 1])})
    assert torch.isfinite(given).all()
    assert not torch.allclose(given[0], given[1])


def test_neumf_with_a_history_answers_unknown_users_by_what_they_did(make: Make) -> None:
    model = make("neumf-history")
    assert model.inputs == ("user", "history")
    unknown = torch.zeros(3, dtype=torch.long)
    given = models.scores(model, {"user": unknown, "history": torch.tensor([[0, 3, 4], [0, 0, 9], [0, 0, 0]])})
    assert not torch.allclose(given[0], given[1])
    nobody = models.scores(make("neumf-history"), {"user": unknown[:1], "history": torch.zeros(1, 1, dtype=torch.long)})
    torch.testing.assert_close(given[2:], nobody)


def test_neumf_forgets_users_only_in_training(make: Make) -> None:
    model = make("neumf").shrink("top", torch.arange(4))
    object.__setattr__(model.config, "forget", 1.0)
    inputs = {"user": torch.tensor([1, 2])}
    known = models.scores(model, inputs)
    assert not torch.allclose(known[0], known[1])
    model.users.requires_grad_(False)  # type: ignore[attr-defined]
    models.as_module(model).train()
    model.dropout.limit = 0  # type: ignore[attr-defined]
    hidden = models.scores(model, inputs)
    torch.testing.assert_close(hidden[0], hidden[1])


def test_neumf_reads_features_and_can_drop_columns(catalogue: Catalogue, make: Make) -> None:
    model = make("neumf-features")
    assert model.axes()["features"] == 4  # age, decade, genre (two columns), job
    inputs = requests(model)
    other = {**inputs, "user_features": (inputs["user_features"] + 1) % 4}
    assert not torch.allclose(models.scores(model, inputs), models.scores(model, other))
    small = model.shrink("features", torch.tensor([1, 2]))
    assert small.config.without == ("age", "job")
    assert small.inputs == ("user",), "without user columns the request needs no features"


def test_chunked_ranker_scores_equal_one_call(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("neumf")
    users = torch.arange(0, N_USERS)
    whole = models.scores(model, {"user": users})
    monkeypatch.setattr(models, "PAIRS_AT_ONCE", 7 * len(users))
    torch.testing.assert_close(models.scores(model, {"user": users}), whole)
    each = torch.arange(1, N_ITEMS + 1).repeat(N_USERS, 1)  # the same items, as if they were different ones
    torch.testing.assert_close(model.score(each, user=users), whole)  # type: ignore[attr-defined]


def test_item_features_reach_the_table(make: Make) -> None:
    model = make("mlp-features")
    items = model.items  # type: ignore[attr-defined]
    with torch.no_grad():
        items.features.weight[items.features.rows("decade")] = 0.0
    without = model.item_vectors().clone()  # type: ignore[attr-defined]
    with torch.no_grad():
        items.features.weight[items.features.rows("decade")] = 1.0
    known = torch.from_numpy(model.catalogue.item_features.codes[:, 2] > 0)  # type: ignore[union-attr]
    moved = (model.item_vectors() - without).abs().sum(1) > 0.5  # type: ignore[attr-defined]
    assert torch.equal(moved, known), "code 0 means unknown and adds nothing"


def test_sasrec_heads_shrink_layer_by_layer(make: Make) -> None:
    model = make("sasrec")
    first, second = model.blocks  # type: ignore[attr-defined]
    with torch.no_grad():  # head 0 of the first layer and head 1 of the second do nothing
        first.out.weight[:, :4] = first.query.weight[:4] = first.key.weight[:4] = first.value.weight[:4] = 0.0
        second.out.weight[:, 4:] = second.query.weight[4:] = second.key.weight[4:] = second.value.weight[4:] = 0.0
    importance = model.importance("heads")
    assert (importance == 0).tolist() == [[True, False], [False, True]]
    small = model.shrink("heads", torch.tensor([[1], [0]]))
    torch.testing.assert_close(models.scores(small, requests(model)), models.scores(model, requests(model)))


def test_sasrec_embedding_shrinks_exactly_where_the_dropped_coordinates_are_empty(make: Make) -> None:
    model = make("sasrec")
    with torch.no_grad():
        model.items.weight[:, 5:] = 0.0  # type: ignore[attr-defined]
        for block in model.blocks:  # type: ignore[attr-defined]
            block.out.weight[5:] = block.down.weight[5:] = 0.0
    small = model.shrink("embedding_dim", torch.arange(5))
    torch.testing.assert_close(
        models.scores(small, requests(model)), models.scores(model, requests(model)), rtol=1e-4, atol=1e-4
    )


def test_sasrec_history_shrinks_to_the_newest(make: Make) -> None:
    model = make("sasrec")
    small = model.shrink("history_length", torch.arange(4))
    assert small.max_history == 4
    history = torch.tensor([[3, 4, 5, 6]])
    torch.testing.assert_close(models.scores(small, {"history": history}), models.scores(model, {"history": history}))
    with pytest.raises(ConfigError, match="only the newest can stay"):
        model.shrink("history_length", torch.tensor([1, 2]))


def test_a_large_sasrec_can_be_built(catalogue: Catalogue) -> None:
    options = {"layers": 10, "embedding_dim": 512, "heads": 8, "ffn": 2048, "max_history": 20}
    model = models.build("sasrec", options, catalogue)
    models.as_module(model).eval()
    given = models.scores(model, {"history": torch.tensor([[1, 2, 3]])})
    assert torch.isfinite(given).all()
    assert sum(weight.numel() for weight in models.as_module(model).parameters()) > 31_000_000


def test_one_item_catalogue() -> None:
    catalogue = Catalogue(2, 1)
    for kind in ("popularity", "itemknn", "ease", "als", "neumf", "sasrec", "mlp"):
        model = models.build(kind, {}, catalogue)
        models.as_module(model).eval()
        inputs = {"history": torch.ones(1, 1, dtype=torch.long), "user": torch.ones(1, dtype=torch.long)}
        assert models.scores(model, {name: inputs[name] for name in model.inputs}).shape == (1, 1)


def test_features_without_data_are_refused(catalogue: Catalogue) -> None:
    bare = replace(catalogue, user_features=None, item_features=None)
    for kind in ("neumf", "mlp", "sasrec"):
        with pytest.raises(ConfigError, match=f"model.{kind}.features = true, but the data has none"):
            models.build(kind, {"features": True}, bare)


@pytest.mark.parametrize("kind", ["neumf", "two_tower"])
def test_a_user_must_be_something(catalogue: Catalogue, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"model.{kind} has users = false, max_history = 0 and no user features"):
        models.build(kind, {"users": False, "max_history": 0}, catalogue)


def test_layers_after_the_first_look_back_no_further_than_the_window(split: Split) -> None:
    """With two layers and a window of 3 the newest position sees the first layer's states of 3 positions, each of which saw
    everything before it: an older event counts, and counts no more once the first layer is blind."""
    options = {"layers": 2, "embedding_dim": 8, "heads": 2, "ffn": 12, "max_history": 9, "window": 3}
    torch.manual_seed(0)
    model: Any = models.build("sasrec", options, models.catalogue_of(split))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    model.eval()
    assert [block.distance.shape[1] for block in model.blocks] == [9, 3]
    history = torch.arange(1, 9)[None]
    other = torch.cat((torch.tensor([[20]]), history[:, 1:]), dim=1)
    with torch.inference_mode():
        assert not torch.allclose(model.encode(history), model.encode(other))
        model.blocks[0].value.weight.zero_()
        torch.testing.assert_close(model.encode(history), model.encode(other))
        torch.testing.assert_close(model.encode(history), model.encode(history[:, -3:]))


def test_a_wide_window_is_none(split: Split) -> None:
    options = {"layers": 3, "embedding_dim": 8, "heads": 2, "ffn": 12, "max_history": 9}
    torch.manual_seed(0)
    free: Any = models.build("sasrec", options, models.catalogue_of(split)).eval()  # type: ignore[attr-defined]
    wide: Any = models.build("sasrec", {**options, "window": 9}, models.catalogue_of(split)).eval()  # type: ignore[attr-defined]
    wide.load_state_dict(free.state_dict())
    history = torch.randint(0, 20, (4, 9)).sort(dim=1).values
    with torch.inference_mode():
        torch.testing.assert_close(wide.encode(history), free.encode(history))
        torch.testing.assert_close(wide.states(history), free.states(history))
