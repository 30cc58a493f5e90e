"""The training loop: it learns, stops, resumes, repeats itself, and teaches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recfit import models, training
from recfit.measure.machine import halves_fast, machine
from recfit.models import Model
from recfit.training import Distill, Fit, batches, evaluate, train
from recfit.training.bars import bar
from recfit.types import ConfigError, DataError, Interactions, Queries, Ragged, Split

SMALL: Mapping[str, dict[str, Any]] = {
    "sasrec": {"layers": 1, "embedding_dim": 16, "heads": 2, "ffn": 16, "max_history": 6, "dropout": 0.1},
    "mlp": {"embedding_dim": 16, "hidden": 16, "max_history": 6, "dropout": 0.1},
    "neumf": {"embedding_dim": 8, "hidden": 16, "top": 8},
}
N_ITEMS = 20
QUICK = Fit(epochs=6, batch_size=16, learning_rate=0.01, warmup=2, negatives=4, threads=1)


@pytest.fixture(scope="module")
def split() -> Split:
    """Sixty users who walk through 20 items one by one, each from a place of their own: the next item is certain."""
    draws = np.random.default_rng(0)
    paths = [(draws.integers(N_ITEMS) + np.arange(draws.integers(5, 12))) % N_ITEMS for _ in range(60)]
    user = np.repeat(np.arange(60), [len(path) - 2 for path in paths]).astype(np.int32)
    item = np.concatenate([path[:-2] for path in paths]).astype(np.int32)
    times = np.arange(len(user), dtype=np.float64)
    ids = tuple(str(row) for row in range(60))
    events = Interactions("walks", user, item, np.ones(len(user), np.float32), times, ids, ids[:N_ITEMS])
    return Split("leave_last(1)", events, _queries(paths, 2), _queries(paths, 1), {}, "hash")


def _queries(paths: list[Any], back: int) -> Queries:
    targets = [path[len(path) - back :][:1] for path in paths]
    rows = np.arange(len(paths), dtype=np.int32)
    return Queries(rows, Ragged.from_lists([path[:-back] for path in paths]), Ragged.from_lists(targets))


def new(kind: str, split: Split, seed: int = 0, **options: Any) -> Model:
    torch.manual_seed(seed)
    return models.build(kind, {**SMALL.get(kind, {}), **options}, models.catalogue_of(split))


def quiet(model: Model, split: Split, fit: Fit = QUICK, **more: Any) -> training.Trained:
    return train(model, split, fit, progress=False, **more)


@pytest.mark.parametrize("loss", ["ce", "sampled"])
@pytest.mark.parametrize("kind", ["sasrec", "mlp"])
def test_encoders_learn_what_comes_next(split: Split, kind: str, loss: str) -> None:
    model = new(kind, split)
    trained = quiet(model, split, replace(QUICK, epochs=15, loss=loss, negatives=10, learning_rate=0.02))
    assert trained.epochs[-1].loss < trained.epochs[0].loss / 2
    assert evaluate(model, split.test)["ndcg@10"] > 0.8
    assert trained.ndcg == pytest.approx(evaluate(model, split.validation)["ndcg@10"])
    assert not models.as_module(model).training


@pytest.mark.parametrize("loss", ["bce", "sampled"])
def test_rankers_learn_whom_they_rank_for(split: Split, loss: str) -> None:
    model = new("neumf", split)
    chance = evaluate(model, split.test)["ndcg@10"]
    trained = quiet(model, split, replace(QUICK, epochs=12, loss=loss))
    assert trained.epochs[-1].loss < trained.epochs[0].loss
    assert evaluate(model, split.test)["ndcg@10"] > chance + 0.1


def test_a_ranker_is_told_of_no_event_of_its_user_as_a_negative(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = new("neumf", split)
    scored, real = [], model.score
    monkeypatch.setattr(model, "score", lambda items, user: (scored.append((user, items)), real(items, user))[1])
    for _ in training.batch_losses(model, split, QUICK, 20):
        pass
    own = split.train.histories()
    assert len(scored) == 20
    for user, items in scored:
        for row, (target, *negatives) in zip((user - 1).tolist(), items.tolist(), strict=True):
            assert target - 1 in own[row]
            assert not {token - 1 for token in negatives} & set(own[row].tolist())


@pytest.mark.parametrize("kind", ["popularity", "itemknn", "ease", "als"])
def test_solved_models_are_solved(split: Split, kind: str) -> None:
    model = new(kind, split)
    before = models.fingerprint(model)
    trained = quiet(model, split)
    assert models.fingerprint(model) != before
    assert trained.ndcg == pytest.approx(evaluate(model, split.validation)["ndcg@10"])
    assert (len(trained.epochs), trained.best) == (1, 0)


@pytest.mark.parametrize("kind", ["sasrec", "neumf"])
def test_the_same_seed_gives_the_same_weights(split: Split, kind: str) -> None:
    fits = [QUICK, QUICK, replace(QUICK, seed=1)]
    digests = []
    for fit in fits:
        model = new(kind, split)
        torch.rand(len(digests) + 1)  # whatever was drawn before must not matter
        quiet(model, split, replace(fit, epochs=2))
        digests.append(models.fingerprint(model))
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_squared_gradients_are_of_each_batch(split: Split) -> None:
    """Not of their sum, in which batches cancel each other."""
    model = new("mlp", split)
    wanted: dict[str, Any] = {}
    for loss in training.batch_losses(model, split, QUICK, 3):
        named = dict(models.as_module(model).named_parameters())
        grads = torch.autograd.grad(loss, list(named.values()))
        for name, grad in zip(named, grads, strict=True):
            wanted[name] = wanted.get(name, 0.0) + grad.square()
    found = training.squared_gradients(model, split, QUICK, 3)
    assert found.keys() == wanted.keys()
    for name, squares in found.items():
        torch.testing.assert_close(squares, wanted[name])
    assert all(weight.grad is None for weight in models.as_module(model).parameters())


def test_held_out_loss_is_that_of_the_validation_requests(split: Split) -> None:
    model: Any = new("mlp", split)
    queries = split.validation.take(np.arange(7))
    with torch.no_grad():
        given = models.scores(model.eval(), {"history": torch.from_numpy(queries.history.padded(6))})
        wanted = torch.nn.functional.cross_entropy(given, torch.from_numpy(queries.targets.values).long())
    part = replace(split, validation=queries)
    settings = replace(QUICK, batch_size=4, precision="fp32")
    assert training.held_out_losses([model], part, settings) == [pytest.approx(float(wanted), rel=1e-5)]


def test_held_out_losses_draw_the_same_negatives_for_every_model(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    versions: list[Any] = [new("neumf", split), new("neumf", split, seed=1, hidden=32)]
    scored: list[torch.Tensor] = []
    for model in versions:
        real = model.score
        monkeypatch.setattr(model, "score", lambda items, user, real=real: (scored.append(items), real(items, user))[1])
    one, other = training.held_out_losses(versions, split, QUICK)
    assert one != other
    assert len(scored) == 8, "four batches each"
    assert all(map(torch.equal, scored[:4], scored[4:]))


def test_training_leaves_torch_as_it_was(split: Split) -> None:
    threads, model = torch.get_num_threads(), new("mlp", split)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    quiet(model, split, replace(QUICK, epochs=1, threads=threads + 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("kind", "taught"), [("sasrec", False), ("neumf", False), ("neumf", True)])
def test_an_interrupted_training_continues_bit_for_bit(
    split: Split, kind: str, taught: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Distill(new(kind, split, seed=1)) if taught else None
    whole = new(kind, split)
    expected = quiet(whole, split, teacher=teacher)
    path = tmp_path / "training.safetensors"
    stopped = new(kind, split)
    with monkeypatch.context() as patched:
        patched.setattr(training._Loop, "_epoch", _interrupted_in_epoch(3))
        with pytest.raises(KeyboardInterrupt):
            quiet(stopped, split, checkpoint=path, teacher=teacher)
    model = new(kind, split)
    trained = quiet(model, split, checkpoint=path, teacher=teacher)
    assert models.fingerprint(model) == models.fingerprint(whole)
    assert [epoch.loss for epoch in trained.epochs] == [epoch.loss for epoch in expected.epochs]
    assert [path.name for path in tmp_path.iterdir()] == ["training.safetensors"]


def _interrupted_in_epoch(last: int) -> Any:
    real = training._Loop._epoch

    def epoch(loop: Any, index: int, done: Any) -> float:
        if index == last:
            raise KeyboardInterrupt
        return real(loop, index, done)

    return epoch


def test_a_finished_training_is_not_repeated(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "training.safetensors"
    first = new("mlp", split)
    quiet(first, split, checkpoint=path)
    monkeypatch.setattr(training._Loop, "_epoch", _interrupted_in_epoch(QUICK.epochs))
    again = new("mlp", split)
    quiet(again, split, checkpoint=path)
    assert models.fingerprint(again) == models.fingerprint(first)


def test_the_checkpoint_of_another_training_is_refused(split: Split, tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    quiet(new("mlp", split), split, replace(QUICK, epochs=1), checkpoint=path)
    with pytest.raises(ConfigError, match=r"training.safetensors is the checkpoint of another training; delete it"):
        quiet(new("mlp", split), split, replace(QUICK, epochs=2), checkpoint=path)
    fewer = replace(split.train, user=split.train.user[:-1], item=split.train.item[:-1])
    with pytest.raises(ConfigError, match="another training"):
        quiet(new("mlp", split), replace(split, train=fewer), replace(QUICK, epochs=1), checkpoint=path)


def test_the_best_epoch_wins_and_patience_ends(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = iter([0.1, 0.4, 0.3, 0.4, 0.2, 0.9])
    kept: list[str] = []
    model = new("mlp", split)

    def measured(self: Any, asked: Model) -> dict[str, float]:
        kept.append(models.fingerprint(asked))
        return {"ndcg@10": next(curve)}

    monkeypatch.setattr(training.Evaluation, "__call__", measured)
    trained = quiet(model, split, replace(QUICK, epochs=50, patience=3))
    assert [epoch.ndcg for epoch in trained.epochs] == [0.1, 0.4, 0.3, 0.4, 0.2]
    assert (trained.best, trained.ndcg) == (1, 0.4)
    assert models.fingerprint(model) == kept[1]


def test_minutes_are_a_limit(split: Split) -> None:
    trained = quiet(new("mlp", split), split, replace(QUICK, epochs=1000, patience=1000, max_minutes=0.002))
    assert 1 <= len(trained.epochs) < 1000


def test_a_fraction_of_the_users_is_fewer_steps(split: Split) -> None:
    full, part = (batches.Sequences.of(split.train).chosen(share, 0) for share in (1.0, 0.25))
    assert (len(full), len(part)) == (60, 15)
    assert set(part.tolist()) < set(full.tolist())


@pytest.mark.parametrize("isa", [[], ["avx2"], ["avx512_bf16"], ["amx_bf16"]])
def test_precision_is_bf16_where_it_is_proposed_too(isa: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine(), "isa", isa)
    fast = torch.bfloat16 if halves_fast() else torch.float32
    assert halves_fast() == any("bf16" in name for name in isa)
    assert [Fit(precision=name).dtype() for name in ("auto", "fp32", "bf16")] == [fast, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_precisions_learn(split: Split, precision: str) -> None:
    model = new("sasrec", split)
    trained = quiet(model, split, replace(QUICK, epochs=15, precision=precision))
    assert trained.precision == precision
    assert trained.ndcg > 0.7


def test_progress_shows_loss_metric_and_time(split: Split, capfd: pytest.CaptureFixture[str]) -> None:
    train(new("mlp", split), split, replace(QUICK, epochs=3), progress=True)
    shown = capfd.readouterr().err
    assert "epoch 3, loss" in shown
    assert "ndcg@10 0." in shown
    assert "<" in shown  # tqdm's remaining time
    quiet(new("mlp", split), split, replace(QUICK, epochs=1))
    assert capfd.readouterr().err == ""


def test_a_log_file_gets_a_line_a_minute(capfd: pytest.CaptureFixture[str]) -> None:
    with bar(True, "sasrec", "batch") as shown:
        shown.total = 10_000
        for _ in range(10_000):
            shown.update()
            shown.set_postfix_str("loss 1", refresh=False)
            time.sleep(1e-5)
    assert len(capfd.readouterr().err.split("\r")) <= 5


@pytest.mark.parametrize("teaching", ["sasrec", "als", "ease", "neumf"])
@pytest.mark.parametrize("learning", ["mlp", "neumf"])
def test_any_teacher_teaches_any_student(split: Split, teaching: str, learning: str) -> None:
    """With the own loss switched off, all that the student can learn is the teacher's opinion."""
    teacher = new(teaching, split, seed=1)
    quiet(teacher, split, replace(QUICK, epochs=10))
    student = new(learning, split, dropout=0.0)
    before = agreement(student, teacher, split)
    fit = replace(QUICK, epochs=12, patience=12, negatives=8, weight_decay=0.0, learning_rate=0.02)
    quiet(student, split, fit, teacher=Distill(teacher, alpha=1.0, beta=0.0, temperature=1.0))
    assert agreement(student, teacher, split) > before + 0.05


