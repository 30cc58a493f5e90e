"""What a set of interactions looks like, for machines and for the terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from recfit.types import Features, IntArray, Interactions, Split

QUANTILES = (0, 10, 50, 90, 99, 100)
A_CLOCK = 1e8  # seconds: 1973; smaller numbers are positions rather than times


def describe(interactions: Interactions, split: Split | None = None) -> dict[str, Any]:
    """Sizes, quantiles, times, ties, features and the split, ready for JSON."""
    facts: dict[str, Any] = {
        "name": interactions.name,
        "users": interactions.n_users,
        "items": interactions.n_items,
        "events": len(interactions),
        "density": len(interactions) / (interactions.n_users * interactions.n_items),
        "events_per_user": _quantiles(np.bincount(interactions.user, minlength=interactions.n_users)),
        "events_per_item": _quantiles(np.bincount(interactions.item, minlength=interactions.n_items)),
        "time": [float(interactions.timestamp[0]), float(interactions.timestamp[-1])],
        "tied_last_event": tied_last_event(interactions),
        "user_features": _columns(interactions.user_features),
        "item_features": _columns(interactions.item_features),
        "titles": interactions.titles is not None,
        "dropped": dict(interactions.dropped),
    }
    return facts if split is None else facts | {"split": _split(split)}


def tied_last_event(interactions: Interactions) -> float:
    """The share of users whose last two events have one time: the order of the file decides which is the last."""
    order = np.argsort(interactions.user, kind="stable")
    user, time = interactions.user[order], interactions.timestamp[order]
    last = np.flatnonzero(np.append(user[1:] != user[:-1], True))
    last = last[last > 0]
    return float(((user[last] == user[last - 1]) & (time[last] == time[last - 1])).sum() / interactions.n_users)


def describe_text(facts: dict[str, Any]) -> str:
    """The facts of `describe` as aligned lines."""
    lines = [
        ("data", facts["name"]),
        *((key, f"{facts[key]:,}") for key in ("users", "items", "events")),
        ("density", f"{facts['density']:.4%}"),
        ("events per user", _row(facts["events_per_user"])),
        ("events per item", _row(facts["events_per_item"])),
        ("time", _span(*facts["time"])),
        ("tied last events", f"{facts['tied_last_event']:.1%} of users (the order of the file decides)"),
        ("user features", _named(facts["user_features"])),
        ("item features", _named(facts["item_features"])),
        ("titles", "yes" if facts["titles"] else "no"),
        ("dropped rows", _named(facts["dropped"])),
        *(_split_lines(facts["split"]) if "split" in facts else []),
    ]
    return "\n".join(f"{name:<18}{value}" for name, value in lines)


def _split(split: Split) -> dict[str, Any]:
    return {
        "protocol": split.protocol,
        "train_events": len(split.train),
        "validation_queries": len(split.validation),
        "test_queries": len(split.test),
        "test_targets": len(split.test.targets.values),
        "cold": dict(split.cold),
        "target_hash": split.target_hash,
    }


def _split_lines(split: dict[str, Any]) -> list[tuple[str, str]]:
    cold = split["cold"]
    return [
        ("split", split["protocol"]),
        ("train events", f"{split['train_events']:,}"),
        ("validation", f"{split['validation_queries']:,} queries"),
        ("test", f"{split['test_queries']:,} queries, {split['test_targets']:,} targets"),
        (
            "cold in test",
            f"{cold['items']:,} targets that training never saw, {cold['users']:,} users without a training event",
        ),
        ("without a query", f"{cold['short']:,} users with too few events, {cold['no_history']:,} with no history"),
        ("target hash", split["target_hash"]),
    ]


def _quantiles(counts: IntArray) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(counts, q)) for q in QUANTILES}


def _columns(features: Features | None) -> dict[str, int]:
    return dict(zip(features.names, features.sizes, strict=True)) if features else {}


def _row(quantiles: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:,.0f}" for name, value in quantiles.items())


def _named(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items()) or "none"


def _span(first: float, last: float) -> str:
    if last < A_CLOCK:
        return f"{first:,.0f} to {last:,.0f} (not a date: positions in the file, or a clock of its own)"
    return " to ".join(f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M}" for moment in (first, last))
