"""How the original teaches what is made of it."""

from __future__ import annotations

import numpy as np

from recfit.models import Causal, Model, Ranker
from recfit.techniques import Context
from recfit.training import Distill, evaluate
from recfit.types import IntArray, Queries, Ragged

ITEMS = 100  # of each of the original's answers that are kept
EVENTS = 5_000_000  # up to which they are: 2 GB of files
# Scores that a ranker gives in a minute: 1.2e8 by NeuMF 32, 64, 32 of MovieLens-1M's items, one thread of a Zen 5.
SCORES = 1e8
# 1.0 to 1.3 on MovieLens, where what the original teaches is better for it; 5.0 on Amazon Beauty, where it is worse.
HEART = 2.0
QUERIES = 300


def kept(context: Context) -> int:
    """Items of the original's answers to keep: some where one pass over the data has all answers, none where every event
    or too many of them would have to be asked for."""
    model = context.original.main.model
    cheap = isinstance(model, Causal) or "history" not in model.inputs
    return ITEMS if cheap and len(context.split.train) <= EVENTS else 0


def answers_all(context: Context) -> bool:
    """Whether the original can score the catalogue after every training event, as a student that is told of each in every
    epoch needs, and before the training, in no more time than the study gives a training."""
    split, minutes = context.split, context.fit.max_minutes or np.inf
    asked = len(split.train) if "history" in context.original.main.model.inputs else split.n_users
    return asked <= min(EVENTS, minutes * SCORES / split.n_items)


def by_heart(context: Context) -> bool:
    """Whether the original knows its training data by heart: the last training event of users it finds more than `HEART`
    times as well (NDCG@10) as what came after. What it would teach there is that data, more firmly than it deserves."""
    model, histories = context.original.main.model, context.split.train.histories()
    asked = [user for user in _some(context.split.n_users) if histories.sizes[user] > 1]
    past, last = ([histories[user][part] for user in asked] for part in (slice(-1), slice(-1, None)))
    known = Queries(np.array(asked, np.int32), Ragged.from_lists(past), Ragged.from_lists(last))
    new = context.split.validation.take(_some(len(context.split.validation)))
    return bool(asked) and evaluate(model, known)["ndcg@10"] > HEART * evaluate(model, new)["ndcg@10"]


def _some(count: int) -> IntArray:
    """Up to `QUERIES` of so many numbers, ascending."""
    return np.sort(np.random.default_rng(0).permutation(count)[:QUERIES])


def lesson(context: Context, student: Model) -> Distill | None:
    """The usual one: the original's scores beside the labels; labels alone where it knows these by heart.

    A ranker is taught by a ranker, which scores the few candidates that the student is trained on. An encoder would read a
    history for every event to score them: labels alone there, too.
    """
    teacher, ranks = context.original.main.model, isinstance(student, Ranker)
    if ranks and not isinstance(teacher, Ranker):
        return None
    if not context.structure_only and by_heart(context):
        return None
    return Distill(teacher, cache=0 if ranks else kept(context), folder=context.folder)
