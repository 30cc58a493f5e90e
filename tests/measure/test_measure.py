"""A bundle measured in a fresh process: the numbers are there, are sane, and are those of the engine that serves."""

import json

import numpy as np
import pytest

from recfit import measure
from recfit.engine import open_bundle
from recfit.measure import Plan, quality
from recfit.measure.machine import machine
from recfit.measure.process import Worker
from recfit.types import MeasurementError, Queries, Ragged, Request

PLAN = Plan(requests=1000, blocks=2, warm=20, rate=500.0, throughput_seconds=0.05)
CALLS = []


@pytest.fixture(scope="module")
def found(bundle, split, popularity):
    return measure.measure(bundle, split.validation, popularity, PLAN)


def test_every_metric_is_there_and_sane(found):
    metrics = found.metrics
    assert set(quality.METRICS) <= set(found.users)
    assert 0 < metrics["p50_ms"] <= metrics["p95_ms"] <= metrics["p99_ms"] < 1000
    assert metrics["p50_ms"] * 0.5 < metrics["p50_loaded_ms"] <= metrics["p99_loaded_ms"] < 10_000
    assert 30 < metrics["pss_mb"] <= metrics["memory_mb"] * 1.01 < 500
    assert 0 < metrics["bundle_mb"] < 1
    assert 0.05 < metrics["load_s"] < 60
    assert metrics["qps"] > 10
    assert metrics["qps_batch"] in Plan().batches
    assert (metrics["cache_share"], metrics["fallback_share"]) == (0, 0)
    assert 0 <= metrics["ndcg@5"] <= metrics["ndcg@10"] <= metrics["recall@10"] <= 1


def test_intervals_hold_their_values(found):
    assert {"ndcg@10", "p50_ms", "p95_ms", "p99_ms", "p99_loaded_ms"} <= set(found.intervals)
    for name, (low, high) in found.intervals.items():
        assert low <= found.metrics[name] <= high, name


def test_the_protocol_stands_beside_the_numbers(found, split):
    protocol = found.protocol
    assert (protocol["queries"], protocol["users"]) == (len(split.validation), len(np.unique(split.validation.user)))
    assert "1000 requests" in protocol["latency"]
    assert f"{len(split.validation)} random queries" in protocol["latency"]
    assert "batches of 1, 8, 32" in protocol["throughput"]
    assert (protocol["rate"], protocol["threads"], protocol["runtime"]) == (500.0, 1, "ort")
    assert protocol["machine"] == machine()
    assert protocol["machine"]["cores"] >= 1
    json.dumps(protocol)


def test_the_lists_are_those_of_the_engine(bundle, split, monkeypatch):
    monkeypatch.setattr(measure, "PART", 33)  # several calls, the last one short
    queries = split.validation
    rows, sources = measure.lists(bundle, queries, 10)
    engine, train = open_bundle(bundle), split.train
    requests = [
        Request(train.user_ids[user], tuple(train.item_ids[row] for row in past))
        for user, past in zip(queries.user.tolist(), queries.history, strict=True)
    ]
    expected = [[train.item_ids.index(item) for item in answer.items] for answer in engine.recommend(requests, 10)]
    assert rows.tolist() == expected
    assert sources == {"model": len(queries)}


def test_a_bundle_without_users_is_measured_alike(bundle, userless_bundle, split):
    assert not open_bundle(userless_bundle).bundle.user_ids
    both = [measure.lists(path, split.validation, 10)[0].tolist() for path in (bundle, userless_bundle)]
    assert both[0] == both[1]


def test_shares_of_cache_and_fallback_are_told(cached_bundle, split, popularity):
    known = np.arange(20)
    queries = split.validation.take(known)
    histories = Ragged.from_lists([[] if row < 5 else queries.history[row] for row in known])
    _, extra = measure.users_quality(cached_bundle, Queries(queries.user, histories, queries.targets), popularity)
    assert extra["cache_share"] > 0
    assert extra["cache_share"] + extra["fallback_share"] <= 1
    assert "coverage@10" in extra


