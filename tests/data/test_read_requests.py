"""Requests in every spelling, recommendations and known answers out; no torch and no pyarrow on the way."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from recfit.data.requests import read_requests, write_queries, write_recommendations
from recfit.types import DataError, Queries, Ragged, Recommendation, Request


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_json_lines(write):
    text = [
        '{"user_id": "ü 1", "history": ["a b", "c"], "exclude": [3]}',
        "",
        '{"history": []}',
        '{"user_id": 7, "query": 2}',
    ]
    assert read_requests(write("r.jsonl", "\n".join(text))) == [
        Request("ü 1", ("a b", "c"), ("3",)),
        Request(None, ()),
        Request("7"),
    ]


def test_csv(write):
    text = 'user_id,history,exclude\nann,1 2 3,9\nbob,,\n,"[""a b"", 4]",\n'
    assert read_requests(write("r.csv", text)) == [
        Request("ann", ("1", "2", "3"), ("9",)),
        Request("bob"),
        Request(None, ("a b", "4")),
    ]
    assert read_requests(write("r.csv", "user_id\n5\n")) == [Request("5")]


def test_a_context_in_either(write):
    wanted = [Request("ann", context={"hour": "13", "cost": 2.5}), Request(context={"hour": 13}), Request("bob")]
    lines = [
        '{"user_id": "ann", "context": {"hour": "13", "cost": 2.5}}',
        '{"context": {"hour": 13}}',
        '{"user_id": "bob", "context": {}}',
    ]
    assert read_requests(write("r.jsonl", "\n".join(lines))) == wanted
    text = 'user_id,context\nann,"{""hour"": ""13"", ""cost"": 2.5}"\n,"{""hour"": 13}"\nbob,\n'
    assert read_requests(write("r.csv", text)) == wanted


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("r.jsonl", '{"user_id": "a"}\n{"user_id": }', r"r\.jsonl, line 2: .*is not JSON"),
        ("r.jsonl", '["a"]', r"line 1: .*is not an object"),
        ("r.jsonl", '{"user_id": "a", "histroy": []}', "no 'histroy'; did you mean 'history'"),
        ("r.jsonl", '{"user_id": "a", "history": "1 2"}', "line 1, history: '1 2' is not a list"),
        ("r.jsonl", '{"user_id": "a", "history": [1.5]}', r"line 1, history: 1\.5 is not an id"),
        ("r.jsonl", '{"user_id": "a", "history": [true]}', "history: True is not an id"),
        ("r.jsonl", '{"user_id": "a", "exclude": [""]}', "exclude: '' is not an id"),
        ("r.jsonl", '{"user_id": ""}', "user_id: '' is not an id"),
        ("r.jsonl", '{"exclude": ["1"]}', "needs a user_id, a history or a context"),
        ("r.jsonl", '{"context": {}}', "needs a user_id, a history or a context"),
        ("r.jsonl", '{"context": ["13"]}', r"line 1, context: \['13'\] is not an object of features and their values"),
        (
            "r.jsonl",
            '{"context": {"hour": true}}',
            "line 1, context, hour: True is not a value; values are texts or numbers",
        ),
        ("r.jsonl", '{"context": {"hour": null}}', "context, hour: None is not a value"),
        ("r.csv", "context\n{hour: 13}\n", "line 2, context: '{hour: 13}' is not JSON"),
        ("r.jsonl", "\n", "holds no request"),
        ("r.csv", "user_id\n", "holds no request"),
        ("r.csv", "user,history\na,1\n", "line 2: a request has no 'user'; did you mean 'user_id'"),
        ("r.csv", "user_id,history\n,\n", "line 2: a request needs a user_id, a history or a context"),
        ("r.csv", "user_id,history\na,1,2\n", r"line 2: the number of fields differs from the header's 2"),
        ("r.csv", "user_id,history\na\n", "line 2: the number of fields differs"),
        ("r.csv", 'user_id,history\na,"[1,"\n', "line 2, history: '.1,' is not JSON"),
        ("r.txt", "a\n", r"read from \.csv or \.jsonl, not from \.txt"),
    ],
)
def test_bad_requests(write, name, text, says):
    with pytest.raises(DataError, match=says):
        read_requests(write(name, text))


def test_missing_and_undecodable_files(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_requests(tmp_path / "r.csv")
    (tmp_path / "r.csv").write_bytes(b"user_id\ncaf\xe9\n")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_requests(tmp_path / "r.csv")


def test_recommendations_keep_their_digits(tmp_path):
    answers = [Recommendation(("x,1", "y"), (0.1 + 0.2, -1.0), "model"), Recommendation((), (), "fallback")]
    write_recommendations(tmp_path / "o.csv", [Request("ü"), Request("b")], answers)
    rows = list(csv.DictReader(lines(tmp_path / "o.csv")))
    assert list(rows[0]) == ["user_id", "item_id", "score", "rank"]
    assert [(r["user_id"], r["item_id"], float(r["score"]), r["rank"]) for r in rows] == [
        ("ü", "x,1", 0.1 + 0.2, "1"),
        ("ü", "y", -1.0, "2"),
    ]


def test_answers_to_one_user_can_be_told_apart(tmp_path):
    answers = [Recommendation((item,), (1.0,), "model") for item in "xyz"]
    write_recommendations(tmp_path / "o.csv", [Request("a"), Request("b"), Request("a")], answers)
    rows = csv.DictReader(lines(tmp_path / "o.csv"))
    assert [(r["query"], r["user_id"], r["item_id"]) for r in rows] == [
        ("0", "a", "x"),
        ("1", "b", "y"),
        ("2", "a", "z"),
    ]


def test_every_request_needs_an_answer(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        write_recommendations(tmp_path / "o.csv", [Request("a")], [])


def test_queries_come_back_as_requests(tmp_path):
    queries = Queries(np.array([1, 1], np.int32), Ragged.from_lists([[0], [0, 2]]), Ragged.from_lists([[2], [1, 0]]))
    asked, known = tmp_path / "q.jsonl", tmp_path / "t.csv"
    write_queries(queries, ("a", "b ü"), ("x", "y", "z z"), asked, known)
    assert read_requests(asked) == [Request("b ü", ("x",)), Request("b ü", ("x", "z z"))]
    assert [json.loads(line)["query"] for line in lines(asked)] == [0, 1]
    rows = list(csv.reader(lines(known)))
    assert rows == [["query", "user_id", "item_id"], ["0", "b ü", "z z"], ["1", "b ü", "y"], ["1", "b ü", "x"]]


def test_requests_are_read_without_torch_and_pyarrow():
    code = "import sys, recfit.data.requests; print([m for m in ('torch', 'pyarrow', 'scipy') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
