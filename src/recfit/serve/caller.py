"""Who asks, for those who are far from the connection: a request's task has it in its context, as have the tasks it starts."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

left: ContextVar[Callable[[], bool]] = ContextVar("left", default=lambda: False)
"""Whether the client has closed the connection since."""
charge: ContextVar[Callable[[int], None]] = ContextVar("charge", default=lambda requests: None)
"""Counts so many requests more against the key of the client."""
