"""What a cache answers, how old that is, what it costs in quality and saves in time. Results are dated JSON and a plot.

    python -m benchmarks.cache examples/demo.toml
    python -m benchmarks.cache recfit.toml --log requests.jsonl

Hit rates are replayed in time order, from `--log` (JSON lines with `timestamp`, `user_id`, and `history` where it was
sent) or from the interactions' own times, each event a request just before it. Quality and latency are measured: bundles
of the study's original whose lists were computed from older histories answer the test requests, beside the original
without a cache. The model is the same throughout; the interval is of the paired difference.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.plots import BLUE, BROWN, Dot, scatter
from benchmarks.record import save

from recfit import measure
from recfit import pipeline as pipelines
from recfit.export import export, surroundings
from recfit.measure import quality
from recfit.measure.replay import Log, own_log, replay
from recfit.measure.statistics import paired
from recfit.pipeline import CachePlan, Pipeline
from recfit.search.bench import Bench, prepare
from recfit.search.isolate import PATIENCE, isolated
from recfit.search.original import make_original
from recfit.states import state_of
from recfit.types import DataError, IntArray, Interactions, Queries, Ragged

METRIC = "ndcg@10"
REFRESH = {"10 min": 600.0, "1 h": 3600.0, "1 day": 86_400.0, "7 days": 604_800.0}
EVENTS = (1, 2, 5, 10)
USER, STATE = CachePlan(1.0), CachePlan(1.0, key="state")
STATES = (replace(STATE, share=0.1), STATE, replace(STATE, share=0.1, depth=2))
Past = Callable[[Queries], Ragged]


def named(plan: CachePlan) -> str:
    """`user 100 %`, `state of 2 10 %`."""
    return f"{plan.key if plan.key == 'user' else f'state of {plan.depth}'} {plan.share:.0%}"


def has_times(known: Interactions) -> bool:
    """Whether events of different users share a clock."""
    return np.count_nonzero(np.diff(known.user)) + 1 > known.n_users


# Hit rates, replayed


def logged(path: Path, known: Interactions, depth: int) -> Log:
    """The requests of a log; one that sent no history has what the user had done by then."""
    rows = {id: row for row, id in enumerate(known.user_ids)}
    items = {id: row for row, id in enumerate(known.item_ids)}
    histories, times = known.histories(), own_times(known)
    found = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = json.loads(text)
        if "timestamp" not in line:
            raise DataError(f"{path}, line {number} has no timestamp (seconds); a replay needs one a request")
        user, time = rows.get(str(line.get("user_id")), -1), float(line["timestamp"])
        past = histories[user][: bisect_left(times[user], time)] if user >= 0 else histories.values[:0]
        if "history" in line:
            past = np.array([items[str(id)] for id in line["history"] if str(id) in items], np.int32)
        found.append((time, user if not depth else state_of(past, depth, known.n_items) or -1))
    found.sort(key=lambda pair: pair[0])
    return Log(np.array([time for time, _ in found]), np.array([key for _, key in found], np.int64))


def own_times(known: Interactions) -> list[Any]:
    """The times of every user's events, in their order."""
    order = np.argsort(known.user, kind="stable")
    return np.split(known.timestamp[order], known.histories().indptr[1:-1])


def rates(known: Interactions, log: Path | None) -> Iterator[dict[str, Any]]:
    """One row for every cache and refresh: how often it answers, and how old its answers are."""
    for plan in (replace(USER, share=0.5), USER, *STATES):
        depth = plan.depth if plan.key == "state" else 0
        asked, events = own_log(known, depth)
        asked = logged(log, known, depth) if log else asked
        for text, refresh in REFRESH.items():
            found = replay(asked, events, share=plan.share, refresh=refresh)
            ages, behind = ((values[found.hit] if found.hit.any() else [0]) for values in (found.age, found.behind))
            yield {
                "cache": named(plan),
                "refresh": text,
                "hit %": 100 * found.rate,
                "age p50 min": float(np.median(ages)) / 60,
                "age p90 min": float(np.quantile(ages, 0.9)) / 60,
                "events behind p50": float(np.median(behind)),
                "events behind p90": float(np.quantile(behind, 0.9)),
            }


# Quality and latency, measured


@dataclass(frozen=True)
class Case:
    """A cache, and the histories that its lists are computed from (of every request's own user, where `past` says which)."""

    plan: CachePlan | None = None
    lists: str = ""
    past: Past | None = None

    @property
    def name(self) -> str:
        return "no cache" if self.plan is None else named(self.plan)


def cases(known: Interactions) -> list[Case]:
    """No cache first; users' lists that are some events, or up to a refresh, behind; and lists of states."""
    behind = [Case(USER, f"{count} event{'s' * (count > 1)} behind", ending(count)) for count in EVENTS]
    aged = [Case(USER, f"every {text}", refreshed(known, seconds)) for text, seconds in REFRESH.items()]
    return [
        Case(),
        *behind,
        *(aged if has_times(known) else []),
        *(Case(plan, "of the state alone") for plan in STATES),
    ]


def ending(count: int) -> Past:
    """Histories without their newest `count` events."""
    return lambda queries: Ragged.from_lists([part[:-count] for part in queries.history])


