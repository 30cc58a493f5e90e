"""A teacher's answers: computed once, found again, and learned from in every way that is offered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import toys
from recfit import models
from recfit.models import Model
from recfit.training import Distill, Fit, answers, inputs_for, train
from recfit.training.answers import Answers, Wanted
from recfit.training.batches import Draw, Sequences, crops, examples
from recfit.training.losses import Soft, Top, catalogue_loss
from recfit.training.negatives import Unseen
from recfit.training.steps import Step, longest_window
from recfit.training.teaching import Teaching
from recfit.types import ConfigError

FIT = replace(toys.FIT, weight_decay=0.0, negatives=8, warmup=0)
SEQUENCES = Sequences.of(toys.split().train)
USERS = SEQUENCES.chosen(1.0, 0)
EVERYTHING = Wanted(toys.N_ITEMS, temperature=2.0)


def asked(teacher: Model, wanted: Wanted = EVERYTHING, folder: Path | None = None, users: Any = USERS) -> Answers:
    return answers.answers(teacher, SEQUENCES, users, wanted, folder, progress=False)


def probabilities(teacher: Model, user: int, past: torch.Tensor) -> torch.Tensor:
    """What `teacher` says of all items after these tokens, at temperature 2."""
    with torch.no_grad():
        given = inputs_for(teacher, torch.tensor([user + 1]), past[None])
        return (models.scores(teacher, given)[0] / 2).softmax(0)


def dense(found: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    items, logs = found
    return torch.zeros(len(items), toys.N_ITEMS).scatter(1, items, logs.exp())


@pytest.mark.parametrize("kind", ["sasrec", "als", "ease", "neumf"])
def test_an_answer_is_what_the_teacher_says_after_that_event(kind: str) -> None:
    teacher = toys.trained(kind, toys.SHAPES[kind][0])
    known = asked(teacher)
    for user in (0, 7, 31):
        start, stop = int(SEQUENCES.start[user]), int(SEQUENCES.stop[user])
        for place in range(start, min(stop, start + 9)):  # what the teacher reads at most
            line = torch.tensor([user if known.by_user else place])
            wanted = probabilities(teacher, user, SEQUENCES.tokens[start : place + 1])
            torch.testing.assert_close(dense(known.best(line))[0], wanted, rtol=0.01, atol=1e-4)
    assert known.by_user == (kind == "neumf")


def test_a_causal_teacher_reads_half_of_its_window_at_least() -> None:
    teacher = toys.untrained("sasrec", {"layers": 1, "embedding_dim": 8, "heads": 2, "ffn": 8, "max_history": 4})
    user = int((SEQUENCES.stop - SEQUENCES.start).argmax())
    start, stop = int(SEQUENCES.start[user]), int(SEQUENCES.stop[user])
    known = asked(teacher)
    for place in range(start, stop):
        found = dense(known.best(torch.tensor([place])))[0]
        pasts = [SEQUENCES.tokens[max(start, place + 1 - length) : place + 1] for length in (2, 3, 4)]
        gaps = [float((found - probabilities(teacher, user, past)).abs().max()) for past in pasts]
        assert min(gaps) < 1e-3


@pytest.mark.parametrize("kind", ["sasrec", "mlp"])
def test_brief_answers_are_others_and_nearly_the_same(kind: str, tmp_path: Path) -> None:
    teacher = toys.trained(kind, toys.SHAPES[kind][0])
    places = torch.arange(9)
    whole, brief = (dense(asked(teacher, replace(EVERYTHING, brief=on), tmp_path).best(places)) for on in (False, True))
    assert not torch.equal(whole, brief)
    torch.testing.assert_close(brief, whole, rtol=0.1, atol=5e-3)
    assert len([*tmp_path.iterdir()]) == 2


def test_only_the_best_items_are_kept_in_order() -> None:
    teacher = toys.trained("sasrec", toys.SHAPES["sasrec"][0])
    (items, logs), (every, _) = (asked(teacher, Wanted(n, 2.0)).best(torch.arange(9)) for n in (5, toys.N_ITEMS))
    assert items.shape == logs.shape == (9, 5)
    assert torch.equal(items, every[:, :5])
    assert (logs.diff(dim=1) <= 0).all()


def test_batches_know_where_their_events_are() -> None:
    turned = SEQUENCES.turned()
    tokens = torch.cat((SEQUENCES.tokens, turned.tokens))
    generator = torch.Generator().manual_seed(0)
    batches = [
        *crops(SEQUENCES, USERS, Draw(5, 16, generator), 0.5),
        *examples(SEQUENCES, USERS, Draw(5, 16, generator)),
    ]
    for batch in batches:
        real = batch.history > 0
        assert torch.equal(tokens[batch.places(batch.history.shape[1])[real]], batch.history[real])
        assert torch.equal(tokens[batch.end - 1], batch.target)


def test_turned_windows_have_answers_of_their_own() -> None:
    teacher = toys.trained("sasrec", toys.SHAPES["sasrec"][0])
    known, events = asked(teacher, replace(EVERYTHING, turned=True)), SEQUENCES.turned()
    place = int(SEQUENCES.start[3]) + 2
    found = dense(known.best(torch.tensor([place + len(SEQUENCES.tokens)])))[0]
    wanted = probabilities(teacher, 3, events.tokens[place - 2 : place + 1])
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=1e-4)


def test_answers_are_computed_once_and_never_mistaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, calls, real = toys.trained("mlp", toys.SHAPES["mlp"][0]), [], answers._fill
    monkeypatch.setattr(answers, "_fill", lambda *given: (calls.append(given), real(*given)))
    first = asked(teacher, folder=tmp_path)
    again = asked(teacher, folder=tmp_path)
    assert len(calls) == 1
    assert isinstance(again.arrays["items"], np.memmap)
    np.testing.assert_array_equal(first.arrays["logs"], again.arrays["logs"])
    other = toys.untrained("mlp", toys.SHAPES["mlp"][0])
    for given in ((other,), (teacher, Wanted(3, 2.0)), (teacher, Wanted(toys.N_ITEMS, 1.0))):
        asked(*given, folder=tmp_path)
    asked(teacher, folder=tmp_path, users=USERS[:5])
    assert len(calls) == 5
    assert len(list(tmp_path.iterdir())) == 5


def test_an_interrupted_computation_is_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = toys.trained("mlp", toys.SHAPES["mlp"][0])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(answers, "_fill", killed)
        with pytest.raises(KeyboardInterrupt):
            asked(teacher, folder=tmp_path)
    np.testing.assert_array_equal(asked(teacher, folder=tmp_path).arrays["items"], asked(teacher).arrays["items"])
    assert [path.suffix for path in tmp_path.iterdir()] == [""]


def test_a_progress_bar_counts_answers(capfd: pytest.CaptureFixture[str]) -> None:
    teacher = toys.trained("mlp", toys.SHAPES["mlp"][0])
    answers.answers(teacher, SEQUENCES, USERS, EVERYTHING, None, progress=True)
    assert "mlp answers" in capfd.readouterr().err


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    shapes = ((50, 6), (11, 6), (50, 11))
    vectors, table, teacher = (torch.randn(*shape, generator=draws) for shape in shapes)
    return vectors.requires_grad_(), table.requires_grad_(), torch.randint(11, (50,), generator=draws), teacher


@pytest.mark.parametrize("count", [1, 4, 11])
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_the_loss_of_the_best_items_and_its_gradients(problem: Any, count: int, weight: float) -> None:
    """The Kullback-Leibler divergence over the best items and one more that stands for all others."""
    vectors, table, targets, teacher = problem
    logs, items = (teacher / 3).log_softmax(1).topk(count)
    soft = Top(items, logs, temperature=3.0, weight=0.6)
    loss = catalogue_loss(vectors, table, targets, weight=weight, soft=soft, dtype=torch.float32)
    given = (vectors @ table.T / 3).softmax(1).gather(1, items)
    parts = [torch.cat((part, (1 - part.sum(1, keepdim=True)).clamp(min=1e-6)), 1) for part in (logs.exp(), given)]
    expected = 0.6 * 9 * F.kl_div(parts[1].log(), parts[0], reduction="batchmean")
    expected = expected + weight * F.cross_entropy(vectors @ table.T, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(2 * loss, (vectors, table))
    for mine, theirs in zip(found, torch.autograd.grad(2 * expected, (vectors, table)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_all_items_as_the_best_are_the_whole_opinion(problem: Any) -> None:
    vectors, table, targets, teacher = problem
    logs, items = (teacher / 2).log_softmax(1).topk(11)
    softs = [Soft(teacher, None, 2.0, 0.5), Top(items, logs, 2.0, 0.5)]
    found = [catalogue_loss(vectors, table, targets, soft=soft, dtype=torch.float32) for soft in softs]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def agreement(student: Model, teacher: Model) -> float:
    """Mean correlation of the two models' scores over the validation requests."""
    user = torch.from_numpy(toys.split().validation.user).long() + 1
    history = torch.from_numpy(toys.split().validation.history.padded(9))
    with torch.no_grad():
        given = [models.scores(model, inputs_for(model, user, history)) for model in (student, teacher)]
    return float(torch.stack([torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(*given, strict=True)]).nanmean())


