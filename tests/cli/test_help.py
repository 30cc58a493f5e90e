"""Every command explains itself, with an example that its own parser accepts."""

import re
import shlex

import pytest

from recfit.cli import parser

COMMANDS = [
    "init", "doctor", "data describe", "train", "optimize", "select", "report", "measure", "recommend", "export", "serve",
]  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_that_is_right(recfit, name):
    code, out, err = recfit(*name.split(), "--help")
    assert (code, err) == (0, "")
    assert "--json" in out
    assert "%%" not in out
    example = re.search(rf"^  (recfit {name}\b.*)$", out, re.MULTILINE)[1]
    options = parser().parse_args(shlex.split(example)[1:])
    assert callable(options.run)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_is_explained(recfit, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    out = recfit(*name.split(), "--help")[1]
    body = out[re.search(r"^(positional arguments|options):$", out, re.MULTILINE).start() : out.index("example:")]
    lines = [line for line in body.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    assert lines
    for line in lines:
        assert re.match(r"  \S.*?  +\S", line) or len(line) > 24, line


def test_the_overview_lists_every_command_and_where_to_start(recfit):
    code, out, _ = recfit("--help")
    assert code == 0
    for name in COMMANDS:
        assert re.search(rf"^    {name.split()[0]}  +\w", out, re.MULTILINE), name
    assert "recfit init --data" in out
    assert "HTML" in out


def test_the_version_is_that_of_the_package(recfit):
    code, out, _ = recfit("--version")
    assert (code, out) == (0, "recfit 0.1.0\n")


@pytest.mark.parametrize("arguments", [[], ["data"], ["optimise"], ["select"], ["recommend", "b", "--k", "ten"]])
def test_a_command_line_that_is_none_exits_with_2_and_the_usage(recfit, arguments):
    code, out, err = recfit(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: recfit")
