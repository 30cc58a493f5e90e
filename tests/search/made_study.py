"""A study made of numbers: an original and candidates with per-user quality, nothing trained."""

from pathlib import Path

import numpy as np

from recfit.search.study import Candidate, Study

USERS = 400
MACHINE = {
    "cpu": "abacus", "cores": 2, "isa": ["beads"], "memory_gb": 1.0, "os": "none", "python": "3", "versions": {},
}  # fmt: skip
DATA = {
    "name": "made up", "users": USERS, "items": 50, "events": 9000, "protocol": "leave_last(n=1)",
    "target_hash": "0" * 64, "validation_queries": USERS, "test_queries": USERS, "masking": "seen items removed",
}  # fmt: skip
LIMITS = {"ndcg@10": "90%", "p99_ms": "0.5x"}
BUDGET = {
    "objective": "latency", "quality_metric": "ndcg@10", "price": 0.04, "accept_undecided": False, "limits": LIMITS,
}  # fmt: skip

Quality = np.ndarray[tuple[int], np.dtype[np.float64]]


def base_quality(users: int = USERS) -> Quality:
    return np.random.default_rng(0).choice([0.0, 0.5, 1.0], users, p=[0.6, 0.2, 0.2])


def worse(base: Quality, share: float, seed: int = 1) -> Quality:
    """`base` with a share of the hits lost."""
    return base * (np.random.default_rng(seed).random(len(base)) < share)


def costs(p99: float, memory: float = 100.0, **others: float) -> dict[str, float]:
    return {
        "p50_ms": p99 / 2, "p95_ms": p99 * 0.9, "p99_ms": p99, "memory_mb": memory, "bundle_mb": memory / 50,
        "load_s": 0.5, "qps": 1000 / p99, "qps_batch": 8, "core_hours_per_million": p99 / 3.6,
    } | others  # fmt: skip


def step(technique: str, family: str | None = None, **settings) -> dict:
    text = f"{technique}({', '.join(f'{key}={value}' for key, value in settings.items())})"
    return {"technique": technique, "family": family or technique, "settings": settings, "text": text}


def done(id: str, users: Quality, p99: float, *steps: dict, **others: float) -> tuple[Candidate, dict[str, Quality]]:
    metrics = costs(p99, **others) | {"ndcg@10": float(users.mean())}
    candidate = Candidate(
        id, id, list(steps), "done", "full", metrics=metrics, intervals={"p99_ms": (p99 * 0.95, p99 * 1.05)},
        protocol={"machine": MACHINE, "threads": 1}, seconds={"train": 2.0, "measure": 1.0},
    )  # fmt: skip
    return candidate, {"ndcg@10": users}


def started(directory: Path, budget: dict = BUDGET, users: int = USERS) -> Study:
    study = Study(directory)
    study.begin({"data": DATA}, "identity")
    study.note(budget=budget)
    study.add(*done("o", base_quality(users), 4.0, memory=200.0))
    study.note(original="o")
    study.add(*done("a", base_quality(users), 12.0, step("runtime", name="torch"), memory=300.0))
    study.note(eager="a")
    return study
