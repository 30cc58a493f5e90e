"""Every source gives the same interactions for the same events, and says what is wrong with a file it can't read."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from recfit.data import SOURCES, load
from recfit.registry import find, names
from recfit.types import ConfigError, DataError

EVENTS = [
    ("ann lee", "ß1", 3.0, 30.0),
    ("bob", "ß1", 4.0, 10.0),
    ("ann lee", "x,y", 5.0, 20.0),
    ("bob", "z", 1.0, 20.0),
]
HEADER = ("user_id", "item_id", "rating", "timestamp")


def lines(delimiter, header=HEADER, end="\n"):
    quoted = [[f'"{v}"' if delimiter in str(v) else str(v) for v in event] for event in EVENTS]
    return end.join(delimiter.join(row) for row in [header, *quoted]) + end


def pairs(data):
    return [(data.user_ids[u], data.item_ids[i]) for u, i in zip(data.user, data.item, strict=True)]


def check(data):
    assert pairs(data) == [("bob", "ß1"), ("ann lee", "x,y"), ("bob", "z"), ("ann lee", "ß1")]
    assert data.user_ids == ("ann lee", "bob")
    assert data.item_ids == ("ß1", "x,y", "z")
    assert data.weight.tolist() == [4, 5, 1, 3]
    assert data.timestamp.tolist() == [10, 20, 20, 30]
    assert (data.user.dtype, data.weight.dtype) == (np.int32, np.float32)
    assert data.dropped == {}


@pytest.mark.parametrize("name", names(SOURCES))
def test_every_source_keeps_the_contract(name):
    source = find(SOURCES, name)
    assert isinstance(source.ACCEPTS, str)
    assert callable(source.read)
    assert source.claims("no/such/thing.xyz") is False


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimited(write, name, delimiter, end):
    check(load(write(name, lines(delimiter, end=end))))


def test_byte_order_mark_and_blank_lines(write):
    check(load(write("a.csv", "\ufeff" + lines(",").replace("\n", "\n\n"))))


def test_parquet(tmp_path):
    path = tmp_path / "events.parquet"
    parquet.write_table(pa.table(dict(zip(HEADER, map(list, zip(*EVENTS, strict=True)), strict=True))), path)
    check(load(path))
    assert load(path).name == "events"


@pytest.mark.parametrize("given", ["", "d.inter", "d"])
def test_recbole_by_directory_file_and_prefix(write, given):
    header = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
    path = write("set/d.inter", lines("\t", header))
    write("set/d.user", "user_id:token\tgender:token\nann lee\tF\nbob\tM\n")
    data = load(path.parent / given)
    check(data)
    assert (data.user_features.names, data.user_features.codes.tolist()) == (("gender",), [[1], [2]])


def test_a_quote_in_a_recbole_file_is_a_character(write):
    data = load(write("d.inter", 'user_id:token\titem_id:token\na\t"5\' tall\nb\t"x"\n'))
    assert data.item_ids == ("\"5' tall", '"x"')


@pytest.mark.parametrize(
    "header",
    [
        "user_id,item_id,weight,datetime",
        "query_id,item_id,rating,timestamp",
        "userID,itemID,rating,timestamp",
        "user,item,label,time",
        "UserId,ItemId,Value,Timestamp",
        "userId,movieId,rating,timestamp",
    ],
)
def test_column_conventions(write, header):
    check(load(write("a.csv", lines(",", header.split(",")))))


def test_columns_by_option_win_over_conventions(write):
    path = write("a.csv", "who,item_id,what,timestamp\na,1,x,5\nb,2,y,6\n")
    data = load(path, columns={"user_id": "who", "item_id": "what"})
    assert pairs(data) == [("a", "x"), ("b", "y")]


def test_a_file_without_header_has_numbered_columns(write):
    path = write("u.csv", "196\t242\t3\t881250949\n186\t302\t3\t881250940\n")
    data = load(path, columns={"user_id": "0", "item_id": "1", "weight": "2", "timestamp": "3"})
    assert pairs(data) == [("186", "302"), ("196", "242")]
    with pytest.raises(DataError, match="it has: 0, 1, 2, 3"):
        load(path)


def test_format_by_option_where_the_suffix_says_nothing(write):
    check(load(write("events.log", lines(",")), format="delimited"))


def test_sequences_keep_repeats_and_file_order(write):
    path = write("s.txt", "u2 b a b\n\nu1 c\r\nu2 a\n")
    data = load(path)
    assert data.user_ids == ("u2", "u1")
    assert data.item_ids == ("b", "a", "c")
    assert [data.item_ids[i] for i in data.histories()[0]] == ["b", "a", "b", "a"]
    assert data.timestamp.tolist() == [0, 1, 2, 3, 4]
    assert data.weight.tolist() == [1] * 5


def test_sequences_blanks_are_ascii_only(write):
    assert load(write("s.txt", "a x\u00a0y\nb z\n")).item_ids == ("x\u00a0y", "z")


def test_a_sequence_without_items(write):
    path = write("s.txt", "a x\nb\nc y\n")
    with pytest.raises(DataError, match=r"s\.txt, line 2: user 'b' has no items"):
        load(path)
    assert load(path, bad_rows="drop").dropped == {"malformed": 1}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "", r"a\.csv is empty"),
        ("a.csv", "user_id,item_id\n", "has only no events"),
        ("s.txt", "\n\n", "has only no events"),
        ("a.csv", "user_id,item_id\na,1\na,2\n", "has only one user, 'a'"),
        ("a.csv", "user_id,user_id\na,1\n", "names a column twice: user_id, user_id"),
        ("a.csv", "user_id,item_id\na,1\nb\nc,3\n", r"line 3: 1 fields, the first line has 2"),
        ("a.csv", 'user_id,item_id\n"a\nx",1\nb,2,9\n', r"line 4: 3 fields, the first line has 2"),
        ("a.inter", "user_id\titem_id:token\n1\t2\n", "line 1: 'user_id' has no type"),
        ("a.inter", "user_id:id\titem_id:token\n1\t2\n", "line 1: 'user_id' has no type.*token_seq"),
        ("a.parquet", "not parquet", "can't be read as Parquet"),
        ("a.xlsx", "what", "no reader for .*delimited: .*csv.*sequences: .*Name one with format="),
    ],
)
def test_unreadable_files(write, name, text, says):
    with pytest.raises(DataError, match=says):
        load(write(name, text))


@pytest.mark.parametrize("name", ["a.csv", "a.inter", "a.parquet", "a.txt"])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(DataError, match=f"there is no file .*{name}"):
        load(tmp_path / name)


@pytest.mark.parametrize(("name", "head"), [("a.csv", b"user_id,item_id\na,1\n"), ("a.txt", b"a 1\nb 2\n")])
def test_bytes_that_are_not_utf8(tmp_path, name, head):
    path = tmp_path / name
    path.write_bytes(head + b"caf\xe9,2\n")
    with pytest.raises(DataError, match=f"{name}, line 3: .*0xe9.*UTF-8"):
        load(path)


def test_a_directory_of_several_inter_files(write):
    write("set/a.inter", "x")
    path = write("set/b.inter", "x")
    with pytest.raises(DataError, match=r"holds: a\.inter, b\.inter"):
        load(path.parent)


def test_unknown_options(write):
    path = write("a.csv", lines(","))
    with pytest.raises(ConfigError, match="bad_rows is 'skip'; it may be 'error' or 'drop'"):
        load(path, bad_rows="skip")
    with pytest.raises(ConfigError, match="columns names usr; it may name user_id, item_id, weight, timestamp"):
        load(path, columns={"usr": "x"})
    with pytest.raises(ConfigError, match="'delimited'"):
        load(path, format="delimeted")
