"""A teacher's answers, computed once: its best items after every event of the training data, in files that are mapped.

An answer belongs to the *place* of the newest event that the request knows. A causal teacher answers in windows of its
`max_history` that overlap by half, so every answer knows at least the last half of that, or everything there is; any other
teacher knows all it can read, and one that reads no history has one answer for each user. The windows that students learn
from are cut at random places, so there a teacher may know more of the past than its student sees.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from recfit import models
from recfit.models import Causal, Model, as_module
from recfit.training.bars import bar
from recfit.training.batches import Batch, Sequences, inputs_for
from recfit.training.settings import has_vectors

FORMAT = 2
REQUESTS_AT_ONCE = 128
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Wanted:
    """`count` best items of every answer, the logs of their probabilities at `temperature`, and the teacher's own
    `vectors` if asked for; `turned` sequences too, where windows are turned around. An encoder computes its vectors in
    bf16 if `brief`; scores are float32."""

    count: int
    temperature: float
    turned: bool = False
    vectors: bool = False
    brief: bool = False


@dataclass(frozen=True)
class Answers:
    """`items` [lines, count], best first, `logs` of their probabilities, `vectors` [lines, d] or nothing.

    A line is a place or, `by_user`, a user row.
    """

    arrays: Arrays
    by_user: bool

    def lines(self, batch: Batch, length: int) -> Tensor:
        """Where the answers after each of the last `length` events of the history are, int64 [B, length]."""
        return (batch.user - 1)[:, None].expand(-1, length) if self.by_user else batch.places(length)

    def best(self, lines: Tensor) -> tuple[Tensor, Tensor]:
        """Item rows int64 and logs of their probabilities float32, [R, count] each."""
        at = lines.numpy()
        items, logs = self.arrays["items"][at], self.arrays["logs"][at]
        return torch.from_numpy(items.astype(np.int64)), torch.from_numpy(logs.astype(np.float32))

    def vectors(self, lines: Tensor) -> Tensor:
        """float32 [R, d]."""
        return torch.from_numpy(self.arrays["vectors"][lines.numpy()].astype(np.float32))


def answers(
    teacher: Model, sequences: Sequences, users: Tensor, wanted: Wanted, folder: Path | None, *, progress: bool
) -> Answers:
    """The answers of `teacher` to the events of `users`: those that `folder` holds already, else computed and kept there."""
    by_user = "history" not in teacher.inputs
    shapes = _shapes(teacher, sequences, wanted, by_user)
    as_module(teacher).eval()

    def fill(make: Callable[[str, tuple[int, ...], Any], npt.NDArray[Any]]) -> Arrays:
        arrays = {name: make(name, *shape) for name, shape in shapes.items()}
        with bar(progress, f"{teacher.kind} answers", "answer") as shown:
            _fill(arrays, teacher, sequences, users, wanted, shown)
        return arrays

    if folder is None:
        return Answers(fill(lambda name, shape, dtype: np.zeros(shape, dtype)), by_user)
    path = folder / f"answers-{_key(teacher, sequences, users, wanted)}"
    if not path.is_dir():
        draft = path.with_suffix(".part")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        fill(lambda name, shape, dtype: open_memmap(draft / f"{name}.npy", "w+", dtype, shape))
        draft.rename(path)
    return Answers({name: np.load(path / f"{name}.npy", mmap_mode="r") for name in shapes}, by_user)


def _shapes(
    teacher: Model, sequences: Sequences, wanted: Wanted, by_user: bool
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and type of each array. Users that are not asked for leave holes, which take no room on a disk."""
    n_items = teacher.catalogue.n_items
    lines = len(sequences.start) if by_user else len(sequences.tokens) * (1 + wanted.turned)
    best = (lines, min(wanted.count, n_items))
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "items": (best, np.min_scalar_type(n_items)),
        "logs": (best, np.dtype(np.float16)),
    }
    if wanted.vectors:
        width = teacher.item_vectors().shape[1]  # type: ignore[attr-defined]
        shapes["vectors"] = ((lines, width), np.dtype(np.float16))
    return shapes


