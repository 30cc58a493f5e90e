"""Feature columns become codes that line up with the ids."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from recfit.data import load
from recfit.types import DataError

EVENTS = "user_id,item_id\nb,2\na,1\nb,3\n"


def items(write, text, **options):
    return load(write("e.csv", EVENTS), item_features=write("i.csv", text), **options)


def test_codes_line_up_with_ids_and_missing_ones_are_zero(write):
    data = items(write, "item_id,kind,title\n1,film,One\n9,other,Nine\n2,book,Two\n")
    assert data.item_ids == ("2", "1", "3")
    assert data.item_features.names == ("kind",)
    assert data.item_features.codes.tolist() == [[1], [2], [0]]
    assert data.item_features.sizes == (3,)
    assert data.item_features.values == (("book", "film"),)
    assert data.titles == ("Two", "One", "")


def test_lists_share_a_vocabulary_and_stop_at_four(write):
    data = items(write, "item_id,genre\n1,a|b\n2,e|d|c|b|a\n3,\n")
    features = data.item_features
    assert features.names == ("genre.0", "genre.1", "genre.2", "genre.3")
    assert features.sizes == (6, 6, 6, 6)
    assert features.values == (("a", "b", "c", "d", "e"),) * 4
    assert features.codes.tolist() == [[5, 4, 3, 2], [1, 2, 0, 0], [0, 0, 0, 0]]


def test_parquet_lists(tmp_path, write):
    path = tmp_path / "i.parquet"
    parquet.write_table(pa.table({"item_id": [1, 2, 3], "tag": [["x", "y"], None, ["y"]]}), path)
    data = load(write("e.csv", EVENTS), item_features=path)
    assert data.item_features.names == ("tag.0", "tag.1")
    assert data.item_features.codes.tolist() == [[0, 0], [1, 2], [2, 0]]


def test_many_numbers_become_at_most_sixteen_buckets_in_order(write):
    n = 100
    path = write("e.csv", "user_id,item_id\n" + "".join(f"{i},x\n" for i in range(n)))
    features = write("u.csv", "user_id,income\n" + "".join(f"{i},{'' if i == 5 else i * 1.5}\n" for i in range(n)))
    data = load(path, user_features=features)
    codes = data.user_features.codes[:, 0]
    assert codes[5] == 0
    assert data.user_features.sizes == (17,)
    (edges,) = data.user_features.values
    assert np.array_equal(np.digitize(np.delete(np.arange(n) * 1.5, 5), edges) + 1, np.delete(codes, 5))
    assert set(np.delete(codes, 5)) == set(range(1, 17))
    assert np.all(np.diff(np.delete(codes, 5)) >= 0)


def test_keys_constants_and_free_text_are_left_out(write):
    rows = "".join(f"{i},text number {i},same,{i}\n" for i in range(40))
    path = write("e.csv", "user_id,item_id\n" + "".join(f"{i},x\n" for i in range(40)))
    data = load(path, user_features=write("u.csv", "user_id,about,country,badge_id\n" + rows))
    assert data.user_features is None


def test_numbers_that_are_ids_are_categories(write):
    path = write("e.csv", "user_id,item_id\n" + "".join(f"{i},x\n" for i in range(60)))
    data = load(
        path, user_features=write("u.csv", "user_id,store_id\n" + "".join(f"{i},{i % 20}\n" for i in range(60)))
    )
    assert data.user_features.sizes == (21,)


def test_recbole_types_decide(write):
    n = 60
    path = write("d.inter", "user_id:token\titem_id:token\n" + "".join(f"u{i}\tm{i}\n" for i in range(n)))
    write("d.user", "user_id:token\tage:token\theight:float\n" + "".join(f"u{i}\t{i % 20}\t{i}\n" for i in range(n)))
    film = "".join(f"m{i}\tThe Film\tComedy War\t0.1 0.2\n" for i in range(n))
    write("d.item", "item_id:token\tmovie_title:token_seq\tclass:token_seq\tvector:float_seq\n" + film)
    data = load(path)
    assert dict(zip(data.user_features.names, data.user_features.sizes, strict=True)) == {"age": 21, "height": 17}
    assert data.titles[0] == "The Film"
    assert data.item_features.names == ("class.0", "class.1")


def test_a_renamed_key_counts_in_the_features_too(write):
    path = write("e.csv", EVENTS.replace("item_id", "clip"))
    data = load(path, item_features=write("i.csv", "clip,kind\n1,a\n2,b\n"), columns={"item_id": "clip"})
    assert data.item_features.codes.tolist() == [[2], [1], [0]]


def test_bad_feature_rows(write):
    text = "item_id,kind\n1,a\n1,b\n,c\n2,b\n"
    with pytest.raises(DataError, match=r"i\.csv, line 3, column item_id: the value is '1', it stands above already"):
        items(write, text)
    data = items(write, text, bad_rows="drop")
    assert data.dropped == {"item features, repeated id": 1, "item features, empty id": 1}
    assert data.item_features.codes.tolist() == [[2], [1], [0]]


def test_features_without_key_or_reader(write):
    with pytest.raises(DataError, match=r"i\.csv has no column for item_id; it has: kind, colour"):
        items(write, "kind,colour\na,b\n")
    with pytest.raises(DataError, match="no reader for the features"):
        load(write("e.csv", EVENTS), item_features=write("i.xlsx", "x"))
