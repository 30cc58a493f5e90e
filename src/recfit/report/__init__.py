"""The report: one HTML file that holds its data, its script and its style, and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import msgspec

from recfit.report.schema import Report, ReportError, check

__all__ = ["Report", "ReportError", "render", "write"]

SCRIPTS = (
    "format",
    "choice",
    "draw",
    "header",
    "limits",
    "scatter",
    "candidates",
    "fallen",
    "waterfall",
    "strategies",
    "summary",
    "app",
)


def render(report: Mapping[str, object]) -> str:
    """The page as HTML. `ReportError` when the mapping is not as `recfit.report.schema.Report` says."""
    checked = check(report)
    script = "\n".join(asset(f"{name}.js") for name in SCRIPTS)
    style = asset("style.css")
    parts = {
        "title": html.escape(checked["title"]),
        "policy": f"default-src 'none'; img-src data:; script-src {digest(script)}; style-src {digest(style)}",
        "style": style,
        "data": embed(checked),
        "script": script,
    }
    # One pass, so that nothing inside the data is taken for a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], asset("template.html"))


def write(report: Mapping[str, object], path: Path | str) -> None:
    """Write the page to `path` (UTF-8)."""
    Path(path).write_text(render(report), encoding="utf-8")


def asset(name: str) -> str:
    """A file of the page, as text."""
    return resources.files("recfit.report").joinpath("page", name).read_text(encoding="utf-8")


def embed(report: Report) -> str:
    """JSON that is safe inside `<script>`: without `<`, neither `</script>` nor `<!--` can end or change the element."""
    return msgspec.json.encode(report).decode().replace("<", "\\u003c")


def digest(text: str) -> str:
    """The Content-Security-Policy source of an inline element: only this very text may run or style the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