def test_what_reaches_the_second_stage_is_told(bundle, two_stage_bundle, split, popularity, monkeypatch):
    monkeypatch.setattr(measure, "PART", 17)
    queries, engine = split.validation, open_bundle(two_stage_bundle)
    found = measure.stage_one(two_stage_bundle, queries)
    train = split.train
    requests = [
        Request(train.user_ids[user], tuple(train.item_ids[row] for row in past))
        for user, past in zip(queries.user.tolist(), queries.history, strict=True)
    ]
    proposed = [engine.candidates(request) for request in requests]
    assert {len(rows) for rows in proposed} == {12}
    hit = [len(np.intersect1d(rows, goal)) / len(goal) for rows, goal in zip(proposed, queries.targets, strict=True)]
    assert found["recall_of_stage_one"] == pytest.approx(np.mean(hit))
    shared = [len(np.intersect1d(rows, engine.exhaustive(r))) / 10 for rows, r in zip(proposed, requests, strict=True)]
    assert found["overlap_with_exact"] == pytest.approx(np.mean(shared))
    assert 0 < found["overlap_with_exact"] < 1
    _, extra = measure.users_quality(two_stage_bundle, queries, popularity)
    assert extra.items() >= found.items()
    assert measure.stage_one(bundle, queries) == {}


def test_an_index_has_an_overlap_and_no_second_stage(indexed_bundle, split):
    found = measure.stage_one(indexed_bundle, split.validation)
    assert set(found) == {"overlap_with_exact"}
    assert found["overlap_with_exact"] > 0.5


def test_bundles_are_started_one_after_another_and_measured_in_turns(bundle, cached_bundle, split, monkeypatch):
    """A load time must not contain another's, and both replay the same requests in the same blocks."""
    CALLS.clear()
    monkeypatch.setattr(measure, "Worker", Spied)
    plan = Plan(requests=40, blocks=2, retakes=0, warm=1, batches=())
    first, second = measure.latency([bundle, cached_bundle], split.validation, plan)
    calls = [call for call in CALLS if call[1] in ("start", "open", "latency")]
    assert calls == [
        ("plain", "start"), ("plain", "open"), ("cached", "start"), ("cached", "open"),
        ("plain", "latency", 0, 20), ("cached", "latency", 0, 20),
        ("plain", "latency", 20, 20), ("cached", "latency", 20, 20),
    ]  # fmt: skip
    assert not {"qps", "qps_batch"} & first["metrics"].keys(), "without batches throughput is not measured"
    assert measure.protocol(bundle, split.validation, plan)["throughput"] is None
    assert first["metrics"]["bundle_mb"] < second["metrics"]["bundle_mb"]
    loaded = [call[2] for call in CALLS if call[1] == "load"]
    assert len(set(loaded)) == 1


def test_batches_come_after_memory_was_read(bundle, split, monkeypatch):
    """They take memory that a server of single requests does not."""
    CALLS.clear()
    monkeypatch.setattr(measure, "Worker", Spied)
    plan = Plan(requests=10, blocks=1, retakes=0, warm=1, batches=(2,), throughput_seconds=0.01)
    [found] = measure.latency([bundle], split.validation, plan)
    assert [call[1] for call in CALLS][-5:] == ["latency", "memory", *["throughput"] * 3]
    assert found["metrics"]["qps_batch"] == 2


class Paced:
    """A worker that answers `rates[batch]`, a rate for each part of the requests, and notes in `asked` what was asked."""

    def __init__(self, name, rates, asked, running=1.0):
        self.name, self.rates, self.asked, self.running = name, rates, asked, running

    def call(self, name, *, batch, part, parts, seconds):
        assert (name, parts, seconds) == ("throughput", 3, pytest.approx(0.5 / 3 / len(self.rates)))
        self.asked.append((self.name, batch, part))
        return {"rate": self.rates[batch][part], "running": self.running}


