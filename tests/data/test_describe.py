import json

import numpy as np

from recfit.data import load
from recfit.data.describe import describe, describe_text, tied_last_event
from recfit.data.splits import split
from recfit.types import Interactions

EVENTS = (
    "user_id,item_id,timestamp\n"
    "a,1,881250949\na,2,881250950\na,3,881250950\nb,1,891717742\nb,2,891717743\nb,3,891717744\nb,9,x\nc,2,881250949\n"
)


def test_facts_are_json_and_right(write):
    features = write("i.csv", "item_id,kind,title\n1,a,One\n2,b,Two\n")
    data = load(write("e.csv", EVENTS), bad_rows="drop", item_features=features)
    facts = json.loads(json.dumps(describe(data, split(data, "leave_last"))))
    assert (facts["users"], facts["items"], facts["events"]) == (3, 3, 7)
    assert facts["density"] == 7 / 9
    assert (facts["events_per_user"]["p0"], facts["events_per_user"]["p50"], facts["events_per_user"]["p100"]) == (
        1,
        3,
        3,
    )
    assert facts["time"] == [881250949, 891717744]
    assert facts["tied_last_event"] == 1 / 3
    assert facts["dropped"] == {"bad time": 1}
    assert facts["item_features"] == {"kind": 3}
    assert facts["user_features"] == {}
    assert facts["split"]["test_queries"] == facts["split"]["test_targets"] == 2
    assert facts["split"]["train_events"] == 3
    assert facts["split"]["cold"] == {"items": 2, "users": 0, "short": 1, "no_history": 0}
    assert len(facts["split"]["target_hash"]) == 64


def test_text_is_aligned_and_complete(write):
    data = load(write("e.csv", EVENTS), bad_rows="drop")
    text = describe_text(describe(data, split(data, "leave_last")))
    lines = text.splitlines()
    assert all(line[17] == " " and line[18] != " " for line in lines)
    for part in (
        "1997-12-04",
        "33.3% of users",
        "bad time (1)",
        "leave_last(n=1)",
        "2 targets that training never saw",
    ):
        assert part in text
    assert "split" not in describe_text(describe(data))


def test_a_single_event_is_no_tie():
    one, ids = np.zeros(1), np.zeros(1, np.int32)
    assert tied_last_event(Interactions("one", ids, ids, one.astype(np.float32), one, ("a",), ("x",))) == 0


def test_positions_are_not_shown_as_dates(write):
    assert "0 to 3 (not a date" in describe_text(describe(load(write("s.txt", "a 1 2\nb 1 2\n"))))
