"""What a report is made of: the JSON-able mapping that the search writes and the page reads.

Metrics are keyed by name: `ndcg@10`, `recall@10`, `coverage@10`, `recall_of_stage_one`, ... (fractions), `p50_ms`,
`p95_ms`, `p99_ms` (ms), `memory_mb`, `bundle_mb` (MB), `load_s` (seconds), `qps` (requests a second in batches of the best
size, `qps_batch`), `cost_per_million` (the currency of the budget). A metric that was never measured is left out; one that
came out as NaN or infinite is `None`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict

import msgspec
import numpy as np

from recfit.types import RecfitError

Metrics = dict[str, float | None]
Interval = tuple[float | None, float | None]


class ReportError(RecfitError):
    """The mapping is not a report."""


class Data(TypedDict):
    """The interactions and the protocol. `masking` says which items are kept out of every ranking."""

    name: str
    users: int
    items: int
    events: int
    protocol: str
    target_hash: str
    validation_queries: int
    test_queries: int
    masking: str


class Machine(TypedDict):
    """Where everything was measured; `threads` is what the measured engines ran with."""

    cpu: str
    cores: int
    isa: list[str]
    memory_gb: float
    os: str
    python: str
    versions: dict[str, str]
    threads: int


class Limit(TypedDict):
    """`metric op bound`, the bound already resolved to an absolute number; `text` says it as the user wrote it."""

    metric: str
    op: Literal["<=", ">="]
    bound: float
    text: str
    relative: bool


class Budget(TypedDict):
    """What must hold, and what is then the best: the highest quality metric, or the lowest `p99_ms`, `memory_mb` or
    `cost_per_million`. With `accept_undecided` an undecided limit counts as held."""

    objective: Literal["quality", "latency", "memory", "cost"]
    accept_undecided: bool
    limits: list[Limit]


class Difference(TypedDict):
    """Candidate minus original over the same queries: the mean and its 95% interval (`None` where it is unbounded)."""

    mean: float
    low: float | None
    high: float | None


class Original(TypedDict):
    """The original as it is run today (A) or in the plainest fast runtime (B); `id` names its candidate."""

    id: str
    label: str
    metrics: Metrics
    intervals: NotRequired[dict[str, Interval]]


class Baseline(TypedDict):
    """A simple model, the floor that the original has to beat."""

    name: str
    metrics: Metrics
    intervals: NotRequired[dict[str, Interval]]


class Step(TypedDict):
    """One technique of a recipe with its settings; `text` is the call as it would be written."""

    technique: str
    family: str
    settings: dict[str, object]
    text: str


class Candidate(TypedDict):
    """One recipe and what became of it.

    `stage` is the last gate it reached, `reason` why it fell, or what there is to say of one that did not. `verdicts` answers
    the budget's limits, by metric. The original itself is the candidate without steps.
    """

    id: str
    name: str
    steps: list[Step]
    families: list[str]
    status: Literal["done", "screened out", "failed", "undecided"]
    stage: str
    reason: str
    metrics: Metrics
    intervals: NotRequired[dict[str, Interval]]
    difference: NotRequired[dict[str, Difference]]
    verdicts: NotRequired[dict[str, Literal["held", "broken", "undecided"]]]
    frontier: bool
    seconds: float


class Nearest(TypedDict):
    """The nearest miss when nothing holds every limit; `binding` is the metric that keeps it out."""

    id: str
    binding: str
    text: str


class FinalRow(TypedDict):
    """One line of the last, interleaved measurement."""

    role: Literal["A", "B", "chosen"]
    label: str
    metrics: Metrics


class Final(TypedDict):
    """The winner and the originals measured once more, on the test split; `text` says what was given up for what. `bounds`
    are the budget's limits where the original stands in that run, `verdicts` whether they hold there, by metric."""

    split: str
    rows: list[FinalRow]
    difference: NotRequired[dict[str, Difference]]
    text: str
    bounds: NotRequired[dict[str, float]]
    verdicts: NotRequired[dict[str, Literal["held", "broken", "undecided"]]]


class Strategy(TypedDict):
    """A point of the strategy comparison: `id` names a candidate."""

    label: str
    id: str


class StageCost(TypedDict):
    """Time spent in one stage of the search and how many candidates went through it."""

    stage: str
    seconds: float
    count: int


class Search(TypedDict):
    """What the search did and where its time went."""

    seconds: float
    proposed: int
    measured: int
    screened_before_training: int
    failed: int
    slowest_stage: str
    stages: list[StageCost]


class Report(TypedDict):
    """Everything the page shows. `bands` is the share, by metric, that two runs of one bundle may differ by: closer candidates
    are tied. `originals` holds `A` and `B`; the first of the `strategies` is what the others are shares of; `chosen` and
    `nearest` name candidates."""

    title: str
    created: str
    recfit: str
    data: Data
    machine: Machine
    budget: Budget
    quality_metric: str
    bands: dict[str, float]
    smallest_detectable_drop: float | None
    originals: dict[str, Original]
    baselines: list[Baseline]
    candidates: list[Candidate]
    chosen: str | None
    nearest: Nearest | None
    final: Final | None
    strategies: list[Strategy]
    search: Search


def check(report: Mapping[str, object]) -> Report:
    """The report as plain JSON values; a missing field, a wrong type or an unknown id is a `ReportError` that names it."""
    try:
        checked = msgspec.json.decode(msgspec.json.encode(report, enc_hook=plain), type=Report)
    except (msgspec.MsgspecError, TypeError) as error:
        raise ReportError(f"not a report: {error}; recfit.report.schema says what every field must be") from error
    check_ids(checked)
    return checked


def plain(value: object) -> object:
    """NumPy scalars as Python numbers; anything else has no place in a report."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def check_ids(report: Report) -> None:
    """Candidates have ids of their own, and whoever names one names one that exists."""
    ids = [candidate["id"] for candidate in report["candidates"]]
    if repeated := sorted({name for name in ids if ids.count(name) > 1}):
        raise ReportError(f"candidate ids {repeated} occur more than once; every candidate needs its own")
    named = {f"strategies[{index}]": strategy["id"] for index, strategy in enumerate(report["strategies"])}
    named |= {f"originals[{key!r}]": original["id"] for key, original in report["originals"].items()}
    named |= {"chosen": report["chosen"]} if report["chosen"] is not None else {}
    named |= {"nearest": report["nearest"]["id"]} if report["nearest"] else {}
    for place, name in named.items():
        if name not in ids:
            raise ReportError(f"{place} is {name!r}, which is no candidate; there are: {', '.join(ids) or 'none'}")
