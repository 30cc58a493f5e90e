"""Study -> report: gathers what the page shows. Reads the study only, so an old study can be reported again."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from recfit.measure.statistics import paired
from recfit.search.budget import Budget, Measured
from recfit.search.select import BANDS, Choice, best, frontier
from recfit.search.study import Candidate, Study

BASELINES = ("popularity", "itemknn", "ease", "als")


def assemble(study: Study, budget: Budget, choice: Choice) -> dict[str, Any]:
    """The mapping of `recfit.report.schema.Report` for a finished study and a choice made from it."""
    original = study.candidates[study.facts["original"]]
    base = study.measured(original)
    front = {found.id for found in frontier(study.done(), budget)}
    candidates = [_candidate(found, study, base, choice, front, budget) for found in study.candidates.values()]
    return {
        "title": f"recfit: {study.facts['data']['name']}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "recfit": metadata.version("recfit"),
        "data": study.facts["data"],
        "machine": {**original.protocol["machine"], "threads": original.protocol["threads"]},
        "budget": _budget(budget, base),
        "quality_metric": budget.quality_metric,
        "bands": {**BANDS, "cost_per_million": BANDS["core_hours_per_million"]},
        "smallest_detectable_drop": _detectable(candidates, budget.quality_metric),
        "originals": {
            "A": _original(study.candidates[study.facts["eager"]], "PyTorch eager", budget),
            "B": _original(original, "ONNX Runtime float32", budget),
        },
        "baselines": [_baseline(found, budget) for found in study.done() if _is_baseline(found)],
        "candidates": candidates,
        "chosen": choice.chosen.id if choice.chosen else None,
        "nearest": choice.nearest
        and {"id": choice.nearest.candidate.id, "binding": choice.nearest.binding, "text": choice.nearest.text},
        "final": _final(study, budget, choice),
        "strategies": _strategies(study, budget, choice),
        "search": _search(study),
    }


def _candidate(
    found: Candidate, study: Study, base: Measured, choice: Choice, front: set[str], budget: Budget
) -> dict[str, Any]:
    users = study.measured(found).users
    return {
        "id": found.id,
        "name": found.name,
        "steps": found.recipe,
        "families": found.families,
        "status": found.status,
        "stage": found.stage,
        "reason": found.reason or "; ".join(found.notes),
        "metrics": budget.priced(found.metrics),
        "intervals": dict(found.intervals),
        "difference": {
            metric: asdict(paired(values, base.users[metric]))
            for metric, values in users.items()
            if metric in base.users
        },
        "verdicts": dict(choice.verdicts.get(found.id, {})),
        "frontier": found.id in front,
        "seconds": sum(found.seconds.values()),
    }


def _budget(budget: Budget, base: Measured) -> dict[str, Any]:
    limits = [
        {
            "metric": limit.metric,
            "op": ">=" if limit.is_floor else "<=",
            "bound": limit.absolute(base.metrics),
            "text": limit.text(base.metrics),
            "relative": limit.relative,
        }
        for limit in budget.limits
    ]
    return {"objective": budget.objective, "accept_undecided": budget.accept_undecided, "limits": limits}


def _detectable(candidates: list[dict[str, Any]], metric: str) -> float | None:
    """Half the width of a typical paired interval: drops below it can't be told from none."""
    halves = [
        (found["difference"][metric]["high"] - found["difference"][metric]["low"]) / 2
        for found in candidates
        if found["steps"] and metric in found["difference"]
    ]
    wide = [half for half in halves if half > 0]
    return statistics.median(wide) if wide else None


def _original(found: Candidate, label: str, budget: Budget) -> dict[str, Any]:
    return {"id": found.id, "label": label, "metrics": budget.priced(found.metrics), "intervals": dict(found.intervals)}


def _is_baseline(found: Candidate) -> bool:
    steps = found.recipe
    return len(steps) == 1 and steps[0]["technique"] == "simplify" and steps[0]["settings"]["kind"] in BASELINES


def _baseline(found: Candidate, budget: Budget) -> dict[str, Any]:
    name = found.recipe[0]["settings"]["kind"]
    return {"name": name, "metrics": budget.priced(found.metrics), "intervals": dict(found.intervals)}


def _final(study: Study, budget: Budget, choice: Choice) -> dict[str, Any] | None:
    final = study.facts.get("final")
    if final is None or choice.chosen is None or final["ids"]["chosen"] != choice.chosen.id:
        return None
    labels = {"A": "original, PyTorch eager", "B": "original, ONNX Runtime", "chosen": choice.chosen.name}
    rows = [{"role": role, "label": labels[role], "metrics": final["rows"][role]["metrics"]} for role in labels]
    bounds = {limit.metric: limit.absolute(final["rows"]["B"]["metrics"]) for limit in budget.limits}
    limits = {"bounds": bounds, "verdicts": final["verdicts"]}
    return {"split": "test", "rows": rows, "difference": final["difference"], "text": final["text"], **limits}


def _strategies(study: Study, budget: Budget, choice: Choice) -> list[dict[str, str]]:
    """The original, the best single technique of every family (among those that hold the budget, if any), the choice."""
    base = study.candidates[study.facts["original"]]
    singles: dict[str, list[Candidate]] = defaultdict(list)
    for found in study.done():
        if len(found.recipe) == 1 and found.id not in (study.facts["eager"], base.id):
            singles[found.families[0]].append(found)
    strategies = [{"label": "original (A)", "id": study.facts["eager"]}, {"label": "original (B)", "id": base.id}]
    for family, group in singles.items():
        keeping = [found for found in group if budget.holds(choice.verdicts[found.id])]
        shown = best(keeping, budget) if keeping else _best_quality(group, budget)
        strategies.append({"label": family, "id": shown.id})
    if choice.chosen is not None and choice.chosen.id not in {found["id"] for found in strategies}:
        strategies.append({"label": "chosen", "id": choice.chosen.id})
    return strategies


def _best_quality(group: list[Candidate], budget: Budget) -> Candidate:
    return max(group, key=lambda found: found.metrics[budget.quality_metric])


def _search(study: Study) -> dict[str, Any]:
    candidates = list(study.candidates.values())
    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for found in candidates:
        for stage, spent in found.seconds.items():
            seconds[stage] += spent
            counts[stage] += 1
    before = [found for found in candidates if found.status == "screened out" and "train" not in found.seconds]
    return {
        "seconds": sum(seconds.values()),
        "proposed": len(candidates),
        "measured": len(study.done()),
        "screened_before_training": len(before),
        "failed": sum(found.status == "failed" for found in candidates),
        "slowest_stage": max(seconds, key=lambda stage: seconds[stage], default=""),
        "stages": [{"stage": stage, "seconds": spent, "count": counts[stage]} for stage, spent in seconds.items()],
    }
