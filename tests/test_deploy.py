"""The examples of containers are what their tools expect, and start `recfit serve` with options that it has."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from recfit.cli import parser
from recfit.serve.run import GRACE_S

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "examples" / "deploy"
CONTAINER, COMPOSE, KUBERNETES = (DEPLOY / name for name in ("Containerfile", "compose.yaml", "kubernetes.yaml"))


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", CONTAINER],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE],
        ["kubernetes-validate", "--strict", KUBERNETES],
    ],
    ids=lambda command: command[0],
)
def test_linters_have_nothing_to_say(command: Sequence[Any]) -> None:
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, *map(str, command[1:])], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def deployment() -> dict[str, Any]:
    [found] = [one for one in yaml.safe_load_all(KUBERNETES.read_text()) if one["kind"] == "Deployment"]
    container: dict[str, Any] = found["spec"]["template"]["spec"]["containers"][0]
    return container


def test_options_are_those_of_the_command() -> None:
    lines = {
        line.split()[0]: line.split(maxsplit=1)[1] for line in CONTAINER.read_text().splitlines() if line[:1].isupper()
    }
    [program, *rest] = json.loads(lines["ENTRYPOINT"])
    assert program.endswith("/recfit")
    compose = yaml.safe_load(COMPOSE.read_text())["services"]["recfit"]["command"]
    for given in (json.loads(lines["CMD"]), compose, deployment()["args"]):
        options = parser().parse_args([*rest, *given])
        assert (options.host, options.port, str(options.bundle)) == ("0.0.0.0", 8000, "/bundle")


def test_the_image_copies_what_there_is_and_installs_extras_that_there_are() -> None:
    text = CONTAINER.read_text()
    for line in text.splitlines():
        if line.startswith("COPY") and "--from" not in line:
            for source in shlex.split(line)[1:-1]:
                assert (ROOT / source).exists(), source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = text.split("'.[")[1].split("]'")[0].split(",")
    assert set(extras) <= set(project["optional-dependencies"])


def test_probes_ask_for_routes_that_there_are_and_draining_ends_in_time() -> None:
    container = deployment()
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}
    options = parser().parse_args(["serve", *container["args"]])
    [found] = [one for one in yaml.safe_load_all(KUBERNETES.read_text()) if one["kind"] == "Deployment"]
    probe = container["readinessProbe"]
    seen = probe["periodSeconds"] * probe["failureThreshold"]
    assert seen < options.drain_s
    assert options.drain_s + GRACE_S < found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
