from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.types import ASGIApp

from recfit.types import Ragged

Call = Callable[..., httpx.Response]


@pytest.fixture(scope="session")
def call() -> Call:
    """`call(app, method, path, ...)`: one request through the app, without a network."""

    def send(app: ASGIApp, method: str, path: str, **options: Any) -> httpx.Response:
        async def request() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://recfit") as client:
                return await client.request(method, path, **options)

        return asyncio.run(request())

    return send


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from recfit.export import Surroundings, export
    from recfit.models import Catalogue, sasrec
    from recfit.pipeline import Pipeline, Stage

    items = tuple(f"i{n}" for n in range(12))
    around = Surroundings(
        user_ids=("1", "2", "3"),
        item_ids=items,
        titles=tuple(f"Title {n}" for n in range(12)),
        user_features=None,
        histories=Ragged.from_lists(([0, 1, 2], [3, 4], [5])),
        fallback=np.arange(12, dtype=np.int32),
    )
    model = sasrec.build(sasrec.Config(layers=1, embedding_dim=8), Catalogue(3, 12))
    directory = tmp_path_factory.mktemp("bundles") / "tiny"
    return export(Pipeline(Stage(model)), around, directory, name="tiny", recipe={"id": "r0", "steps": []})
