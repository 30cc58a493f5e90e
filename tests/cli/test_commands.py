"""Each command: what it prints for people, what for machines, and how it ends when the input is bad."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from made_by_command import CONFIG, candidates, command

import recfit as recfit_package
from recfit import config, open_bundle, starter
from recfit.config import Serve

BAD_ROW = "user_id,item_id,timestamp\n" + "".join(f"u{n % 3},i{n},{n}\n" for n in range(12)) + "u1,i5,soon\n"


def printed(answer):
    """The one JSON value that a command printed; anything else beside it is an error."""
    code, out, err = answer
    assert (code, err) == (0, "")
    return json.loads(out)


# init, doctor ------------------------------------------------------------------------------------


def test_init_writes_a_config_that_finds_the_data(recfit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("events.csv").write_text(BAD_ROW)
    Path("conf").mkdir()
    code, out, _ = recfit("init", "--data", "events.csv", "-o", "conf/fit.toml")
    assert code == 0
    assert "recfit optimize conf/fit.toml" in out
    assert config.load("conf/fit.toml").data.source == str(tmp_path / "events.csv")
    assert printed(recfit("init", "-o", "second.toml", "--json")) == {"path": "second.toml"}
    assert config.load("second.toml").data.source == "ml-100k"


def test_init_overwrites_nothing_and_checks_the_file(recfit, tmp_path):
    (tmp_path / "recfit.toml").write_text("mine")
    code, _, err = recfit("init", "-o", tmp_path / "recfit.toml")
    assert (code, (tmp_path / "recfit.toml").read_text()) == (2, "mine")
    assert "exists already; choose another name with -o" in err
    code, _, err = recfit("init", "--data", tmp_path / "nothing.csv", "-o", tmp_path / "b.toml")
    assert code == 2
    assert "there is no file" in err
    assert not (tmp_path / "b.toml").exists()


def test_doctor_prints_the_machine(recfit):
    found = printed(recfit("doctor", "--json"))
    assert found["can_optimize"] is True
    assert recfit("doctor")[1].startswith(f"machine   {found['machine']['cpu']}")


def test_an_interrupt_exits_with_130(recfit, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(starter, "doctor", interrupted)
    code, out, err = recfit("doctor")
    assert (code, out) == (130, "")
    assert "the same command goes on from here" in err


def test_a_serving_installation_says_what_optimizing_lacks(recfit, monkeypatch):
    monkeypatch.setitem(sys.modules, "recfit.flow", None)
    monkeypatch.delattr(recfit_package, "flow", raising=False)  # an earlier test may have loaded it
    code, _, err = recfit("optimize", "recfit.toml")
    assert code == 2
    assert err.endswith("; `recfit doctor` says what to install\n")


def test_files_that_cannot_be_written_are_a_sentence(recfit, tmp_path):
    code, _, err = recfit("init", "-o", tmp_path / "nowhere" / "recfit.toml")
    assert code == 2
    assert err.startswith("recfit: ")
    assert "nowhere/recfit.toml" in err
    assert "Traceback" not in err


# data describe -----------------------------------------------------------------------------------


@pytest.fixture
def events(tmp_path):
    (tmp_path / "events.csv").write_text(BAD_ROW)
    return tmp_path / "events.csv"


def test_describe_stops_at_a_bad_row_or_drops_it_and_says_so(recfit, events):
    code, out, err = recfit("data", "describe", events)
    assert (code, out) == (2, "")
    assert "events.csv" in err
    assert "'soon'" in err
    found = printed(recfit("data", "describe", events, "--bad-rows", "drop", "--json"))
    assert (found["events"], found["users"], found["items"]) == (12, 3, 12)
    assert sum(found["dropped"].values()) == 1
    assert found["split"]["protocol"] == "leave_last(n=1)"


def test_describe_errors_are_json_too_where_json_is_asked_for(recfit, events):
    code, out, err = recfit("data", "describe", events, "--json")
    assert code == 2
    assert json.loads(out)["error"] == "DataError"
    assert json.loads(out)["message"] in err


def test_options_win_over_the_config(recfit, events):
    (events.parent / "recfit.toml").write_text('[data]\nsource = "events.csv"\nbad_rows = "drop"\n')
    config = events.parent / "recfit.toml"
    assert printed(recfit("data", "describe", config, "--json"))["split"]["protocol"] == "leave_last(n=1)"
    code, _, err = recfit("data", "describe", config, "--bad-rows", "error")
    assert (code, "'soon'" in err) == (2, True)
    split = "global_time(test=0.25, validation=0.25)"
    assert printed(recfit("data", "describe", config, "--split", split, "--json"))["split"]["protocol"] == split


def test_text_of_describe(recfit, made):
    code, out, _ = recfit("data", "describe", made.config)
    assert code == 0
    assert "leave_last(n=2)" in out
    assert "2,800" in out


# train -------------------------------------------------------------------------------------------


def test_train_stores_a_model_that_a_config_can_name(recfit, made, tmp_path):
    own = tmp_path / "recfit.toml"
    own.write_text(CONFIG.replace("events.csv", str(made.folder / "events.csv")).replace("epochs = 12", "epochs = 1"))
    code, out, err = recfit("train", own, "-o", tmp_path / "model", "--json")
    assert code == 0
    assert json.loads(out)["epochs"] == 1
    assert "sasrec" in err
    assert (tmp_path / "model" / "weights.safetensors").is_file()


# select, report ----------------------------------------------------------------------------------


def test_select_answers_another_budget_without_touching_the_study(recfit, made):
    before = made.ledger
    rows = {row["id"]: row for row in candidates(before)}
    found = printed(recfit("select", made.study, "--limit", "memory_mb=500", "--objective", "quality", "--json"))
    best = max(row["metrics"]["ndcg@10"] for row in rows.values() if row["status"] == "done")
    assert found["metrics"]["ndcg@10"] == best
    assert found["verdicts"] == {"memory_mb": "held"}
    assert found["metrics"]["cost_per_million"] > 0
    assert Path(found["bundle"], "manifest.json").is_file()
    code, out, _ = recfit("select", made.study, "--limit", "memory_mb=500", "--objective", "quality")
    assert (code, out) == (0, out)
    assert out.startswith(f"{found['name']}: ndcg@10 {best:.4f}, p99 ")
    assert f"\nbundle of the search: {found['bundle']}\n" in out
    assert made.ledger == before


@pytest.mark.parametrize(
    ("limit", "code", "message"),
    [
        ("memory_mb=1", 3, "what binds: memory_mb <= 1, the nearest has"),
        ("p99ms=1", 2, "unknown limit 'p99ms'; did you mean 'p99_ms'?"),
        ("p99_ms", 2, "is not METRIC=VALUE"),
        ("ndcg@50=90%", 2, "this study did not measure ndcg@50"),
    ],
)
def test_select_refuses_with_its_own_exit_codes(recfit, made, limit, code, message):
    found, out, err = recfit("select", made.study, "--limit", limit)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_select_needs_a_study(recfit, tmp_path):
    code, _, err = recfit("select", tmp_path)
    assert code == 2
    assert "holds no study" in err


def test_report_writes_the_page_for_another_budget(recfit, made, tmp_path):
    page = tmp_path / "page.html"
    assert printed(recfit("report", made.study, "-o", page, "--limit", "p99_ms=0.9x", "--json")) == {
        "report": str(page)
    }
    assert "p99_ms \\u003c= 0.9x of the original" in page.read_text()


# measure -----------------------------------------------------------------------------------------


def test_measure_from_files_gives_the_numbers_of_the_study(recfit, made):
    test = made.study / "test"
    files = ["--requests", test / "requests.jsonl", "--targets", test / "targets.csv"]
    found = printed(recfit("measure", made.study / "bundle", *files, "--count", "1000", "--json"))
    final = made.facts["final"]["rows"]["chosen"]["metrics"]
    for metric in ("ndcg@10", "recall@5", "mrr@10", "coverage@10"):
        assert found["metrics"][metric] == pytest.approx(final[metric], abs=1e-9)
    assert found["protocol"]["queries"] == 400
    assert found["intervals"]["p99_ms"][0] <= found["metrics"]["p99_ms"]


def test_measure_on_the_test_split_of_a_config(recfit, made):
    code, out, _ = recfit("measure", made.study / "bundle", "--data", made.config, "--count", "1000")
    assert code == 0
    final = made.facts["final"]["rows"]["chosen"]["metrics"]
    assert f"{final['ndcg@10']:.4f}" in next(line for line in out.splitlines() if line.startswith("ndcg@10"))
    assert "machine: " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "measure needs either --data or --requests with --targets"),
        (["--requests", "a.jsonl"], "--requests needs --targets"),
        (["--data", "a.csv", "--requests", "a.jsonl"], "measure needs either --data or --requests"),
        (["--data", "a.csv", "--count", "20"], "--count 20 is too few for a p99; pass at least 1000"),
        (["--data", "a.csv", "--rate", "0"], "--rate is 0.0; it is requests a second, above 0"),
        (["--data", "a.csv"], "there is no file a.csv"),
    ],
)
def test_measure_refuses(recfit, made, arguments, message):
    code, out, err = recfit("measure", made.study / "bundle", *arguments)
    assert (code, out) == (2, "")
    assert message in err


# recommend, serve --------------------------------------------------------------------------------


def test_recommend_reads_csv_and_jsonl_and_keeps_out_what_is_excluded(recfit, made, tmp_path):
    (tmp_path / "r.csv").write_text('user_id,history,exclude\nu1,i1 i2 i3,\nu2,"[""i7""]",i8 i9\nstranger,,\n')
    lines = [
        {"user_id": "u1", "history": ["i1", "i2", "i3"]},
        {"user_id": "u2", "history": ["i7"], "exclude": ["i8", "i9"]},
        {"user_id": "stranger"},
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, lines)))
    texts = []
    for name in ("r.csv", "r.jsonl"):
        output = tmp_path / f"{name}.out"
        answer = recfit(
            "recommend", made.study / "bundle", "--requests", tmp_path / name, "--k", "4", "-o", output, "--json"
        )
        assert printed(answer) == {"requests": 3, "output": str(output)}
        texts.append(output.read_text())
    assert texts[0] == texts[1]
    rows = list(csv.DictReader(texts[0].splitlines()))
    assert list(rows[0]) == ["user_id", "item_id", "score", "rank"]
    assert [row["rank"] for row in rows if row["user_id"] == "u1"] == ["1", "2", "3", "4"]
    assert not {"i1", "i2", "i3"} & {row["item_id"] for row in rows if row["user_id"] == "u1"}
    assert not {"i7", "i8", "i9"} & {row["item_id"] for row in rows if row["user_id"] == "u2"}
    scores = [float(row["score"]) for row in rows if row["user_id"] == "u2"]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--requests", "r.txt"], "requests are read from .csv or .jsonl"),
        (["--requests", "none.csv"], "there is no file none.csv"),
        (["--requests", "none.csv", "--k", "0"], "--k is 0; pass a number of items from 1"),
    ],
)
def test_recommend_refuses(recfit, made, tmp_path, arguments, message):
    code, _, err = recfit("recommend", made.study / "bundle", *arguments, "-o", tmp_path / "recs.csv")
    assert code == 2
    assert message in err


def test_recommend_needs_a_bundle_and_a_place_to_write(recfit, made, tmp_path):
    requests = made.study / "test" / "requests.jsonl"
    code, _, err = recfit("recommend", tmp_path, "--requests", requests, "-o", tmp_path / "recs.csv")
    assert code == 2
    assert "is not a bundle" in err
    code, _, err = recfit(
        "recommend", made.study / "bundle", "--requests", requests, "-o", tmp_path / "no" / "recs.csv"
    )
    assert code == 2
    assert "no/recs.csv" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["study/bundle"], Serve()),
        (["recfit.toml"], Serve(port=8123)),
        (["recfit.toml", "--host", "::1", "--port", "0"], Serve("::1", 0)),
        (
            ["study/bundle", "--threads", "2", "--drain-s", "0", "--events", "e.db", "--admin-port", "9"],
            Serve(threads=2, drain_s=0, events="e.db", admin_port=9),
        ),
    ],
)
def test_serve_takes_a_bundle_or_the_config_that_chose_one(recfit, made, monkeypatch, arguments, expected):
    asked = []

    def run(bundle, settings, json_greeting):
        asked.append((bundle, settings))
        assert not json_greeting

    monkeypatch.setattr("recfit.serve.run.run", run)
    code, _, _ = recfit("serve", made.folder / arguments[0], *arguments[1:])
    assert (code, asked) == (0, [(made.study / "bundle", expected)])


def test_serve_refuses_settings_that_cannot_be(recfit, made, tmp_path):
    for option, message in (
        (("--port", "70000"), "serve.port = 70000 is outside 0 to 65535"),
        (("--threads", "-1"), "serve.threads = -1 is outside 0 to 1024"),
        (("--drain-s", "-0.5"), "serve.drain_s = -0.5 is outside 0 to 3600"),
        (("--port", "0", "--events", tmp_path / "no" / "events.db"), "events.db cannot be opened"),
    ):
        code, _, err = recfit("serve", made.study / "bundle", *option)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1


def test_the_server_says_where_it_is_in_json_and_stops_on_a_signal(made):
    server = subprocess.Popen(
        command("serve", made.study / "bundle", "--port", "0", "--json"), stdout=subprocess.PIPE, text=True
    )
    greeting = json.loads(server.stdout.readline())
    assert greeting["serving"] == open_bundle(made.study / "bundle").manifest["name"]
    assert greeting["url"].startswith("http://127.0.0.1:")
    server.send_signal(signal.SIGINT)
    assert server.communicate(timeout=30) == ("", None)
    assert server.returncode == 0
