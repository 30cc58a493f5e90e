"""Who gets which model: arms by a stable hash of the user, and shadows that see requests and answer nobody.

A TOML file names them, and is read again when it changes:

    [[experiment]]
    name = "student"
    model = "default"              # requests for this model take part
    arms = { default = 0.5, student = 0.5 }

    [[shadow]]
    model = "default"
    to = "student"
    share = 0.1
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recfit.options import check_choice, from_options, read_toml
from recfit.types import ConfigError

log = logging.getLogger("recfit.serve")

LOOK_S = 1.0
"""How often the file is looked at."""


@dataclass(frozen=True)
class Experiment:
    """Users of `model` are spread over `arms`, models with their weights; each stays where it is for as long as name and
    weights do. The first arm is the control."""

    name: str
    arms: Mapping[str, float]
    model: str = "default"

    def __post_init__(self) -> None:
        weights = self.arms.values()
        if len(self.arms) < 2 or not all(isinstance(w, int | float) and 0 < w < math.inf for w in weights):
            raise ConfigError(
                f"experiment {self.name!r} has arms = {dict(self.arms)}; give two models or more, each a weight above 0"
            )

    def arm(self, user_id: str) -> str:
        """The arm of a user."""
        digest = hashlib.blake2b(f"{self.name}\0{user_id}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64 * sum(self.arms.values())
        for name, weight in self.arms.items():
            place -= weight
            if place < 0:
                return name
        return name


@dataclass(frozen=True)
class Shadow:
    """A `share` of the requests for `model` is asked of model `to` as well; its answers are thrown away, its errors counted."""

    model: str
    to: str
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.model == self.to:
            raise ConfigError(
                f"shadow of {self.model!r} has to = {self.to!r}, share = {self.share:g}; name another model and a share up to 1"
            )


@dataclass(frozen=True)
class Plan:
    """What runs at the moment, at most one experiment and one shadow for each model."""

    experiments: Mapping[str, Experiment] = field(default_factory=dict)
    shadows: Mapping[str, Shadow] = field(default_factory=dict)


def read_plan(path: Path) -> Plan:
    """The tables of a file. Raises `ConfigError`."""
    content = read_toml(path, " of experiments; check serve.experiments")
    if unknown := content.keys() - {"experiment", "shadow"}:
        raise ConfigError(f"{path} has a table {min(unknown)!r}; allowed: experiment, shadow")
    for kind, tables in content.items():
        if not isinstance(tables, list):
            raise ConfigError(f"{path} has {kind} = {tables!r}; begin each one with a line [[{kind}]]")
    experiments = [from_options(Experiment, table, f"{path}, experiment") for table in content.get("experiment", [])]
    shadows = [from_options(Shadow, table, f"{path}, shadow") for table in content.get("shadow", [])]
    for kind, found in (("experiment", experiments), ("shadow", shadows)):
        models = [one.model for one in found]
        if twice := [model for model in models if models.count(model) > 1]:
            raise ConfigError(f"{path} has two {kind}s of model {twice[0]!r}; one at a time")
    return Plan({one.model: one for one in experiments}, {one.model: one for one in shadows})


def plan_of(path: Path, models: Sequence[str]) -> Plan:
    """The plan in a file, all of whose names are among `models`. Raises `ConfigError`."""
    plan = read_plan(path)
    for experiment in plan.experiments.values():
        for name in (experiment.model, *experiment.arms):
            check_choice(f"{path}: a model of experiment {experiment.name!r}", name, tuple(models))
    for shadow in plan.shadows.values():
        for name in (shadow.model, shadow.to):
            check_choice(f"{path}: a model of a shadow", name, tuple(models))
    return plan


class Experiments:
    """The plan in the file `path`, as it is now, for the models that the server has then; without a file nothing runs. A change
    that is no plan, or of other models, is logged, and the one before goes on."""

    def __init__(self, path: Path | None = None, models: Callable[[], Sequence[str]] = tuple) -> None:
        self._path, self._models = path, models
        self._plan = Plan() if path is None else plan_of(path, models())
        self._changed, self._looked = self._stamp(), time.monotonic()

    @property
    def plan(self) -> Plan:
        now = time.monotonic()
        if self._path is not None and now - self._looked >= LOOK_S:
            self._looked = now
            if (stamp := self._stamp()) != self._changed:
                self._changed = stamp
                try:
                    self._plan = plan_of(self._path, self._models())
                    log.warning("experiments are those of %s now", self._path)
                except (ConfigError, OSError) as error:
                    log.error("%s; the experiments before go on", error)
        return self._plan

    def _stamp(self) -> tuple[int, int]:
        """Changes when the file does."""
        try:
            found = self._path and self._path.stat()
        except OSError:
            return 0, 0
        return (found.st_mtime_ns, found.st_size) if found else (0, 0)

    def arm(self, model: str, user_id: str | None) -> tuple[str, str | None]:
        """The model that answers a request for `model`, and the experiment it takes part in. Who is not known takes part in
        none."""
        experiment = self.plan.experiments.get(model)
        if experiment is None or user_id is None:
            return model, None
        return experiment.arm(user_id), experiment.name

    def shadow(self, model: str) -> str | None:
        """The model that is to see a request that `model` answers, if this one is among its share."""
        shadow = self.plan.shadows.get(model)
        return shadow.to if shadow is not None and random.random() < shadow.share else None
