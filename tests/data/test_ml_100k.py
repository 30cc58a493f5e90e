"""Both origins give the same interactions; what comes is verified, kept, and not asked for twice."""

import hashlib
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from recfit.data import load
from recfit.data.sources import ml_100k
from recfit.types import DataError

PREFIX = "recbole/dataset_example/ml-100k/ml-100k"
DATA = "7\t2\t3\t881250949\n8\t1\t5\t881250940\n7\t1\t4\t881250949\n"
USERS = "7|24|M|writer|85711\n8|53|F|other|94043\n"


def film(number, title, *genres):
    flags = "|".join("01"[genre in genres] for genre in ml_100k.GENRES)
    return f"{number}|{title}|01-Jan-1995||http://x|{flags}\n"


OFFICIAL = {
    "ml-100k/u.data": DATA,
    "ml-100k/u.user": USERS,
    "ml-100k/u.item": film(1, "Misérables, Les (1995) ", "Drama", "Musical") + film(2, "unknown", "unknown"),
}
RECBOLE = {
    f"{PREFIX}.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + DATA,
    f"{PREFIX}.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    + USERS.replace("|", "\t"),
    f"{PREFIX}.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tMisérables, Les\t1995\tDrama Musical\n2\tunkonwn\tunkonwn\tunknown\n",
}


def pack(path, members):
    encoding = "latin-1" if members is OFFICIAL else "utf8"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(zipfile.ZipInfo(name), text.encode(encoding))


def unreachable(directory):
    raise OSError("no route to host")


@pytest.fixture
def origins(tmp_path, monkeypatch):
    """Both origins with small archives; gives the list of those that were asked."""
    asked = []
    made = []
    for origin, members in zip(ml_100k.ORIGINS, (OFFICIAL, RECBOLE), strict=True):

        def fetch(directory, origin=origin, members=members):
            asked.append(origin.name)
            pack(directory / origin.archive, members)

        pack(tmp_path / origin.archive, members)
        digest = hashlib.sha256((tmp_path / origin.archive).read_bytes()).hexdigest()
        made.append(replace(origin, sha256=digest, fetch=fetch))
    monkeypatch.setattr(ml_100k, "ORIGINS", tuple(made))
    return asked


def test_both_origins_agree(origins, tmp_path, monkeypatch, capsys):
    first = load("ml-100k", cache=tmp_path / "a")
    monkeypatch.setattr(ml_100k, "ORIGINS", (replace(ml_100k.ORIGINS[0], fetch=unreachable), ml_100k.ORIGINS[1]))
    second = load("ml-100k", cache=tmp_path / "b")
    assert origins == ["files.grouplens.org", "PyPI (recbole 1.2.1)"]
    for name in ("user", "item", "weight", "timestamp"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    for name in ("user_ids", "item_ids", "titles", "name"):
        assert getattr(first, name) == getattr(second, name), name
    for name in ("user_features", "item_features"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a.names, a.sizes, a.codes.tolist()) == (b.names, b.sizes, b.codes.tolist())
    assert "fetching ml-100k from files.grouplens.org" in capsys.readouterr().err


def test_events_titles_and_features(origins, tmp_path):
    data = load("ml-100k", cache=tmp_path / "a")
    assert (data.user_ids, data.item_ids) == (("7", "8"), ("2", "1"))
    assert data.item.tolist() == [1, 0, 1]
    assert data.titles == ("unknown", "Misérables, Les (1995)")
    assert data.user_features.names == ("age", "gender", "occupation")
    assert data.item_features.names == ("genre.0", "genre.1")


def test_the_second_time_nothing_is_fetched(origins, tmp_path, monkeypatch):
    monkeypatch.setenv("RECFIT_CACHE", str(tmp_path / "mine"))
    load("ml-100k")
    load("ml_100k")
    assert origins == ["files.grouplens.org"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["ml-100k.zip"]


def test_a_damaged_copy_is_fetched_again(origins, tmp_path):
    load("ml-100k", cache=tmp_path / "a")
    (tmp_path / "a" / "ml-100k.zip").write_bytes(b"damaged")
    load("ml-100k", cache=tmp_path / "a")
    assert origins == ["files.grouplens.org"] * 2


def test_wrong_bytes_are_never_kept(origins, tmp_path, monkeypatch):
    changed = tuple(replace(origin, sha256="0" * 64) for origin in ml_100k.ORIGINS)
    monkeypatch.setattr(ml_100k, "ORIGINS", changed)
    with pytest.raises(DataError, match=r"what came is not the ml-100k\.zip of sha256 000000000000"):
        load("ml-100k", cache=tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_without_a_network_every_origin_and_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ml_100k, "ORIGINS", tuple(replace(o, fetch=unreachable) for o in ml_100k.ORIGINS))
    with pytest.raises(DataError) as error:
        load("ml-100k", cache=tmp_path / "a")
    for part in ("files.grouplens.org: no route to host", "PyPI (recbole 1.2.1)", "ml-100k.zip or recbole-1.2.1"):
        assert part in str(error.value)


def test_a_failing_pip_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(ml_100k.sys, "executable", "/bin/false")
    with pytest.raises(DataError, match=r"pip download recbole==1\.2\.1 failed: no output"):
        ml_100k._from_pypi(tmp_path)
