"""Requests and targets from files become queries in the bundle's rows; what can't be measured is refused."""

import pytest

from recfit.bundle import open_files
from recfit.data.requests import write_queries
from recfit.measure import Measurement
from recfit.measure.reading import popularity, queries_of, text
from recfit.types import DataError


@pytest.fixture
def files(tmp_path):
    return tmp_path / "requests.jsonl", tmp_path / "targets.csv"


def written(files, requests, targets):
    files[0].write_text("\n".join(requests))
    files[1].write_text("query,user_id,item_id\n" + "\n".join(targets), encoding="utf-8-sig")  # as spreadsheets do
    return files


def test_what_a_study_writes_is_read_back(bundle, split, files):
    train = split.train
    write_queries(split.test, train.user_ids, train.item_ids, *files)
    queries, counts = queries_of(bundle, *files)
    assert queries.user.tolist() == split.test.user.tolist()
    assert [part.tolist() for part in queries.history] == [part.tolist() for part in split.test.history]
    assert [part.tolist() for part in queries.targets] == [part.tolist() for part in split.test.targets]
    assert counts.tolist() == popularity(open_files(bundle)).tolist()
    assert counts.sum() == len(train) - split.n_users


def test_without_a_history_the_stored_one_is_meant(bundle, files):
    written(files, ['{"user_id": "user 3"}', '{"user_id": "user 3", "history": []}'], ["0,u,item 1", "1,u,item 1"])
    queries, _ = queries_of(bundle, *files)
    stored = open_files(bundle).histories[3]
    assert len(stored) > 0
    assert queries.history[0].tolist() == stored.tolist()
    assert queries.history[1].tolist() == []


def test_who_asks_a_bundle_without_users_is_numbered(userless_bundle, files):
    lines = [f'{{"user_id": "{user}", "history": ["item 1"]}}' for user in ("eve", "bob", "eve")]
    queries, _ = queries_of(userless_bundle, *written(files, lines, ["0,u,item 2", "1,u,item 2", "2,u,item 3"]))
    assert queries.user.tolist() == [0, 1, 0]
    assert [part.tolist() for part in queries.history] == [[1], [1], [1]]
    with pytest.raises(DataError, match="request 0 has no history, and the bundle stores none; add `history`"):
        queries_of(userless_bundle, *written(files, ['{"user_id": "eve"}'], ["0,u,item 1"]))


def test_unknown_items_leave_histories_but_stay_as_missed_targets(bundle, split, files):
    written(files, ['{"user_id": "user 1", "history": ["item 2", "new"]}'], ["0,u,item 4", "0,u,new", "0,u,newer"])
    queries, _ = queries_of(bundle, *files)
    assert queries.history[0].tolist() == [2]
    assert queries.targets[0].tolist() == [4, split.n_items, split.n_items]


@pytest.mark.parametrize(
    ("requests", "targets", "message"),
    [
        (['{"user_id": "eve"}'], ["0,u,item 1"], r"request 0: the bundle does not know user 'eve'"),
        (['{"history": ["item 1"]}'], ["0,u,item 1"], r"request 0: the bundle does not know user None"),
        (['{"user_id": "user 1", "exclude": ["item 1"]}'], ["0,u,item 1"], r"request 0 excludes items"),
        (
            ['{"user_id": "user 1", "context": {"a": "1"}}'],
            ["0,u,item 1"],
            r"request 0 has a context, .* leave `context`",
        ),
        (['{"user_id": "user 1"}'], ["1,u,item 1"], r"line 2: .* needs item_id and a query number below 1"),
        (['{"user_id": "user 1"}'], ["-1,u,item 1"], r"line 2: .* needs item_id and a query number below 1"),
        (['{"user_id": "user 1"}'], ["0,u,item 1", "one,u,x"], r"line 3: .* needs item_id and a query number"),
        (['{"user_id": "user 1"}'], ["0,u"], r"line 2: .* needs item_id and a query number below 1"),
        (['{"user_id": "user 1"}'] * 3, ["1,u,item 1"], r"has no target for query 0 \(2 of 3 have none\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(bundle, files, requests, targets, message):
    with pytest.raises(DataError, match=message):
        queries_of(bundle, *written(files, requests, targets))


def test_missing_targets_are_named(bundle, files):
    written(files, ['{"user_id": "user 1"}'], [])
    with pytest.raises(DataError, match=r"there is no file .*other.csv; check --targets"):
        queries_of(bundle, files[0], files[1].with_name("other.csv"))


def test_the_text_has_units_intervals_and_the_protocol():
    machine = {"cpu": "abacus", "cores": 3, "isa": ["beads"]}
    metrics = {"p99_ms": 1.25, "memory_mb": 70.0, "load_s": 0.5, "qps": 9.0, "qps_batch": 8, "ndcg@10": 0.1}
    found = Measurement(metrics, {"ndcg@10": (0.09, 0.11)}, {}, {"threads": 2, "rate": None, "machine": machine})
    lines = text(found).splitlines()
    assert lines[0].split() == ["load_s", "0.5000", "s"]
    assert lines[2].split() == ["ndcg@10", "0.1000", "95", "%", "interval", "0.0900", "to", "0.1100"]
    assert [line.split()[2] for line in (lines[1], lines[3], lines[4])] == ["MB", "ms", "1/s"]
    assert lines[5].split() == ["qps_batch", "8"]
    assert lines[5].index("8") + 1 == lines[4].index("9.0000") + len("9.0000"), "in the column of the others"
    assert lines[6:] == ["threads: 2", "machine: abacus, 3 cores, beads"]
