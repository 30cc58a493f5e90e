"""Docs and code can't drift apart: pages exist for what exists, and the examples run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import record

import toys
from recfit import models
from recfit.config import parse
from recfit.data.splits import split
from recfit.engine import open_bundle
from recfit.export import export, surroundings
from recfit.pipeline import Pipeline, Stage
from recfit.registry import find, names
from recfit.search.original import build_original
from recfit.techniques import Context, available
from recfit.training import Fit, train
from recfit.types import Interactions, Request

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def walks(n_users: int = 40, n_items: int = 30, events: int = 12) -> Interactions:
    """Users who walk around a ring of items, one step at a time."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, n_items, n_users)
    item = ((starts[:, None] + np.arange(events)) % n_items).ravel().astype(np.int32)
    user = np.repeat(np.arange(n_users, dtype=np.int32), events)
    time = np.tile(np.arange(events, dtype=np.float64), n_users)
    ids = tuple(f"u{row}" for row in range(n_users)), tuple(f"i{row}" for row in range(n_items))
    return Interactions("walks", user, item, np.ones(len(user), np.float32), time, *ids)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("room", ["techniques", "tables"])
def test_every_file_of_a_room_has_a_page_and_every_page_a_file(room: str) -> None:
    assert {page.stem for page in (DOCS / room).glob("*.md")} == set(names(room))


PAGES = [("techniques", "Technique", name) for name in names("techniques")]
PAGES += [("tables", "Config", name) for name in names("tables")]


@pytest.mark.parametrize(("room", "settings", "name"), PAGES, ids=lambda part: part)
def test_a_page_lists_every_setting(room: str, settings: str, name: str) -> None:
    page = (DOCS / room / f"{name}.md").read_text()
    listed = [item.name for item in dataclasses.fields(getattr(find(room, name), settings)) if item.name != "dim"]
    assert not [setting for setting in listed if f"`{setting}`" not in page]


@pytest.mark.parametrize("name", names("tables"))
def test_a_page_of_a_table_says_what_it_costs_and_when_not_to_use_it(name: str) -> None:
    page = (DOCS / "tables" / f"{name}.md").read_text()
    assert not [
        said for said in ("**Bytes**", "**Costs**", "**Not for**", "Measured", "../results/") if said not in page
    ]


def test_what_techniques_work_on_is_an_axis_of_a_model_or_one_of_the_listed_words() -> None:
    """A word that is misspelt is shared by no other technique, and lets chains pass that it should forbid."""
    [sentence] = re.findall(
        r"In recfit's own files the words are\s(.*?)\.\n", (DOCS / "extend.md").read_text(), re.DOTALL
    )
    listed = {*re.findall("`(.+?)`", re.sub(r"\(.+?\)", "", sentence))}
    contexts = [
        Context(toys.split(), Pipeline(Stage(toys.untrained(kind, options))), toys.FIT) for kind, options in toys.SHAPED
    ]
    axes = {axis for context in contexts for axis in context.original.main.model.axes()}
    always = [find("techniques", name).Technique.works_on for name in names("techniques")]
    words = {word for told in always if isinstance(told, tuple) for word in told}
    words |= {
        word for context in contexts for variants in available() for step in variants(context) for word in step.works_on
    }
    assert words - axes == listed


def test_every_runtime_is_in_the_page_of_runtimes() -> None:
    page = (DOCS / "techniques" / "runtime.md").read_text()
    assert not [name for name in names("runtimes") if f"`{name}`" not in page]


@pytest.mark.parametrize("page", ["bundle.md", "tables.md"])
def test_every_table_format_is_in_the_pages_that_list_them(page: str) -> None:
    text = (DOCS / page).read_text()
    listed = re.findall(r"^\| \[?`(\w+)`", text, re.MULTILINE)
    assert not set(names("tables")) - set(listed)


