"""The examples of alerts and dashboards hold, and speak of metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from fake_engine import FakeEngine, app_of

EXAMPLES = Path(__file__).parents[2] / "examples" / "monitoring"
NAME = re.compile(r"\b((?:recfit|process)_[a-z_]+)")


@pytest.mark.parametrize(
    "command", [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]], ids=" ".join
)
def test_the_rules_do_what_they_say(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], cwd=EXAMPLES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_that_is_asked_for_is_there(call) -> None:
    engine = FakeEngine()
    engine.manifest = {**engine.manifest, "promise": {"metrics": {"ndcg@10": 0.1}}}
    app = app_of(engine)
    call(app, "POST", "/v1/recommend", json={"user_id": "u1"})
    shown = set(re.findall(r"^# TYPE (\S+) ", call(app, "GET", "/metrics").text, re.MULTILINE))
    there = shown | {f"{name}{end}" for name in shown for end in ("_bucket", "_count", "_total")}
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = (EXAMPLES / "rules.yml").read_text()
    wanted = {name for text in (*asked, rules) for name in NAME.findall(text)}
    assert len(wanted) > 8
    assert wanted <= there
