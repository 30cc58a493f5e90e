"""What a study's numbers depend on, and the least that any bundle needs."""

from dataclasses import replace

import pytest

import toys
from recfit import config, models
from recfit.search.original import floor, identity
from recfit.types import ConfigError

SPLIT = toys.split()


def settings(**model):
    return config.Settings(config.Data("events.csv"), config.Model(**model))


def test_a_study_belongs_to_what_the_path_holds(tmp_path):
    models.save(toys.trained("mlp", toys.SHAPES["mlp"][0]), tmp_path / "model")
    named = settings(path=str(tmp_path / "model"))
    before = identity(named, SPLIT)
    assert identity(named, SPLIT) == before
    models.save(toys.untrained("mlp", toys.SHAPES["mlp"][0]), tmp_path / "model")
    assert identity(named, SPLIT) != before


def test_a_study_belongs_to_the_source_of_its_factory(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "made_here.py").write_text("def build(): ...")
    named = settings(factory="made_here:build")
    before = identity(named, SPLIT)
    (tmp_path / "made_here.py").write_text("def build(): return None")
    assert identity(named, SPLIT) != before


def test_a_study_belongs_to_its_features():
    bare = replace(SPLIT, train=replace(SPLIT.train, item_features=None))
    assert identity(settings(), SPLIT) != identity(settings(), bare)


def test_the_least_is_looked_for_on_both_runtimes():
    assert {recipe.name for recipe in floor()} == {
        "simplify(popularity)",
        "simplify(popularity) -> cache(share=1.0)",
        "simplify(popularity) -> runtime(name=numpy)",
        "simplify(popularity) -> cache(share=1.0) -> runtime(name=numpy)",
    }


def test_a_model_of_other_items_is_refused():
    model = toys.untrained("mlp", toys.SHAPES["mlp"][0])
    models.check_ids(model, SPLIT, "model/")
    items = SPLIT.train.item_ids
    turned = replace(SPLIT, train=replace(SPLIT.train, item_ids=items[::-1]))
    with pytest.raises(
        ConfigError, match="the model at model/ was trained on other items than this data has, or on the"
    ):
        models.check_ids(model, turned, "model/")
    others = replace(SPLIT, train=replace(SPLIT.train, user_ids=SPLIT.train.user_ids[::-1]))
    models.check_ids(model, others, "model/")
    with pytest.raises(ConfigError, match="other users"):
        models.check_ids(toys.untrained("neumf", toys.SHAPES["neumf"][0]), others, "model/")


def test_a_saved_model_knows_its_items(tmp_path):
    model = toys.untrained("mlp", toys.SHAPES["mlp"][0])
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert again.catalogue.ids == model.catalogue.ids == models.catalogue_of(SPLIT).ids
    assert models.fingerprint(again) == models.fingerprint(model)
