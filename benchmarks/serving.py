"""Bundles behind the same HTTP server, side by side: memory, imports, idle latency, requests a second. Needs `wrk`.

    python -m benchmarks.serving demo/study/test/requests.jsonl original=demo/study/final/A chosen=demo/study/bundle

Rounds alternate between the bundles. Client and server share the cores of this machine, loopback only.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.record import save
from benchmarks.started import Started, started

SCRIPT = """
local bodies, at = {}, 0
for line in io.lines("%s") do bodies[#bodies + 1] = line end
wrk.method, wrk.headers["content-type"] = "POST", "application/json"
request = function() at = at %% #bodies + 1; return wrk.format(nil, nil, nil, bodies[at]) end
done = function(summary, latency)
  io.write(string.format("p50 %%f p99 %%f rps %%f bad %%d\\n", latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    summary.requests / summary.duration * 1e6,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout))
end
"""


def load(server: Started, script: Path, clients: int, seconds: int) -> dict[str, float]:
    """One run of wrk: percentiles in ms, requests a second."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "-s", str(script), f"{server.url}/v1/recommend"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"p50 ([\d.]+) p99 ([\d.]+) rps ([\d.]+) bad (\d+)", output)
    assert found is not None, output
    p50, p99, rps, bad = map(float, found.groups())
    if bad:
        raise SystemExit(f"{server.url}: {bad:.0f} requests failed:\n{output}")
    return {"p50_ms": p50, "p99_ms": p99, "rps": rps}


def imports(bundle: str) -> list[str]:
    """Top-level modules outside the standard library that a process serving `bundle` has loaded after an answer."""
    code = (
        "import sys; from recfit.engine import open_bundle; from recfit.serve.app import make_app; "
        "from recfit.serve.fleet import Fleet; make_app(Fleet([open_bundle(sys.argv[1])])); "
        "print(*sorted({n.split('.')[0] for n in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split() if not name.startswith("_")]


def bodies(requests: Path, folder: Path) -> Path:
    """The requests as bodies of the server, one a line, in wrk's script."""
    lines = [json.loads(line) for line in requests.read_text().splitlines()]
    path = folder / "bodies.jsonl"
    kept = [json.dumps({key: line[key] for key in ("user_id", "history")}) for line in lines]
    path.write_text("\n".join(kept) + "\n")
    script = folder / "post.lua"
    script.write_text(SCRIPT % path)
    return script


def compare(
    servers: Mapping[str, Started], script: Path, rounds: int, seconds: int, clients: int
) -> dict[str, dict[str, Any]]:
    """Medians over alternating rounds, with one client (idle) and with `clients` (busy)."""
    runs: dict[str, dict[str, list[dict[str, float]]]] = {label: {"idle": [], "busy": []} for label in servers}
    for server in servers.values():
        load(server, script, 1, 1)
    for _ in range(rounds):
        for label, server in servers.items():
            runs[label]["idle"].append(load(server, script, 1, seconds))
            runs[label]["busy"].append(load(server, script, clients, seconds))
    return {
        label: {
            **{state: _medians(found) for state, found in runs[label].items()},
            "rss_mb": round(server.process.memory_info().rss / 1e6, 1),
        }
        for label, server in servers.items()
    }


def _medians(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in found), 4) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path, help="requests as JSON lines (a study's test/requests.jsonl)")
    parser.add_argument("bundles", nargs="+", metavar="LABEL=BUNDLE", help="what to compare; the first is the base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0, help="inference threads; 0 answers on the event loop")
    options = parser.parse_args()
    pairs = [pair.split("=", 1) for pair in options.bundles]
    with tempfile.TemporaryDirectory() as folder:
        script = bodies(options.requests, Path(folder))
        with ExitStack() as stack:
            # Every request is worked for.
            flags = ["--threads", str(options.threads), "--drain-s", "0", "--results-mb", "0"]
            servers = {label: stack.enter_context(started(bundle, flags, None)) for label, bundle in pairs}
            found = compare(servers, script, options.rounds, options.seconds, options.clients)
    for label, bundle in pairs:
        found[label]["imports"] = imports(bundle)
    report(found, options)


def report(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """A table on the terminal and a dated JSON file."""
    base = found[next(iter(found))]
    print(f"{'':16} {'RSS MB':>8} {'idle p50':>9} {'idle p99':>9} {'req/s':>9} {'busy p99':>9}   (ms)")
    for label, row in found.items():
        gain = row["busy"]["rps"] / base["busy"]["rps"]
        print(
            f"{label:16} {row['rss_mb']:8.1f} {row['idle']['p50_ms']:9.3f} {row['idle']['p99_ms']:9.3f} "
            f"{row['busy']['rps']:9.0f} {row['busy']['p99_ms']:9.3f}   {gain:.1f}x the requests a second of the first"
        )
        print(f"{'':16} imports: {', '.join(row['imports'])}")
    settings = {name: getattr(options, name) for name in ("rounds", "seconds", "clients", "threads")}
    print(save("serving", "", {"settings": settings, "found": found}))


if __name__ == "__main__":
    main()
