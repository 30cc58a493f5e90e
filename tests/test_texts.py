"""Ids and titles by row, and rows by id: the same from strings and from mapped files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests import toys
from tests.conftest import Exported

from recfit import open_bundle, texts
from recfit.types import Request

SOME = ("1", "", "ünï", "movie 🎬", "a" * 300, "22", "\n", "\x00")


def stored(told: Sequence[str], folder: Path) -> Sequence[str]:
    texts.write_texts(told, folder / "told")
    return texts.texts_of(*[np.load(folder / f"told{suffix}") for suffix in texts.SUFFIXES])


@pytest.mark.parametrize("few", [0, 8])
@pytest.mark.parametrize("told", [SOME, SOME[:1], (), tuple(map(str, range(70_000)))])
def test_texts_come_back(told: tuple[str, ...], few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "FEW", few)
    found = stored(told, tmp_path)
    assert isinstance(found, tuple if len(told) <= few else texts.Texts)
    assert tuple(found) == told
    assert len(found) == len(told)
    assert tuple(found[1:5]) == told[1:5]
    assert [found[row] for row in range(-len(told), len(told), 7)] == [
        told[row] for row in range(-len(told), len(told), 7)
    ]
    with pytest.raises(IndexError):
        found[len(told)]


@pytest.mark.parametrize("few", [0, 8])
def test_rows_are_found_by_text(few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "FEW", few)
    rows = texts.lookup(stored(SOME, tmp_path))
    for _ in range(2):  # a second time from memory
        assert [rows.get(text) for text in SOME] == [*range(len(SOME))]
        assert all(text in rows for text in SOME)
        assert (rows.get("else"), rows.get("else", -1), "else" in rows, 7 in rows) == (None, -1, False, False)


def test_what_is_not_there_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "FEW", 0)
    rows = texts.lookup(stored(SOME, tmp_path))
    assert [rows.get(text) for text in (*SOME, *(f"else {n}" for n in range(9)))] == [*range(len(SOME)), *[None] * 9]
    assert rows._row.cache_info().currsize == len(SOME)  # type: ignore[attr-defined]


def test_texts_of_equal_hashes_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "FEW", 0)
    monkeypatch.setattr(texts, "hash", len, raising=False)
    rows = texts.lookup(stored(SOME, tmp_path))
    assert [rows.get(text) for text in SOME] == [*range(len(SOME))]
    assert rows.get("2") is None


def test_numbers_of_ends_take_no_more_bytes_than_they_need(tmp_path: Path) -> None:
    for told, size in ((["a" * 255], np.uint8), (["a" * 256], np.uint16), (["a" * 65_536], np.uint32)):
        texts.write_texts(told, tmp_path / "told")
        assert np.load(tmp_path / "told.ends.npy").dtype == size


@pytest.mark.parametrize("ends", [[], [1], [1, 9]])
def test_arrays_that_do_not_belong_together_are_noticed(ends: list[int]) -> None:
    with pytest.raises(ValueError, match="end elsewhere than their 8 bytes"):
        texts.texts_of(np.zeros(8, np.uint8), np.array(ends, np.uint8))


def test_a_bundle_answers_the_same_by_mapped_texts(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    path, around = exported(toys.original("sasrec")), toys.around()
    asked = [Request(around.user_ids[3]), Request(history=(*around.item_ids[4:9], "unknown")), Request("nobody")]
    plain = open_bundle(path)
    monkeypatch.setattr(texts, "FEW", 0)
    mapped = open_bundle(path)
    assert isinstance(mapped.bundle.user_ids, texts.Texts)
    assert mapped.recommend(asked, 5) == plain.recommend(asked, 5)
    assert mapped.title(around.item_ids[2]) == plain.title(around.item_ids[2])
    assert (mapped.known_user("nobody"), mapped.known_item(around.item_ids[0])) == (False, True)
    np.testing.assert_array_equal(mapped.score(asked[1], around.item_ids), plain.score(asked[1], around.item_ids))
