"""What a ladder of bundles does under load, and what it costs: load from a fifth to three times what the best bundle can take.

    python -m benchmarks.ladder runs/test/requests.jsonl full/ small/ popular/ --budget-ms 10

Bundles are the best first, each with a promise (`recfit optimize` writes one). Each load runs against a server of the whole
ladder and one of the best bundle alone, turn by turn. Server and client have a core each; requests go round
without the result cache, so that every one of them is worked for. Results are dated JSON, with a picture beside it.
"""

from __future__ import annotations

import argparse
import os
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.plots import overload
from benchmarks.record import save
from benchmarks.started import CLIENT, started
from prometheus_client.parser import text_string_to_metric_families

from recfit.bundle import read_manifest
from recfit.data.requests import read_requests
from recfit.loadtest import Found, Load, find_most, run
from recfit.serve.fleet import QUALITY

LOADS = (0.2, 0.5, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0)


def flags(bundles: Sequence[str], budget_ms: float) -> list[str]:
    """What a server of `bundles`, the best first, is told."""
    cheaper = ["--cheaper", *bundles[1:]] if bundles[1:] else []
    return [*cheaper, "--results-mb", "0", "--budget-ms", f"{budget_ms}", "--drain-s", "0"]


def rungs(url: str, count: int) -> list[float]:
    """How many requests each rung has answered so far."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {sample.labels["rung"]: sample.value for sample in samples if sample.name == "recfit_rung_requests_total"}
    return [found.get(f"{rung}", 0.0) for rung in range(count)]


def row(url: str, requests: Any, load: Load, promises: Sequence[float]) -> dict[str, Any]:
    """One run, with the share of each rung and the quality that their promises make of it."""
    before = rungs(url, len(promises))
    found = run(url, requests, load)
    answered = [now - old for now, old in zip(rungs(url, len(promises)), before, strict=True)]
    shares = [count / max(1.0, sum(answered)) for count in answered]
    quality = sum(share * promise for share, promise in zip(shares, promises, strict=True))
    return {**asdict(found), "shares": shares, "quality": quality}


def capacity(url: str, requests: Any, seconds: float, budget_ms: float) -> tuple[float, list[Found]]:
    """The highest rate at which the server at `url` keeps the budget."""
    runs = list(find_most(url, requests, Load(200, seconds), budget_ms))
    return max((found.rate for found in runs if found.holds(budget_ms)), default=0.0), runs


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| load | server | requests/s | p50 ms | p99 ms | failed | rungs % | expected NDCG@10 |"
    yield "| ---: | --- | ---: | ---: | ---: | ---: | --- | ---: |"
    for line in rows:
        shares = " / ".join(f"{100 * share:.0f}" for share in line["shares"])
        failed = sum(count for status, count in line["statuses"].items() if status != "200")
        numbers = f"{line['sent_a_second']:,.0f} | {line['ms']['50']:.2f} | {line['ms']['99']:.2f} | {failed}"
        yield f"| {line['load']:g}x | {line['server']} | {numbers} | {shares} | {line['quality']:.4f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path)
    parser.add_argument("bundles", nargs="+", help="the best first")
    parser.add_argument("--budget-ms", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    given = parser.parse_args()
    os.sched_setaffinity(0, CLIENT)
    requests = read_requests(given.requests)
    manifests = [read_manifest(Path(bundle)) for bundle in given.bundles]
    promises = [manifest["promise"]["metrics"][QUALITY] for manifest in manifests]
    rows = []
    best, budget_ms = given.bundles[0], given.budget_ms
    with (
        started(best, flags([best], budget_ms)) as alone,
        started(best, flags(given.bundles, budget_ms)) as ladder,
    ):
        most, _ = capacity(alone.url, requests, given.seconds / 2, given.budget_ms)
        print(f"the best bundle alone keeps p99 <= {given.budget_ms:g} ms up to {most:,.0f} requests/s", flush=True)
        for share in LOADS:
            load = Load(share * most, given.seconds, connections=256)
            for name, url in (("alone", alone.url), ("ladder", ladder.url)):
                measured = row(url, requests, load, promises[: 1 if name == "alone" else None])
                rows.append({"load": share, "server": name, **measured})
                print(list(lines(rows))[-1], flush=True)
    found = {
        "protocol": f"open loop (Poisson), {given.seconds:g} s a load, 256 connections at most, k = 10, no result cache; "
        "server and client a core each, loopback",
        "bundles": [manifest["name"] for manifest in manifests],
        "promises": promises,
        "budget_ms": given.budget_ms,
        "capacity": most,
        "rows": rows,
    }
    path = save("ladder", "", found)
    print(*lines(rows), path, overload(rows, given.budget_ms, path.with_suffix(".svg")), sep="\n")


if __name__ == "__main__":
    main()
