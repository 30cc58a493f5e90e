"""What an experiment says, from logs whose truth is known."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from recfit.cli import main
from recfit.monitor import experiment
from recfit.monitor.experiment import report, text
from recfit.serve.exposures import TABLES
from recfit.types import DataError

Row = tuple[str, str, str, bool]
"""Request, user, arm, clicked."""


def log(path: Path, rows: Sequence[Row], name: str = "e") -> Path:
    with sqlite3.connect(path) as file:
        file.executescript(TABLES)
        shown = [(request, user, name, arm, "b", float(at)) for at, (request, user, arm, _) in enumerate(rows)]
        file.executemany("INSERT INTO exposures VALUES (?, ?, ?, ?, ?, ?)", shown)
        file.executemany(
            "INSERT INTO feedback VALUES (?, 'i', 'click', 0)", [(request,) for request, *_, clicked in rows if clicked]
        )
    file.close()
    return path


def drawn(seed: int, users: int, rates: Sequence[float], sizes: Sequence[float] = (1, 1)) -> list[Row]:
    """Users with one to nine requests each and a taste of their own for clicking."""
    draws = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        arm = int(draws.choice(len(rates), p=np.array(sizes) / sum(sizes)))
        taste = draws.beta(2, 2 / rates[arm] - 2)
        for request in range(draws.integers(1, 10)):
            rows.append((f"{user}-{request}", f"u{user}", "ab"[arm], bool(draws.random() < taste)))
    return rows


def test_rates_are_counted_by_request(tmp_path: Path) -> None:
    rows = [
        ("1", "u", "a", True),
        ("2", "u", "a", False),
        ("3", "v", "a", True),
        ("4", "w", "b", False),
        ("5", "x", "b", True),
    ]
    path = log(tmp_path / "log.db", [*rows, rows[0]])  # said twice, clicked twice: still one request, one hit
    found = report(path, "e")
    assert [(arm.name, arm.users, arm.requests, arm.hits) for arm in found.arms] == [("a", 2, 3, 2), ("b", 2, 2, 1)]
    assert found.arms[0].rate == pytest.approx(2 / 3)
    assert report(path, "e", "order").arms[0].hits == 0


def test_intervals_hold_the_truth_as_often_as_they_say(tmp_path: Path) -> None:
    """No difference: the interval of the lift holds 0 in about 95 of 100 logs, and p_always is below 5 % in few of them."""
    held = small = 0
    for seed in range(200):
        path = log(tmp_path / f"{seed}.db", drawn(seed, 150, (0.2, 0.2)))
        (one,) = report(path, "e", weights={"a": 1, "b": 1}).comparisons
        held += one.low <= 0 <= one.high
        small += one.p_always < 0.05
    assert 182 <= held <= 198
    assert small <= 10


def test_a_difference_is_found(tmp_path: Path) -> None:
    (one,) = report(log(tmp_path / "log.db", drawn(1, 4000, (0.2, 0.26))), "e", weights={"a": 1, "b": 1}).comparisons
    assert one.low > 0.1
    assert one.high < 0.6
    assert one.p_always < 0.01


def test_requests_of_one_user_are_alike(tmp_path: Path) -> None:
    """Ten times the requests of the same users, all alike, say nothing new: the interval stays as wide."""
    rows = [(f"{user}", f"u{user}", "ab"[user % 2], user % 3 == 0) for user in range(200)]
    many = [(f"{request}-{n}", user, arm, clicked) for request, user, arm, clicked in rows for n in range(10)]
    one, ten = (report(log(tmp_path / f"{len(part)}.db", part), "e").comparisons[0] for part in (rows, many))
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=1e-6)


def test_users_that_are_not_spread_as_planned_are_told(tmp_path: Path) -> None:
    path = log(tmp_path / "log.db", drawn(0, 3000, (0.2, 0.2), (9, 11)))
    uneven = report(path, "e", weights={"a": 1, "b": 1})
    assert uneven.p_ratio < 1e-3
    assert not uneven.trusted
    assert "WARNING: users are not spread as planned" in text(uneven)
    fair = report(path, "e", weights={"a": 9, "b": 11})
    assert fair.p_ratio > 1e-3
    assert "WARNING" not in text(fair)


def test_an_arm_that_was_never_served_is_told(tmp_path: Path) -> None:
    path = log(tmp_path / "log.db", drawn(0, 300, (0.2, 0.2)))
    dead = report(path, "e", weights={"a": 1, "b": 1, "c": 1})
    assert [(arm.name, arm.users > 0) for arm in dead.arms] == [("a", True), ("b", True), ("c", False)]
    assert not dead.trusted
    assert dead.comparisons[0].lift == report(path, "e", weights={"a": 1, "b": 1}).comparisons[0].lift
    assert (np.isnan(dead.comparisons[1].lift), dead.comparisons[1].p_always) == (True, 1.0)
    told = text(dead)
    assert "c                                0          0         0   nan" in told
    assert "WARNING" in told


def test_no_other_arm_takes_the_place_of_a_dead_control(tmp_path: Path) -> None:
    found = report(log(tmp_path / "log.db", drawn(0, 300, (0.2, 0.2))), "e", weights={"c": 1, "a": 1, "b": 1})
    assert [arm.name for arm in found.arms] == ["c", "a", "b"]
    assert all(np.isnan(one.lift) for one in found.comparisons)
    assert not found.trusted
    alone = report(
        log(tmp_path / "a.db", [(f"{n}", f"u{n}", "a", False) for n in range(50)]), "e", weights={"a": 1, "b": 1}
    )
    assert not alone.trusted


def test_without_a_plan_it_says_what_it_takes_for_one(tmp_path: Path) -> None:
    path = log(tmp_path / "log.db", drawn(0, 3000, (0.2, 0.2), (9, 11)))
    told = text(report(path, "e"))
    assert "assumed, since no plan was given: users are spread evenly, no arm is missing, " in told
    assert "WARNING" in told
    assert "assumed" not in text(report(path, "e", weights={"a": 9, "b": 11}))


@pytest.mark.parametrize("degrees", [1, 2, 5])
@pytest.mark.parametrize("value", [1e-9, 0.3, 1.0, 3.84, 10.0, 60.0])
def test_the_tail_of_chi_square(degrees: int, value: float) -> None:
    assert experiment._chi_square_tail(value, degrees) == pytest.approx(
        stats.chi2.sf(value, degrees), rel=1e-6, abs=1e-12
    )


def test_a_control_without_hits_has_no_lift(tmp_path: Path) -> None:
    rows = [(f"{n}", f"u{n}", "ab"[n % 2], n % 2 == 1) for n in range(40)]
    (one,) = report(log(tmp_path / "log.db", rows), "e", weights={"a": 1, "b": 1}).comparisons
    assert np.isnan(one.lift)
    assert (one.low, one.high, one.p_always) == (-np.inf, np.inf, 1.0)


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no exposure log .*none.db; `recfit serve --exposures` writes one"):
        report(tmp_path / "none.db", "e")
    (tmp_path / "text.db").write_text("not a database, whatever its name says" * 50)
    with pytest.raises(DataError, match="is no exposure log"):
        report(tmp_path / "text.db", "e")
    path = log(tmp_path / "log.db", [("1", "u", "a", True)])
    with pytest.raises(DataError, match=r"has exposures of 1 arms of experiment 'e' \(a\); two are needed"):
        report(path, "e")
    with pytest.raises(DataError, match=r"0 arms of experiment 'f' \(none\)"):
        report(path, "f")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, plan = log(tmp_path / "log.db", drawn(1, 400, (0.2, 0.25))), tmp_path / "plan.toml"
    plan.write_text('[[experiment]]\nname = "e"\narms = { a = 0.5, b = 0.5 }\n')
    assert main(["experiment", "report", str(path), "--name", "e", "--plan", str(plan)]) == 0
    told = capsys.readouterr().out
    assert "b against a:" in told
    assert "undecided" in told or "better" in told
    assert main(["experiment", "report", str(path), "--name", "e", "--json"]) == 0
    assert {arm["name"] for arm in json.loads(capsys.readouterr().out)["arms"]} == {"a", "b"}
    assert main(["experiment", "report", str(path), "--name", "f", "--plan", str(plan)]) == 2
    assert "has no experiment 'f'; it has: e" in capsys.readouterr().err
