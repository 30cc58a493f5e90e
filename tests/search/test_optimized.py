"""What the record of an `optimize` run says of its study."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from benchmarks import optimized, record
from made_study import BUDGET, base_quality, costs, done, started, step, worse

from recfit.search.study import Study

SETTINGS = """
[data]
source = "ml-100k"
[model]
kind = "ease"
[search]
directory = "study"
"""


def finished(directory: Path) -> Study:
    study = started(directory)
    study.add(*done("c", worse(base_quality(), 0.99), 1.0, step("quantize"), memory=50.0))
    labels = {"A": ("a", 12.0), "B": ("o", 4.0), "chosen": ("c", 1.0)}
    rows = {label: {"metrics": costs(p99), "intervals": {}} for label, (_, p99) in labels.items()}
    ids = {label: id for label, (id, _) in labels.items()}
    rest = {"ratios": {}, "difference": {}, "verdicts": {"p99_ms": "held"}, "text": "good", "protocol": {"threads": 1}}
    study.note(final={"ids": ids, "rows": rows, "budget": BUDGET, **rest})
    return study


def test_the_record_has_the_final_table_its_budget_and_what_it_took(tmp_path: Path) -> None:
    found = optimized.outcome(finished(tmp_path))
    assert {label: row["recipe"] for label, row in found["rows"].items()} == {"A": "a", "B": "o", "chosen": "c"}
    assert found["rows"]["chosen"]["metrics"]["p99_ms"] == 1.0
    assert found["rows"]["chosen"]["steps"][0]["technique"] == "quantize"
    assert (found["budget"], found["protocol"]) == (BUDGET, {"threads": 1})
    assert (found["candidates"], found["minutes"]) == ({"done": 3}, 0.15)  # of 3 seconds each


def test_the_writer_runs_the_command_and_saves_what_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, asked = tmp_path / "optimize.toml", []
    settings.write_text(SETTINGS)

    def run(command: tuple[str, ...], check: bool) -> subprocess.CompletedProcess[str]:
        asked.append(command[1:])
        finished(tmp_path / "study")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(optimized.subprocess, "run", run)
    monkeypatch.setattr(record, "FOLDER", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["benchmarks/optimized.py", str(settings)])
    optimized.main()
    assert asked == [("-m", "recfit.cli", "optimize", str(settings))]
    path = Path(capsys.readouterr().out.strip())
    assert path.name.endswith(f"-optimize-{tmp_path.name}.json")
    assert json.loads(path.read_text())["rows"]["B"]["recipe"] == "o"


def test_what_holds_no_budget_ends_with_the_exit_code_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "optimize.toml"
    settings.write_text(SETTINGS)
    monkeypatch.setattr(optimized.subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 3))
    monkeypatch.setattr(record, "FOLDER", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["benchmarks/optimized.py", str(settings)])
    with pytest.raises(SystemExit, match="3"):
        optimized.main()
    assert not (tmp_path / "results").exists()
