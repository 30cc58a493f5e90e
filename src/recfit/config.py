"""recfit.toml <-> dataclasses. A wrong key names the key, what is allowed and the nearest match."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recfit.options import check_choice, check_ranges, from_options, read_toml
from recfit.types import ConfigError

MEMORY = ":memory:"
"""The name of a file that is none."""
# Below that, a p99 is the word of fewer than ten requests.
MIN_REQUESTS = 1000


@dataclass(frozen=True)
class Data:
    """Where the interactions come from and how they are split.

    `source` is a path or a known name such as `ml-100k`; `columns` maps recfit's names to the file's.
    """

    source: str
    split: str = "leave_last"
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    bad_rows: str = "error"
    min_weight: float | None = None
    user_features: str | None = None
    item_features: str | None = None


@dataclass(frozen=True)
class Model:
    """The original: a family (`kind`) with `options` to train here, or the folder of a trained model (`path`).

    `fit` holds training settings, for the original and, unless `[search.fit]` says otherwise, for every student. A model
    that learns from whole histories (`sasrec`, `mlp`) in the place of one that is trained here on single events (`neumf`,
    `two_tower`) takes no more than seed, threads, precision, minutes and share of the data from it: the others, epochs and
    batches among them, count something else there.
    """

    kind: str = "sasrec"
    options: Mapping[str, Any] = field(default_factory=dict)
    factory: str | None = None
    path: str | None = None
    fit: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """Limits and an objective; see `recfit.search.budget.Budget`."""

    limits: Mapping[str, Any] = field(default_factory=dict)
    objective: str = "latency"
    quality_metric: str = "ndcg@10"
    price: float = 0.04
    accept_undecided: bool = False


@dataclass(frozen=True)
class Search:
    """Where the study lives and how much it may use; `techniques` restricts what is tried (all by default).

    `threads` train, `serve_threads` answer; `requests` stand behind every percentile; `rate` (requests a second) adds
    a run under that load.
    """

    directory: str = "runs/study"
    techniques: tuple[str, ...] = ()
    max_candidates: int = 40
    max_minutes: float = 60.0
    memory_gb: float = 8.0
    threads: int = 2
    serve_threads: int = 1
    requests: int = 1500
    rate: float | None = None
    fit: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_candidates", "max_minutes", "memory_gb", "threads", "serve_threads"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"search.{name} = {getattr(self, name)}; it must be above 0")
        if self.requests < MIN_REQUESTS:
            raise ConfigError(f"search.requests = {self.requests} are too few for a p99; pass {MIN_REQUESTS} or more")
        if self.rate is not None and self.rate <= 0:
            raise ConfigError(f"search.rate = {self.rate}; it is requests a second, above 0, or left out")


@dataclass(frozen=True)
class Serve:
    """How `recfit serve recfit.toml` answers: where it listens (port 0: any free one), and whether `histories` come from the
    "bundle" or with each "request".

    So many `workers`, processes with a server each, answer at the port; what users do must then be kept where all of them
    find it. With `engine` "ray" they are replicas on Ray Serve, on one machine or many, up to `most_workers` as the load asks
    for (0: no more). Models run on the event loop or in so many `threads` of each. `events` is the file that keeps what users
    do for `events_days` (0: for ever); None is BUNDLE.events.db beside the bundle, ":memory:" forgets it at the end.
    After SIGTERM it goes on for `drain_s` seconds, until load balancers have noticed. `results_mb` of answers are kept for
    those who ask the same again. `session_mb` of what the model of each bundle worked out are kept for those who ask with an
    event more; above 0 it also makes bundles whose graphs can go on so.
    Servers that are given the same `redis` share events (instead of the file) and answers; a request waits `redis_timeout_ms`
    for a reply.
    `cheaper` are bundles that answer where the first cannot keep `budget_ms`, the best first; who would wait longer than
    `shed_ms` is told to come back. `models` are more bundles by
    name, a path or a list of them as a ladder of their own, loaded when they are asked for first, or before the server is ready
    if `preload` names them; above `memory_mb` of
    resident memory those that were used least recently leave (0: no bound). `admin_port`, on this machine alone, lets
    bundles be swapped; every further worker has the next one. `keys` is the file of those who may ask (None: everybody may),
    `certificate` and `private_key` are the PEM files for TLS. `experiments` is a file that says which users get which model,
    `exposures` the log of what they were shown, for `exposures_days`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    histories: str = "bundle"
    engine: str = "local"
    workers: int = 1
    most_workers: int = 0
    threads: int = 0
    events: str | None = None
    events_days: float = 30.0
    drain_s: float = 1.0
    results_mb: float = 32.0
    session_mb: float = 0.0
    redis: str | None = None
    redis_timeout_ms: float = 5.0
    models: Mapping[str, Any] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    cheaper: tuple[str, ...] = ()
    budget_ms: float = 10.0
    shed_ms: float = 1000.0
    memory_mb: float = 0.0
    admin_port: int | None = None
    keys: str | None = None
    certificate: str | None = None
    private_key: str | None = None
    experiments: str | None = None
    exposures: str | None = None
    exposures_days: float = 180.0

    def __post_init__(self) -> None:
        check_ranges("serve", self, port=(0, 65535), workers=(1, 1024), most_workers=(0, 1024), threads=(0, 1024))
        check_ranges("serve", self, drain_s=(0, 3600), memory_mb=(0, 1e9))
        check_ranges("serve", self, events_days=(0, 36_500), exposures_days=(0, 36_500))
        check_ranges("serve", self, redis_timeout_ms=(0.1, 10_000))
        check_ranges("serve", self, budget_ms=(0.1, 1e6), shed_ms=(0.1, 1e9), results_mb=(0, 1e6), session_mb=(0, 1e6))
        if (self.certificate is None) != (self.private_key is None):
            raise ConfigError("serve.certificate and serve.private_key go together; give both, or neither")
        if self.redis is not None and self.events is not None:
            raise ConfigError("serve.redis and serve.events both keep what users do; give one of them")
        self._check_workers()
        self._check_admin_port()
        if "default" in self.models:
            raise ConfigError("serve.models names 'default', which is the bundle that is served first; choose another")
        for name, paths in self.models.items():
            if not self.rungs(name) or not all(isinstance(path, str) for path in self.rungs(name)):
                raise ConfigError(f"serve.models.{name} = {paths!r}; it must be a path or a list of paths")
        for name in self.preload:
            check_choice("serve.preload", name, tuple(self.models))
        check_choice("serve.histories", self.histories, ("bundle", "request"))

    def _check_admin_port(self) -> None:
        if not self.admin_port:  # none, or free ones
            return
        check_ranges("serve", self, admin_port=(0, 65536 - self.workers))
        if self.port in range(self.admin_port, self.admin_port + self.workers):
            raise ConfigError(
                f"serve.port = {self.port} is one of the {self.workers} for operators from serve.admin_port = "
                f"{self.admin_port} on, one for each worker; put one of the two elsewhere"
            )

    def _check_workers(self) -> None:
        check_choice("serve.engine", self.engine, ("local", "ray"))
        most = max(self.workers, self.most_workers)
        if self.engine == "local":
            if self.most_workers:
                raise ConfigError(
                    f'serve.most_workers = {self.most_workers} is for the engine "ray"; say how many there are in workers'
                )
            if most > 1 and self.redis is None and self.events in (None, MEMORY):
                raise ConfigError(
                    f"serve.workers = {most} must share what users do; name a file in serve.events, or a serve.redis"
                )
            return
        if not self.port:
            raise ConfigError(
                'serve.port = 0 is for the engine "local"; on ray all machines listen at one port, name it'
            )
        if most > 1 and self.redis is None:
            raise ConfigError(f"{most} replicas on ray must share what users do; name a serve.redis")
        for name in ("admin_port", "certificate"):
            if getattr(self, name) is not None:
                advice = "deploy again to change bundles, and leave TLS to what is in front"
                raise ConfigError(f'serve.{name} is for the engine "local"; on ray, {advice}')

    def rungs(self, name: str) -> tuple[Any, ...]:
        """The paths of a model's bundles, the best first."""
        found = self.models[name]
        return tuple(found) if isinstance(found, list | tuple) else (found,)


