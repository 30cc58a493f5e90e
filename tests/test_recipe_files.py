"""The recipe files of the benchmarks can be read, fit the original that they are for, and each writes a result of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks import recipes

from recfit import models
from recfit.data.splits import split
from recfit.models import catalogue_of
from recfit.pipeline import Pipeline, Stage
from recfit.search.propose import applies
from recfit.techniques import Context
from recfit.training import Fit
from recfit.types import Interactions

BENCHMARKS = Path(recipes.__file__).parent
FILES = sorted([*(BENCHMARKS / "recipes").glob("*.toml"), *(BENCHMARKS / "seeds").glob("*/recipes.toml")])
DEMO = {"layers": 4, "embedding_dim": 128, "heads": 4, "ffn": 512, "max_history": 50}
QUICK = {"layers": 10, "embedding_dim": 64, "heads": 2, "ffn": 256, "max_history": 200}


@pytest.mark.parametrize("path", FILES, ids=recipes._label)
def test_a_recipe_file_lists_recipes(path: Path) -> None:
    assert len(recipes.entries(path)) > 2


def test_no_recipe_file_overwrites_the_result_of_another() -> None:
    labels = [recipes._label(path) for path in FILES]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("recipes/distill.toml", DEMO),
        ("recipes/distill_cache.toml", DEMO),
        ("recipes/reduce.toml", DEMO),
        ("recipes/simplify.toml", DEMO),
        ("seeds/quick/recipes.toml", QUICK),
    ],
)
def test_recipes_find_something_to_do_on_their_original(path: str, options: dict[str, int]) -> None:
    item, user = np.arange(400, dtype=np.int32), np.repeat(np.arange(40, dtype=np.int32), 10)
    ids = tuple(f"u{row}" for row in range(40)), tuple(f"i{row}" for row in range(400))
    events = Interactions("400 items", user, item, np.ones(400, np.float32), np.arange(400.0), *ids)
    data = split(events, "leave_last")
    context = Context(data, Pipeline(Stage(models.build("sasrec", options, catalogue_of(data)))), Fit())
    refused = [entry.label for entry in recipes.entries(BENCHMARKS / path) if not applies(entry.recipe, context)]
    assert not refused


def test_the_table_of_a_page_has_no_exponents() -> None:
    assert [recipes._short(value) for value in (0.07263, 1.684, 99.96, 1682.497)] == ["0.0726", "1.68", "100", "1,682"]
