"""A recfit.toml is read as it is meant; a mistake is answered with its place, what is allowed and the nearest match."""

import os
import sys

import pytest

from recfit import config, starter
from recfit.search.bench import budget_of
from recfit.search.budget import Limit
from recfit.types import ConfigError

WHOLE = """
[data]
source = "events.csv"
split = "leave_last(n=2)"
format = "delimited"
bad_rows = "drop"
min_weight = 4
user_features = "users.csv"
item_features = "more/items.csv"
[data.columns]
user_id = "customer"
[model]
kind = "mlp"
path = "model"
factory = "mine:build"
[model.options]
hidden = 32
[model.fit]
epochs = 3
[budget]
objective = "memory"
quality_metric = "recall@10"
price = 1
accept_undecided = true
p99_ms = 2
"ndcg@10" = "99%"
[search]
directory = "runs/one"
techniques = ["prune", "cache"]
max_candidates = 7
max_minutes = 1
memory_gb = 2
threads = 1
serve_threads = 2
requests = 1200
rate = 50
[search.fit]
max_minutes = 0.5
[serve]
host = "0.0.0.0"
port = 80
"""


@pytest.fixture
def load(tmp_path):
    def loaded(text):
        (tmp_path / "recfit.toml").write_text(text)
        return config.load(tmp_path / "recfit.toml")

    return loaded


def test_every_table_and_key(load, tmp_path):
    found = load(WHOLE)
    assert found.data == config.Data(
        str(tmp_path / "events.csv"), "leave_last(n=2)", "delimited", {"user_id": "customer"}, "drop", 4.0,
        str(tmp_path / "users.csv"), str(tmp_path / "more/items.csv"),
    )  # fmt: skip
    assert found.model == config.Model("mlp", {"hidden": 32}, "mine:build", str(tmp_path / "model"), {"epochs": 3})
    assert found.budget == config.Budget(
        objective="memory", quality_metric="recall@10", price=1.0, accept_undecided=True,
        limits={"p99_ms": 2, "ndcg@10": "99%"},
    )  # fmt: skip
    assert found.search == config.Search(
        str(tmp_path / "runs/one"), ("prune", "cache"), 7, 1.0, 2.0, 1, 2, 1200, 50.0, {"max_minutes": 0.5}
    )
    assert found.serve == config.Serve("0.0.0.0", 80)
    assert isinstance(found.search.memory_gb, float)


def test_what_is_left_out_has_its_default(load, tmp_path):
    found = load('[data]\nsource = "ml-100k"')
    assert found == config.Settings(
        config.Data("ml-100k"), search=config.Search(directory=str(tmp_path / "runs/study"))
    )


def test_limits_become_the_budget(load):
    assert budget_of(load(WHOLE).budget).limits == (Limit("p99_ms", 2.0), Limit("ndcg@10", 0.99, relative=True))


def test_paths_are_relative_to_the_file_not_to_where_one_stands(load, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "events.csv").write_text("")  # must not be taken instead
    monkeypatch.chdir(elsewhere)
    found = load(WHOLE)
    assert found.data.source == str(tmp_path / "events.csv")
    assert found.search.directory == str(tmp_path / "runs/one")
    # The same file by another way is the same model, and so the same study.
    assert config.load("../recfit.toml").model == found.model


