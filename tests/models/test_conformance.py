"""What every family must do, whatever it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import N_ITEMS, VARIANTS, requests, rows_of
from recfit import models
from recfit.models import Causal, Encoder, Model, Ranker, Rotatable, Tied
from recfit.models._axes import ABSENT  # noqa: PLC2701
from recfit.registry import names
from recfit.types import ConfigError

Make = Callable[[str], Model]

SHRINKABLE = [
    ("sasrec", "layers"),
    ("sasrec", "heads"),
    ("sasrec", "ffn"),
    ("sasrec", "embedding_dim"),
    ("sasrec-features", "table_dim"),
    ("sasrec", "history_length"),
    ("sasrec", "window"),
    ("sasrec-window", "window"),
    ("sasrec-window", "history_length"),
    ("sasrec-window", "heads"),
    ("sasrec-window", "embedding_dim"),
    ("sasrec-uneven", "layers"),
    ("sasrec-uneven", "heads"),
    ("sasrec-uneven", "ffn"),
    ("sasrec-uneven", "embedding_dim"),
    ("sasrec-uneven", "window"),
    ("sasrec-codes", "window"),
    ("sasrec-codes", "layers"),
    ("sasrec-codes", "heads"),
    ("sasrec-codes", "ffn"),
    ("sasrec-codes", "history_length"),
    ("mlp-codes", "hidden"),
    ("mlp-features", "hidden"),
    ("mlp-features", "embedding_dim"),
    ("mlp-features", "table_dim"),
    ("mlp-features", "history_length"),
    ("two_tower-features", "hidden"),
    ("two_tower-features", "embedding_dim"),
    ("two_tower-features", "history_length"),
    ("two_tower-users", "embedding_dim"),
    ("two_tower-codes", "hidden"),
    ("two_tower-codes", "history_length"),
    ("als", "embedding_dim"),
    ("neumf-features", "embedding_dim"),
    ("neumf-features", "hidden"),
    ("neumf-features", "top"),
    ("neumf-features", "features"),
    ("neumf-history", "embedding_dim"),
    ("neumf-history", "history_length"),
]

WIDTHS = {"embedding_dim", "table_dim"}  # as wide as each other, until the table is cut alone


def test_every_family_is_covered() -> None:
    assert {kind for kind, _ in VARIANTS.values()} == set(names("models")) - {"custom"}


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_every_item_and_is_finite_for_an_empty_history(make: Make, name: str) -> None:
    model = make(name)
    given = models.scores(model, requests(model))
    assert given.shape == (3, N_ITEMS)
    assert torch.isfinite(given).all()
    assert isinstance(model, Encoder) != isinstance(model, Ranker)


READERS = [name for name, (kind, _) in VARIANTS.items() if kind not in ("neumf", "popularity", "two_tower")] + [
    "two_tower-history"
]


@pytest.mark.parametrize("name", READERS)
def test_left_padding_and_batch_change_nothing(make: Make, name: str) -> None:
    model = make(name)
    history = requests(model, 4, 5)["history"]
    padded = torch.cat((torch.zeros(4, 4, dtype=torch.long), history), 1)
    short = models.scores(model, {"history": history})
    torch.testing.assert_close(models.scores(model, {"history": padded}), short)
    torch.testing.assert_close(models.scores(model, {"history": history[2:3]}), short[2:3])
    assert not torch.allclose(short[2], short[3]), "two different histories must not be answered alike"


@pytest.mark.parametrize("name", VARIANTS)
def test_identity_models_say_so(make: Make, name: str) -> None:
    model = make(name)
    if models.is_identity(model):
        assert torch.equal(model.item_vectors(), torch.eye(N_ITEMS))  # type: ignore[attr-defined]
    assert models.is_identity(model) == name.startswith(("ease", "itemknn"))


@pytest.mark.parametrize("name", VARIANTS)
def test_tied_encoders_agree_with_encode(make: Make, name: str) -> None:
    model = make(name)
    if isinstance(model, Tied):
        history = requests(model)["history"]
        vectors = rows_of(model, history)
        torch.testing.assert_close(model.encode_vectors(history, vectors), model.encode(history=history))  # type: ignore[attr-defined]
    assert isinstance(model, Tied) == name.startswith(("sasrec", "mlp", "als"))


@pytest.mark.parametrize(
    "name",
    [
        *("sasrec", "sasrec-1", "sasrec-window", "sasrec-uneven", "sasrec-features", "sasrec-codes", "sasrec-low-rank"),
        *("mlp", "mlp-features", "mlp-codes", "mlp-low-rank"),
    ],
)
def test_states_answer_every_prefix(make: Make, name: str) -> None:
    model = make(name)
    assert isinstance(model, Causal)
    history = torch.tensor([[0, 0, 3, 4, 5, 6], [1, 2, 3, 9, 8, 7]])
    states = model.states(history)
    for t in range(history.shape[1]):
        real = history[:, t] > 0
        vectors = model.encode(history=history[:, : t + 1])  # type: ignore[attr-defined]
        torch.testing.assert_close(states[real, t], vectors[real])


@pytest.mark.parametrize("name", VARIANTS)
def test_save_and_load_keep_the_answers(make: Make, name: str, tmp_path: Path) -> None:
    model = make(name)
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert torch.equal(models.scores(again, requests(model)), models.scores(model, requests(model)))
    assert models.fingerprint(again) == models.fingerprint(model)
    assert again.config == model.config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "weights.safetensors"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_that_was_saved_before_it_had_a_setting_is_read(make: Make, name: str, tmp_path: Path) -> None:
    model = make(name)
    models.save(model, tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())
    config = {key: value for key, value in described["config"].items() if key in VARIANTS[name][1]}
    (tmp_path / "model.json").write_text(json.dumps({**described, "config": config}))
    again = models.load(tmp_path)
    assert again.config == model.config
    assert torch.equal(models.scores(again, requests(model)), models.scores(model, requests(model)))


@pytest.mark.parametrize(("name", "axis"), SHRINKABLE)
def test_shrink_is_really_smaller_and_keeps_the_type(make: Make, name: str, axis: str) -> None:
    model = make(name)
    size = model.axes()[axis]
    assert model.importance(axis).shape[-1] == size
    assert ((model.importance(axis) >= 0) | (model.importance(axis) == ABSENT)).all()
    left = size // 2 if axis == "table_dim" else size - 1  # the matrix that widens a table takes room too
    small = model.shrink(axis, torch.arange(left))
    assert small.axes()[axis] == left
    others = set(model.axes()) - {axis} - WIDTHS - {"window"}  # which ends with the history, and with the second layer
    assert {k: small.axes()[k] for k in others} == {k: model.axes()[k] for k in others}
    assert _numbers(small) < _numbers(model)
    assert models.scores(small, requests(small)).shape == (3, N_ITEMS)


@pytest.mark.parametrize(("name", "axis"), SHRINKABLE)
def test_keeping_everything_changes_nothing(make: Make, name: str, axis: str) -> None:
    model = make(name)
    same = model.shrink(axis, torch.arange(model.axes()[axis]))
    torch.testing.assert_close(models.scores(same, requests(model)), models.scores(model, requests(model)))


@pytest.mark.parametrize("name", VARIANTS)
def test_all_axes_are_covered_above(make: Make, name: str) -> None:
    covered = {axis for variant, axis in SHRINKABLE if VARIANTS[variant][0] == VARIANTS[name][0]}
    assert set(make(name).axes()) <= covered


@pytest.mark.parametrize("keep", [[], [1, 0], [0, 0], [0, 99], [-1, 0]])
def test_shrink_refuses_a_bad_choice(make: Make, keep: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"keep = .* of sasrec.heads; give ascending units out of 0 to 1"):
        make("sasrec").shrink("heads", torch.tensor(keep, dtype=torch.long))


@pytest.mark.parametrize("name", VARIANTS)
def test_an_unknown_axis_is_refused(make: Make, name: str) -> None:
    model = make(name)
    listed = ", ".join(model.axes()) or "none"
    with pytest.raises(ConfigError, match=f"{model.kind} has no axis 'colour'; it has: {listed}"):
        model.importance("colour")
    with pytest.raises(ConfigError, match="has no axis 'colour'"):
        model.shrink("colour", torch.arange(1))


@pytest.mark.parametrize(
    "name", ["sasrec", "sasrec-uneven", "sasrec-features", "mlp", "mlp-features", "als", "two_tower-features"]
)
def test_rotation_keeps_the_scores(make: Make, name: str) -> None:
    model = make(name)
    assert isinstance(model, Rotatable)
    d = model.axes()["embedding_dim"]
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(3)))[0]
    turned = model.rotated(basis)
    torch.testing.assert_close(models.scores(turned, requests(model)), models.scores(model, requests(model)))
    torch.testing.assert_close(turned.item_vectors(), model.item_vectors() @ basis)  # type: ignore[attr-defined]


def _numbers(model: Model) -> int:
    return sum(value.numel() for value in models.as_module(model).state_dict().values())
