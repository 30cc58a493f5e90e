"""What single techniques do to a model, beyond what all of them must hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toys
from recfit import models, techniques
from recfit.models import Solved
from recfit.pipeline import Pipeline, Stage, fingerprint
from recfit.techniques import Context, make
from recfit.techniques._lessons import by_heart, lesson  # noqa: PLC2701
from recfit.techniques._students import students  # noqa: PLC2701
from recfit.training import Fit, evaluate
from recfit.types import Queries, Ragged, Unsupported

SASREC, ALS, NEUMF = (toys.original(kind) for kind in ("sasrec", "als", "neumf"))


def context_of(pipeline: Pipeline, **changes: Any) -> Context:
    return Context(toys.split(), pipeline, toys.FIT, **changes)


def spied(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `train` is told from now on; it trains nothing."""
    calls: list[dict[str, Any]] = []

    def note(model: object, split: object, settings: Fit, *, teacher: object, **_: object) -> None:
        calls.append({"model": model, "settings": settings, "teacher": teacher})

    monkeypatch.setattr(techniques, "train", note)
    return calls


def test_pruning_keeps_the_most_important_units() -> None:
    out = make("prune", {"axis": "ffn", "keep": 0.25, "epochs": 0}).apply(SASREC, context_of(SASREC))
    before, after = (pipeline.main.model.importance("ffn") for pipeline in (SASREC, out))
    assert out.main.model.axes()["ffn"] == 6
    torch.testing.assert_close(after.sort().values, before.sort().values[:, -6:])


def _cut(by: str, pipeline: Pipeline = SASREC) -> Any:
    out = make("prune", {"axis": "ffn", "by": by, "epochs": 0}).apply(pipeline, context_of(pipeline))
    return out.main.model


def _with_idle_units() -> tuple[Pipeline, Any]:
    """The original with two large ffn units in its first layer that are read by nobody."""
    model: Any = models.rebuilt(SASREC.main.model, SASREC.main.model.config)
    model.load_state_dict(models.as_module(SASREC.main.model).state_dict())
    with torch.no_grad():
        for block in model.blocks:
            block.up.weight[:2] = 5.0
            block.down.weight[:, :2] = 0.0
    return Pipeline(Stage(model.eval())), model


def test_taylor_sees_that_a_large_unit_does_nothing() -> None:
    pipeline, model = _with_idle_units()
    kept = {by: bool((_cut(by, pipeline).blocks[0].up.weight == 5.0).any()) for by in ("l2", "l1", "taylor")}
    assert kept == {"l2": True, "l1": True, "taylor": False}
    assert all(weight.grad is None for weight in model.parameters()), "the original is left alone"


def test_l1_counts_sizes_not_squares() -> None:
    pipeline, model = _with_idle_units()
    with torch.no_grad():  # one large number against many middling ones
        for block in model.blocks:
            block.up.weight[:] = 0.0
            block.down.weight[:] = 0.0
            block.up.weight[0, 0] = 2.0
            block.up.weight[1:] = 0.3
            block.up.weight[13:] = 0.0
    largest = {by: float(_cut(by, pipeline).blocks[0].up.weight.detach().max()) for by in ("l2", "l1")}
    assert largest["l2"] == pytest.approx(2.0)
    assert largest["l1"] == pytest.approx(0.3)


def test_random_pruning_is_the_same_for_a_seed_and_not_by_size() -> None:
    torch.manual_seed(0)
    first = _cut("random").blocks[0].up.weight
    torch.manual_seed(0)
    assert torch.equal(_cut("random").blocks[0].up.weight, first)
    assert not torch.equal(_cut("l2").blocks[0].up.weight, first)
    torch.manual_seed(1)
    assert not torch.equal(_cut("random").blocks[0].up.weight, first)


def test_a_solved_model_has_no_taylor_expansion() -> None:
    with pytest.raises(Unsupported, match="als is solved in closed form and has no loss to expand; use by='l2'"):
        make("prune", {"axis": "embedding_dim", "by": "taylor"}).apply(ALS, context_of(ALS))


def test_it_is_noted_that_no_epoch_was_as_good_as_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: Any, *_: object, **__: object) -> None:
        with torch.no_grad():
            model.items.weight.zero_()

    step, alone = (make("prune", {"axis": "ffn", "epochs": epochs}) for epochs in (1, 0))
    monkeypatch.setattr(techniques, "train", spoil)
    kept, cut = (part.apply(SASREC, context_of(SASREC)) for part in (step, alone))
    assert fingerprint(kept) == fingerprint(cut)
    assert cut.notes == ()
    assert kept.notes == ("prune(ffn, epochs=1): no epoch of its fine-tuning was as good as the start, which was kept",)
    monkeypatch.setattr(techniques, "train", lambda *_, **__: None)
    assert step.apply(SASREC, context_of(SASREC)).notes == (), "as good as the start"