def test_a_folder_is_a_source_where_it_is_there_and_a_name_otherwise(load, tmp_path):
    text = '[data]\nsource = "ml-100k"'
    assert load(text).data.source == "ml-100k"
    (tmp_path / "ml-100k").mkdir()
    assert load(text).data.source == str(tmp_path / "ml-100k")
    assert load(f'[data]\nsource = "{tmp_path}/a.csv"').data.source == f"{tmp_path}/a.csv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^recfit.toml needs \[data\]; `recfit init` writes a complete example$"),
        ("[data]", r"^data needs the setting 'source'; add it$"),
        ("[dat]", r"^recfit.toml needs \[data\]"),
        ("[serv]", r"^recfit.toml has no setting 'serv' \(did you mean 'serve'\?\); allowed: data, model, budget"),
        ("[zzz]", r"^recfit.toml has no setting 'zzz'; allowed: data, model"),
        ('[data]\nsource = "a"\nsplitt = "x"', r"^data has no setting 'splitt' \(did you mean 'split'\?\); allowed"),
        ("[data]\nsource = 3", r"^data.source = 3; it must be a text in quotes$"),
        ("data = 3", r"^data = 3; it must be a table$"),
        ('[data]\nsource = "a"\nmin_weight = "4"', r"^data.min_weight = '4'; it must be a number$"),
        ('[data]\nsource = "a"\ncolumns = "b"', r"^data.columns = 'b'; it must be a table$"),
        ("[search]\nmax_candidates = 1.5", r"^search.max_candidates = 1.5; it must be a whole number$"),
        ("[search]\nmax_candidates = true", r"it must be a whole number$"),
        ("[search]\nmax_minutes = true", r"^search.max_minutes = True; it must be a number$"),
        ("[search]\ntechniques = [1]", r"^search.techniques\[0\] = 1; it must be a text in quotes$"),
        ('[search]\ntechniques = "prune"', r"it must be a list$"),
        ("[search]\nmax_candidates = 0", r"^search.max_candidates = 0; it must be above 0$"),
        ("[search]\nmax_minutes = -1", r"^search.max_minutes = -1.0; it must be above 0$"),
        ("[search]\nmemory_gb = 0", r"^search.memory_gb = 0.0; it must be above 0$"),
        ("[search]\nthreads = 0", r"^search.threads = 0; it must be above 0$"),
        ("[search]\nserve_threads = 0", r"^search.serve_threads = 0; it must be above 0$"),
        ("[search]\nrequests = 999", r"^search.requests = 999 are too few for a p99; pass 1000 or more$"),
        ("[search]\nrate = 0", r"^search.rate = 0.0; it is requests a second, above 0, or left out$"),
        ('[serve]\npreload = ["red"]', r"^serve.preload = 'red'; allowed: none$"),
        ('[serve]\nhistories = "none"', r"^serve.histories = 'none'; allowed: bundle, request$"),
        ("[budget]\naccept_undecided = 1", r"^budget.accept_undecided = 1; it must be true or false$"),
        ('[budget]\nobjectve = "memory"', r"^budget has no setting 'objectve' \(did you mean 'objective'\?\)$"),
        ("[data", r"recfit.toml is not valid TOML: Expected"),
    ],
)
def test_a_mistake_names_its_place_and_what_is_allowed(load, text, message):
    if not text.startswith(("[data", "data", "[dat")) and text:
        text = f'{text}\n[data]\nsource = "a"'
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_a_missing_file_is_answered_with_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no .*none.toml; `recfit init` writes one"):
        config.load(tmp_path / "none.toml")


@pytest.mark.parametrize("source", ["ml-100k", "events.csv", 'odd "name".csv'])
def test_what_init_writes_is_a_config_with_a_budget_that_holds_together(load, tmp_path, source):
    (tmp_path / source).write_text("")
    found = load(starter.config(source))
    assert found.data.source == os.path.join(tmp_path, source)
    assert found.model.kind in starter.names_on_disk("models")
    limits = budget_of(found.budget).limits
    assert {limit.metric for limit in limits} == {"ndcg@10", "p99_ms"}
    assert all(limit.relative for limit in limits)


def test_every_comment_of_what_init_writes_is_a_setting_too(load):
    """What a newcomer uncomments must be accepted."""
    lines = starter.config("ml-100k").splitlines()
    settings = [line.removeprefix("# ") for line in lines if line.startswith("# ") and ("=" in line or "# [" in line)]
    assert len(settings) >= 7
    found = load("\n".join(line.removeprefix("# ") if line.removeprefix("# ") in settings else line for line in lines))
    assert found.data.columns == {"user_id": "customer"}
    assert set(found.search.techniques) == set(starter.names_on_disk("techniques"))
    assert found.budget.accept_undecided


def test_a_factory_lies_beside_the_config(load, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    load('[data]\nsource = "events.csv"\n[model]\nfactory = "mine:build"')
    assert sys.path[0] == str(tmp_path)
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(tmp_path), "elsewhere"]


def test_a_config_that_is_not_utf8_is_a_sentence(tmp_path):
    (tmp_path / "recfit.toml").write_bytes(b'[data]\nsource = "\xe9.csv"')
    with pytest.raises(
        ConfigError, match=r"recfit.toml is not UTF-8 \(invalid continuation byte at byte 17\); convert it"
    ):
        config.load(tmp_path / "recfit.toml")