def test_throughput_is_taken_in_turns():
    asked = []
    rates = {1: [1.0, 1.0, 1.0], 8: [2.0, 2.0, 2.0]}
    measure.throughput([Paced("a", rates, asked), Paced("b", rates, asked)], Plan(batches=(1, 8)))
    assert asked == [
        ("a", 1, 0), ("b", 1, 0), ("a", 8, 0), ("b", 8, 0),
        ("a", 1, 1), ("b", 1, 1), ("a", 8, 1), ("b", 8, 1),
        ("a", 1, 2), ("b", 1, 2), ("a", 8, 2), ("b", 8, 2),
    ]  # fmt: skip


def test_a_request_of_every_length_counts_as_much():
    """A hundred requests in 1 s, a hundred in 2 and a hundred in 5: 300 in 8."""
    [found] = measure.throughput([Paced("a", {4: [100.0, 50.0, 20.0]}, [])], Plan(batches=(4,)))
    assert found == {4: pytest.approx(300 / 8)}


def test_a_disturbed_round_is_taken_again():
    asked = []
    measure.throughput([Paced("a", {4: [1.0, 1.0, 1.0]}, asked, running=0.5)], Plan(batches=(4,), retakes=2))
    assert [part for _, _, part in asked] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_every_bundle_has_its_best_batch_size(bundle, cached_bundle, split, monkeypatch):
    rates = [{1: 30.0, 8: 20.0, 32: 10.0}, {1: 1.0, 8: 3.0, 32: 2.0}]
    monkeypatch.setattr(measure, "throughput", lambda workers, plan: rates)
    plan = Plan(requests=10, blocks=1, retakes=0, warm=1)
    found = measure.latency([bundle, cached_bundle], split.validation, plan)
    best = [(part["metrics"]["qps"], part["metrics"]["qps_batch"]) for part in found]
    assert best == [(30.0, 1), (3.0, 8)]


class Spied(Worker):
    """Notes what it is asked."""

    def __init__(self, bundle):
        CALLS.append((bundle.name, "start"))
        super().__init__(bundle)

    def call(self, name, **arguments):
        values = tuple(arguments.values()) if name in ("latency", "load") else ()
        CALLS.append((self.bundle.name, name, *values))
        return super().call(name, **arguments)


def test_a_random_sample_is_replayed_and_no_more_is_held(split):
    """The first users of a file are not like the others, and what the process holds counts as its memory."""
    queries = split.validation
    sample = measure._replayed(queries, Plan(requests=30))
    assert len(sample) == 30
    assert sample.user.tolist() != queries.user[:30].tolist()
    assert set(sample.user.tolist()) <= set(queries.user.tolist())
    everything = measure._replayed(queries, Plan(requests=1000))
    assert sorted(everything.user.tolist()) == sorted(queries.user.tolist())


def test_a_failing_bundle_leaves_no_process_behind(bundle, split, tmp_path, monkeypatch):
    started = []

    class Listed(Worker):
        def __init__(self, bundle):
            super().__init__(bundle)
            started.append(self._process)

    monkeypatch.setattr(measure, "Worker", Listed)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in bundle.iterdir():
        if file.is_file():
            (broken / file.name).write_bytes(file.read_bytes())
    with pytest.raises(MeasurementError, match=r"open on .*broken failed: BundleError"):
        measure.latency([bundle, broken], split.validation, PLAN)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_a_disturbed_block_is_taken_again_and_the_least_disturbed_take_counts():
    takes = iter([{"spans": [9.0], "running": 0.5}, {"spans": [1.0], "running": 0.9}, {"spans": [5.0], "running": 0.7}])

    class Disturbed:
        def call(self, name, **arguments):
            return next(takes)

    assert measure.block(Disturbed(), 0, Plan(retakes=2))["spans"] == [1.0]


def test_an_undisturbed_block_is_taken_once():
    takes = iter([{"spans": [1.0], "running": 0.999}])

    class Quiet:
        def call(self, name, **arguments):
            return next(takes)

    assert measure.block(Quiet(), 0, Plan(retakes=2))["spans"] == [1.0]