def agreement(student: Model, teacher: Model, split: Split) -> float:
    """Mean correlation of the two models' scores over the validation requests."""
    user = torch.from_numpy(split.validation.user).long() + 1
    history = torch.from_numpy(split.validation.history.padded(6))
    with torch.no_grad():
        given = [models.scores(m, training.inputs_for(m, user, history)) for m in (student.eval(), teacher.eval())]  # type: ignore[attr-defined]
    pairs = [torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(*given, strict=True)]
    return float(torch.stack(pairs).nanmean())


def test_a_longer_reading_teacher_sees_its_whole_window(split: Split) -> None:
    teacher, student = new("sasrec", split, max_history=9), new("mlp", split, max_history=4)
    trained = quiet(student, split, replace(QUICK, epochs=2), teacher=Distill(teacher))
    assert np.isfinite(trained.epochs[-1].loss)


def test_a_teacher_that_reads_less_still_teaches(split: Split) -> None:
    teacher, student = new("sasrec", split, max_history=3), new("mlp", split, max_history=6)
    trained = quiet(student, split, replace(QUICK, epochs=2), teacher=Distill(teacher))
    assert np.isfinite(trained.epochs[-1].loss)


def test_the_teacher_does_not_change(split: Split) -> None:
    teacher = new("sasrec", split)
    before = models.fingerprint(teacher)
    quiet(new("mlp", split), split, replace(QUICK, epochs=1), teacher=Distill(teacher))
    assert models.fingerprint(teacher) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "fit.epochs = 0 is outside 1 to"),
        ({"loss": "cee"}, r"fit.loss = 'cee' \(did you mean 'ce'\?\); allowed: auto, ce, sampled, bce"),
        ({"precision": "fp16"}, "fit.precision = 'fp16'.*; allowed: auto, fp32, bf16"),
        ({"data_fraction": 0.0}, "fit.data_fraction = 0.0 is outside"),
        ({"learning_rate": -1.0}, "fit.learning_rate = -1.0 is outside"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Fit(**settings)


@pytest.mark.parametrize(("kind", "loss"), [("sasrec", "bce"), ("neumf", "ce")])
def test_a_loss_must_fit_the_model(split: Split, kind: str, loss: str) -> None:
    with pytest.raises(ConfigError, match=f"fit.loss = '{loss}' does not fit {kind}; allowed: auto"):
        quiet(new(kind, split), split, replace(QUICK, loss=loss))


def test_sampled_loss_can_not_be_distilled(split: Split) -> None:
    with pytest.raises(ConfigError, match="'sampled' can't be distilled into an encoder; use loss = 'ce'"):
        quiet(new("mlp", split), split, replace(QUICK, loss="sampled"), teacher=Distill(new("sasrec", split)))


def test_users_with_one_event_teach_nothing(split: Split) -> None:
    train_part = split.train
    first = np.unique(train_part.user, return_index=True)[1]
    alone = replace(
        train_part,
        user=train_part.user[first],
        item=train_part.item[first],
        weight=train_part.weight[first],
        timestamp=train_part.timestamp[first],
    )
    with pytest.raises(DataError, match="no user has two events to learn from"):
        quiet(new("mlp", split), replace(split, train=alone))
