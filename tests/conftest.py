"""What several rooms share. The data and models behind it are in `toys`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

import toys
from recfit.export import export
from recfit.pipeline import Pipeline, fingerprint

Exported = Callable[[Pipeline], Path]
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exports a pipeline over the toy data, each only once; what comes back must not be changed."""
    folder = tmp_path_factory.mktemp("exported")

    def directory(pipeline: Pipeline) -> Path:
        path = folder / fingerprint(pipeline)[:16]
        return path if path.exists() else export(pipeline, toys.around(), path, name="toy", recipe={"id": "r0"})

    return directory


@pytest.fixture(scope="module")  # while it is open, no other test can run an event loop
def browser() -> Iterator[Browser]:
    """One headless Chromium for the browser tests of a file."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()
