"""How close a search of few candidates comes to measuring every chain, and how fast a finished study answers new budgets.

    python -m benchmarks.search examples/demo.toml benchmarks/spaces/small.toml runs/reference-small --candidates 32
    python -m benchmarks.search examples/demo.toml benchmarks/spaces/full.toml runs/reference-full

First every chain of the space is measured, once, into the study of the given folder (run it again to continue). Then the
search runs with the recorded measurements in the place of new ones: what it proposes is looked up. Compared is the
hypervolume of quality x p99 x memory, as shares of the original's, between every measured candidate and the point of half
the quality, the original's p99 and its memory; random orders of the same chains are the control.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.record import save

from recfit import measure
from recfit import pipeline as pipelines
from recfit.measure import Plan
from recfit.search.bench import Bench, prepare
from recfit.search.budget import Budget
from recfit.search.build import Job, build
from recfit.search.evaluate import core_hours
from recfit.search.isolate import PATIENCE, isolated
from recfit.search.original import identity, make_original
from recfit.search.propose import applies, exclude, proposals
from recfit.search.recipe import Recipe
from recfit.search.select import choose, hypervolume
from recfit.search.study import Candidate, Study
from recfit.selecting import reselect
from recfit.techniques import Context, make
from recfit.types import RecfitError

METRIC = "ndcg@10"
PLAN = Plan(requests=400, blocks=8, retakes=1, warm=30, throughput_seconds=0.1)
REFERENCE = np.array([-0.5, 1.0, 1.0])  # half the quality, all of the p99 and of the memory
BUDGETS = (
    Budget.of(objective="latency"),
    Budget.of({METRIC: "95%"}, objective="latency"),
    Budget.of({METRIC: "90%", "p99_ms": "0.5x"}, objective="quality"),
    Budget.of({METRIC: "90%", "p99_ms": "0.5x"}, objective="memory"),
    Budget.of({"memory_mb": "0.7x"}, objective="quality"),
)
NEW_BUDGETS, RANDOM_ORDERS = 40, 50


def singles(path: Path) -> list[Recipe]:
    """The steps of a space, each alone."""
    listed = tomllib.loads(path.read_text(encoding="utf-8"))["step"]
    return [Recipe((make(name, settings),)) for step in listed for name, settings in step.items()]


def chains(first: Sequence[Recipe]) -> list[Recipe]:
    """Every chain of these steps that a search could propose, the original (no steps) first."""
    found = [Recipe()]
    for recipe in first:
        [step] = recipe.steps
        found += [chain.then(step) for chain in found if not any(exclude(step, done) for done in chain.steps)]
    return sorted(found, key=lambda recipe: len(recipe.steps))


# The reference: every chain, measured once


def recorded(bench: Bench, context: Context, wanted: Sequence[Recipe], folder: Path) -> Study:
    """The study of every chain that can be built; those it knows are not measured again."""
    study = Study(folder)
    study.begin({"data": {"name": bench.interactions.name}}, identity(bench.settings, bench.split))
    users, firsts = np.unique(bench.split.validation.user, return_index=True)
    queries = bench.split.validation.take(firsts)
    print(f"{len(wanted)} chains, {len(users)} users with a request each", flush=True)
    for count, recipe in enumerate(wanted, 1):
        if recipe.id in study.candidates or not applies(recipe, context):
            continue
        begin, bundle = time.monotonic(), folder / "bundle"
        try:
            build(bench.workshop, Job(recipe.to_json(), bundle))
            found = measure.measure(bundle, queries, bench.popularity, PLAN)
        except RecfitError as error:
            study.add(Candidate(recipe.id, recipe.name, recipe.to_json(), "failed", "build", str(error)))
            continue
        metrics = {**found.metrics, "core_hours_per_million": core_hours(found)}
        values = {"metrics": metrics, "intervals": found.intervals, "protocol": found.protocol}
        seconds = {"measure": round(time.monotonic() - begin, 2)}
        row = Candidate(recipe.id, recipe.name, recipe.to_json(), "done", "full", seconds=seconds, **values)
        study.add(row, found.users)
        if count % 20 == 0:
            print(f"{count}/{len(wanted)}: {recipe.name}, {seconds['measure']} s", flush=True)
    study.note(original=Recipe().id, eager=Recipe().id)
    return study


# The search, over recorded measurements


@dataclass(frozen=True)
class Space:
    """What is known of a space: its steps, every chain's record, and losses as shares of the original's."""

    first: Sequence[Recipe]
    reference: Study
    context: Context

    def volume(self, found: Sequence[Candidate]) -> float:
        """The hypervolume of candidates that were measured in full."""
        base = self.reference.candidates[Recipe().id].metrics
        signs = {METRIC: -1.0, "p99_ms": 1.0, "memory_mb": 1.0}
        done = [one for one in found if one.status == "done"]
        loss = [[sign * one.metrics[name] / base[name] for name, sign in signs.items()] for one in done]
        return hypervolume(np.array(loss), REFERENCE)


def searched(space: Space, budget: Budget, most: int, folder: Path) -> Study:
    """The study of a search for `budget` that ends after `most` candidates."""
    study, original = Study(folder), space.reference.candidates[Recipe().id]
    study.add(original, space.reference.measured(original).users)
    limits = {limit.metric: f"{limit.bound}x" if limit.relative else limit.bound for limit in budget.limits}
    study.note(original=original.id, eager=original.id, budget={"limits": limits, "objective": budget.objective})

    def spent() -> float:
        return (len(study.candidates) - 1) / most

    for proposal in proposals(study, budget, space.context, space.first, spent):
        if spent() >= 1:
            break
        found = space.reference.candidates[proposal.recipe.id]
        study.add(found, space.reference.measured(found).users if found.status == "done" else None)
    return study


def random_volumes(space: Space, counts: Sequence[int]) -> dict[int, float]:
    """The mean hypervolume after so many chains in random order."""
    rows, draws = [*space.reference.candidates.values()], np.random.default_rng(0)
    orders = [[rows[at] for at in draws.permutation(len(rows))] for _ in range(RANDOM_ORDERS)]
    return {count: float(np.mean([space.volume([rows[0], *order[:count]]) for order in orders])) for count in counts}


def efficiency(space: Space, most: int, folder: Path) -> Iterator[dict[str, Any]]:
    """One row a budget that steered the search, and the control: shares of the hypervolume of every chain."""
    whole = space.volume(space.reference.done())
    counts = [count for count in (8, 16, 32, 64, 128) if count < most] + [most]
    for number, budget in enumerate(BUDGETS):
        found = [*searched(space, budget, most, folder / f"{number}").candidates.values()]
        refused = sum(one.status == "failed" for one in found)
        text = ", ".join(limit.text() for limit in budget.limits) or "no limits"
        volumes = {f"{count}": 100 * space.volume(found[: count + 1]) / whole for count in counts}
        yield {"search": f"{budget.objective}: {text}", "refused": refused, **volumes}
    control = {f"{count}": 100 * volume / whole for count, volume in random_volumes(space, counts).items()}
    yield {"search": "random order", "refused": 0, **control}


# New budgets, from a finished study


def new_budgets() -> Iterator[tuple[list[str], str]]:
    """Limits and objective of budgets that no search was steered by."""
    draws = np.random.default_rng(1)
    for number in range(NEW_BUDGETS):
        quality, p99, memory = draws.uniform(0.7, 0.98), draws.uniform(0.2, 1.0), draws.uniform(0.55, 1.0)
        limits = {METRIC: f"{quality:.0%}", "p99_ms": f"{p99:.2f}x", "memory_mb": f"{memory:.2f}x"}
        objective = ("latency", "memory", "quality")[number % 3]
        own = {"latency": "p99_ms", "memory": "memory_mb", "quality": METRIC}[objective]
        yield [f"{metric}={value}" for metric, value in limits.items() if metric != own], objective


def answered(space: Space, folder: Path) -> list[dict[str, Any]]:
    """What the finished study in `folder` answers to new budgets, how fast, and what all chains would have answered."""
    rows = []
    for limits, objective in new_budgets():
        begin = time.perf_counter()
        _, budget, choice = reselect(folder, limits, objective, accept_undecided=True)
        inside = time.perf_counter() - begin
        options = [part for limit in limits for part in ("--limit", limit)]
        command = [sys.executable, "-m", "recfit.cli", "select", str(folder), *options, "--objective", objective]
        begin = time.perf_counter()
        subprocess.run([*command, "--accept-undecided"], capture_output=True, check=choice.chosen is not None)
        outside = time.perf_counter() - begin
        every = choose(space.reference, budget)
        rows.append(
            {
                "limits": limits,
                "objective": objective,
                "seconds": inside,
                "command_seconds": outside,
                "chosen": choice.chosen and choice.chosen.name,
                "best": every.chosen and every.chosen.name,
                "gap": _gap(budget, choice.chosen, every.leader),
            }
        )
    return rows


def _gap(budget: Budget, chosen: Candidate | None, leader: Candidate | None) -> float | None:
    """By which share the choice is worse in its objective than the least of all chains that hold the budget; None where there
    is no choice. Held against the least, not against the choice among all, which may give some of it up within a tie."""
    if chosen is None or leader is None:
        return None
    return (budget.loss(chosen.metrics) - budget.loss(leader.metrics)) / abs(budget.loss(leader.metrics))


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as a table: percent of the hypervolume of every chain, after so many candidates."""
    yield f"{'search':48}" + " ".join(f"{name:>8}" for name in list(rows[0])[1:])
    for row in rows:
        values = list(row.values())
        yield f"{values[0]:48}" + " ".join(
            f"{value:8.2f}" if isinstance(value, float) else f"{value:8}" for value in values[1:]
        )


