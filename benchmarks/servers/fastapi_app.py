"""FastAPI on uvicorn, as most teams write it. Calls run on the event loop: on one core that beats FastAPI's thread pool."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from benchmarks.servers.model import ROUTE, ranker
from fastapi import FastAPI
from pydantic import BaseModel


class Body(BaseModel):
    history: list[str]
    user_id: str | None = None
    k: int = 10


def main(port: int) -> None:
    api, model = FastAPI(), ranker()

    @api.post(ROUTE)
    async def recommend(body: Body) -> dict[str, Any]:
        return {"items": model.recommend([body.history], body.k)[0]}

    uvicorn.run(api, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
