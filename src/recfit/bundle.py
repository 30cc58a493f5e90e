"""The bundle: a directory that can be served with no torch installed. `docs/bundle.md` specifies it.

This file reads, verifies and seals bundles; `export` fills them, `engine` runs them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recfit.runtimes import StageSpec
from recfit.states import state_of
from recfit.texts import SUFFIXES, texts_of
from recfit.types import BundleError, Features, FloatArray, IntArray, Ragged, Rows, Values

FORMAT = 2
MANIFEST = "manifest.json"
USERS, ITEMS, TITLES, FEATURES = "users", "items", "titles", "user_features"
"""What files of texts, and those of the features, are called, before their endings."""
AGAIN = "export the bundle again (`recfit optimize` on its study makes it anew)"
ITEM_ROWS = "item_rows.npy"
HISTORIES = ("histories.indptr.npy", "histories.values.npy")


@dataclass(frozen=True)
class Cache:
    """Precomputed lists: `items` int32 [U, K] (-1 pads) and `scores` float32 [U, K] of `keys` int64 [U], ascending.

    Keys are user rows, or, with a `depth`, last-seen states of a catalogue of `n_items`.
    """

    keys: IntArray
    items: Rows
    scores: FloatArray
    ttl_seconds: float
    depth: int
    n_items: int

    def find(self, user: int, history: Rows) -> int | None:
        """The line in `items` of the user row, or of the history's state; None if there is none."""
        key = state_of(history, self.depth, self.n_items) if self.depth else user
        at = int(np.searchsorted(self.keys, key))
        return at if at < len(self.keys) and self.keys[at] == key else None


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle; `stages` has `retrieve`, and `rank` where there are two. Arrays are read-only maps.

    `item_rows` are the rows of the data that the bundle was made from, of its items: all, unless some were left out.
    """

    directory: Path
    manifest: Mapping[str, Any]
    stages: Mapping[str, StageSpec]
    user_ids: Sequence[str]
    item_ids: Sequence[str]
    titles: Sequence[str] | None
    histories: Ragged
    user_features: Features | None
    fallback: Rows
    item_rows: Rows
    cache: Cache | None

    @property
    def id(self) -> str:
        """The digest of everything in the bundle."""
        return str(self.manifest["bundle_id"])

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def threads(self) -> int:
        return int(self.manifest["pipeline"]["threads"])

    @property
    def candidates(self) -> int:
        """How many items the first stage hands to the second."""
        return int(self.manifest["pipeline"]["candidates"])


def seal(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest with the size and sha256 of every file below `directory`; the last step of an export."""
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / MANIFEST
    }
    sealed = {**manifest, "format": FORMAT, "files": files}
    _write_json(directory / MANIFEST, {**sealed, "bundle_id": _digest(sealed)})


