"""The measured process: what it holds, and what becomes of its mishaps."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from recfit.measure import save_queries
from recfit.measure.process import Worker
from recfit.measure.worker import SETTLE, Bench, batches_of
from recfit.types import BundleError, MeasurementError, Recommendation, Request

ALONE = {"batch": 1, "part": 0, "parts": 1}


def test_it_serves_without_torch_and_prints_nothing_that_breaks_the_protocol(bundle):
    with Worker(bundle) as worker:
        assert 0 < worker.open() < 60
        modules = worker.call("modules")
    assert "onnxruntime" in modules
    assert not {"torch", "onnx", "sklearn", "pyarrow", "implicit"} & set(modules)


def test_load_time_counts_from_the_start_of_the_process(bundle):
    begin = time.monotonic()
    with Worker(bundle) as worker:
        time.sleep(0.3)
        seconds = worker.open()
    assert 0.3 < seconds < time.monotonic() - begin


def test_an_exception_names_the_call_and_the_bundle_and_the_worker_goes_on(bundle):
    with Worker(bundle) as worker:
        worker.open()
        with pytest.raises(MeasurementError, match=r"load on .*plain failed: FileNotFoundError: .*nowhere.npz"):
            worker.call("load", queries="nowhere.npz")
        assert worker.call("memory")["peak_rss"] > 20


def test_a_killed_worker_is_a_sentence(bundle, queries):
    with Worker(bundle) as worker:
        worker.open()
        worker.call("load", queries=queries)
        threading.Timer(0.2, os.kill, (worker._process.pid, signal.SIGKILL)).start()
        with pytest.raises(MeasurementError, match=r"the process measuring .*plain died in throughput: exit code -9"):
            worker.call("throughput", seconds=60, **ALONE)
        with pytest.raises(MeasurementError, match=r"died in memory: exit code -9"):
            worker.call("memory")


def test_a_hanging_worker_is_stopped(bundle, queries):
    with Worker(bundle, timeout=10) as worker:
        worker.open()
        worker.call("load", queries=queries)
        worker._timeout = 0.3
        assert worker.call("throughput", takes=60, seconds=0.5, **ALONE)["rate"] > 0
        with pytest.raises(MeasurementError, match=r"throughput on .*plain took over 0.3 s; the process was stopped"):
            worker.call("throughput", seconds=60, **ALONE)
        assert worker._process.poll() == -signal.SIGKILL
        with pytest.raises(MeasurementError, match=r"died in memory: it was stopped before"):
            worker.call("memory")


@pytest.fixture(scope="module")
def queries(split, tmp_path_factory):
    return str(save_queries(split.validation, tmp_path_factory.mktemp("queries") / "queries.npz"))


def test_what_is_no_bundle_starts_no_process(tmp_path):
    with pytest.raises(BundleError, match=r"is not a bundle"):
        Worker(tmp_path)


class SlowEngine:
    """Answers after a fixed time, and the first time after `first` more seconds."""

    def __init__(self, seconds, first=0.0):
        self.seconds, self.first, self.answered, self.batches = seconds, first, 0, []

    def recommend(self, requests, k=10):
        time.sleep(self.seconds + (0.0 if self.batches else self.first))
        self.answered += len(requests)
        self.batches.append(requests)
        return [Recommendation((), (), "model") for _ in requests]


def bench(seconds, first=0.0):
    found = Bench()
    found.engine, found.requests = SlowEngine(seconds, first), [Request("a"), Request("b"), Request("c")]
    return found


def test_latency_is_the_time_of_each_request():
    found = bench(0.005)
    spans = found.latency(start=2, count=10)["spans"]
    assert len(spans) == 10
    assert 5 <= min(spans) < 15
    assert found.engine.answered == 10 + SETTLE, "a block's first requests find cold caches, and are not timed"


def test_under_load_waiting_counts_from_the_scheduled_arrival():
    """At a fifth of what the engine can do requests rarely wait; at four times that the queue grows without end."""
    light = bench(0.002).under_load(rate=100, count=100, seed=0)
    heavy = bench(0.002).under_load(rate=2000, count=100, seed=0)
    assert len(light) == len(heavy) == 100
    assert min(light) >= 2
    assert np.median(heavy[-10:]) > 10 * np.median(heavy[:3])
    assert np.median(heavy) > 5 * np.median(light)
    # 100 services of 2 ms against arrivals that are over after about 50 ms.
    assert 100 < heavy[-1] < 2000


def test_throughput_counts_requests_not_batches():
    found = bench(0.01)
    taken = found.throughput(seconds=0.1, batch=2, part=0, parts=1)
    assert 20 < taken["rate"] < 200
    assert found.engine.answered == pytest.approx(taken["rate"] * 0.1, rel=0.5)
    assert taken["running"] < 0.9, "it slept, which looks as if others had the processor"


def test_a_slow_bundle_answers_one_batch_that_is_timed():
    """A round's first is answered once before: what a first answer takes in addition is not of the rate."""
    found = bench(0.01, first=1.0)
    taken = found.throughput(seconds=0.001, batch=2, part=0, parts=1)
    first, timed = found.engine.batches
    assert first == timed
    assert taken["rate"] > 2


def test_warming_up_is_one_request_at_a_time():
    found = bench(0)
    found.warm(count=4)
    assert [[request.user_id for request in batch] for batch in found.engine.batches] == [["a"], ["b"], ["c"], ["a"]]


def lengths(count, batch, part, parts):
    """How long the histories of the batches are, for requests with 0 to `count - 1` events in no order."""
    mixed = [Request(history=("i",) * size) for size in np.random.default_rng(0).permutation(count).tolist()]
    return [[len(request.history) for request in found] for found in batches_of(mixed, batch, part, parts)]


def test_a_batch_has_requests_of_similar_length_and_the_middle_comes_first():
    assert lengths(30, 4, part=1, parts=3) == [[14, 15, 16, 17], [10, 11, 12, 13], [18, 19]]
    assert lengths(30, 2, part=0, parts=3) == [[4, 5], [2, 3], [6, 7], [0, 1], [8, 9]]
    assert lengths(30, 32, part=2, parts=3) == [[20, 21, 22, 23, 24, 25, 26, 27, 28, 29]]


@pytest.mark.parametrize("count", [1, 2, 3, 32, 100])
def test_all_parts_together_are_all_requests(count):
    found = [size for part in range(3) for batch in lengths(count, 8, part, 3) for size in batch]
    assert set(found) == set(range(count))
    assert count < 3 or len(found) == count


def test_requests_without_a_history_are_the_shortest():
    known, unknown = Request(history=("i",)), Request("somebody")
    assert batches_of([known, unknown], 2, 0, 1) == [[unknown, known]]