def refreshed(known: Interactions, seconds: float) -> Past:
    """Histories as they were when all lists were last computed, every `seconds` since the first event."""
    times, start = own_times(known), known.timestamp[0]

    def past(queries: Queries) -> Ragged:
        parts = []
        for user, history in zip(queries.user.tolist(), queries.history, strict=True):
            now = times[user][len(history)]
            made = start + (now - start) // seconds * seconds
            parts.append(history[: bisect_left(times[user], made)])
        return Ragged.from_lists(parts)

    return past


def turns(queries: Queries) -> list[IntArray]:
    """Positions of the first query of every user, of the second, ...: a bundle knows one history of a user."""
    order = np.argsort(queries.user, kind="stable")
    starts = np.flatnonzero(np.diff(queries.user[order], prepend=-1))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return [np.flatnonzero(place == turn) for turn in range(place.max() + 1)]


def answered(case: Case, bench: Bench, original: Pipeline, folder: Path) -> tuple[IntArray, float, Path]:
    """What bundles of `case` recommend for the test requests, the share that a cache answered, and one of the bundles."""
    queries = bench.split.test
    lists, hits = np.full((len(queries), measure.LIST_LENGTH), -1, np.int64), 0
    for number, rows in enumerate(turns(queries) if case.past else [np.arange(len(queries))]):
        part = queries.take(rows)
        around = surroundings(bench.split, _histories(case, bench, part))
        path = folder if not number else folder.with_name(f"{folder.name}-next")
        export(replace(original, cache=case.plan), around, path, name=case.name, recipe={})
        lists[rows], sources = measure.lists(path, part)
        hits += sources.get("cache", 0)
    return lists, hits / len(queries), folder


def _histories(case: Case, bench: Bench, queries: Queries) -> Ragged:
    if case.past is None:
        return bench.split.train.histories()
    parts: list[Any] = [[]] * bench.split.n_users
    for user, past in zip(queries.user.tolist(), case.past(queries), strict=True):
        parts[user] = past
    return Ragged.from_lists(parts)


def measured(bench: Bench, folder: Path) -> list[dict[str, Any]]:
    """One row a case; the first, without a cache, is what the others are held against."""
    queries, original = bench.split.test, pipelines.load(bench.workshop.original)
    wanted = cases(bench.interactions)
    found = [answered(case, bench, original, folder / f"{at}") for at, case in enumerate(wanted)]
    costs = measure.latency([path for *_, path in found], queries.take(turns(queries)[0]), bench.plan)
    rows, base = [], None
    for case, (lists, hits, _), cost in zip(wanted, found, costs, strict=True):
        values = quality.by_user(quality.per_query(lists, queries.targets, [METRIC]), queries.user)[METRIC]
        base = (values, cost["metrics"]) if base is None else base
        gap, old = paired(values, base[0]), float(np.mean(base[0]))
        metrics = cost["metrics"]
        rows.append(
            {
                "cache": case.name,
                "lists": case.lists,
                "hit %": 100 * hits,
                "kept %": 100 * float(np.mean(values)) / old,
                "+-": 100 * gap.half / old,
                "difference": asdict(gap),
                **{f"{name} x": base[1][f"{name}_ms"] / metrics[f"{name}_ms"] for name in ("p50", "p99")},
                "bundle_mb": metrics["bundle_mb"],
                **{name: metrics[name] for name in ("p50_ms", "p99_ms", "memory_mb", "disturbed")},
            }
        )
    return rows


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as a table."""
    columns = [name for name, value in rows[0].items() if not isinstance(value, dict)]
    yield " ".join(f"{name:>18}" for name in columns)
    for row in rows:
        yield " ".join(f"{row[name]:18.2f}" if isinstance(row[name], float) else f"{row[name]:>18}" for name in columns)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Hit rate against the quality that is kept with its interval; the dot is larger where p50 is lower."""
    dots = [
        Dot(
            x=row["hit %"],
            y=row["kept %"],
            error=row["+-"],
            name=f"{row['cache']}, {row['lists']}",
            size=min(4, row["p50 x"]),
            colour=BROWN if row["cache"].startswith("state") else BLUE,
        )
        for row in rows
    ]
    about = "blue: by user; brown: by state; larger: lower p50"
    return scatter(dots, path, x="requests answered from the cache, %", y="NDCG@10 kept, %", title=about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="recfit.toml of a study; a missing original is trained")
    parser.add_argument("--log", type=Path, help="requests to replay, as JSON lines")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = prepare(given.settings)
    known = bench.interactions
    replayed = list(rates(known, given.log)) if given.log or has_times(known) else []
    print(*(lines(replayed) if replayed else ["no times: no replay"]), sep="\n", flush=True)
    if not pipelines.saved(bench.workshop.original):
        limits = {"memory_gb": bench.settings.search.memory_gb, "seconds": PATIENCE}
        isolated(make_original, bench.settings, bench.workshop, **limits)
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(bench, Path(folder))
    found = {
        "data": known.name,
        "log": given.log.name if given.log else "the interactions' own times",
        "protocol": f"{bench.split.protocol}, test split, full ranking, seen items removed",
        "users": len(np.unique(bench.split.test.user)),
        "targets": bench.split.target_hash,
        "replayed": replayed,
        "rows": rows,
    }
    path = save("cache", known.name, found)
    plot(rows, path.with_suffix(".svg"))
    print(*lines(rows), path, sep="\n")


if __name__ == "__main__":
    main()
