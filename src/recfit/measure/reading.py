"""Measuring from files, also where only the serving install is there: requests and targets become queries of a bundle."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from recfit.bundle import Bundle, open_files
from recfit.data.requests import read_requests
from recfit.measure import Measurement
from recfit.types import DataError, IntArray, Queries, Ragged, Request, Rows

UNITS = {"_ms": "ms", "_mb": "MB", "_s": "s", "qps": "1/s"}


def queries_of(bundle: Path, requests: Path, targets: Path) -> tuple[Queries, IntArray]:
    """The requests and their targets (.csv: query,user_id,item_id) in the rows of the bundle's data, and its items' popularity.

    A request without a history means the one that the bundle stores. Items the bundle does not know are left out of
    histories; as targets they stay, and are missed.
    """
    opened = open_files(bundle)
    asked = read_requests(requests)
    users = _users(opened, asked)
    items = dict(zip(opened.item_ids, opened.item_rows.tolist(), strict=True))
    for number, request in enumerate(asked):
        if request.user_id not in users:
            raise DataError(
                f"{requests}, request {number}: the bundle does not know user {request.user_id!r}; "
                "quality is averaged over known users, leave this request out"
            )
        if not opened.user_ids and request.history is None:
            raise DataError(f"{requests}, request {number} has no history, and the bundle stores none; add `history`")
        if request.exclude or request.context:
            what, key = ("excludes items", "exclude") if request.exclude else ("has a context", "context")
            raise DataError(f"{requests}, request {number} {what}, which is not measured; leave `{key}` out")
    rows = [users[str(request.user_id)] for request in asked]
    stored = opened.histories.renumbered(opened.item_rows)
    past = [
        stored[row] if request.history is None else _history(request.history, items)
        for request, row in zip(asked, rows, strict=True)
    ]
    counts = popularity(opened)
    answers = _targets(targets, len(asked), items, unknown=len(counts))
    queries = Queries(np.array(rows, np.int32), Ragged.from_lists(past), Ragged.from_lists(answers))
    return queries, counts


def _users(bundle: Bundle, asked: Sequence[Request]) -> dict[str | None, int]:
    """Rows of the users that the bundle knows; where it holds none, of those who ask."""
    named = (request.user_id for request in asked if request.user_id is not None)
    return {user: row for row, user in enumerate(bundle.user_ids or dict.fromkeys(named))}


def _history(history: Sequence[str], items: Mapping[str, int]) -> Rows:
    return np.array([items[item] for item in history if item in items], np.int32)


def popularity(bundle: Bundle) -> IntArray:
    """How often every item occurs in the bundle's histories, int64 [rows of its data], up to the last it knows."""
    counts = np.zeros(int(bundle.item_rows.max(initial=-1)) + 1, np.int64)
    counts[bundle.item_rows] = np.bincount(bundle.histories.values, minlength=bundle.n_items)
    return counts


def _targets(path: Path, count: int, items: Mapping[str, int], unknown: int) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in range(count)]
    if not path.is_file():
        raise DataError(f"there is no file {path}; check --targets")
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            query, item = row.get("query") or "", row.get("item_id")
            if not item or not query.isdecimal() or int(query) >= count:
                raise DataError(
                    f"{path}, line {number}: {dict(row)} is no target; it needs item_id and a query number below {count}"
                )
            answers[int(query)].append(items.get(item, unknown))
    if empty := [query for query, answer in enumerate(answers) if not answer]:
        raise DataError(
            f"{path} has no target for query {empty[0]} ({len(empty)} of {count} have none); add them or drop those requests"
        )
    return answers


def text(found: Measurement) -> str:
    """Metrics with their intervals, one a line, counts whole, and the protocol."""
    lines = [
        f"{name:14} {_number(value)} {_unit(name):3}{_interval(found, name)}"
        for name, value in sorted(found.metrics.items())
    ]
    machine = found.protocol["machine"]
    facts = {key: value for key, value in found.protocol.items() if key != "machine" and value is not None}
    lines += [f"{key}: {value}" for key, value in facts.items()]
    return "\n".join([*lines, f"machine: {machine['cpu']}, {machine['cores']} cores, {', '.join(machine['isa'])}"])


def _number(value: float) -> str:
    return f"{value:12}" if isinstance(value, int) else f"{value:12.4f}"


def _unit(name: str) -> str:
    return next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")


def _interval(found: Measurement, name: str) -> str:
    if name not in found.intervals:
        return ""
    low, high = found.intervals[name]
    return f" 95 % interval {low:.4f} to {high:.4f}"
