"""Bad values name file, row, column and value; good ones keep their order and meaning."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from recfit.data import load
from recfit.data.parsing import Rules, interactions
from recfit.data.table import Table
from recfit.types import DataError

HEAD = "user_id,item_id,rating,timestamp\n"
GOOD = "a,1,5,100\nb,2,4,200\n"


@pytest.mark.parametrize(
    ("row", "column", "value", "reason"),
    [
        (",3,1,300", "user_id", "''", "empty user_id"),
        ("a,  ,1,300", "item_id", "'  '", "empty item_id"),
        ("a,3,nan,300", "rating", "'nan'", "bad weight"),
        ("a,3,,300", "rating", "''", "bad weight"),
        ("a,3,good,300", "rating", "'good'", "bad weight"),
        ("a,3,1_0,300", "rating", "'1_0'", "bad weight"),
        ("a,3,1,soon", "timestamp", "'soon'", "bad time"),
        ("a,3,1,inf", "timestamp", "'inf'", "bad time"),
        ("a,3,1,-7", "timestamp", "'-7'", "negative time"),
    ],
)
def test_bad_values(write, row, column, value, reason):
    path = write("e.csv", HEAD + GOOD + row + "\n")
    with pytest.raises(DataError) as error:
        load(path)
    assert f"e.csv, line 4, column {column}: the value is {value}" in str(error.value)
    assert "bad_rows = 'drop'" in str(error.value)
    data = load(path, bad_rows="drop")
    assert (len(data), data.dropped) == (2, {reason: 1})


def test_the_first_bad_row_is_named_whatever_is_wrong_with_it(write):
    path = write("e.csv", HEAD + "a,1,5,100\n\nb,2,4,-1\n,2,4,5\n")
    with pytest.raises(DataError, match="line 4, column timestamp"):
        load(path)


def test_line_numbers_survive_quoted_line_breaks(write):
    path = write("e.csv", HEAD + '"a\nb",1,5,100\nb,2,bad,200\n')
    with pytest.raises(DataError, match="line 4, column rating"):
        load(path)


def test_dropping_counts_every_row_once(write):
    path = write("e.csv", HEAD + GOOD + ",,x,-1\na,1\na,1,2,100\nb,9,1,300\n")
    data = load(path, bad_rows="drop", min_weight=2)
    assert data.dropped == {"malformed": 1, "empty user_id": 1, "below min_weight": 1, "duplicate": 1}
    assert (data.user_ids, data.item_ids) == (("a", "b"), ("1", "2"))


def test_nothing_left_after_dropping(write):
    path = write("e.csv", HEAD + "a,1,x,1\na,2,1,1\n")
    with pytest.raises(DataError, match=r"only one user, 'a' after dropping 1 \(bad weight\)"):
        load(path, bad_rows="drop")


def test_duplicates_name_both_places(write):
    path = write("e.csv", HEAD + GOOD + "a,1,2,100\na,1,2,101\n")
    with pytest.raises(
        DataError, match=r"line 4: the event user_id 'a', item_id '1', timestamp '100' stands in line 2"
    ):
        load(path)


def test_repeats_without_a_time_are_legal(write):
    assert len(load(write("e.csv", "user_id,item_id\na,1\na,1\nb,1\n"))) == 3


def test_missing_column_lists_what_is_there(write):
    path = write("e.csv", "buyer,item_id\na,1\n")
    with pytest.raises(
        DataError, match=r"no column for user_id; it has: buyer, item_id\. .*columns = \{user_id = '\.\.\.'\}"
    ):
        load(path)
    with pytest.raises(DataError, match=r"no column 'byer' for user_id; it has: buyer"):
        load(path, columns={"user_id": "byer"})


def test_min_weight_needs_weights(write):
    with pytest.raises(DataError, match="no column for weight"):
        load(write("e.csv", "user_id,item_id\na,1\nb,1\n"), min_weight=3)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1970-01-02", "1970-01-03"),
        ("1970-01-02 00:00:00", "1970-01-03T00:00:00"),
        ("1970-01-02T00:00:00Z", "1970-01-02T22:00:00-02:00"),
        ("1970-01-02T00:00:00Z", "1970-01-03"),
        ("86400", "172800.0"),
        (" 86400", "172800 "),
    ],
)
def test_times_as_dates_and_numbers(write, first, second):
    data = load(write("e.csv", f"user_id,item_id,time\na,1,{second}\nb,2,{first}\n"))
    assert data.timestamp.tolist() == [86400, 172800]
    assert data.item.tolist() == [1, 0]


def test_one_bad_date_among_dates(write):
    path = write("e.csv", "user_id,item_id,time\na,1,2020-01-01\nb,2,17\nb,3,2020-01-02\n")
    with pytest.raises(DataError, match="line 3, column time: the value is '17'"):
        load(path)


@pytest.mark.parametrize("unit", [1, 1_000, 1_000_000, 1_000_000_000])
def test_clocks_finer_than_seconds(write, unit):
    data = load(
        write(
            "e.csv", f"user_id,item_id,ts\na,1,{881250949 * unit}\nb,2,{1790000000 * unit}\nb,3,{1790000001 * unit}\n"
        )
    )
    assert data.timestamp.tolist() == [881250949, 1790000000, 1790000001]


def test_parquet_types(tmp_path):
    path = tmp_path / "e.parquet"
    times = [dt.datetime(1970, 1, 2), dt.datetime(1970, 1, 1)]
    parquet.write_table(pa.table({"user_id": [7, 8], "item_id": [1.0, 2.0], "datetime": times}), path)
    data = load(path)
    assert (data.user_ids, data.item_ids) == (("7", "8"), ("1", "2"))
    assert data.timestamp.tolist() == [0, 86400]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_parquet_spellings_of_text(tmp_path, kind):
    path = tmp_path / "e.parquet"
    columns = {"user_id": ["a", "b"], "item_id": ["x", "y"], "time": ["1970-01-02", "1970-01-01"]}
    table = pa.table({name: pa.array(values, pa.string()).cast(kind) for name, values in columns.items()})
    parquet.write_table(table, path, store_schema=True)
    data = load(path)
    assert (data.user_ids, data.timestamp.tolist()) == (("a", "b"), [0, 86400])


def test_parquet_nulls_are_bad_values(tmp_path):
    path = tmp_path / "e.parquet"
    table = pa.table({"user_id": ["a", None, "b", "b"], "item_id": [1, 2, 3, 4], "weight": [1.0, 1.0, None, 2.0]})
    parquet.write_table(table, path)
    with pytest.raises(DataError, match="row 2, column user_id: the value is None"):
        load(path)
    assert load(path, bad_rows="drop").dropped == {"empty user_id": 1, "bad weight": 1}


events = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 5)), min_size=2, max_size=40)


@given(events)
def test_order_is_by_time_then_file(rows):
    rows = list(dict.fromkeys(rows))
    users, items, times = (list(map(str, column)) for column in zip(*rows, strict=True))
    table = Table("t", pa.table({"user_id": users, "item_id": items, "timestamp": times}), str)
    if len(set(users)) < 2:
        with pytest.raises(DataError, match="only one user"):
            interactions("t", table, None, None, Rules())
        return
    data = interactions("t", table, None, None, Rules())
    got = [
        (data.user_ids[u], data.item_ids[i], t) for u, i, t in zip(data.user, data.item, data.timestamp, strict=True)
    ]
    want = sorted(rows, key=lambda row: row[2])
    assert got == [(str(u), str(i), float(t)) for u, i, t in want]
    assert data.user_ids == tuple(dict.fromkeys(users))
    assert data.item_ids == tuple(dict.fromkeys(items))
    assert np.all(np.diff(data.timestamp) >= 0)