PAIRS = [
    ("sasrec", "mlp"),
    ("sasrec", "two_tower"),
    ("sasrec", "neumf"),
    ("neumf", "two_tower"),
    ("neumf", "mlp"),
    ("ease", "mlp"),
    ("als", "two_tower"),
    ("two_tower", "sasrec"),
]


LESSONS: list[dict[str, Any]] = [{}, {"cache": 10}, {"cache": 10, "loss": "ranking"}]
# A ranker learns from the ranking that these are positives, and needs its own loss to tell what is none.
TAUGHT = [(*pair, lesson) for pair in PAIRS for lesson in LESSONS if pair[1] != "neumf" or "loss" not in lesson]


@pytest.mark.parametrize(("teaching", "learning", "lesson"), TAUGHT, ids=str)
def test_any_model_teaches_any_other(teaching: str, learning: str, lesson: dict[str, Any]) -> None:
    """With the own loss switched off, all that the student can learn is the teacher's opinion."""
    teacher = toys.trained(teaching, toys.SHAPES[teaching][0])
    student = toys.untrained(learning, {**toys.SHAPES[learning][0], "dropout": 0.0})
    before = agreement(student, teacher)
    sharper = 0.1 if teaching == "ease" else 1.0
    told = Distill(teacher, alpha=1.0, beta=0.0, temperature=sharper, **lesson)
    epochs = 25 if isinstance(student, models.Causal) else 8
    train(student, toys.split(), replace(FIT, epochs=epochs, patience=epochs), teacher=told, progress=False)
    assert agreement(student, teacher) > before + 0.05


