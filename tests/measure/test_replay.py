"""Who is answered from a list, and how old it is, checked on logs small enough to go through by hand."""

from __future__ import annotations

import numpy as np
import pytest

from recfit.measure.replay import Log, Replayed, own_log, replay
from recfit.types import Interactions


def log(*pairs: tuple[float, int]) -> Log:
    return Log(np.array([time for time, _ in pairs], np.float64), np.array([key for _, key in pairs], np.int64))


EVENTS = log((0, 7), (1, 7), (2, 8), (11, 7), (12, 9), (13, 9), (25, 9))


def found(requests: Log, **settings: float) -> Replayed:
    return replay(requests, EVENTS, **{"share": 1.0, "refresh": 10.0} | settings)


def test_only_what_was_there_when_lists_were_made_has_one() -> None:
    requests = log((1, 7), (10, 7), (12, 9), (19, 8), (20, 9), (26, 6), (27, -1))
    assert found(requests).hit.tolist() == [False, True, False, True, True, False, False]
    assert found(requests).rate == pytest.approx(3 / 7)


def test_age_counts_seconds_and_events_since_the_list_was_made() -> None:
    answers = found(log((10, 7), (12, 7), (19, 7), (26, 9)))
    assert answers.age.tolist() == [0, 2, 9, 6]
    assert answers.behind.tolist() == [0, 1, 1, 1]


def test_old_lists_answer_nothing() -> None:
    assert found(log((12, 7), (13, 7), (14, 7)), ttl=3.0).hit.tolist() == [True, True, False]


def test_the_most_frequent_so_far_have_lists() -> None:
    few = found(log((15, 7), (15, 8), (21, 9), (21, 7)), share=0.4)
    assert few.hit.tolist() == [True, False, False, True], "7 is ahead at 10; at 20 it has three events, 9 two"


def walks() -> Interactions:
    user, item = np.array([0, 1, 0, 1, 0], np.int32), np.array([2, 0, 1, 2, 0], np.int32)
    time, ones = np.arange(5, dtype=np.float64), np.ones(5, np.float32)
    return Interactions("walks", user, item, ones, time, ("a", "b"), ("x", "y", "z"))


def test_every_event_is_a_request_just_before_it() -> None:
    asked, known = own_log(walks())
    assert asked.key.tolist() == known.key.tolist() == [0, 1, 0, 1, 0]
    asked, known = own_log(walks(), depth=1)
    assert known.key.tolist() == [3, 1, 2, 3, 1]
    assert asked.key.tolist() == [-1, -1, 3, 1, 2]
    asked, known = own_log(walks(), depth=2)
    assert asked.key.tolist() == [-1, -1, 3, 1, 3 * 4 + 2]


def test_states_are_shared_by_users() -> None:
    asked, known = own_log(walks(), depth=1)
    assert replay(asked, known, share=1.0, refresh=1.0).hit.tolist() == [False, False, True, True, True]
    asked, known = own_log(walks())
    assert replay(asked, known, share=1.0, refresh=2.0).hit.tolist() == [False, False, True, True, True]
