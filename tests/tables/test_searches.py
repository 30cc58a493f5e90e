"""Every format that searches by itself, found by its file: what it must find, what it must never show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from recfit.registry import find, names
from recfit.tables import Searchable
from recfit.topk import best
from recfit.types import BundleError, ConfigError, FloatArray, Unsupported

FORMATS = [name for name in names("tables") if getattr(find("tables", name), "APPROXIMATE", False)]
FAISS = [name for name in FORMATS if hasattr(find("tables", name), "_faiss")]
ITEMS, DIM = 3000, 16
NONE = np.empty(0, np.int32)


def clustered(count: int = ITEMS) -> FloatArray:
    """Vectors around fifty centers: what is near a query is near for a reason."""
    draws = np.random.default_rng(0)
    centers = draws.standard_normal((50, DIM))
    vectors = centers[draws.integers(0, 50, count)] + 0.4 * draws.standard_normal((count, DIM))
    return vectors.astype(np.float32)


def written(name: str, vectors: FloatArray, directory: Path, **settings: Any) -> Any:
    module = find("tables", name)
    config = module.Config(vectors.shape[1], **settings)
    module.write(vectors, directory, config)
    return module.open_table(directory, config, 1)


@pytest.fixture(scope="module", params=FORMATS)
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return written(request.param, clustered(), tmp_path_factory.mktemp("table") / "t")


QUERIES = clustered(20) + 0.1


def test_it_is_searchable(table: Any) -> None:
    assert isinstance(table, Searchable)


def test_it_finds_most_of_the_best(table: Any) -> None:
    exact = best(table.scores(QUERIES), 10, [NONE] * 20)
    found = table.search(QUERIES, 10, [NONE] * 20)
    shared = [len(np.intersect1d(rows, wanted)) for (rows, _), (wanted, _) in zip(found, exact, strict=True)]
    assert np.mean(shared) >= 9.5


def test_what_it_says_is_what_rescoring_says(table: Any) -> None:
    for query, (rows, scores) in zip(QUERIES, table.search(QUERIES, 25, [NONE] * 20), strict=True):
        assert len(set(rows.tolist())) == len(rows) == 25
        np.testing.assert_allclose(scores, table.rescore(query[None], rows[None])[0], rtol=1e-5)
        order = np.lexsort((rows, -scores))
        assert order.tolist() == list(range(25)), "best first, ties to the lower row"


def test_what_is_gone_never_appears_and_the_list_stays_long(table: Any) -> None:
    exact = best(table.scores(QUERIES), 400, [NONE] * 20)
    gone = [rows[: at * 20].astype(np.int32) for at, (rows, _) in enumerate(exact)]
    for left, (rows, _) in zip(gone, table.search(QUERIES, 10, gone), strict=True):
        assert len(rows) == 10
        assert not np.isin(rows, left).any()


def test_a_list_is_short_only_where_there_are_no_more(table: Any) -> None:
    left = np.array([7, 2900], np.int32)
    gone = np.setdiff1d(np.arange(ITEMS, dtype=np.int32), left)
    [(rows, scores)] = table.search(QUERIES[:1], 5, [np.concatenate((gone, gone[:9]))])
    assert sorted(rows.tolist()) == left.tolist()
    assert scores[0] >= scores[1]
    [(rows, _)] = table.search(QUERIES[:1], 5, [np.arange(ITEMS, dtype=np.int32)])
    assert not len(rows)


def test_a_query_finds_the_same_in_any_batch(table: Any) -> None:
    gone = [np.arange(at, dtype=np.int32) for at in range(20)]
    together = table.search(QUERIES, 10, gone)
    for at, (rows, scores) in enumerate(together):
        [(alone, again)] = table.search(QUERIES[at : at + 1], 10, gone[at : at + 1])
        assert rows.tolist() == alone.tolist()
        np.testing.assert_allclose(scores, again, rtol=1e-6)


def test_a_query_of_zeros_gets_a_list(table: Any) -> None:
    [(rows, scores)] = table.search(np.zeros((1, DIM), np.float32), 5, [NONE])
    assert len(rows) == 5
    assert not scores.any()


@pytest.mark.parametrize("name", FORMATS)
def test_equal_vectors_give_equal_files(name: str, tmp_path: Path) -> None:
    for part in "ab":
        written(name, clustered(), tmp_path / part)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert files
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


@pytest.mark.parametrize("name", FAISS)
def test_a_list_that_the_index_leaves_short_is_made_of_all_items(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = written(name, clustered(), tmp_path)

    class Empty:
        ntotal = ITEMS

        def search(self, queries: FloatArray, k: int) -> Any:
            return None, np.full((len(queries), k), -1)

    monkeypatch.setattr(table, "_index", Empty())
    [(rows, _)] = table.search(QUERIES[:1], 10, [NONE])
    assert rows.tolist() == best(table.scores(QUERIES[:1]), 10, [NONE])[0][0].tolist()


@pytest.mark.parametrize("name", FAISS)
def test_exact_rows_give_exact_scores(name: str, tmp_path: Path) -> None:
    vectors = clustered()
    table = written(name, vectors, tmp_path, rows="float32")
    [(rows, scores)] = table.search(QUERIES[:1], 10, [NONE])
    np.testing.assert_allclose(scores, vectors[rows] @ QUERIES[0], rtol=1e-5)


@pytest.mark.parametrize("name", FAISS)
def test_searching_leaves_the_threads_of_others_alone(name: str, tmp_path: Path) -> None:
    faiss = find("tables", name)._faiss.library()
    table = written(name, clustered(), tmp_path)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        table.search(QUERIES, 10, [NONE] * 20)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


def test_more_lists_or_a_longer_walk_find_more(tmp_path: Path) -> None:
    exact = np.stack([rows for rows, _ in best(QUERIES @ clustered().T, 10, [NONE] * 20)])
    for name, few, many in (
        ("ivf", {"nprobe": 1, "nlist": 60}, {"nprobe": 60, "nlist": 60}),
        ("pq_scan", {"k_factor": 1}, {"k_factor": 50}),
        ("hnsw", {"m": 2, "ef_search": 1, "k_factor": 1}, {"m": 16, "ef_search": 300}),
    ):
        shares = []
        for settings in (few, many):
            table = written(name, clustered(), tmp_path / f"{name}{len(shares)}", rows="float32", **settings)
            found = table.search(QUERIES, 10, [NONE] * 20)
            shares.append(np.mean([np.isin(line, rows).mean() for (rows, _), line in zip(found, exact, strict=True)]))
        assert shares[1] > max(shares[0], 0.97), name


def test_lists_hold_what_is_near_whatever_its_length(tmp_path: Path) -> None:
    """By inner product alone, long rows draw short ones into their lists, and a few probes miss half of the best."""
    draws = np.random.default_rng(2)
    vectors = (clustered(9000) * draws.lognormal(0, 1, (9000, 1))).astype(np.float32)
    table = written("ivf", vectors, tmp_path, rows="float32", nprobe=16)
    exact = best(QUERIES @ vectors.T, 10, [NONE] * 20)
    found = table.search(QUERIES, 10, [NONE] * 20)
    assert np.mean([np.isin(line, rows).mean() for (rows, _), (line, _) in zip(found, exact, strict=True)]) > 0.95


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("pq_scan", (15, 4), "codes of 4 bits need 16 items, these are 15; keep them as float32"),
        ("pq_scan", (40, 3), "rows of 3 numbers do not part into codes of 2; pass another width"),
    ],
)
def test_what_cannot_be_coded_is_refused(name: str, shape: tuple[int, int], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=sentence):
        written(name, np.ones(shape, np.float32), tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("hnsw", {"m": 1}, "hnsw.m = 1 is outside 2 to 256"),
        ("hnsw", {"codes": "pq"}, "hnsw.codes = 'pq'; allowed: sq8, float32"),
        ("ivf", {"nprobe": 0}, "ivf.nprobe = 0 is outside 1 to"),
        ("ivf", {"rows": "int4"}, "ivf.rows = 'int4'; allowed: int8, float32"),
        ("pq_scan", {"k_factor": 0}, "pq_scan.k_factor = 0 is outside 1 to 1000"),
    ],
)
def test_a_wrong_setting_is_answered_with_what_is_allowed(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        find("tables", name).Config(8, **settings)


def test_a_broken_index_is_named(tmp_path: Path) -> None:
    written("ivf", clustered(), tmp_path)
    (tmp_path / "index.faiss").write_bytes(b"no index")
    with pytest.raises(BundleError, match=r"FAISS cannot read .*index\.faiss.*export the bundle again"):
        find("tables", "ivf").open_table(tmp_path, find("tables", "ivf").Config(DIM), 1)


@pytest.mark.parametrize("codes", ["sq8", "float32"])
@pytest.mark.parametrize("name", ["hnsw", "ivf"])
def test_an_index_stays_in_its_file_and_answers_as_one_in_memory(
    name: str, codes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import faiss

    table, path = written(name, clustered(), tmp_path, codes=codes), tmp_path / "index.faiss"
    assert str(path) in Path("/proc/self/maps").read_text()  # so that processes have its pages together
    before = psutil.Process().num_threads()
    found = table.search(QUERIES, 10, [NONE] * 20)
    assert psutil.Process().num_threads() == before  # none reads ahead
    monkeypatch.setattr(faiss, "IO_FLAG_MMAP_IFC", 0)
    held = find("tables", name).open_table(tmp_path, find("tables", name).Config(DIM, codes=codes), 1)
    for (rows, scores), (wanted, values) in zip(found, held.search(QUERIES, 10, [NONE] * 20), strict=True):
        np.testing.assert_array_equal(rows, wanted)
        np.testing.assert_array_equal(scores, values)


def test_without_faiss_the_next_step_is_said() -> None:
    script = (
        "import sys; sys.modules['faiss'] = None\n"
        "from recfit.tables import _faiss\n"
        "try: _faiss.library()\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "this item table needs FAISS, which is not installed; pip install 'recfit[faiss]'"
