"""The one training loop: any model, any teacher, one progress bar, best validation weights kept, resumable.

A training is a function of its seed: every epoch draws its numbers from the seed and its own index, so that one that
was interrupted and continued ends with the same weights, bit for bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import chain, count, islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from recfit import models
from recfit.models import Causal, Model, Ranker, Solved, as_module
from recfit.training import checkpoint as checkpoints
from recfit.training.bars import bar
from recfit.training.batches import Batch, Draw, Sequences, crops, examples, inputs_for, requests
from recfit.training.checkpoint import Progress
from recfit.training.evaluation import Evaluation, evaluate
from recfit.training.negatives import Unseen
from recfit.training.settings import Distill, Epoch, Fit, Hold, Trained
from recfit.training.steps import Step, check_trainable, hinted, longest_window
from recfit.training.teaching import teaching_of
from recfit.types import DataError, IntArray, Queries, Split

__all__ = [
    "Distill",
    "Epoch",
    "Fit",
    "Hold",
    "Trained",
    "batch_losses",
    "evaluate",
    "held_out_losses",
    "inputs_for",
    "squared_gradients",
    "train",
]

VALIDATION_QUERIES = 2000
MAX_NORM = 5.0
HOPELESS_AFTER = 0.25


def train(
    model: Model,
    split: Split,
    settings: Fit,
    *,
    teacher: Distill | None = None,
    hold: Hold | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Trained:
    """Train `model` in place on `split.train` and leave it with the weights of its best epoch, in evaluation mode.

    The best epoch is that of the highest NDCG@10 on (2,000 random queries of) `split.validation`. `checkpoint` names a
    file that is written after every epoch and continued from where it exists. `hold` keeps the weights to a rule.
    """
    start = time.monotonic()
    with _quiet(settings):
        if isinstance(model, Solved):
            model.solve(split)
            done = Progress((Epoch(0.0, _validation(model, split)(model)["ndcg@10"], time.monotonic() - start),), 0, {})
        else:
            torch.manual_seed(settings.seed)  # of what is added to the model for the training
            with hinted(model, teacher):
                done = _Loop(model, split, settings, teacher, hold, checkpoint, progress).run()
                as_module(model).load_state_dict(done.weights)
    as_module(model).eval()
    precision = "fp32" if settings.dtype() == torch.float32 else "bf16"
    return Trained(done.epochs, done.best, done.epochs[done.best].ndcg, time.monotonic() - start, precision)


def batch_losses(model: Model, split: Split, settings: Fit, batches: int) -> Iterator[Tensor]:
    """The training loss of the first `batches` batches, one after another, no dropout; the same ones for every model."""
    with _quiet(settings):
        loop = _Loop(model, split, settings, None, None, None, progress=False)
        loop.module.eval()
        torch.manual_seed(settings.seed)
        for batch in islice(chain.from_iterable(map(loop.batches, count())), batches):
            yield loop.step(batch)


@torch.no_grad()
def held_out_losses(versions: Iterable[Model], split: Split, settings: Fit) -> list[float]:
    """The mean loss of each of `versions` on (the targets of 2,000 random queries of) `split.validation`, no dropout; negatives
    are drawn alike for every model. DataError where nothing is held out."""
    queries = _sampled(split.validation, VALIDATION_QUERIES)
    if not len(queries.targets.values):
        raise DataError(f"{split.protocol} left no validation events whose loss could be told; take another split")
    unseen = Unseen.of(Sequences.of(split.train), split.n_items)
    with _quiet(settings):
        return [_loss_of_targets(model, queries, settings, unseen) for model in versions]


def _loss_of_targets(model: Model, queries: Queries, settings: Fit, unseen: Unseen) -> float:
    loss = settings.loss_for(model)
    check_trainable(model, loss, None)
    step = Step(model, loss, settings.negatives, settings.dtype(), unseen=unseen)
    as_module(model).eval()
    torch.manual_seed(settings.seed)
    batches = requests(queries, max(1, model.max_history), settings.batch_size)
    return sum(float(step.of_targets(part)) * len(part) for part in batches) / len(queries.targets.values)


def squared_gradients(model: Model, split: Split, settings: Fit, batches: int) -> dict[str, Tensor]:
    """Squares of the gradients of the training loss by weight name, summed over the first `batches` batches, no dropout.

    Of every batch on its own: where the model has converged, the gradients of many batches add up to nearly nothing.
    """
    module, found = as_module(model), dict[str, Tensor]()
    for loss in batch_losses(model, split, settings, batches):
        module.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, weight in module.named_parameters():
            if weight.grad is not None:
                found.setdefault(name, torch.zeros_like(weight.grad)).addcmul_(weight.grad, weight.grad)
    module.zero_grad(set_to_none=True)
    return found


class _Loop:
    """The state of one training: what it runs on, and how far it is."""

    def __init__(
        self,
        model: Model,
        split: Split,
        settings: Fit,
        teacher: Distill | None,
        hold: Hold | None,
        checkpoint: Path | None,
        progress: bool,
    ) -> None:
        loss = settings.loss_for(model)
        check_trainable(model, loss, teacher)
        self.model, self.module, self.settings, self.checkpoint = model, as_module(model), settings, checkpoint
        self.hold = hold
        self.sequences = Sequences.of(split.train)
        self.length = longest_window(model, teacher)
        least = 2 if self.length else 1  # one to be told from, where histories are read, and one to tell
        self.users = self.sequences.chosen(settings.data_fraction, settings.seed, least)
        if not len(self.users):
            raise DataError("no user has two events to learn from; give longer histories")
        self.validation = _validation(model, split)
        taught = None
        if teacher is not None:
            as_module(teacher.teacher).eval()
            taught = teaching_of(teacher, self.sequences, self.users, settings, progress=progress)
        unseen = Unseen.of(self.sequences, model.catalogue.n_items) if isinstance(model, Ranker) else None
        self.step = Step(model, loss, settings.negatives, settings.dtype(), taught, unseen)
        self.optimizer = _optimizer(self.module, settings)
        self.plan = _plan(model, settings, teacher, self.sequences)
        self.bar = bar(progress, model.kind, "batch")

    def run(self) -> Progress:
        done = self._resumed() or Progress((), 0, {})
        if self.hold is not None:
            self.hold.begin()
        earlier = done.epochs[-1].seconds if done.epochs else 0.0
        self.start = time.monotonic() - earlier
        with self.bar:
            while not self._finished(done):
                loss = self._epoch(len(done.epochs), done)
                ndcg = self.validation(self.model)["ndcg@10"]
                done = self._extended(done, Epoch(loss, ndcg, time.monotonic() - self.start))
                if self.checkpoint is not None:
                    checkpoints.write(self.checkpoint, self.plan, self.module, self.optimizer, done)
        return done

    def _resumed(self) -> Progress | None:
        if self.checkpoint is None:
            return None
        return checkpoints.read(self.checkpoint, self.plan, self.module, self.optimizer)

    def _finished(self, done: Progress) -> bool:
        epochs, limit = len(done.epochs), self.settings
        spent = done.epochs[-1].seconds / 60 if done.epochs else 0.0
        late = limit.max_minutes > 0 and spent >= limit.max_minutes
        hopeless = self._through(epochs) >= HOPELESS_AFTER and done.epochs[done.best].ndcg < limit.hopeless
        return epochs >= limit.epochs or epochs - done.best > limit.patience or (late and epochs > 0) or hopeless

    def _through(self, epochs: float) -> float:
        """How much of the training is done after `epochs`, 0 to 1: of the epochs, or of the minutes if they end first."""
        return _share(self.settings, epochs, time.monotonic() - self.start)

    def _settled(self, epoch: int, done: Sequence[Epoch]) -> bool:
        """Whether `epoch` began with its rule in full force, or has none."""
        return self.hold is None or self.hold.settled(
            _share(self.settings, epoch, done[epoch - 1].seconds if epoch else 0.0)
        )

    def _extended(self, done: Progress, epoch: Epoch) -> Progress:
        epochs = (*done.epochs, epoch)
        if done.epochs and self._settled(done.best, epochs) and epoch.ndcg <= done.epochs[done.best].ndcg:
            return replace(done, epochs=epochs)
        weights = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        return Progress(epochs, len(done.epochs), weights)

    def _epoch(self, epoch: int, done: Progress) -> float:
        """One pass over the data; the mean loss."""
        torch.manual_seed(self.settings.seed * 1_000_003 + epoch)
        self.module.train()
        batches = list(self.batches(epoch))
        self.bar.total = len(batches) * self.settings.epochs
        self.bar.update(len(batches) * epoch - self.bar.n)
        shown = f"{done.epochs[-1].ndcg:.4f} (best {done.epochs[done.best].ndcg:.4f})" if done.epochs else "-"
        total = 0.0
        for index, batch in enumerate(batches):
            loss = self._descend(batch, epoch * len(batches) + index, epoch + index / len(batches))
            total += loss
            self.bar.update()
            self.bar.set_postfix_str(f"epoch {epoch + 1}, loss {loss:.3f}, ndcg@10 {shown}", refresh=False)
        return total / len(batches)

    def batches(self, epoch: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.settings.seed * 7_368_787 + epoch)
        draw = Draw(self.length, self.settings.batch_size, generator, self.settings.epoch_share)
        if isinstance(self.model, Causal):
            return crops(self.sequences, self.users, draw, self.settings.reverse)
        return examples(self.sequences, self.users, draw)

    def _descend(self, batch: Batch, step: int, epochs: float) -> float:
        rate = self.settings.learning_rate * _schedule(step, self.settings.warmup, self._through(epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.step(batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), MAX_NORM)
        self.optimizer.step()
        if self.hold is not None:
            self.hold.after_step(self._through(epochs))
        return loss.item()


def _share(limit: Fit, epochs: float, seconds: float) -> float:
    """The part of a training that `epochs` and `seconds` are, 0 to 1."""
    minutes = seconds / 60 / limit.max_minutes if limit.max_minutes > 0 and epochs else 0.0
    return min(1.0, max(epochs / limit.epochs, minutes))


def _schedule(step: int, warmup: int, through: float) -> float:
    """The share of the full learning rate: a linear rise over `warmup` steps, and a cosine to 0 at the end of the training."""
    return min(1.0, (step + 1) / (warmup + 1)) * 0.5 * (1 + math.cos(math.pi * through))


def _optimizer(module: nn.Module, settings: Fit) -> Optimizer:
    """AdamW; vectors and scalars (biases, scales) don't decay."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    groups: list[dict[str, list[Tensor] | float]] = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=settings.learning_rate, betas=(0.9, 0.98))


def _validation(model: Model, split: Split) -> Evaluation:
    return Evaluation(model, _sampled(split.validation, VALIDATION_QUERIES))


def _sampled(queries: Queries, limit: int) -> Queries:
    if len(queries) <= limit:
        return queries
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(0))
    rows: IntArray = order[:limit].sort().values.numpy()
    return queries.take(rows)


def _plan(model: Model, settings: Fit, teacher: Distill | None, sequences: Sequences) -> str:
    """What a checkpoint must agree with to be continued: all settings, the events, and what the training starts from."""
    taught = None if teacher is None else [models.fingerprint(teacher.teacher), *teacher.lesson]
    return json.dumps([models.fingerprint(model), asdict(settings), taught, sequences.digest])


@contextmanager
def _quiet(settings: Fit) -> Iterator[None]:
    """torch's random state and number of threads, put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
