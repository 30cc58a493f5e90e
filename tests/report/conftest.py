"""A fresh copy of the example report."""

from __future__ import annotations

from typing import Any

import pytest
from report_example import example


@pytest.fixture
def report() -> dict[str, Any]:
    return example()
