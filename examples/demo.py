"""The whole story on real data: optimize, show the choice, serve it, ask it. Run by `make demo`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STUDY = HERE.parent / "demo" / "study"
RECFIT = [sys.executable, "-m", "recfit.cli"]
INFEASIBLE = 3  # the exit code of an optimize that no candidate satisfies


def run(*arguments: str) -> None:
    """Show a command and run it; where it fails, it has said why, and the demo ends with its exit code."""
    print(f"\n$ recfit {' '.join(arguments)}", flush=True)
    code = subprocess.run([*RECFIT, *arguments]).returncode
    if code == INFEASIBLE:
        print("\nNo bundle, so nothing to serve. Loosen examples/demo.toml and run it again: the study is kept.")
    if code:
        sys.exit(code)


def ask(url: str, body: dict[str, Any]) -> Any:
    """The server's answer to one request."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def serve_and_ask(user: str) -> None:
    """Start the server, ask for one user's recommendations, show titles, stop."""
    print(f"\n$ recfit serve {STUDY / 'bundle'} --port 0", flush=True)
    command = [*RECFIT, "serve", str(STUDY / "bundle"), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        greeting = server.stdout.readline().strip()
        print(greeting)
        url = greeting.rsplit(" ", 1)[1]
        print(f'\n$ curl -d \'{{"user_id": "{user}"}}\' {url}/v1/recommend')
        begin = time.perf_counter()
        answer = ask(f"{url}/v1/recommend", {"user_id": user, "k": 10})
        print(
            f"user {user}, from {answer['source']}, {(time.perf_counter() - begin) * 1e3:.1f} ms with the connection:"
        )
        for rank, item in enumerate(answer["items"], 1):
            print(f"{rank:3}. {item['title']:50} {item['score']:8.3f}")
    finally:
        server.terminate()
        server.wait(timeout=30)


def main() -> None:
    begin = time.monotonic()
    run("doctor")
    run("optimize", str(HERE / "demo.toml"))
    serve_and_ask("1")
    print(f"\nAll of it took {(time.monotonic() - begin) / 60:.1f} minutes. Open {STUDY / 'report.html'} in a browser.")


if __name__ == "__main__":
    main()