def test_the_bring_your_own_example_trains_exports_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = DOCS / "bring-your-own.md"
    code, settings = blocks(page, "python")[0], blocks(page, "toml")[0]
    assert len(code.splitlines()) <= 32
    (tmp_path / "my_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import tomllib

    chosen = parse({"data": {"source": "x"}, **tomllib.loads(settings)}).model
    parts = split(walks(), "leave_last")
    fit = Fit(epochs=30, batch_size=32, learning_rate=0.02, threads=1)
    model = build_original(chosen, parts, fit)
    trained = train(model, parts, fit, progress=False)
    assert trained.ndcg > 0.8
    around = surroundings(parts, parts.train.histories())
    export(Pipeline(Stage(model)), around, tmp_path / "bundle", name="own", recipe={"id": "own", "steps": []})
    answer = open_bundle(tmp_path / "bundle").recommend([Request(history=("i3", "i4", "i5"))], 1)[0]
    assert answer.items == ("i6",)
    models.save(model, tmp_path / "model")
    assert models.fingerprint(models.load(tmp_path / "model")) == models.fingerprint(model)


EXTENDED = """
import sys
import toys
from recfit.engine import open_bundle
from recfit.export import export
from recfit.pipeline import Stage
from recfit.search.propose import exclude
from recfit.techniques import applied, available, make
from recfit.types import Request
from pathlib import Path
from dataclasses import replace
from test_techniques import context_of

if __name__ == "__main__":
    context = context_of("sasrec")
    proposed = [step for variants in available() for step in variants(context)]
    assert any(type(step).__module__ == "recfit.techniques.early_exit" for step in proposed)
    shallow = make("early_exit", {"layers": 1})
    assert exclude(make("prune", {"axis": "layers"}), shallow)
    assert not exclude(make("matryoshka", {}), shallow)
    pipeline = applied(shallow, context.original, context)
    assert pipeline.main.model.axes()["layers"] == 1
    pipeline = pipeline.with_main(replace(pipeline.main, table="float16"))
    path = export(pipeline, toys.around(), Path(sys.argv[1]), name="own", recipe={"id": "own", "steps": []})
    assert (path / "retrieve" / "table" / "rows.bin").stat().st_size == toys.N_ITEMS * 16 * 2
    for user in (0, 20, 41):
        history = toys.around().histories[user].tolist()
        answer = open_bundle(path).recommend([Request(toys.around().user_ids[user])])[0]
        rows = [toys.around().item_ids.index(item) for item in answer.items]
        toys.assert_ranks(rows, answer.scores, toys.expected(pipeline, user, history), 10, 1e-2)
"""


def test_the_files_of_the_extension_page_work_as_plugins(tmp_path: Path) -> None:
    for code in blocks(DOCS / "extend.md", "python"):
        path = tmp_path / code.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    (tmp_path / "check.py").write_text(EXTENDED)
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests / "techniques"), os.environ.get("PYTHONPATH", "")])
    known = {"RECFIT_PLUGINS": str(tmp_path / "my_recfit"), "PYTHONPATH": path}
    command = [sys.executable, str(tmp_path / "check.py"), str(tmp_path / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | known)
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text()
    used = set(re.findall(r"^(?:\$ )?recfit (\w+)", text, re.MULTILINE))
    assert used
    for command in used:
        done = subprocess.run([sys.executable, "-m", "recfit.cli", command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted([ROOT / "README.md", *DOCS.rglob("*.md")]), ids=lambda path: path.stem)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    assert not [target for target in targets if not (path.parent / target).exists()]


def refuse(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


@pytest.mark.parametrize("path", sorted((DOCS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_results_are_json_for_every_reader(path: Path) -> None:
    assert json.loads(path.read_text(), parse_constant=refuse)


def test_what_is_no_number_is_recorded_as_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FOLDER", tmp_path / "results")
    found = {"ms": {"50": 1.5, "100": math.inf}, "rows": [(math.nan, np.float64("inf")), {"path": tmp_path}], "n": 3}
    written = json.loads(record.save("toy", "", found).read_text(), parse_constant=refuse)
    assert written["ms"] == {"50": 1.5, "100": None}
    assert written["rows"] == [[None, None], {"path": str(tmp_path)}]
    assert (written["benchmark"], written["n"]) == ("toy", 3)
