"""LitServe with batches of what is there, one worker."""

from __future__ import annotations

import sys
from typing import Any

import litserve
from benchmarks.servers.model import ROUTE, ranker


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = ranker()

    def decode_request(self, request):  # type: ignore[no-untyped-def] # LitServe reads annotations
        return request["history"]

    def predict(self, histories: list[list[str]]) -> list[Any]:
        return self.model.recommend(histories)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"items": output}


def main(port: int) -> None:
    api = Api(max_batch_size=16, batch_timeout=0.0005, api_path=ROUTE)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
