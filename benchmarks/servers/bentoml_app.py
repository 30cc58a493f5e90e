"""BentoML with one worker. Its batches need clients that send lists, so requests run one by one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import bentoml
from benchmarks.servers.model import ROUTE, ranker


@bentoml.service(workers=1, metrics={"enabled": False})
class Service:
    def __init__(self) -> None:
        self.model = ranker()

    @bentoml.api(route=ROUTE)
    async def recommend(self, history: list[str], user_id: str | None = None, k: int = 10) -> dict[str, Any]:
        return {"items": self.model.recommend([history], k)[0]}


def main(port: int) -> None:
    command = [sys.executable, "-m", "bentoml", "serve", f"{__spec__.name}:Service", "--port", str(port)]
    subprocess.run([*command, "--host", "127.0.0.1"], check=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
