"""Judges the columns of a source and turns them into `Interactions`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from recfit.data import features
from recfit.data.table import Table
from recfit.data.values import Column, Doubles, numbers, seconds, since_1970, texts
from recfit.registry import find, names
from recfit.types import ConfigError, DataError, Features, IntArray, Interactions, Rows

Mask = npt.NDArray[np.bool_]

# First come, first served: `timestamp` wins over `date`. Case and punctuation don't count: `userID`, `UserId` and
# `user_id` are one. The conventions of RecBole, RecTools, RePlay, MS Recommenders, LibRecommender and gorse, then of
# public sets.
ALIASES = {
    "user_id": ("userid", "user", "uid", "queryid", "reviewerid", "customerid", "visitorid"),
    "item_id": (
        "itemid",
        "item",
        "iid",
        "movieid",
        "productid",
        "articleid",
        "videoid",
        "trackid",
        "businessid",
        "asin",
    ),
    "weight": ("weight", "rating", "value", "label", "overall", "stars"),
    "timestamp": ("timestamp", "datetime", "time", "unixreviewtime", "timems", "ts", "date"),
}
NEEDED = ("user_id", "item_id")


@dataclass(frozen=True)
class Rules:
    """The caller's wishes: columns by name, what to do with bad rows (`error, drop`), the least weight of an event."""

    columns: Mapping[str, str] = field(default_factory=dict)
    bad_rows: str = "error"
    min_weight: float | None = None

    def __post_init__(self) -> None:
        if self.bad_rows not in ("error", "drop"):
            raise ConfigError(f"bad_rows is {self.bad_rows!r}; it may be 'error' or 'drop'")
        if unknown := set(self.columns) - set(ALIASES):
            raise ConfigError(f"columns names {', '.join(sorted(unknown))}; it may name {', '.join(ALIASES)}")


@dataclass(frozen=True)
class Fault:
    """Rows that share a defect. `reason` is the key they are counted under, `says` ends the sentence about one."""

    reason: str
    column: str
    bad: Mask
    says: str


def table(path: Path) -> Table:
    """The columns of a features file, by its suffix."""
    for name in names("data.sources"):
        source = find("data.sources", name)
        if path.suffix and source.claims(str(path)):
            events: Table = source.read(str(path), path.parent).events
            return events
    raise DataError(f"no reader for the features {str(path)!r}; give a .csv, .tsv, .parquet, .user or .item file")


def interactions(name: str, events: Table, users: Table | None, items: Table | None, rules: Rules) -> Interactions:
    """Events in stable order (time, then file); ids numbered in order of first appearance in the file."""
    needed = NEEDED if rules.min_weight is None else (*NEEDED, "weight")
    found = {f: column for f in ALIASES if (column := _locate(events, f, rules.columns, f in needed))}
    dropped = _malformed(events, rules)
    kept, weight, time = _judged(events, found, rules, dropped)
    user, user_ids = _encoded(events.data[found["user_id"]], kept)
    item, item_ids = _encoded(events.data[found["item_id"]], kept)
    if len(user_ids) < 2:
        who = f"one user, {user_ids[0]!r}" if user_ids else "no events"
        raise DataError(
            f"{events.file} has only {who}{_after(dropped)}; a recommender needs the events of at least two users"
        )
    order = np.argsort(time[kept], kind="stable")
    user_side, _ = _features(users, "user_id", user_ids, rules, dropped)
    item_side, titles = _features(items, "item_id", item_ids, rules, dropped)
    return Interactions(
        name=name,
        user=user[order],
        item=item[order],
        weight=weight[kept][order].astype(np.float32),
        timestamp=since_1970(time[kept][order]) if "timestamp" in found else np.arange(len(order), dtype=np.float64),
        user_ids=user_ids,
        item_ids=item_ids,
        user_features=user_side,
        item_features=item_side,
        titles=titles,
        dropped=dict(dropped),
    )


def _locate(table: Table, name: str, columns: Mapping[str, str], needed: bool) -> str | None:
    """The column of `table` that holds `name`."""
    there: list[str] = table.data.column_names
    if name in columns and columns[name] in there:
        return columns[name]
    if name in columns:
        raise DataError(f"{table.file} has no column {columns[name]!r} for {name}; it has: {', '.join(there)}")
    plain = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in reversed(there)}
    for alias in ALIASES[name]:
        if alias in plain:
            return plain[alias]
    if needed:
        raise DataError(
            f"{table.file} has no column for {name}; it has: {', '.join(there)}. "
            f"Say which one it is with columns = {{{name} = '...'}}"
        )
    return None


def _malformed(table: Table, rules: Rules) -> Counter[str]:
    """The count of rows that could not be cut into columns."""
    if table.malformed and rules.bad_rows == "error":
        place, why = table.malformed[0]
        raise DataError(f"{table.file}, {place}: {why}{_cure()}")
    return Counter({"malformed": len(table.malformed)} if table.malformed else {})


def _judged(
    events: Table, found: Mapping[str, str], rules: Rules, dropped: Counter[str]
) -> tuple[IntArray, Doubles, Doubles]:
    """The file rows to keep, and weight and time [n] of all. Counts what it leaves out in `dropped`."""
    n = len(events.data)
    weight = numbers(events.data[found["weight"]]) if "weight" in found else np.ones(n)
    time = seconds(events.data[found["timestamp"]]) if "timestamp" in found else np.arange(n, dtype=np.float64)
    keep = _without(events, _faults(events, found, weight, time), rules, dropped)
    if rules.min_weight is not None:
        low = keep & (weight < rules.min_weight)
        dropped.update({"below min_weight": int(low.sum())} if low.any() else {})
        keep &= ~low
    if "timestamp" in found:
        keep = _without_repeats(events, found, np.flatnonzero(keep), time, rules, dropped)
    return np.flatnonzero(keep), weight, time


