"""The study: an append-only ledger of candidates. Nothing is lost by an interrupt; a rerun skips what it knows."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recfit.measure import Samples
from recfit.search.budget import Measured
from recfit.types import ConfigError

LEDGER = "study.jsonl"
RATES = ("qps", "core_hours_per_million")


@dataclass(frozen=True)
class Candidate:
    """One recipe and what became of it.

    `status`: `done` (measured in full), `screened out` (a gate found a broken limit; `stage` names it) or `failed`. `limit`
    names the setting of [search] that ended a failed one. `notes` say how a measured one was made. `seconds` is the time it
    took by stage.
    """

    id: str
    name: str
    recipe: list[dict[str, Any]]
    status: str
    stage: str = ""
    reason: str = ""
    limit: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def fell_for(self) -> str:
        """What has to change for another try to be worth it, if anything: `budget`, or a setting of [search]."""
        return "budget" if self.status == "screened out" else self.limit

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(step["family"] for step in self.recipe))


class Study:
    """A directory with the ledger and everything the candidates left: bundles, per-user quality, trained models."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._ledger = directory / LEDGER
        self.facts: dict[str, Any] = {}
        self.candidates: dict[str, Candidate] = {}
        for row in self._read():
            self._take(row)

    def begin(self, facts: Mapping[str, Any], identity: str) -> None:
        """Start, or go on with, the study of `identity` (a digest of data, split, original and training settings).

        One process at a time may go on with a study.
        """
        self._lock()
        known = self.facts.get("identity")
        if known not in (None, identity):
            raise ConfigError(
                f"{self.directory} holds the study of another original, data set, split, training or processor (its identity "
                f"is {known}, this run's is {identity}); set [search] directory to a new folder or delete that one"
            )
        if known is None:
            self._append({"row": "study", "identity": identity, **facts})

    def add(self, candidate: Candidate, users: Mapping[str, Samples] | None = None) -> None:
        """Record a finished candidate; its per-user values are on disk before its row is."""
        if users is not None:
            path = self._users_path(candidate.id)
            path.parent.mkdir(exist_ok=True)
            draft = path.with_suffix(".draft.npz")
            stored: dict[str, Any] = {name: values.astype(np.float32) for name, values in users.items()}
            np.savez(draft, **stored)
            draft.replace(path)
        self._append({"row": "candidate", **asdict(candidate)})

    def note(self, **facts: Any) -> None:
        """Add facts about the whole study, where it does not know them yet."""
        if any(self.facts.get(name) != value for name, value in facts.items()):
            self._append({"row": "study", **facts})

    def measured(self, candidate: Candidate) -> Measured:
        """The candidate's numbers with its per-user values (none where it fell before its quality was measured)."""
        path = self._users_path(candidate.id)
        users: dict[str, Samples] = {}
        if candidate.status == "done":
            if not path.is_file():
                raise ConfigError(f"{path} is missing, without it {candidate.name!r} cannot be judged; restore it")
            with np.load(path, allow_pickle=False) as stored:
                users = {name: stored[name].astype(np.float64) for name in stored.files}
        return Measured(candidate.metrics, candidate.intervals, users)

    def done(self) -> list[Candidate]:
        """The candidates that were measured in full, in the order they were."""
        return [candidate for candidate in self.candidates.values() if candidate.status == "done"]

    def path(self, *parts: str) -> Path:
        return self.directory.joinpath(*parts)

    def _users_path(self, id: str) -> Path:
        return self.path("quality", f"{id}.npz")

    def _append(self, row: dict[str, Any]) -> None:
        with self._ledger.open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # a last line that a crash cut short; readers leave it alone
            file.write(json.dumps(row, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        kind = row.pop("row")
        if kind == "study":
            changed = {name for name, value in row.items() if value != self.facts.get(name)}
            # What fell for the limits of another budget, or of another search, may hold these: it is no longer known.
            self.candidates = {id: found for id, found in self.candidates.items() if found.fell_for not in changed}
            self.facts |= row
        else:
            candidate = Candidate(**{**row, "metrics": _comparable(row["metrics"])})
            self.candidates[candidate.id] = candidate

    def _read(self) -> Iterator[dict[str, Any]]:
        """The complete rows; a last line that a crash cut short, or that is just being written, is left out."""
        if not self._ledger.exists():
            return
        data = self._ledger.read_bytes()
        for line in data[: data.rfind(b"\n") + 1].splitlines():
            yield json.loads(line)

    def _lock(self) -> None:
        """Held until this process ends; two that build the same bundles would spoil each other's numbers."""
        import fcntl  # POSIX, like all of the search; reading a study works without

        handle = os.open(self.path("lock"), os.O_CREAT | os.O_RDWR)
        weakref.finalize(self, os.close, handle)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another process is working on {self.directory}; wait for it or set another [search] directory"
            ) from None


def _comparable(metrics: Mapping[str, float]) -> dict[str, float]:
    """`metrics` without rates of which the batch size is not known, as in rows of older studies: they are those of one size,
    taken once, and no match for the others."""
    return {name: value for name, value in metrics.items() if name not in RATES or "qps_batch" in metrics}