def test_rounds_that_were_no_better_are_told_apart_and_name_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []

    def spoil(model: Any, split: object, fit: Fit, **_: object) -> None:
        epochs.append(fit.epochs)
        with torch.no_grad():
            model.items.weight.zero_()

    monkeypatch.setattr(techniques, "train", spoil)
    notes = make("prune", {"axis": "ffn", "rounds": 2, "epochs": 5}).apply(SASREC, context_of(SASREC)).notes
    said = "no epoch of its fine-tuning was as good as the start, which was kept"
    assert notes == tuple(f"prune(ffn, rounds=2, epochs=5), round {number} of 2: {said}" for number in (1, 2))
    assert epochs == [3, 3]


def test_fine_tuning_uses_its_own_settings_and_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied(monkeypatch)
    settings = {"axis": "ffn", "epochs": 7, "data_fraction": 0.5, "learning_rate": 1e-5}
    out = make("prune", settings).apply(SASREC, context_of(SASREC))
    (call,) = calls
    assert call["model"] is out.main.model
    assert call["teacher"].teacher is SASREC.main.model
    told = call["settings"]
    assert (told.epochs, told.data_fraction, told.learning_rate) == (7, 0.5, 1e-5)
    assert (told.batch_size, told.threads) == (toys.FIT.batch_size, toys.FIT.threads)


@pytest.mark.parametrize(("technique", "kept"), [("reduce", True), ("matryoshka", False)])
def test_fine_tuning_that_helps_nobody_leaves_the_start(
    monkeypatch: pytest.MonkeyPatch, technique: str, kept: bool
) -> None:
    """But where narrow vectors are trained, which the quality of the whole ones does not tell."""

    def spoiled(self: Context, model: Any, **_: object) -> Any:
        with torch.no_grad():
            for part in model.parameters():
                part.zero_()
        return model

    monkeypatch.setattr(Context, "train", spoiled)
    settings: dict[str, Any] = {"axis": "table_dim", "size": 8} if technique == "reduce" else {}
    out = make(technique, {**settings, "epochs": 3}).apply(SASREC, context_of(SASREC)).main.model
    assert bool(out.item_vectors().any()) == kept  # type: ignore[attr-defined]


@pytest.mark.parametrize("shuffled", [False, True])
def test_an_original_that_knows_its_data_by_heart_teaches_nothing(shuffled: bool) -> None:
    """What users did at random can be learned by heart and no other way."""
    split = toys.split()
    if shuffled:
        items = np.random.default_rng(0).permutation(split.train.item)
        split = replace(split, train=replace(split.train, item=items))
    model = toys.untrained("sasrec", toys.SHAPES["sasrec"][0])
    context = Context(split, Pipeline(Stage(model)), replace(toys.FIT, epochs=60, patience=60))
    past = split.train.histories()
    last = [Ragged.from_lists([line[part] for line in past]) for part in (slice(-1), slice(-1, None))]
    known = replace(split, validation=Queries(np.arange(split.n_users, dtype=np.int32), *last))
    replace(context, split=known).train(model)  # which keeps the epoch that knows them best
    assert by_heart(context) == shuffled
    assert (lesson(context, model) is None) == shuffled
    (variants,) = techniques.available(["distill"])
    assert {(step.alpha, step.beta) for step in variants(context)} == {  # type: ignore[attr-defined]
        (0.0, 1.0) if shuffled else (0.7, 0.3)
    }


def test_a_student_of_labels_alone_asks_no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied(monkeypatch)
    make("distill", {"kind": "mlp", "alpha": 0.0, "beta": 1.0}).apply(SASREC, context_of(SASREC))
    assert [call["teacher"] for call in calls] == [None]


def test_rounds_cut_less_and_less_and_share_the_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied(monkeypatch)
    step = make("prune", {"axis": "ffn", "keep": 0.25, "rounds": 3, "epochs": 7})
    out = step.apply(SASREC, context_of(SASREC))
    assert [call["model"].axes()["ffn"] for call in calls] == [11, 7, 6]
    assert [call["settings"].epochs for call in calls] == [3, 3, 3]
    assert out.main.model is calls[-1]["model"]
    assert SASREC.main.model.axes()["ffn"] == 24


