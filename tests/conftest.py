"""What several rooms share. The data and models behind it are in `toys`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import toys
from recfit.export import export
from recfit.pipeline import Pipeline, fingerprint

Exported = Callable[[Pipeline], Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exports a pipeline over the toy data, each only once; what comes back must not be changed."""
    folder = tmp_path_factory.mktemp("exported")

    def directory(pipeline: Pipeline) -> Path:
        path = folder / fingerprint(pipeline)[:16]
        return path if path.exists() else export(pipeline, toys.around(), path, name="toy", recipe={"id": "r0"})

    return directory