def summary(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The answers to new budgets in a few numbers."""
    gaps = [row["gap"] for row in answers if row["gap"] is not None]
    return {
        "budgets": len(answers),
        "with a feasible chain": sum(row["best"] is not None for row in answers),
        "found one": sum(row["chosen"] is not None for row in answers),
        "median gap %": 100 * float(np.median(gaps)),
        "worst gap %": 100 * max(gaps),
        "slowest answer s": max(row["seconds"] for row in answers),
        "slowest command s": max(row["command_seconds"] for row in answers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="recfit.toml of a study; a missing original is trained")
    parser.add_argument("space", type=Path, help="TOML with [[step]] tables")
    parser.add_argument("reference", type=Path, help="folder of the study of every chain")
    parser.add_argument("--candidates", type=int, default=64, help="how many the search may measure (64)")
    given = parser.parse_args()
    bench = prepare(given.settings)
    if not pipelines.saved(bench.workshop.original):
        limits = {"memory_gb": bench.settings.search.memory_gb, "seconds": PATIENCE}
        isolated(make_original, bench.settings, bench.workshop, **limits)
    context = Context(bench.split, pipelines.load(bench.workshop.original), bench.workshop.fit)
    first = singles(given.space)
    space = Space(first, recorded(bench, context, chains(first), given.reference), context)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(efficiency(space, given.candidates, Path(folder)))
        answers = answered(space, Path(folder) / "1")
    found = {
        "data": bench.interactions.name,
        "protocol": f"{bench.split.protocol}, one validation request a user, full ranking, seen items removed",
        "targets": bench.split.target_hash,
        "chains": len(space.reference.candidates),
        "failed": sum(found.status == "failed" for found in space.reference.candidates.values()),
        "rows": rows,
        "budgets": summary(answers),
        "answers": answers,
    }
    path = save("search", given.space.stem, found)
    print(*lines(rows), json.dumps(found["budgets"], indent=1), path, sep="\n")


if __name__ == "__main__":
    main()