@pytest.mark.parametrize(
    ("original", "kind", "afresh"),
    [
        (NEUMF, "sasrec", True),
        (ALS, "sasrec", False),
        (NEUMF, "mlp", True),
        (NEUMF, "two_tower", False),
        (SASREC, "sasrec", False),
        (SASREC, "two_tower", False),
    ],
)
def test_what_learns_from_histories_in_the_place_of_what_learns_from_events_is_trained_afresh(
    original: Pipeline, kind: str, afresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, other = spied(monkeypatch), Fit(batch_size=7)
    make("simplify", {"kind": kind}).apply(original, context_of(original, afresh=other))
    make("simplify", {"kind": kind}).apply(original, context_of(original))
    assert [call["settings"] for call in calls] == [other if afresh else toys.FIT, toys.FIT]


def test_distillation_tells_the_training_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = spied(monkeypatch)
    settings = {"alpha": 0.5, "beta": 0.25, "temperature": 3.0, "loss": "ranking", "hint": 0.1, "cache": 20}
    make("distill", {"kind": "mlp", **settings}).apply(SASREC, context_of(SASREC, folder=tmp_path))
    told = calls[0]["teacher"]
    assert {name: getattr(told, name) for name in settings} == settings
    assert (told.teacher, told.folder) == (SASREC.main.model, tmp_path)


def test_answers_are_proposed_where_they_are_cheap() -> None:
    """A causal model answers all events at once, NeuMF each user once; another encoder would be asked for each event."""
    for pipeline, count in ((SASREC, 100), (NEUMF, 100), (ALS, 0)):
        (variants,) = techniques.available(["distill"])
        assert {step.cache for step in variants(context_of(pipeline))} == {count}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            {"embedding_dim": 32, "hidden": 64, "top": 32, "max_history": 20},
            {"embedding_dim": 32, "hidden": 64, "users": False, "max_history": 20},
        ),
        ({"embedding_dim": 16, "hidden": 32}, {"embedding_dim": 16, "hidden": 32, "users": True, "max_history": 0}),
        (
            {"users": False, "features": True, "without": ["age"]},
            {
                "embedding_dim": 32,
                "hidden": 64,
                "users": False,
                "max_history": 0,
                "features": True,
                "without": ["age"],
            },
        ),
    ],
)
def test_two_towers_in_a_rankers_place_read_what_it_reads(options: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The first as the recipe of docs/seeds.md has it."""
    ranker = toys.untrained("neumf", options)
    assert students(ranker)[0] == ("two_tower", wanted)
    towers = toys.untrained("two_tower", wanted)
    assert set(towers.inputs) == set(ranker.inputs) - ({"user"} if "history" in ranker.inputs else set())


@pytest.mark.parametrize(("minutes", "taught"), [(0.0, True), (0.5, True), (1e-6, False)])
def test_two_towers_are_taught_where_a_rankers_answers_take_no_longer_than_a_training(
    minutes: float, taught: bool
) -> None:
    """NeuMF that reads a history is asked for every event; without, for every user. Labels alone teach them anyhow."""
    pipeline = Pipeline(Stage(toys.untrained("neumf", {**toys.SHAPES["neumf"][0], "max_history": 5})))
    context = Context(toys.split(), pipeline, replace(toys.FIT, max_minutes=minutes))
    found = {name: techniques.available([name])[0](context) for name in ("distill", "simplify")}
    caches = {step.kind: step.cache for step in found["distill"]}  # type: ignore[attr-defined]
    assert caches == {"sasrec": 0, "mlp": 0} | ({"two_tower": 100} if taught else {})
    assert "two_tower" in [step.kind for step in found["simplify"]]  # type: ignore[attr-defined]


def test_a_ranker_of_the_users_own_is_offered_two_towers_too() -> None:
    kind, options = students(toys.untrained("custom", toys.SHAPES["custom"][1]))[0]
    assert kind == "two_tower"
    assert options == {"embedding_dim": 64, "hidden": 128, "users": False, "max_history": 5}
    assert "two_tower" not in dict(students(SASREC.main.model))


@pytest.mark.parametrize(("history", "read"), [(5, 100), (300, 300)])
def test_an_original_of_another_kind_is_offered_two_layers_that_read_more_events(history: int, read: int) -> None:
    ranker = toys.untrained("neumf", {**toys.SHAPES["neumf"][0], "max_history": history})
    found = [options for kind, options in students(ranker) if kind == "sasrec"]
    assert [(one["layers"], one["max_history"]) for one in found] == [(2, read), (1, history)]
    assert (found[0]["window"], found[0]["table_dim"]) == (10, 32)


@pytest.mark.parametrize(("layers", "windows"), [(1, []), (2, []), (4, [2]), (10, [2])])
def test_a_deep_original_is_offered_a_narrow_student_with_a_window(layers: int, windows: list[int]) -> None:
    original = toys.untrained("sasrec", {**toys.SHAPES["sasrec"][0], "layers": layers})
    found = [options for kind, options in students(original) if kind == "sasrec"]
    assert [options["window"] for options in found if "window" in options] == windows
    assert all(options["layers"] == layers // 2 for options in found if "window" in options)


def test_a_ranker_teaches_a_factorization() -> None:
    """NeuMF -> MF: users alone, no network, a product of two rows."""
    step = make("distill", {"kind": "two_tower", "options": {"hidden": 0, "max_history": 0}, "cache": 10})
    model: Any = step.apply(NEUMF, context_of(NEUMF)).main.model
    names = set(models.as_module(model).state_dict())
    assert names == {"items.weight", "users", "enter"}
    assert model.inputs == ("user",)


REPAIRS: list[tuple[str, dict[str, Any]]] = [
    ("prune", {"axis": "hidden"}),
    ("reduce", {"size": 2}),
    ("sparsify", {}),
    ("low_rank", {}),
    ("qat", {}),
]


@pytest.mark.parametrize(("technique", "settings"), REPAIRS, ids=[name for name, _ in REPAIRS])
def test_a_ranker_that_is_fine_tuned_asks_the_original(
    monkeypatch: pytest.MonkeyPatch, technique: str, settings: dict[str, Any]
) -> None:
    """For the candidates of each batch (`cache` 0): answers over the catalogue would cost a scan for every event."""
    calls = spied(monkeypatch)
    make(technique, settings).apply(NEUMF, context_of(NEUMF))
    assert [(call["teacher"].teacher, call["teacher"].cache) for call in calls] == [(NEUMF.main.model, 0)]


@pytest.mark.parametrize("original", [SASREC, ALS], ids=["sasrec", "als"])
def test_a_ranker_that_an_encoder_would_teach_learns_from_labels(
    monkeypatch: pytest.MonkeyPatch, original: Pipeline
) -> None:
    calls = spied(monkeypatch)
    make("prune", {"axis": "hidden"}).apply(NEUMF, context_of(original))
    assert [call["teacher"] for call in calls] == [None]


@pytest.mark.parametrize(("technique", "settings"), REPAIRS, ids=[name for name, _ in REPAIRS])
def test_structure_alone_asks_no_ranker(
    monkeypatch: pytest.MonkeyPatch, technique: str, settings: dict[str, Any]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(NEUMF.main.model, "score", refuse)
    out = make(technique, settings).apply(NEUMF, context_of(NEUMF, structure_only=True))
    assert out.main.model is not NEUMF.main.model
    with pytest.raises(AssertionError, match="asked"):
        make(technique, settings).apply(NEUMF, context_of(NEUMF))


def test_a_solved_model_is_cut_not_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied(monkeypatch)
    out = make("reduce", {"size": 3}).apply(ALS, context_of(ALS))
    assert (out.main.model.axes(), calls) == ({"embedding_dim": 3}, [])


def test_reduction_keeps_the_axes_that_hold_the_most() -> None:
    whole: Any = ALS.main.model
    small: Any = make("reduce", {"size": 5}).apply(ALS, context_of(ALS)).main.model
    energy = small.item_vectors().square().sum(0)
    assert (energy.diff() <= 1e-4 * energy[0]).all()
    largest = torch.linalg.svdvals(whole.item_vectors())[:5].square()
    torch.testing.assert_close(energy, largest, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["sasrec", "als", "mlp"])
def test_nothing_can_be_reduced(kind: str) -> None:
    """Before any training a solved model is all zeros; its shape can be looked at all the same."""
    model = toys.untrained(kind, toys.SHAPES[kind][0])
    with torch.no_grad():
        for weight in [*models.as_module(model).parameters(), *models.as_module(model).buffers()]:
            weight.zero_()
    pipeline = Pipeline(Stage(model))
    out = make("reduce", {"size": 2, "epochs": 0}).apply(pipeline, context_of(pipeline))
    assert out.main.model.axes()["embedding_dim"] == 2
    assert not np.isnan(toys.expected(out, -1, [1, 2])).any()


def test_history_length_keeps_the_newest() -> None:
    step = make("reduce", {"axis": "history_length", "size": 4, "epochs": 0})
    out = step.apply(SASREC, context_of(SASREC))
    assert out.main.model.max_history == 4
    past = [1, 2, 3, 4, 5, 6]
    short = toys.expected(Pipeline(Stage(SASREC.main.model)), -1, past[-4:])
    cut = toys.expected(out, -1, past)
    unseen = np.setdiff1d(np.arange(toys.N_ITEMS), past)
    np.testing.assert_allclose(cut[unseen], short[unseen], rtol=1e-4, atol=1e-5)


def test_structure_of_a_solved_model_ranks_without_ties() -> None:
    for kind in ("als", "ease", "popularity"):
        out = make("simplify", {"kind": kind}).apply(SASREC, context_of(SASREC, structure_only=True))
        assert isinstance(out.main.model, Solved)
        scores = toys.expected(out, -1, [1, 2])
        assert not np.isnan(scores).any()
        assert len(np.unique(scores[scores > -np.inf])) == toys.N_ITEMS - 2


def test_a_student_learns_the_pattern() -> None:
    """The walk goes one or two items on; a distilled student of the taught original finds that too."""
    fit = Fit(epochs=25, patience=25, batch_size=32, threads=1, precision="fp32", learning_rate=1e-2)
    teacher = toys.untrained("sasrec", toys.SHAPES["sasrec"][0])
    context = Context(toys.split(), Pipeline(Stage(teacher)), fit)
    context.train(teacher)
    student = make("distill", {"kind": "mlp", "options": {"embedding_dim": 16, "hidden": 16, "max_history": 9}})
    out = student.apply(context.original, context)
    taught, learnt = (evaluate(model, toys.split().test)["hr@10"] for model in (teacher, out.main.model))
    assert taught > 0.7, "10 of 40 items at random give 0.25"
    assert learnt > 0.7


@pytest.mark.parametrize("width", [8, 64])
def test_a_student_starts_from_the_originals_item_vectors(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    spied(monkeypatch)
    options = {"embedding_dim": width, "hidden": 8}
    out = make("distill", {"kind": "mlp", "options": options}).apply(SASREC, context_of(SASREC))
    teacher = SASREC.main.model.item_vectors().detach()  # type: ignore[attr-defined]
    vectors = out.main.model.item_vectors().detach()[:, : teacher.shape[1]]  # type: ignore[attr-defined]
    wanted = teacher @ teacher.T
    lost, cut = (float((wanted - part @ part.T).norm() / wanted.norm()) for part in (vectors, teacher[:, :width]))
    if width < teacher.shape[1]:
        assert lost < cut, "the principal axes hold more than the first coordinates"
    else:
        assert lost < 1e-4


def test_a_student_of_the_originals_family_starts_from_the_original_cut_to_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spied(monkeypatch)
    config = SASREC.main.model.config
    names = ("layers", "embedding_dim", "heads", "ffn", "max_history")
    options = {name: getattr(config, name) for name in names} | {"max_history": config.max_history - 2}
    past = [3, 4, 6]
    wanted = toys.expected(SASREC, -1, past)
    out = make("distill", {"kind": "sasrec", "options": options}).apply(SASREC, context_of(SASREC))
    models.as_module(out.main.model).eval()
    np.testing.assert_allclose(toys.expected(out, -1, past), wanted, rtol=1e-4, atol=1e-5)
    half = options | {"layers": 1, "ffn": config.ffn // 2, "embedding_dim": config.embedding_dim // 2, "heads": 1}
    small = make("distill", {"kind": "sasrec", "options": half}).apply(SASREC, context_of(SASREC)).main.model
    fresh = context_of(SASREC).build("sasrec", half)
    assert {name: part.shape for name, part in models.as_module(small).state_dict().items()} == {
        name: part.shape for name, part in models.as_module(fresh).state_dict().items()
    }
    assert not torch.equal(small.item_vectors(), fresh.item_vectors())  # type: ignore[attr-defined]


@pytest.mark.parametrize("teacher", [NEUMF, toys.original("ease")])
def test_a_teacher_without_item_vectors_leaves_the_student_as_it_was(
    monkeypatch: pytest.MonkeyPatch, teacher: Pipeline
) -> None:
    spied(monkeypatch)
    context = context_of(teacher)
    out = make("distill", {"kind": "mlp"}).apply(teacher, context)
    fresh = context.build("mlp", {})
    assert torch.equal(out.main.model.item_vectors(), fresh.item_vectors())  # type: ignore[attr-defined]