def _digest(manifest: Mapping[str, Any]) -> str:
    """The id: of everything but when the bundle was made and what was measured since."""
    content = {key: value for key, value in manifest.items() if key not in ("created", "promise", "bundle_id")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def promise(directory: Path, measured: Mapping[str, Any]) -> None:
    """Add what was measured, how and where to a sealed bundle; its id and files stay as they are."""
    _write_json(directory / MANIFEST, {**read_manifest(directory), "promise": measured})


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, checked for format."""
    path = directory / MANIFEST
    if not path.is_file():
        raise BundleError(f"{directory} is not a bundle: it has no {MANIFEST}; export it again")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is not valid JSON ({error}); export the bundle again") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        step = "upgrade recfit" if isinstance(found, int) and found > FORMAT else AGAIN
        raise BundleError(f"{path} has format {found!r}, this recfit reads format {FORMAT}; {step}")
    return manifest


def is_readable(directory: Path) -> bool:
    """Whether a bundle lies there whose format this recfit reads."""
    try:
        read_manifest(directory)
    except BundleError:
        return False
    return True


def _check_promise(path: Path, promise: Any) -> None:
    """It is not part of the digest, and servers count with it."""
    metrics = promise.get("metrics", {}) if isinstance(promise, dict) else {}
    numbers = isinstance(metrics, dict) and all(type(value) in (int, float) for value in metrics.values())
    if not (promise is None or isinstance(promise, dict)) or not numbers:
        shown = repr(promise)[:100]
        raise BundleError(
            f"{path} has the promise {shown}; it must be null or a table whose metrics are numbers: measure it again"
        )


def verify(directory: Path) -> dict[str, Any]:
    """The manifest, after it and every file it lists were checked for a change. What it does not list is ignored."""
    manifest = read_manifest(directory)
    _check_promise(directory / MANIFEST, manifest.get("promise"))
    if _digest(manifest) != manifest.get("bundle_id"):
        raise BundleError(f"{directory / MANIFEST} was changed: its digest is not its bundle_id; export it again")
    for name, want in manifest["files"].items():
        path = directory / name
        if ".." in Path(name).parts or not path.is_relative_to(directory):
            raise BundleError(f"the manifest of {directory} lists {name!r}, which lies outside; export it again")
        if not path.is_file():
            raise BundleError(f"{path} is missing although the manifest lists it; export the bundle again")
        got = _sha256(path)
        if got != want["sha256"]:
            raise BundleError(
                f"{path} has sha256 {got[:12]}, the manifest says {want['sha256'][:12]}: it was changed; export it again"
            )
    return manifest


def open_files(directory: Path | str) -> Bundle:
    """Verify a bundle and map its files. Use `recfit.open_bundle` for an engine that answers requests."""
    directory = Path(directory)
    try:
        return _open(directory, verify(directory))
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{directory} does not hold what its manifest describes: {error}; export it again") from error


def _open(directory: Path, manifest: dict[str, Any]) -> Bundle:
    users, items, titles = (_texts(directory, manifest, name) for name in (USERS, ITEMS, TITLES))
    if users is None or items is None or len(items) != len(titles or items):
        raise ValueError("it has not an id for each user, and an id and a title for each item")
    return Bundle(
        directory=directory,
        manifest=manifest,
        stages=_stages(manifest["pipeline"]),
        user_ids=users,
        item_ids=items,
        titles=titles,
        histories=_histories(directory, manifest, len(users)),
        user_features=_features(directory, manifest),
        fallback=_map(directory / "fallback.npy"),
        item_rows=_item_rows(directory, manifest, len(items)),
        cache=_cache(directory, manifest["pipeline"]["cache"], len(items)),
    )


def _stages(stored: Mapping[str, Any]) -> dict[str, StageSpec]:
    names = ("retrieve",) if stored["rank"] is None else ("retrieve", "rank")
    return {name: StageSpec(**{**stored[name], "inputs": tuple(stored[name]["inputs"])}) for name in names}


def _texts(directory: Path, manifest: Mapping[str, Any], name: str) -> Sequence[str] | None:
    """None where the bundle has none of this name."""
    data, ends = (f"{name}{suffix}" for suffix in SUFFIXES)
    return texts_of(_map(directory / data), _map(directory / ends)) if data in manifest["files"] else None


def _features(directory: Path, manifest: Mapping[str, Any]) -> Features | None:
    if f"{FEATURES}.json" not in manifest["files"]:
        return None
    stored = json.loads((directory / f"{FEATURES}.json").read_text(encoding="utf-8"))
    sizes, codes = tuple(stored["sizes"]), _map(directory / f"{FEATURES}.npy")
    return Features(tuple(stored["names"]), codes, sizes, _values(stored.get("values"), sizes))


def _values(stored: Sequence[Sequence[Any]] | None, sizes: Sequence[int]) -> tuple[Values, ...] | None:
    """None in bundles of stages that read no user features."""
    if stored is None:
        return None
    for column, size in zip(stored, sizes, strict=True):
        if not column or size != len(column) + (1 if isinstance(column[0], str) else 2):
            raise ValueError(f"a feature of {size} codes has {len(column)} values")
    return tuple(tuple(column) for column in stored)


def _histories(directory: Path, manifest: Mapping[str, Any], n_users: int) -> Ragged:
    """Empty ones where requests bring their own."""
    if HISTORIES[0] not in manifest["files"]:
        return Ragged(np.zeros(n_users + 1, np.int64), np.empty(0, np.int32))
    indptr, values = (_map(directory / name) for name in HISTORIES)
    return Ragged(indptr, values)


def _item_rows(directory: Path, manifest: Mapping[str, Any], n_items: int) -> Rows:
    rows: Rows = np.arange(n_items, dtype=np.int32)
    return _map(directory / ITEM_ROWS) if ITEM_ROWS in manifest["files"] else rows


def _cache(directory: Path, stored: Mapping[str, Any] | None, n_items: int) -> Cache | None:
    if stored is None:
        return None
    names = ("states" if "states" in stored else "users", "items", "scores")
    keys, items, scores = (_map(directory / "cache" / f"{name}.npy") for name in names)
    return Cache(keys, items, scores, float(stored["ttl_seconds"]), int(stored.get("depth", 0)), n_items)


def _map(path: Path) -> Any:
    """The array as a read-only memory map; never a pickle."""
    try:
        # A plain array over the map: `np.memmap` itself makes every slice several times slower.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError:  # an empty array cannot be mapped
        return np.load(path, allow_pickle=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    """All or nothing: a reader never sees half a manifest."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    draft.replace(path)