@dataclass(frozen=True)
class Settings:
    """A whole recfit.toml."""

    data: Data
    model: Model = Model()
    budget: Budget = Budget()
    search: Search = Search()
    serve: Serve = Serve()


def load(path: Path | str) -> Settings:
    """Read and check a recfit.toml. Paths in it are relative to its folder."""
    path = Path(path)
    content = read_toml(path, "; `recfit init` writes one")
    settings = anchored(parse(content), path.parent)
    if settings.model.factory:
        _importable(path.parent.resolve())
    return settings


def _importable(folder: Path) -> None:
    """Let modules beside the config be imported, in processes that start from here too."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def parse(content: Mapping[str, Any]) -> Settings:
    """Settings from nested tables. In `[budget]`, every key that is not a setting is a limit."""
    tables = dict(content)
    if isinstance(tables.get("budget"), Mapping):
        tables["budget"] = _budget(tables["budget"])
    if "data" not in tables:
        raise ConfigError("recfit.toml needs [data]; `recfit init` writes a complete example")
    rooms = typing.get_type_hints(Settings)
    made = {name: from_options(rooms[name], table, name) for name, table in tables.items() if name in rooms}
    return from_options(Settings, {**tables, **made}, "recfit.toml")


def _budget(table: Mapping[str, Any]) -> dict[str, Any]:
    own = [item.name for item in dataclasses.fields(Budget) if item.name != "limits"]
    for key in table:
        if key not in own and (near := difflib.get_close_matches(key, own, n=1)):
            raise ConfigError(f"budget has no setting {key!r} (did you mean {near[0]!r}?)")
    return {
        **{key: value for key, value in table.items() if key in own},
        "limits": {key: value for key, value in table.items() if key not in own},
    }


def anchored(settings: Settings, folder: Path) -> Settings:
    """The settings with paths resolved against `folder`; a `source` without suffix that is not there is a known name."""

    def resolve(value: str | None) -> str | None:
        return None if value is None else str((folder / value).resolve())

    source = settings.data.source
    named = not Path(source).suffix and not (folder / source).exists()
    data = dataclasses.replace(
        settings.data,
        source=source if named else resolve(source) or source,
        user_features=resolve(settings.data.user_features),
        item_features=resolve(settings.data.item_features),
    )
    search = dataclasses.replace(settings.search, directory=os.path.normpath(folder / settings.search.directory))
    model = dataclasses.replace(settings.model, path=resolve(settings.model.path))
    given = settings.serve

    def all_of(paths: Sequence[str]) -> tuple[str, ...]:
        return tuple(str((folder / path).resolve()) for path in paths)

    serve = dataclasses.replace(
        given,
        cheaper=all_of(given.cheaper),
        models={name: all_of(given.rungs(name)) for name in given.models},
        events=given.events if given.events == MEMORY else resolve(given.events),
        keys=resolve(given.keys),
        certificate=resolve(given.certificate),
        private_key=resolve(given.private_key),
        experiments=resolve(given.experiments),
        exposures=resolve(given.exposures),
    )
    return dataclasses.replace(settings, data=data, search=search, model=model, serve=serve)
