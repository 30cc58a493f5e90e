"""From a file of events to a bundle and its numbers, by the command line alone."""

import csv
import json
import math
from collections import defaultdict

import pytest
from made_by_command import CANDIDATES, CONFIG, candidates, rows, run

from recfit import open_bundle


def ndcg(requests, targets, recommended):
    """Mean over users of NDCG@10 with one target a query: ten lines that share nothing with recfit."""
    wanted = {int(row["query"]): row["item_id"] for row in csv.DictReader(targets.read_text().splitlines())}
    users = [json.loads(line)["user_id"] for line in requests.read_text().splitlines()]
    gains, values = defaultdict(float), defaultdict(list)
    for row in csv.DictReader(recommended.read_text().splitlines()):
        query, rank = int(row["query"]), int(row["rank"])
        if rank <= 10 and row["item_id"] == wanted[query]:
            gains[query] = 1 / math.log2(rank + 1)
    for query, user in enumerate(users):
        values[user].append(gains[query])
    return sum(sum(part) / len(part) for part in values.values()) / len(values)


def test_a_killed_run_loses_nothing_and_the_next_repeats_nothing(made):
    assert made.second.returncode == 0, made.second.stderr
    finished = [row["id"] for row in candidates(made.before)]
    assert 3 <= len(finished) < CANDIDATES
    whole = made.before[: made.before.rfind(b"\n") + 1]
    assert made.ledger.startswith(whole)
    everything = [row["id"] for row in candidates(made.ledger)]
    assert everything[: len(finished)] == finished
    assert len(set(everything)) == len(everything) == CANDIDATES
    assert "leaked" not in made.second.stderr


def test_the_original_was_measured_in_both_ways_and_compared_with_simple_models(made):
    found = {row["name"]: row for row in candidates(made.ledger)}
    assert found["original"]["id"] == made.facts["original"]
    assert found["runtime(name=torch)"]["id"] == made.facts["eager"]
    kinds = {row["recipe"][0]["settings"].get("kind") for row in found.values() if row["recipe"]}
    assert {"popularity", "itemknn", "ease", "als"} <= kinds
    same = [found[name]["metrics"]["ndcg@10"] for name in ("original", "runtime(name=torch)")]
    assert same[0] == pytest.approx(same[1], abs=1e-3)
    assert same[0] > 2 * found["simplify(popularity)"]["metrics"]["ndcg@10"]


def test_the_bundle_opens_and_carries_its_promise(made):
    engine = open_bundle(made.study / "bundle")
    promise = engine.manifest["promise"]
    final = made.facts["final"]
    assert engine.manifest["recipe"]["id"] == final["ids"]["chosen"]
    assert promise["metrics"] == final["rows"]["chosen"]["metrics"]
    assert promise["protocol"]["machine"]["cores"] >= 1
    assert set(final["ratios"]) == {"A", "B"}
    assert json.loads(made.second.stdout)["final"]["text"] == final["text"]


def test_the_report_is_there(made):
    page = (made.study / "report.html").read_text()
    assert all(row["id"] in page for row in candidates(made.ledger))
    assert json.loads(made.second.stdout)["report"] == str(made.study / "report.html")


@pytest.mark.parametrize("role", ["chosen", "B", "A"])
def test_quality_recomputed_from_the_recommendations_is_that_of_the_study(made, role, recfit, tmp_path):
    bundle = made.study / "bundle" if role == "chosen" else made.study / "final" / role
    requests, recommended = made.study / "test" / "requests.jsonl", tmp_path / "recs.csv"
    code, out, _ = recfit("recommend", bundle, "--requests", requests, "--k", "10", "-o", recommended)
    assert (code, out) == (0, f"400 requests answered in {recommended}\n")
    reported = made.facts["final"]["rows"][role]["metrics"]["ndcg@10"]
    assert reported > 0.05
    again = ndcg(requests, made.study / "test" / "targets.csv", recommended)
    assert f"{again:.4f}" == f"{reported:.4f}"


def test_the_same_command_again_does_nothing(made):
    before = made.ledger
    third = run("optimize", made.config)
    assert (third.returncode, third.stderr) == (0, "")
    assert made.ledger == before
    assert f"chosen: {json.loads(made.second.stdout)['chosen']}\n{made.facts['final']['text']}\n" in third.stdout
    assert f"/{CANDIDATES}," not in third.stdout  # no candidate was measured
    assert "final:" not in third.stdout


def test_an_impossible_budget_exits_with_3_and_names_what_binds(own):
    own.config.write_text(CONFIG.replace('"ndcg@10" = "50%"', "memory_mb = 1"))
    found = run("optimize", own.config, "--json")
    assert found.returncode == 3
    answer = json.loads(found.stdout)
    assert answer["error"] == "Infeasible"
    assert "what binds: memory_mb <= 1, the nearest has" in answer["message"]
    assert f"recfit: {answer['message']}" in found.stderr
    assert "limit memory_mb <= 1: the least any bundle needs here is" in found.stderr
    assert "out of reach" in found.stderr
    # Nothing was built for a budget that no bundle can hold, and the report shows the nearest miss.
    assert len(candidates(own.ledger)) == CANDIDATES
    assert "memory_mb" in (own.study / "report.html").read_text()
    assert rows(own.ledger)[-1]["budget"]["limits"] == {"memory_mb": 1}


def test_the_final_text_is_that_of_the_budget(own):
    own.config.write_text(CONFIG.replace('"ndcg@10" = "50%"', '"ndcg@10" = "51%"'))
    found = run("optimize", own.config, "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["final"]["budget"]["limits"] == {"ndcg@10": "51%"}


def test_another_original_is_refused_rather_than_mixed(own, recfit):
    own.config.write_text(CONFIG.replace("layers = 1", "layers = 2"))
    before = own.ledger
    code, _, err = recfit("optimize", own.config)
    assert code == 2
    assert "holds the study of another original, data set, split, training or processor" in err
    assert own.ledger == before


def test_bundles_of_an_older_format_are_made_again(own):
    manifests = [own.study / "bundle" / "manifest.json", *(own.study / "bundles").glob("*/manifest.json")]
    before = json.loads(manifests[0].read_text())
    for path in manifests:
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    found = run("optimize", own.config)
    assert found.returncode == 0, found.stderr
    after = json.loads(manifests[0].read_text())
    assert (after["bundle_id"], after["format"]) == (before["bundle_id"], before["format"])
