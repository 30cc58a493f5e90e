"""A recipe becomes a bundle: trained prefixes are kept and shared, structures are not, and weights don't depend on it."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from recfit import config, models, techniques
from recfit import pipeline as pipelines
from recfit.bundle import open_files, read_manifest
from recfit.data.splits import split as split_by
from recfit.pipeline import Pipeline, Stage, fingerprint
from recfit.search.bench import Bench, prepare
from recfit.search.budget import Budget
from recfit.search.build import Job, Workshop, build, snapshot
from recfit.search.recipe import Recipe
from recfit.techniques import make
from recfit.training import Fit
from recfit.types import ConfigError, Interactions, Unsupported

MLP = make("simplify", {"kind": "mlp", "options": {"embedding_dim": 4, "hidden": 4, "max_history": 5}})
TWO = make("two_stage", {"retriever": "mlp", "options": {"embedding_dim": 2, "hidden": 2}, "candidates": 5})


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    user = np.tile(np.arange(20, dtype=np.int32), 6)
    item = rng.integers(0, 15, 120).astype(np.int32)
    ids = tuple(f"u{row}" for row in range(20)), tuple(f"i{row}" for row in range(15))
    ones = np.ones(120, np.float32)
    return split_by(Interactions("noise", user, item, ones, np.arange(120.0), *ids), "leave_last")


@pytest.fixture
def workshop(split, tmp_path):
    model = models.build("popularity", {}, models.catalogue_of(split))
    pipelines.save(Pipeline(Stage(model)), tmp_path / "original")
    fit = Fit(epochs=1, batch_size=20)
    return Workshop(split, tmp_path / "original", tmp_path / "models", fit, threads=1, progress=False)


def job(output, *steps, **settings):
    return Job(Recipe(steps).to_json(), output, **settings)


def test_the_bundle_carries_its_recipe(workshop, tmp_path):
    assert build(workshop, job(tmp_path / "bundle", MLP)) == str(tmp_path / "bundle")
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest["recipe"]["id"] == Recipe((MLP,)).id
    assert Recipe.from_json(manifest["recipe"]["steps"]).id == Recipe((MLP,)).id
    assert manifest["name"] == Recipe((MLP,)).name
    assert manifest["recipe"]["notes"] == []
    kept = workshop.models / Recipe((MLP,)).id
    pipelines.save(replace(pipelines.load(kept), notes=("well made",)), kept)
    build(workshop, job(tmp_path / "bundle", MLP))
    assert read_manifest(tmp_path / "bundle")["recipe"]["notes"] == ["well made"]


def test_candidates_answer_on_the_threads_of_the_study_unless_they_have_their_own(workshop, tmp_path):
    workshop = replace(workshop, serve_threads=3)
    own = make("runtime", {"threads": 2})
    for steps, threads in (((), 3), ((MLP, make("runtime", {"graph": "extended"})), 3), ((MLP, own), 2)):
        build(workshop, job(tmp_path / "bundle", *steps))
        assert read_manifest(tmp_path / "bundle")["pipeline"]["threads"] == threads


def test_prefixes_are_trained_once_and_give_the_same_weights_trained_or_loaded(workshop, tmp_path):
    cut = make("prune", {"axis": "hidden", "epochs": 1})
    whole = Recipe((MLP, cut, TWO))
    build(workshop, job(tmp_path / "one", *whole.steps))
    kept = workshop.models / whole.id
    first = fingerprint(pipelines.load(kept))
    assert all(pipelines.saved(workshop.models / prefix.id) for prefix in whole.prefixes)
    shutil.rmtree(kept)
    build(workshop, job(tmp_path / "two", *whole.steps))
    assert fingerprint(pipelines.load(kept)) == first


def test_a_structure_is_not_kept_as_if_it_were_trained(workshop, tmp_path):
    build(workshop, job(tmp_path / "bundle", MLP, structure_only=True))
    assert (tmp_path / "bundle" / "manifest.json").exists()
    assert not pipelines.saved(workshop.models / Recipe((MLP,)).id)


def test_a_step_that_refuses_is_heard(workshop, tmp_path):
    with pytest.raises(Unsupported, match="already has two stages"):
        build(workshop, job(tmp_path / "bundle", TWO, make("two_stage", {"retriever": "popularity", "candidates": 6})))


def test_the_stored_histories_are_one_event_behind_what_is_asked(workshop, split, tmp_path):
    past = split.train.histories()
    search, final = snapshot(split, final=False), snapshot(split, final=True)
    assert [part.tolist() for part in search] == [part.tolist()[:-1] for part in past]
    assert [part.tolist() for part in final] == [part.tolist() for part in past]
    assert all(len(search[user]) < len(past) for user, past in zip(split.validation.user, past, strict=True))
    build(workshop, job(tmp_path / "bundle", final=True))
    assert open_files(tmp_path / "bundle").histories[3].tolist() == past[3].tolist()
    build(replace(workshop, keep_histories=False), job(tmp_path / "bundle", final=True))
    assert len(open_files(tmp_path / "bundle").histories) == 0


def test_bundles_of_a_workshop_with_sessions_go_on(workshop, tmp_path):
    model = models.build("sasrec", {"embedding_dim": 8}, workshop.served().retrieve.model.catalogue)
    pipelines.save(Pipeline(Stage(model)), workshop.original)
    build(workshop, job(tmp_path / "plain"))
    build(replace(workshop, sessions=True), job(tmp_path / "going on"))
    plain, going_on = (read_manifest(tmp_path / name)["pipeline"]["retrieve"] for name in ("plain", "going on"))
    assert plain["remembers"] == 0 < going_on["remembers"]


def test_a_training_afresh_takes_of_the_originals_settings_what_any_can_have(tmp_path):
    events = [f"{n % 9},{n % 7},{n}" for n in range(90)]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,timestamp", *events]))
    settings = config.Settings(
        config.Data(str(tmp_path / "events.csv")),
        config.Model(
            "neumf", fit={"batch_size": 4096, "epochs": 3, "weight_decay": 0.3, "seed": 5, "max_minutes": 2.0}
        ),
        search=config.Search(str(tmp_path / "study"), fit={"learning_rate": 0.5}),
    )
    workshop = prepare(settings, say=lambda _: None).workshop
    assert workshop.afresh == Fit(seed=5, max_minutes=2.0, learning_rate=0.5, threads=2)
    assert workshop.fit == replace(workshop.afresh, batch_size=4096, epochs=3, weight_decay=0.3)
    settings = replace(
        settings, model=replace(settings.model, path="model/")
    )  # what fits the original is for students alone
    workshop = prepare(settings, say=lambda _: None).workshop
    assert workshop.afresh == workshop.fit


def test_a_build_trains_afresh_what_learns_otherwise(workshop, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(techniques, "train", lambda model, split, settings, **_: told.append(settings))
    model = models.build("neumf", {}, models.catalogue_of(workshop.split))
    pipelines.save(Pipeline(Stage(model)), workshop.original)
    workshop = replace(workshop, afresh=replace(workshop.fit, batch_size=7))
    build(workshop, job(tmp_path / "bundle", MLP))
    assert told == [workshop.afresh]


def test_trainings_of_both_kinds_end_where_they_are_hopeless(workshop):
    """A quarter of what the budget asks for: here of 80 % of 0.5."""
    original = SimpleNamespace(metrics={"ndcg@10": 0.5})
    study = SimpleNamespace(candidates={"o": original}, facts={"original": "o"})
    workshop = replace(workshop, afresh=workshop.fit)
    bench = SimpleNamespace(budget=Budget.of({"ndcg@10": "80%"}), study=study, workshop=workshop)
    found = Bench._workshop(bench)
    assert (found.fit.hopeless, found.afresh.hopeless) == (pytest.approx(0.1), pytest.approx(0.1))
    assert Bench._workshop(SimpleNamespace(**{**vars(bench), "budget": Budget.of({})})) == workshop


@pytest.mark.parametrize(("histories", "kept"), [("bundle", True), ("request", False)])
def test_a_study_says_how_bundles_are_served(tmp_path, histories, kept):
    events = [f"{n % 9},{n % 7},{n}" for n in range(90)]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,timestamp", *events]))
    settings = config.Settings(
        config.Data(str(tmp_path / "events.csv")),
        search=config.Search(str(tmp_path / "study")),
        serve=config.Serve(histories=histories, session_mb=0.0 if kept else 8.0),
    )
    workshop = prepare(settings, say=lambda _: None).workshop
    assert workshop.keep_histories is kept
    assert workshop.sessions is not kept


@pytest.mark.parametrize(
    ("model", "search", "message"),
    [
        ({"learning_rate": "1e-3"}, {}, "model.fit.learning_rate = '1e-3'"),
        ({}, {"epoch": 3}, "search.fit has no setting 'epoch'"),
        ({}, "quantise", "no technique named 'quantise'; did you mean 'quantize'"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_read(tmp_path, model, search, message):
    named = {"techniques": (search,)} if isinstance(search, str) else {"fit": search}
    settings = config.Settings(
        config.Data("nowhere.csv"), config.Model(fit=model), search=config.Search(str(tmp_path / "study"), **named)
    )
    with pytest.raises(ConfigError, match=message):
        prepare(settings, say=lambda _: None)


def test_equal_steps_make_equal_recipes():
    same = Recipe((make("simplify", {"kind": "mlp", "options": {"hidden": 4, "embedding_dim": 4, "max_history": 5}}),))
    assert same.id == Recipe((MLP,)).id
    assert len({Recipe().id, Recipe((MLP,)).id, Recipe((TWO,)).id, Recipe((MLP, TWO)).id}) == 4
    assert Recipe((TWO,)).then(MLP).steps == (MLP, TWO)
    assert [prefix.id for prefix in Recipe((MLP, TWO)).prefixes] == [Recipe((MLP,)).id, Recipe((MLP, TWO)).id]
    assert Recipe().name == "original"