@pytest.mark.parametrize("cache", [0, 10])
@pytest.mark.parametrize("student", ["mlp", "two_tower"])
def test_hints_bring_the_vectors_together_and_leave_nothing(student: str, cache: int) -> None:
    """With the other losses switched off, what is left is the distance of the vectors."""
    teacher, learning = (toys.untrained(kind, toys.SHAPES[kind][0]) for kind in ("sasrec", student))
    names = list(models.as_module(learning).state_dict())
    told = Distill(teacher, alpha=0.0, beta=0.0, hint=1.0, cache=cache)
    trained = train(learning, toys.split(), replace(FIT, epochs=30, patience=30), teacher=told, progress=False)
    assert trained.epochs[-1].loss < 0.8 * trained.epochs[0].loss
    assert list(models.as_module(learning).state_dict()) == names


def test_a_ranker_takes_the_best_items_as_positives() -> None:
    student: Any = toys.untrained("neumf", toys.SHAPES["neumf"][0])
    known = asked(toys.trained("sasrec", toys.SHAPES["sasrec"][0]), Wanted(3, 1.0))
    told = Teaching(Distill(student, loss="ranking", cache=3), known)
    batch = next(examples(SEQUENCES, USERS, Draw(5, 4, torch.Generator().manual_seed(0))))
    items, _ = known.best(batch.end - 2)
    weights = torch.exp(-torch.arange(3) / 10)
    with torch.no_grad():
        scores = student.score(items + 1, user=batch.user)
        found = told.of_candidates(student, batch, items + 1, scores)
    torch.testing.assert_close(found, -(weights / weights.sum() * scores.sigmoid().log()).sum(1).mean())


RANKERS: list[tuple[str, dict[str, Any]]] = [
    ("neumf", toys.SHAPES["neumf"][0]),
    ("neumf", toys.SHAPES["neumf"][1]),
    ("neumf", {**toys.SHAPES["neumf"][0], "max_history": 3}),
    ("custom", toys.SHAPES["custom"][1]),
]


@pytest.mark.parametrize(("kind", "options"), RANKERS, ids=["users", "features", "history", "custom"])
@pytest.mark.parametrize("loss", ["bce", "sampled"])
def test_the_loss_of_a_ranker_that_a_ranker_teaches(kind: str, options: dict[str, Any], loss: str) -> None:
    """Against a computation in NumPy. The student reads users alone, the teacher whatever it reads."""
    teacher: Any = toys.untrained(kind, options)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.normal_(0, 0.7)
    student: Any = toys.untrained("neumf", toys.SHAPES["neumf"][0])
    told = Distill(teacher, alpha=0.6, beta=0.2, temperature=3.0)
    draw = Draw(longest_window(student, told), 4, torch.Generator().manual_seed(0))
    batch = next(examples(SEQUENCES, USERS, draw))
    torch.manual_seed(5)
    unseen = Unseen.of(SEQUENCES, toys.N_ITEMS)
    found = Step(student, loss, 7, torch.float32, Teaching(told), unseen)(batch)
    torch.manual_seed(5)
    items = torch.cat((batch.target[:, None], unseen.draw(batch.user, 7)), 1)
    features = toys.split().train.user_features
    assert features is not None
    about = torch.from_numpy(features.codes).long()[batch.user - 1]
    given = {"user": batch.user, "history": batch.window[:, :-1], "user_features": about}
    with torch.no_grad():
        wanted = teacher.score(items, **{name: given[name] for name in teacher.inputs}).double().numpy()
        scores = student.score(items, user=batch.user).double().numpy()
    p, q = shares(wanted / 3), shares(scores / 3)
    right = np.arange(8) == 0
    bce = -np.where(right, np.log(1 / (1 + np.exp(-scores))), np.log(1 / (1 + np.exp(scores)))).sum(1)
    own = bce if loss == "bce" else -np.log(shares(scores)[:, 0])
    assert np.ptp(wanted, 1).min() > 0.1  # it has something to say
    expected = (0.6 * 9 * (p * np.log(p / q)).sum(1) + 0.2 * own).mean()
    assert found.item() == pytest.approx(expected, rel=1e-4)


