"""How the original teaches what is made of it."""

from __future__ import annotations

from recfit.models import Causal
from recfit.techniques import Context
from recfit.training import Distill

ITEMS = 100  # of each of the original's answers that are kept
EVENTS = 5_000_000  # up to which they are: 2 GB of files


def kept(context: Context) -> int:
    """Items of the original's answers to keep: some where one pass over the data has all answers, none where every event
    or too many of them would have to be asked for."""
    model = context.original.main.model
    cheap = isinstance(model, Causal) or "history" not in model.inputs
    return ITEMS if cheap and len(context.split.train) <= EVENTS else 0


def lesson(context: Context) -> Distill:
    """The usual one: the original's scores beside the labels."""
    return Distill(context.original.main.model, cache=kept(context), folder=context.folder)
