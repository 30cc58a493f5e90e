"""No protocol lets a query see its own future, and none loses or invents an event."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recfit.data.splits import parted, split
from recfit.types import ConfigError, DataError, Interactions


def made(rows, users=6, items=8):
    """Interactions of (user, item, time) rows, ordered by time, then as given."""
    rows = sorted(rows, key=lambda row: row[2])
    user, item, time = (np.array(column) for column in zip(*rows, strict=True))
    return Interactions(
        "toy",
        user.astype(np.int32),
        item.astype(np.int32),
        np.ones(len(rows), np.float32),
        time.astype(np.float64),
        tuple(f"u{i}" for i in range(users)),
        tuple(f"i{i}" for i in range(items)),
    )


def sequences(data):
    return [[int(i) for u, i in zip(data.user, data.item, strict=True) if u == user] for user in range(data.n_users)]


def asked(queries):
    rows = zip(queries.user.tolist(), queries.history, queries.targets, strict=True)
    return [(user, history.tolist(), targets.tolist()) for user, history, targets in rows]


rows = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 4)), min_size=1, max_size=60)


@given(rows, st.integers(1, 3))
def test_leave_last_takes_every_sequence_apart_and_back(rows, n):
    data = made(rows)
    want = sequences(data)
    if max(map(len, want)) < 2 * n + 1:
        with pytest.raises(DataError, match="lower n"):
            split(data, f"leave_last(n={n})")
        return
    views = split(data, f"leave_last(n={n})")
    train = sequences(views.train)
    held = {user: [] for user in range(6)}
    for queries in (views.validation, views.test):
        for user, history, targets in asked(queries):
            assert len(targets) == 1
            assert history == train[user] + held[user]
            held[user] += targets
    assert [train[user] + held[user] for user in range(6)] == want
    assert all(len(events) in (0, 2 * n) for events in held.values())
    assert views.cold["short"] == sum(not events for events in held.values())


@given(rows, st.sampled_from([(0.2, 0.1), (0.3, 0.3), (0.05, 0.6)]))
def test_global_time_never_looks_ahead(rows, shares):
    data = made(rows)
    try:
        views = split(data, f"global_time(test={shares[0]}, validation={shares[1]})")
    except DataError:
        return
    begin = len(views.train)
    wanted = max(1, round(shares[0] * len(data)))
    second = max(t for t in data.timestamp if np.sum(data.timestamp >= t) >= wanted)
    assert data.timestamp[begin - 1] < data.timestamp[begin]
    assert np.array_equal(views.train.item, data.item[:begin])
    for queries, start, stop in ((views.validation, begin, None), (views.test, None, len(data))):
        start = int(np.searchsorted(data.timestamp, second)) if start is None else start
        stop = int(np.searchsorted(data.timestamp, second)) if stop is None else stop
        for user, history, targets in asked(queries):
            before = [int(i) for u, i in zip(data.user[:start], data.item[:start], strict=True) if u == user]
            after = [int(i) for u, i in zip(data.user[start:stop], data.item[start:stop], strict=True) if u == user]
            assert history == before
            assert history
            assert targets == [i for i in dict.fromkeys(after) if i not in before]
            assert targets


def test_ties_follow_the_file():
    data = made([(0, item, 5) for item in (3, 1, 2, 0)] + [(1, item, 5) for item in (0, 1, 2)])
    views = split(data, "leave_last")
    assert asked(views.test) == [(0, [3, 1, 2], [0]), (1, [0, 1], [2])]
    assert asked(views.validation) == [(0, [3, 1], [2]), (1, [0], [1])]


def test_short_users_train_and_are_counted():
    data = made([(0, 0, 1), (0, 1, 2), (0, 2, 3), (1, 4, 4), (1, 5, 5)], users=2)
    views = split(data, "leave_last")
    assert sequences(views.train) == [[0], [4, 5]]
    assert (len(views.test), views.cold["short"]) == (1, 1)


def test_cold_targets_stay_and_are_counted():
    data = made([(0, 0, 1), (0, 1, 2), (0, 7, 3), (1, 1, 1), (1, 0, 2), (1, 0, 4)], users=2)
    views = split(data, "leave_last")
    assert asked(views.test)[0] == (0, [0, 1], [7])
    assert views.cold == {"items": 1, "users": 0, "short": 0, "no_history": 0}


def test_global_time_counts_new_users_and_keeps_ties_together():
    old = [(0, 0, 1), (1, 1, 1), (0, 1, 2), (1, 2, 2), (0, 2, 3)]
    data = made([*old, (0, 3, 4), (2, 3, 4), (0, 4, 5), (2, 5, 5), (3, 5, 5), (0, 4, 6)], users=4)
    views = split(data, "global_time(test=0.2, validation=0.3)")
    # 11 events: two of them are 20 %, and those of time 5 go with them
    assert asked(views.test) == [(0, [0, 1, 2, 3], [4]), (2, [3], [5])]
    assert asked(views.validation) == [(0, [0, 1, 2], [3])]
    assert len(views.train) == 5
    assert views.cold == {"items": 2, "users": 1, "short": 0, "no_history": 1}


def test_the_hash_names_the_targets_and_nothing_else():
    events = [(u, i, t) for u in range(3) for t, i in enumerate((0, 1, 2, 3))]
    base = split(made(events, users=3), "leave_last").target_hash
    renumbered = made([(2 - u, i, t) for u, i, t in events], users=3)
    object.__setattr__(renumbered, "user_ids", ("u2", "u1", "u0"))
    assert split(renumbered, "leave_last").target_hash == base
    changed = [*events[:-1], (2, 4, 3)]
    assert split(made(changed, users=3), "leave_last").target_hash != base


def test_parted_queries_belong_to_different_users():
    data = made([(u, i, t) for u in range(10) for t, i in enumerate((0, 1, 2, 3, 4))], users=10)
    queries = split(data, "leave_last(n=2)").validation
    for share, limit, users in ((0.3, 1000, 3), (0.3, 4, 2), (0.3, 1, 1), (0.001, 1000, 1), (1.0, 1000, 9)):
        few, others = parted(queries, share, limit)
        assert len(np.unique(few.user)) == users
        assert not set(few.user) & set(others.user)
        assert sorted(asked(few) + asked(others)) == sorted(asked(queries))
        assert asked(few) == asked(parted(queries, share, limit)[0])


def test_a_single_user_is_in_both_parts():
    data = made([(0, i, i) for i in range(4)], users=1)
    queries = split(data, "leave_last").validation
    assert parted(queries, 0.3, 1000) == (queries, queries)


def test_protocol_text():
    data = made([(u, i, t) for u in range(3) for t, i in enumerate((0, 1, 2, 3, 4, 5))], users=3)
    assert split(data, "leave_last").protocol == "leave_last(n=1)"
    assert split(data, " leave_last( n = 2 ) ").protocol == "leave_last(n=2)"
    assert split(data, "global_time(test=0.3)").protocol == "global_time(test=0.3, validation=0.1)"


@pytest.mark.parametrize(
    ("protocol", "says"),
    [
        ("leave_lst", "did you mean 'leave_last'"),
        ("leave_last(k=2)", r"'k=2' is not a setting of leave_last; write leave_last\(n=1\)"),
        ("leave_last(2)", "'2' is not a setting"),
        ("leave_last(n=two)", "'n=two' is not a setting"),
        ("leave_last(n=0)", "a whole number from 1"),
        ("leave_last(n=1.5)", "a whole number from 1"),
        ("global_time(test=0)", "both must be above 0"),
        ("global_time(test=0.9, validation=0.2)", "their sum below 1"),
        ("random; import os", "There are: leave_last"),
    ],
)
def test_bad_protocols(protocol, says):
    with pytest.raises(ConfigError, match=says):
        split(made([(0, 0, 0), (1, 1, 1)]), protocol)


def test_global_time_needs_a_common_clock():
    data = made([(u, i, 10 * u + i) for u in range(3) for i in range(5)], users=3)
    with pytest.raises(DataError, match=r"no common clock.*leave_last"):
        split(data, "global_time")
    tied = made([(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)], users=2)
    with pytest.raises(DataError, match="1 distinct times"):
        split(tied, "global_time")


def test_global_time_with_nobody_to_ask():
    data = made([(0, 0, 0), (1, 0, 1), (0, 1, 2), (1, 1, 3), (2, 1, 8), (3, 1, 9)], users=4)
    with pytest.raises(DataError, match="leaves no validation query on toy"):
        split(data, "global_time(test=0.17, validation=0.17)")