def _key(teacher: Model, sequences: Sequences, users: Tensor, wanted: Wanted) -> str:
    """A digest of everything that the answers depend on."""
    plan = [FORMAT, models.fingerprint(teacher), asdict(wanted), sequences.digest]
    digest = hashlib.sha256(json.dumps(plan).encode())
    digest.update(users.contiguous().numpy().tobytes())
    for features in (teacher.catalogue.user_features, teacher.catalogue.item_features):
        digest.update(b"" if features is None else np.ascontiguousarray(features.codes).tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _fill(arrays: Arrays, teacher: Model, sequences: Sequences, users: Tensor, wanted: Wanted, shown: Any) -> None:
    turns = [sequences, sequences.turned()] if wanted.turned and "history" in teacher.inputs else [sequences]
    count = arrays["items"].shape[1]
    for turn, events in enumerate(turns):
        for places, vectors, table in _asked(teacher, events, users, wanted.brief):
            lines = (places + turn * len(sequences.tokens)).numpy()
            scores = vectors if table is None else vectors @ table.T
            logs, items = (scores.float() / wanted.temperature).log_softmax(1).topk(count)
            arrays["items"][lines], arrays["logs"][lines] = items.numpy(), logs.numpy()
            if wanted.vectors:
                arrays["vectors"][lines] = vectors.numpy()
            shown.update(len(lines))


def _asked(
    teacher: Model, events: Sequences, users: Tensor, brief: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Places (user rows for a teacher without history), vectors and the table that scores them; no table: scores."""
    any_teacher: Any = teacher
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=brief)
    table = any_teacher.item_vectors().float() if has_vectors(teacher) else None
    if isinstance(teacher, Causal):
        for tokens, places, fresh in _windows(events, users, teacher.max_history):
            with bf16:
                states = any_teacher.states(tokens)
            yield places[fresh], states[fresh].float(), table
        return
    for owner, places in _events(events, users, by_user="history" not in teacher.inputs):
        history = events.windows(owner, places + 1, max(1, teacher.max_history))
        given = inputs_for(teacher, owner + 1, history)
        if table is None:
            answer = models.scores(teacher, given)
        else:
            with bf16:
                answer = any_teacher.encode(**given)
        yield places if "history" in teacher.inputs else owner, answer.float(), table


def _events(events: Sequences, users: Tensor, *, by_user: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Users and places of all their events, or of each user's last."""
    sizes = torch.ones_like(users) if by_user else (events.stop - events.start)[users]
    owner = users.repeat_interleave(sizes)
    places = events.stop[owner] - 1 - _counted(sizes)
    for start in range(0, len(owner), REQUESTS_AT_ONCE):
        part = slice(start, start + REQUESTS_AT_ONCE)
        yield owner[part], places[part]


def _windows(events: Sequences, users: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Windows that cover all events of `users` and overlap by half: tokens, their places, and which of these are new."""
    step = max(1, length // 2)
    users = users[(events.stop - events.start)[users].argsort()]
    sizes = (events.stop - events.start)[users]
    counts = 1 + ((sizes - length).clamp(min=0) + step - 1) // step
    owner, before = users.repeat_interleave(counts), _counted(counts)
    whole = events.start[owner] + before * step + length
    ends, known = torch.minimum(whole, events.stop[owner]), torch.where(before > 0, whole - step, 0)
    for start in range(0, len(owner), REQUESTS_AT_ONCE):
        part = slice(start, start + REQUESTS_AT_ONCE)
        tokens = events.windows(owner[part], ends[part], length)
        tokens = tokens[:, (tokens > 0).any(0)]  # padding that all of them have
        places = ends[part, None] + torch.arange(-tokens.shape[1], 0)
        yield tokens, places, (tokens > 0) & (places >= known[part, None])


def _counted(counts: Tensor) -> Tensor:
    """0, 1, ..., up to each of `counts` without it, one after the other."""
    return torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
