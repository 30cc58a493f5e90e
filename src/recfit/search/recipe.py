"""A recipe: an ordered list of techniques. Equal settings give an equal id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from recfit.techniques import Technique, describe, make, name_of, settings_of


@dataclass(frozen=True)
class Recipe:
    steps: tuple[Technique, ...] = ()

    @cached_property
    def id(self) -> str:
        """Digest of the steps and their settings, in whatever order these are written."""
        steps = [[name_of(step), settings_of(step)] for step in self.steps]
        return hashlib.sha256(json.dumps(steps, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        return " -> ".join(describe(step) for step in self.steps) or "original"

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(step.family for step in self.steps))

    @property
    def prefixes(self) -> list[Recipe]:
        """This recipe after its first step, after its first two, ..., up to the whole."""
        return [Recipe(self.steps[: count + 1]) for count in range(len(self.steps))]

    def then(self, step: Technique) -> Recipe:
        """This recipe with one more step, put where its order belongs; of equal order, by their names."""
        return Recipe(tuple(sorted((*self.steps, step), key=lambda part: (part.order, describe(part)))))

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"technique": name_of(step), "family": step.family, "settings": settings_of(step), "text": describe(step)}
            for step in self.steps
        ]

    @classmethod
    def from_json(cls, steps: Iterable[Mapping[str, Any]]) -> Recipe:
        return cls(tuple(make(step["technique"], step["settings"]) for step in steps))