def shares(scores: Any) -> Any:
    """The softmax of each row."""
    return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)


def test_a_ranker_teaches_what_it_answers_and_stays_as_it_is() -> None:
    """In evaluation mode however it was left, and without gradients."""
    teacher = models.as_module(toys.untrained("neumf", {**toys.SHAPES["neumf"][0], "dropout": 0.5}))
    before, prints = models.fingerprint(teacher), set()  # type: ignore[arg-type]
    for training in (True, False):
        teacher.train(training)
        student = toys.untrained("neumf", toys.SHAPES["neumf"][0])
        train(student, toys.split(), FIT, teacher=Distill(teacher), progress=False)  # type: ignore[arg-type]
        prints.add(models.fingerprint(student))
    assert len(prints) == 1
    assert models.fingerprint(teacher) == before  # type: ignore[arg-type]
    assert all(weight.grad is None for weight in teacher.parameters())


def test_a_training_from_answers_continues_bit_for_bit(tmp_path: Path) -> None:
    teacher = toys.trained("sasrec", toys.SHAPES["sasrec"][0])
    told = Distill(teacher, hint=0.1, cache=10, folder=tmp_path)
    prints, path = [], tmp_path / "training"
    for _ in range(2):  # the second is found finished
        student = toys.untrained("mlp", toys.SHAPES["mlp"][0])
        train(student, toys.split(), FIT, teacher=told, checkpoint=path, progress=False)
        prints.append(models.fingerprint(student))
    assert prints[0] == prints[1]
    other = replace(told, hint=0.2)
    with pytest.raises(ConfigError, match="is the checkpoint of another training"):
        train(toys.untrained("mlp", toys.SHAPES["mlp"][0]), toys.split(), FIT, teacher=other, checkpoint=path)


def test_a_ranker_is_asked_for_the_candidates_only(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher: Any = toys.untrained("neumf", toys.SHAPES["neumf"][0])
    asked_for, real = [], teacher.score
    monkeypatch.setattr(
        teacher, "score", lambda items, **given: (asked_for.append(items.shape[1]), real(items, **given))[1]
    )
    student = toys.untrained("neumf", {**toys.SHAPES["neumf"][0], "embedding_dim": 2})
    train(student, toys.split(), replace(FIT, epochs=1), teacher=Distill(teacher), progress=False)
    assert set(asked_for) == {1 + FIT.negatives}


@pytest.mark.parametrize(
    ("teacher", "student", "settings", "sentence"),
    [
        (
            "sasrec",
            "mlp",
            {"loss": "rank"},
            r"distill.loss = 'rank' \(did you mean 'ranking'\?\); allowed: kl, ranking",
        ),
        ("sasrec", "mlp", {"loss": "ranking"}, "learns from the teacher's best items; set cache to their number"),
        ("sasrec", "mlp", {"cache": -1}, "distill.cache = -1 is outside 0 to"),
        ("sasrec", "mlp", {"hint": -1.0}, "distill.hint = -1.0 is outside 0 to"),
        ("neumf", "mlp", {"hint": 0.5}, "distill.hint = 0.5, but neumf has no vectors to teach; set it to 0"),
        ("ease", "mlp", {"hint": 0.5}, "but ease has no vectors to teach"),
        ("sasrec", "neumf", {"hint": 0.5}, "distill.hint = 0.5, but neumf has no vectors to learn; set it to 0"),
    ],
)
def test_a_wrong_lesson_is_named(teacher: str, student: str, settings: dict[str, Any], sentence: str) -> None:
    teaching, learning = (toys.untrained(kind, toys.SHAPES[kind][0]) for kind in (teacher, student))
    with pytest.raises(ConfigError, match=sentence):
        train(learning, toys.split(), Fit(), teacher=Distill(teaching, **settings), progress=False)
