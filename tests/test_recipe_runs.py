"""The benchmark of recipes from events to its table, small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import recipes, record

SETTINGS = """
[data]
source = "{events}"
split = "leave_last(n=2)"
[model]
kind = "mlp"
options = {{ embedding_dim = 8, max_history = 4 }}
fit = {{ epochs = 1 }}
[search]
directory = "study"
"""
RECIPES = """
[[recipe]]
steps = [{ technique = "quantize" }]
claim = "a quarter"
[[recipe]]
name = "none has so many"
steps = [{ technique = "reduce", axis = "embedding_dim", size = 64 }]
"""


def test_a_list_of_recipes_becomes_a_table_a_picture_and_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draws = np.random.default_rng(0)
    lines = [f"u{user},i{item},{at}" for user in range(40) for at, item in enumerate(draws.permutation(60)[:12])]
    events, settings, listed = (tmp_path / name for name in ("events.csv", "settings.toml", "recipes.toml"))
    events.write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    settings.write_text(SETTINGS.format(events=events))
    listed.write_text(RECIPES)
    monkeypatch.setattr(record, "FOLDER", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["benchmarks/recipes.py", str(settings), str(listed)])
    recipes.main()
    [path] = (tmp_path / "results").glob("*.json")
    found = json.loads(path.read_text())
    assert [row["recipe"] for row in found["rows"]] == ["original", "quantize()"]
    assert found["rows"][1]["times_less"]["bundle_mb"] > 1
    assert found["rows"][1]["claim"] == "a quarter"
    assert path.with_suffix(".svg").exists()
    told = capsys.readouterr().out
    assert "none has so many: " in told
    assert "| quantize() |" in told
