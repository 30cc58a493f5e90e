"""The measured process: what it holds, and what becomes of its mishaps."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from recfit.measure import save_queries
from recfit.measure.process import Worker
from recfit.measure.worker import SETTLE, Bench
from recfit.types import BundleError, MeasurementError, Recommendation, Request


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
            worker.call("throughput", seconds=60, batch=1)
        with pytest.raises(MeasurementError, match=r"died in memory: exit code -9"):
            worker.call("memory")


def test_a_hanging_worker_is_stopped(bundle, queries):
    with Worker(bundle, timeout=10) as worker:
        worker.open()
        worker.call("load", queries=queries)
        worker._timeout = 0.3
        assert worker.call("throughput", takes=60, seconds=0.5, batch=1) > 0
        with pytest.raises(MeasurementError, match=r"throughput on .*plain took over 0.3 s; the process was stopped"):
            worker.call("throughput", seconds=60, batch=1)
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
    """Answers after a fixed time."""

    def __init__(self, seconds):
        self.seconds, self.answered = seconds, 0

    def recommend(self, requests, k=10):
        time.sleep(self.seconds)
        self.answered += len(requests)
        return [Recommendation((), (), "model") for _ in requests]


def bench(seconds):
    found = Bench()
    found.engine, found.requests = SlowEngine(seconds), [Request("a"), Request("b"), Request("c")]
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
    rate = found.throughput(seconds=0.1, batch=2)
    assert 20 < rate < 200
    assert found.engine.answered == pytest.approx(rate * 0.1, rel=0.5)
