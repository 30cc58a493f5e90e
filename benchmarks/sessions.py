"""Sessions replayed: the original of a study with and without what it worked out for the events before.

    python -m benchmarks.sessions benchmarks/seeds/small/settings.toml

Each of `--users` users asks `--steps` times, each time with an event more, up to the history of the user's test request;
`--crowd` of them at a time take turns at random. Three engines answer every request one after the other, in turn first: a
bundle without sessions, one made for them which keeps none, and the same one with `--mb` of them. Beside the times stand how
many lists the last two have in common, and NDCG@10 of both bundles on the test requests. The result is dated JSON.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.record import save

from recfit import config, measure
from recfit import pipeline as pipelines
from recfit.engine import Engine, open_bundle
from recfit.measure.statistics import paired
from recfit.search.bench import Bench, prepare
from recfit.search.build import Job, build
from recfit.search.isolate import PATIENCE, isolated
from recfit.search.original import claim, make_original
from recfit.types import FloatArray, Request

SHORTEST = 20
METRIC = "ndcg@10"


def bundles(bench: Bench, folder: Path) -> list[Path]:
    """The original without sessions, and made for them."""
    limits = {"memory_gb": bench.settings.search.memory_gb, "seconds": PATIENCE}
    claim(bench)
    if not pipelines.saved(bench.workshop.original):
        isolated(make_original, bench.settings, bench.workshop, **limits)
    found = [folder / "plain", folder / "sessions"]
    for path, made_for_them in zip(found, (False, True), strict=True):
        workshop = replace(bench.workshop, sessions=made_for_them)
        isolated(build, workshop, Job([], path, final=True), **limits)
    return found


def sessions(bench: Bench, users: int, steps: int) -> list[list[Request]]:
    """The requests of each user, in the order they come."""
    ids, histories = bench.split.train.item_ids, bench.split.test.history
    long = [past for past in histories if len(past) >= SHORTEST + steps]
    chosen = np.random.default_rng(0).permutation(len(long))[:users]
    paths = [tuple(ids[row] for row in long[at].tolist()) for at in chosen]
    return [[Request(history=path[:size]) for size in range(len(path) - steps + 1, len(path) + 1)] for path in paths]


def replayed(found: Sequence[Sequence[Request]], crowd: int) -> Iterator[Request]:
    """The requests of all, `crowd` of them at a time taking turns at random."""
    draws = np.random.default_rng(1)
    waiting = [iter(session) for session in found]
    active = [waiting.pop() for _ in range(min(crowd, len(waiting)))]
    while active:
        at = int(draws.integers(len(active)))
        if (request := next(active[at], None)) is not None:
            yield request
        elif waiting:
            active[at] = waiting.pop()
        else:
            active.pop(at)


def timed(engines: Mapping[str, Engine], requests: Sequence[Request]) -> dict[str, Any]:
    """Milliseconds of all for every request, how many lists of the last two are the same, how often the last went on."""
    spans: dict[str, list[float]] = {name: [] for name in engines}
    order, [kept] = [*engines], engines["kept"].sessions
    lists, known = dict[str, tuple[str, ...]](), []
    same = 0
    for request in requests:
        order.append(order.pop(0))
        hits = kept.hits
        for name in order:
            begin = time.perf_counter()
            lists[name] = engines[name].recommend([request])[0].items
            spans[name].append((time.perf_counter() - begin) * 1e3)
        same += lists["anew"] == lists["kept"]
        known.append(kept.hits > hits)
    went_on = np.array(known)
    parts = {"all": went_on | True, "went on": went_on, "others": ~went_on}
    return {
        "requests": len(requests),
        "events": float(np.mean([len(request.history or ()) for request in requests])),
        "same_lists": same / len(requests),
        "went_on": float(went_on.mean()),
        "kept_mb": kept.bytes / 2**20,
        "ms": {part: {name: _percentiles(np.array(spans[name])[at]) for name in spans} for part, at in parts.items()},
    }


def _percentiles(spans: FloatArray) -> dict[str, float]:
    parts = {f"p{part}": float(np.percentile(spans, part)) for part in (50, 99) if len(spans)}
    return {"mean": float(spans.mean()), **parts} if len(spans) else {}


def quality(bench: Bench, paths: Sequence[Path]) -> dict[str, Any]:
    """NDCG@10 of both bundles, and the paired interval of the difference."""
    found = [measure.users_quality(path, bench.split.test, bench.popularity, [METRIC])[0][METRIC] for path in paths]
    gap = paired(found[1], found[0])
    return {"plain": found[0].mean(), "made for sessions": found[1].mean(), "difference": [gap.low, gap.high]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "settings", type=Path, help="recfit.toml of a study; its original is trained where it is missing"
    )
    parser.add_argument("--data", help="read these events instead of [data] source")
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--crowd", type=int, default=64)
    parser.add_argument("--mb", type=float, default=256.0)
    given = parser.parse_args()
    settings = config.load(given.settings)
    if given.data:
        settings = replace(settings, data=replace(settings.data, source=given.data))
    bench = prepare(settings)
    with tempfile.TemporaryDirectory() as folder:
        paths = bundles(bench, Path(folder))
        plain, made = paths
        engines = {"plain": open_bundle(plain), "anew": open_bundle(made), "kept": open_bundle(made)}
        engines["kept"].keep_sessions(given.mb)
        for engine in engines.values():
            engine.warm_up()
        requests = [*replayed(sessions(bench, given.users, given.steps), given.crowd)]
        found = {**timed(engines, requests), METRIC: quality(bench, paths)}
    for name, value in found.items():
        print(f"{name}: {value}")
    about = {"model": settings.model.options, "crowd": given.crowd, "steps": given.steps, "session_mb": given.mb}
    print(save("sessions", given.settings.parent.name, {**about, **found}))


if __name__ == "__main__":
    main()
