from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

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