def _faults(events: Table, found: Mapping[str, str], weight: Doubles, time: Doubles) -> list[Fault]:
    empty = [Fault(f"empty {f}", found[f], _empty(events.data[found[f]]), "an id can't be empty") for f in NEEDED]
    return [
        *empty,
        Fault("bad weight", found.get("weight", ""), ~np.isfinite(weight), "it is not a finite number"),
        Fault(
            "bad time",
            found.get("timestamp", ""),
            ~np.isfinite(time),
            "it is not a time (seconds since 1970 or ISO 8601)",
        ),
        Fault("negative time", found.get("timestamp", ""), time < 0, "a time can't be negative"),
    ]


def _without(table: Table, faults: Sequence[Fault], rules: Rules, dropped: Counter[str]) -> Mask:
    """The rows [n] with no fault; each of the others is counted under its first one, or the first of all raised."""
    keep = np.ones(len(table.data), dtype=bool)
    hit = [fault for fault in faults if fault.bad.any()]
    if hit and rules.bad_rows == "error":
        fault = min(hit, key=lambda fault: int(fault.bad.argmax()))
        row = int(fault.bad.argmax())
        value = table.data[fault.column][row].as_py()
        raise DataError(
            f"{table.file}, {table.where(row)}, column {fault.column}: the value is {value!r}, {fault.says}{_cure()}"
        )
    for fault in hit:
        fresh = int((keep & fault.bad).sum())
        dropped.update({fault.reason: fresh} if fresh else {})
        keep &= ~fault.bad
    return keep


def _without_repeats(
    events: Table, found: Mapping[str, str], kept: IntArray, time: Doubles, rules: Rules, dropped: Counter[str]
) -> Mask:
    """The mask [n] of `kept` without the second and later events of one user, item and time."""
    user, _ = _encoded(events.data[found["user_id"]], kept)
    item, item_ids = _encoded(events.data[found["item_id"]], kept)
    pair, when = user.astype(np.int64) * len(item_ids) + item, time[kept]
    order = np.lexsort((pair, when))
    same = (np.diff(pair[order]) == 0) & (np.diff(when[order]) == 0)
    if same.any() and rules.bad_rows == "error":
        raise DataError(_repeat(events, found, kept[order[:-1][same]], kept[order[1:][same]]))
    dropped.update({"duplicate": int(same.sum())} if same.any() else {})
    keep = np.zeros(len(time), dtype=bool)
    keep[kept] = True
    keep[kept[order[1:][same]]] = False
    return keep


def _repeat(events: Table, found: Mapping[str, str], before: IntArray, again: IntArray) -> str:
    nearest = int(again.argmin())
    first, row = int(before[nearest]), int(again[nearest])
    values = ", ".join(f"{found[f]} {events.data[found[f]][row].as_py()!r}" for f in (*NEEDED, "timestamp"))
    return f"{events.file}, {events.where(row)}: the event {values} stands in {events.where(first)} already{_cure()}"


def _features(
    table: Table | None, key: str, ids: tuple[str, ...], rules: Rules, dropped: Counter[str]
) -> tuple[Features | None, tuple[str, ...] | None]:
    """Features and titles of `ids`. A column name given for the events counts here where the table has it."""
    if table is None:
        return None, None
    given = {f: column for f, column in rules.columns.items() if column in table.data.column_names}
    column = _locate(table, key, given, needed=True) or key
    dropped.update({f"{key[:4]} features, {reason}": n for reason, n in _malformed(table, rules).items()})
    counted: Counter[str] = Counter()
    keys = texts(table.data[column]).combine_chunks()
    first = np.zeros(len(keys), dtype=bool)
    first[np.unique(keys.dictionary_encode().indices.to_numpy(), return_index=True)[1]] = True
    faults = [
        Fault("empty id", column, _empty(table.data[column]), "an id can't be empty"),
        Fault("repeated id", column, ~first, "it stands above already"),
    ]
    keep = _without(table, faults, rules, counted)
    dropped.update({f"{key[:4]} features, {reason}": n for reason, n in counted.items()})
    rows = features.rows_of(ids, keys.filter(keep), np.flatnonzero(keep))
    return features.encode(table, column, rows, titled=key == "item_id")


def _empty(column: Column) -> Mask:
    """Which ids [n] are missing or blank; only the distinct ones are looked at."""
    codes = texts(column).combine_chunks().dictionary_encode()
    blank = np.array([not value.strip() for value in codes.dictionary.to_pylist()], dtype=bool)
    rows: Mask = blank[codes.indices.to_numpy()]
    return rows


def _encoded(column: Column, kept: IntArray) -> tuple[Rows, tuple[str, ...]]:
    """Rows int32 [len(kept)] and ids, numbered by first appearance."""
    codes = pc.take(texts(column), kept).combine_chunks().dictionary_encode()
    return codes.indices.to_numpy().astype(np.int32), tuple(codes.dictionary.to_pylist())


def _cure() -> str:
    return "; mend the file, or leave such rows out with bad_rows = 'drop'"


def _after(dropped: Counter[str]) -> str:
    return f" after dropping {', '.join(f'{n} ({reason})' for reason, n in dropped.items())}" if dropped else ""
