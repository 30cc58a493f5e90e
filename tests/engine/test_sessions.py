"""A session goes on from what was worked out before, and nobody can tell from the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toys
from recfit.engine import Engine, open_bundle
from recfit.models import Model
from recfit.pipeline import Pipeline, RuntimePlan, Stage
from recfit.targets import export_bundle
from recfit.types import Recommendation, Request, Unsupported

Exported = Callable[[Pipeline], Path]
LONGEST = 40
SIZES = {"layers": 3, "embedding_dim": 16, "heads": 2, "ffn": 24, "max_history": LONGEST}


@cache
def model(**options: Any) -> Model:
    """Far from its first weights, which tell distances nothing."""
    made: Any = toys.untrained("sasrec", {**SIZES, **options})
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    found: Model = made
    return found


def going_on(runtime: str = "ort", graph: str = "float32") -> Pipeline:
    return Pipeline(Stage(model(), graph), runtime=RuntimePlan(runtime, sessions=True))


def two_stages() -> Pipeline:
    return replace(going_on(), retrieve=toys.original("als").retrieve, rank=Stage(model()), candidates=30)


def shaped(**options: Any) -> Pipeline:
    return Pipeline(Stage(model(**options), table="int8"), runtime=RuntimePlan("fused", sessions=True))


PIPELINES = {
    "ort": going_on(),
    "fused": going_on("fused"),
    "static int8": going_on(graph="int8_static"),
    "two stages": two_stages(),
    "one layer, int8 items": shaped(layers=1),
    "narrow items": shaped(table_dim=6),
    "uneven layers": shaped(heads=(1, 2, 3), ffn=(24, 5, 16)),
    "codes": shaped(parts=4, codes=16),
}


@pytest.fixture(params=PIPELINES)
def both(request: pytest.FixtureRequest, exported: Exported) -> tuple[Engine, Engine]:
    """The engine with sessions and the one without, of the same bundle."""
    path = exported(PIPELINES[request.param])
    with_sessions = open_bundle(path)
    with_sessions.keep_sessions(1.0)
    return with_sessions, open_bundle(path)


def asking(events: Sequence[int]) -> Request:
    return Request(history=tuple(toys.around().item_ids[row] for row in events))


def assert_same(answers: Sequence[Recommendation], others: Sequence[Recommendation]) -> None:
    for answer, other in zip(answers, others, strict=True):
        assert answer.items == other.items
        np.testing.assert_allclose(answer.scores, other.scores, rtol=1e-4, atol=1e-4)


def test_a_session_event_by_event(both: tuple[Engine, Engine]) -> None:
    engine, plain = both
    events = np.random.default_rng(0).integers(0, toys.N_ITEMS, LONGEST + 6)
    for size in range(1, len(events) + 1):
        request = asking(events[:size])
        assert_same(engine.recommend([request]), plain.recommend([request]))
    [kept], [other] = engine.sessions, plain.sessions
    assert (
        kept.hits == LONGEST - 16 + 3
    )  # from the first that is kept on; beyond, two events leave with every second one
    assert other.hits == other.bytes == 0 < kept.bytes


def test_a_long_history_is_read_from_an_event_that_stays(exported: Exported) -> None:
    """40 events are read in strides of 2: of 41 the newest 39, of 42 all 40 that are left of the same start."""
    engine, plain = open_bundle(exported(going_on())), open_bundle(exported(Pipeline(Stage(model()))))
    events = [at * 7 % toys.N_ITEMS for at in range(42)]
    for size, read in ((40, 40), (41, 39), (42, 40)):
        assert_same(engine.recommend([asking(events[:size])], 3), plain.recommend([read_only(events[:size], read)], 3))


def read_only(events: Sequence[int], newest: int) -> Request:
    """A request that reads no more than these, and shows none of the others."""
    ids = [toys.around().item_ids[row] for row in events]
    return Request(history=tuple(ids[-newest:]), exclude=tuple(ids[:-newest]))


def test_many_sessions_in_batches_of_all_kinds(both: tuple[Engine, Engine]) -> None:
    """Each batch draws from eight sessions, some twice, that go on by nothing up to twelve events; some start anew."""
    engine, plain = both
    draws = np.random.default_rng(1)
    paths = [draws.integers(0, toys.N_ITEMS, LONGEST + 30) for _ in range(8)]
    sizes = draws.integers(1, 30, 8)
    for _ in range(40):
        chosen = draws.integers(0, 8, draws.integers(1, 7))
        requests = [asking(paths[at][: sizes[at]]) for at in chosen]
        assert_same(engine.recommend(requests), plain.recommend(requests))
        sizes += draws.integers(0, 13, 8) * (draws.random(8) < 0.4)
        sizes = np.where(sizes > LONGEST + 10, draws.integers(1, 30, 8), sizes)
    [kept] = engine.sessions
    assert kept.hits > 30
    assert kept.misses > 30


def test_the_same_request_again_and_one_with_less(both: tuple[Engine, Engine]) -> None:
    engine, plain = both
    events = np.random.default_rng(2).integers(0, toys.N_ITEMS, 30)
    for size in (30, 30, 29, 30, 20, 30):
        assert_same(engine.recommend([asking(events[:size])]), plain.recommend([asking(events[:size])]))


def test_other_questions_about_a_session(both: tuple[Engine, Engine]) -> None:
    engine, plain = both
    request, items = asking([*range(20)]), toys.around().item_ids[25:30]
    engine.recommend([request])
    np.testing.assert_allclose(engine.score(request, items), plain.score(request, items), rtol=1e-4, atol=1e-4)
    named = replace(request, candidates=items)
    assert_same(engine.recommend([named]), plain.recommend([named]))


def test_sessions_keep_to_their_memory(exported: Exported) -> None:
    engine = open_bundle(exported(going_on()))
    engine.keep_sessions(0.2)
    [kept] = engine.sessions
    draws = np.random.default_rng(3)
    for _ in range(100):
        engine.recommend([asking(draws.integers(0, toys.N_ITEMS, draws.integers(20, LONGEST)))])
        assert kept.bytes <= 0.2 * 2**20
    assert kept.bytes > 0.16 * 2**20
    engine.keep_sessions(0.05)
    assert 0 < kept.bytes <= 0.05 * 2**20
    engine.keep_sessions(0)
    assert kept.bytes == 0


def test_what_is_larger_than_all_memory_drives_nobody_out(exported: Exported) -> None:
    engine = open_bundle(exported(going_on()))
    engine.keep_sessions(1.0)
    [kept] = engine.sessions
    engine.recommend([asking([1] * 17)])
    kept.limit(small := kept.bytes)
    engine.recommend([asking(range(LONGEST))])
    assert kept.bytes == small
    engine.recommend([asking([1] * 17)])
    assert kept.hits == 1


def test_the_least_recently_used_leaves(exported: Exported) -> None:
    engine = open_bundle(exported(going_on()))
    [kept] = engine.sessions
    draws = np.random.default_rng(4)
    first, *others = (asking(draws.integers(0, toys.N_ITEMS, 20)) for _ in range(8))
    engine.keep_sessions(1.0)
    engine.recommend([first])
    kept.limit(3 * kept.bytes)
    for other in others:
        engine.recommend([first])
        engine.recommend([other])
    assert kept.hits == len(others)
    engine.recommend([others[0]])
    assert kept.hits == len(others)


def test_threads_that_ask_for_the_same_sessions(both: tuple[Engine, Engine]) -> None:
    engine, plain = both
    events = np.random.default_rng(5).integers(0, toys.N_ITEMS, (4, LONGEST))
    requests = [asking(events[at % 4, : 16 + at // 8]) for at in range(190)]
    with ThreadPoolExecutor(4) as pool:
        answers = [*pool.map(lambda request: engine.recommend([request])[0], requests)]
    assert_same(answers, [plain.recommend([request])[0] for request in requests])


@pytest.mark.parametrize(
    ("stage", "runtime"),
    [
        (Stage(model(window=5)), "ort"),
        (Stage(model(), "int8"), "ort"),
        (toys.original("mlp").retrieve, "fused"),
        (Stage(model()), "numpy"),
        (Stage(model()), "torch"),
    ],
    ids=["a window", "one scale for all positions", "no causal encoder", "NumPy", "PyTorch"],
)
def test_what_cannot_go_on_keeps_none(stage: Stage, runtime: str, exported: Exported) -> None:
    engine = open_bundle(exported(Pipeline(stage, runtime=RuntimePlan(runtime, sessions=True))))
    engine.keep_sessions(1.0)
    assert not engine.sessions
    assert len(engine.recommend([asking(range(20))])[0].items) == 10


def test_a_bundle_with_sessions_is_for_servers(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"again with \[serve\] session_mb = 0"):
        export_bundle(exported(going_on()), "web", tmp_path / "web")
