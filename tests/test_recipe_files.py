"""The recipe files of the benchmarks can be read, fit the original that they are for, and each writes a result of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import recipes

from recfit import config, models
from recfit.data.splits import split
from recfit.models import catalogue_of
from recfit.pipeline import Pipeline, Stage
from recfit.search.propose import applies
from recfit.techniques import Context
from recfit.training import Fit
from recfit.types import ConfigError, Interactions

BENCHMARKS = Path(recipes.__file__).parent
LISTS = [*(BENCHMARKS / "recipes").glob("*.toml"), *(BENCHMARKS / "seeds").glob("*/*.toml")]
FILES = sorted(path for path in LISTS if "[[recipe]]" in path.read_text(encoding="utf-8"))
DEMO = {"layers": 4, "embedding_dim": 128, "heads": 4, "ffn": 512, "max_history": 50}
QUICK = {"layers": 10, "embedding_dim": 64, "heads": 2, "ffn": 256, "max_history": 200}
SMALL = {"layers": 2, "embedding_dim": 128, "ffn": 256, "max_history": 200}
BEAUTY = {"layers": 2, "embedding_dim": 64, "max_history": 50}
NCF = {"embedding_dim": 32, "hidden": 64, "top": 32, "max_history": 20}


@pytest.mark.parametrize("path", FILES, ids=recipes.label)
def test_a_recipe_file_lists_recipes(path: Path) -> None:
    assert len(recipes.entries(path)) > 2


def test_two_recipes_of_a_file_have_two_names(tmp_path: Path) -> None:
    step = '[[recipe]]\nname = "one"\nsteps = [{ technique = "quantize" }]\n'
    (tmp_path / "r.toml").write_text(step)
    assert [entry.label for entry in recipes.entries(tmp_path / "r.toml")] == ["original", "one"]
    (tmp_path / "r.toml").write_text(step + step)
    with pytest.raises(ConfigError, match="two recipes that are called 'one'"):
        recipes.entries(tmp_path / "r.toml")


def test_no_recipe_file_overwrites_the_result_of_another() -> None:
    labels = [recipes.label(path) for path in FILES]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("path", "kind", "options"),
    [
        ("recipes/distill.toml", "sasrec", DEMO),
        ("recipes/distill_cache.toml", "sasrec", DEMO),
        ("recipes/reduce.toml", "sasrec", DEMO),
        ("recipes/simplify.toml", "sasrec", DEMO),
        ("seeds/quick/recipes.toml", "sasrec", QUICK),
        ("seeds/small/small_codes.toml", "sasrec", SMALL),
        ("seeds/small/small_bits.toml", "sasrec", SMALL),
        ("seeds/beauty/beauty_bits.toml", "sasrec", BEAUTY),
        ("seeds/ncf/ncf_two_stage.toml", "neumf", NCF),
    ],
)
def test_recipes_find_something_to_do_on_their_original(path: str, kind: str, options: dict[str, int]) -> None:
    item, user = np.arange(400, dtype=np.int32), np.repeat(np.arange(40, dtype=np.int32), 10)
    ids = tuple(f"u{row}" for row in range(40)), tuple(f"i{row}" for row in range(400))
    events = Interactions("400 items", user, item, np.ones(400, np.float32), np.arange(400.0), *ids)
    data = split(events, "leave_last")
    context = Context(data, Pipeline(Stage(models.build(kind, options, catalogue_of(data)))), Fit())
    refused = [entry.label for entry in recipes.entries(BENCHMARKS / path) if not applies(entry.recipe, context)]
    assert not refused


def test_the_table_of_a_page_has_no_exponents() -> None:
    assert [recipes._short(value) for value in (0.07263, 1.684, 99.96, 1682.497)] == ["0.0726", "1.68", "100", "1,682"]


def test_a_row_names_the_layers_that_stayed_float32(tmp_path: Path) -> None:
    layers = [{"layer": "/up", "format": "float32"}, {"layer": "/down", "format": "codebook"}]
    report = tmp_path / "retrieve" / "quantization.json"
    report.parent.mkdir()
    report.write_text(json.dumps({"layers": layers}))
    assert recipes.restored(tmp_path) == ["/up"]
    assert recipes.restored(tmp_path / "none") == []


def test_the_committed_budget_of_the_movie_scenario_is_that_of_the_same_original() -> None:
    scenario, search = (config.load(BENCHMARKS / f"seeds/movie/{name}.toml") for name in ("settings", "optimize"))
    assert (search.model, search.data) == (scenario.model, scenario.data)
    assert dict(search.budget.limits) == {"ndcg@10": "98%"}
