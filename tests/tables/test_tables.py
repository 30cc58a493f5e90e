"""Every storage format, found by its file: what it writes, reads, scores, and how far off it may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recfit.registry import find, names
from recfit.tables import Table
from recfit.topk import top_k
from recfit.types import FloatArray, Unsupported

FORMATS = names("tables")
# The settings that each format is tried with, several where they change what is stored.
SETTINGS: dict[str, list[dict[str, Any]]] = {"int8": [{}, {"asymmetric": True}], "int4": [{}, {"asymmetric": True}]}
STORED = [(name, settings) for name in FORMATS for settings in SETTINGS.get(name, [{}])]
SHAPES = {"usual": (50, 16), "one item": (1, 8), "one dimension": (20, 1)}
# Of the largest score or number. Four bits round by a sixteenth, an eighth at the far end; signs know no sizes at all.
ERRORS = {"int4": 0.13, "binary": 1.0}
ERROR = 0.02


# What a format says it cannot hold, and why.
REFUSED = {
    ("pq_scan", "one item"): "need 16 items, these are 1",
    ("pq_scan", "one dimension"): "do not part into codes of 2",
    ("pq_scan", "few items"): "need 16 items, these are 12",
}

Case = tuple[Table, FloatArray, FloatArray, float]


def vectors_of(name: str, shape: tuple[int, int], directory: Path) -> FloatArray:
    """Random vectors of different lengths with a row of zeros, or the identity where a format holds nothing else."""
    draws = np.random.default_rng(0)
    vectors = (draws.standard_normal(shape) * draws.lognormal(0, 1, (shape[0], 1))).astype(np.float32)
    vectors[shape[0] // 2] = 0
    try:
        find("tables", name).write(vectors, directory / "tried", find("tables", name).Config(shape[1]))
    except Unsupported:
        assert name == "identity"
        return np.eye(shape[0], dtype=np.float32)
    return vectors


def stored(name: str, vectors: FloatArray, directory: Path, **settings: Any) -> Table:
    """Written and opened again."""
    module = find("tables", name)
    config = module.Config(vectors.shape[1], **settings)
    module.write(vectors, directory / "table", config)
    table: Table = module.open_table(directory / "table", config, 1)
    return table


def queries_for(vectors: FloatArray, count: int = 7) -> FloatArray:
    """Queries of very different lengths; one is zero."""
    draws = np.random.default_rng(1)
    queries = draws.standard_normal((count, vectors.shape[1])) * draws.lognormal(0, 3, (count, 1))
    queries[3] = 0
    return queries.astype(np.float32)


@pytest.fixture(
    params=[(*part, shape) for part in STORED for shape in SHAPES if (part[0], shape) not in REFUSED],
    ids=lambda part: ", ".join(map(str, part)),
)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """An opened table, the vectors it was made of, queries, and how far off it may be."""
    name, settings, shape = request.param
    vectors = vectors_of(name, SHAPES[shape], tmp_path)
    return stored(name, vectors, tmp_path, **settings), vectors, queries_for(vectors), ERRORS.get(name, ERROR)


@pytest.mark.parametrize(("name", "shape"), REFUSED)
def test_what_a_format_cannot_hold_is_refused(name: str, shape: str, tmp_path: Path) -> None:
    rows, dim = {**SHAPES, "few items": (12, 4)}[shape]
    with pytest.raises(Unsupported, match=REFUSED[name, shape]):
        find("tables", name).write(np.ones((rows, dim), np.float32), tmp_path, find("tables", name).Config(dim))


@pytest.mark.parametrize(("name", "settings"), STORED, ids=str)
def test_the_largest_products_do_not_saturate(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Integer products that overflow 16 bits are cut off by processors without VNNI, and the ranking is gone."""
    vectors = np.linspace(1.0, 2.0, 32, dtype=np.float32)[:, None] * np.ones((32, 32), np.float32)
    if np.array_equal(vectors_of(name, (32, 32), tmp_path), np.eye(32)):
        vectors = np.eye(32, dtype=np.float32)
    query = np.full((1, 32), 3.0, np.float32)
    exact = query @ vectors.T
    scores = stored(name, vectors, tmp_path, **settings).scores(query)
    np.testing.assert_allclose(scores, exact, rtol=ERRORS.get(name, ERROR))


def test_scores_are_near_the_exact_ones(case: Case) -> None:
    table, vectors, queries, error = case
    scores = table.scores(queries)
    assert scores.dtype == np.float32
    size = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    assert (np.abs(scores - queries @ vectors.T) <= error * size + 1e-6).all()


def test_rows_are_near_the_vectors(case: Case) -> None:
    table, vectors, _, error = case
    items = np.arange(len(vectors))[::-1].reshape(1, -1).copy()
    rows = table.rows(items)
    assert (rows.shape, rows.dtype) == ((*items.shape, vectors.shape[1]), np.float32)
    peaks = np.abs(vectors).max(axis=1, keepdims=True)
    assert (np.abs(rows[0] - vectors[::-1]) <= error * peaks[::-1]).all()


def test_rows_are_the_callers_own(case: Case) -> None:
    table, *_ = case
    before = table.rows(np.array([0]))
    table.rows(np.array([0]))[:] = 99
    np.testing.assert_array_equal(table.rows(np.array([0])), before)


def test_rescoring_agrees_with_rows_and_with_the_scan(case: Case) -> None:
    table, vectors, queries, error = case
    items = np.stack([np.random.default_rng(at).permutation(len(vectors)) for at in range(len(queries))])
    again = table.rescore(queries, items)
    assert (again.shape, again.dtype) == (items.shape, np.float32)
    by_rows = np.einsum("bcd,bd->bc", table.rows(items), queries)
    scale = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)[items] + 1e-6
    assert (np.abs(again - by_rows) <= 1e-5 * scale).all()
    assert (np.abs(again - np.take_along_axis(table.scores(queries), items, axis=1)) <= error * scale).all()


def test_a_query_scores_the_same_in_any_batch(case: Case) -> None:
    table, vectors, queries, _ = case
    alone = np.concatenate([table.scores(query[None]) for query in queries])
    scale = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    assert (np.abs(alone - table.scores(queries)) <= 1e-6 * scale + 1e-9).all()


def test_zeros_score_zero(case: Case) -> None:
    table, vectors, queries, _ = case
    scores = table.scores(queries)
    assert not scores[3].any(), "a query of zeros"
    assert not scores[:, ~vectors.any(axis=1)].any(), "a row of zeros"


@pytest.mark.parametrize(("name", "settings"), STORED, ids=str)
def test_the_ranking_survives_storage(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    vectors = vectors_of(name, (40, 8), tmp_path)
    direction = np.random.default_rng(2).standard_normal(vectors.shape[1]).astype(np.float32)
    if not np.array_equal(vectors, np.eye(len(vectors))):
        # Scores 40, 39, ...: 2.5 % apart at the top, in shuffled rows.
        order = np.random.default_rng(3).permutation(40)
        vectors = direction / (direction @ direction) * (1.0 + order[:, None]).astype(np.float32)
    wanted = top_k(vectors @ direction, 10)[0]
    scores = stored(name, vectors, tmp_path, **settings).scores(direction[None])[0]
    assert top_k(scores, 10)[0].tolist() == wanted.tolist()


@pytest.mark.parametrize(("name", "settings"), STORED, ids=str)
def test_equal_rows_score_equally(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    vectors = vectors_of(name, (16, 4), tmp_path)
    if np.array_equal(vectors, np.eye(len(vectors))):
        query = np.ones((1, len(vectors)), np.float32)
    else:
        vectors[:] = vectors[0]
        query = np.array([[0.3, -1, 2, 0.7]], np.float32)
    rows, scores = top_k(stored(name, vectors, tmp_path, **settings).scores(query)[0], 5)
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert len(set(scores.tolist())) == 1


@pytest.mark.parametrize(("name", "share"), [("int8", 0.32), ("int4", 0.25)])
def test_fewer_bits_are_fewer_bytes(name: str, share: float, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    sizes = {}
    for form in ("float32", name):
        stored(form, vectors, tmp_path / form)
        sizes[form] = sum(path.stat().st_size for path in (tmp_path / form).rglob("*") if path.is_file())
    assert sizes[name] < share * sizes["float32"]


def test_int8_rows_are_within_half_a_step(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((30, 16)).astype(np.float32)
    rows = stored("int8", vectors, tmp_path).rows(np.arange(30))
    half_a_step = np.abs(vectors).max(axis=1, keepdims=True) / 254
    assert (np.abs(rows - vectors) <= half_a_step * 1.001).all()
    np.testing.assert_allclose(np.abs(rows).max(axis=1), np.abs(vectors).max(axis=1), rtol=1e-6)


def test_int4_blocks_reach_eight_steps_on_the_side_of_their_largest_number_and_seven_on_the_other(
    tmp_path: Path,
) -> None:
    """Of either sign: what is as large on the other side moves by a whole step, all within seven and a half by half a step."""
    block = np.linspace(-1, 1, 32, dtype=np.float32) * 0.99
    for at, largest in enumerate((-1.0, 1.0)):
        block[0], block[-1] = largest, -0.999 * largest
        [row] = stored("int4", block[None], tmp_path / str(at)).rows(np.arange(1))
        assert row[0] == largest
        assert row[-1] == pytest.approx(-7 / 8 * largest)
        within = np.abs(block) <= 7.5 / 8
        assert np.abs(row - block)[within].max() <= 1 / 16 + 1e-6


@pytest.mark.parametrize(("name", "steps"), [("int8", 255), ("int4", 15)])
def test_asymmetric_rows_are_within_half_a_step_of_their_own_range(name: str, steps: int, tmp_path: Path) -> None:
    """From the least number to the largest, 0 among them, whichever side of it these are."""
    vectors = np.random.default_rng(0).standard_normal((30, 16)).astype(np.float32)
    vectors += np.linspace(-5, 5, 30, dtype=np.float32)[:, None]
    table = stored(name, vectors, tmp_path, asymmetric=True)
    low, high = vectors.min(axis=1).clip(max=0), vectors.max(axis=1).clip(min=0)
    half_a_step = (high - low)[:, None] / (2 * steps)
    assert (np.abs(table.rows(np.arange(30)) - vectors) <= half_a_step * 1.001).all()
    np.testing.assert_array_equal(table.rows(np.arange(30)), table.matrix())


@pytest.mark.parametrize(("name", "more"), [("int8", 1), ("int4", 2)])
def test_leaning_rows_lose_less_with_a_zero_point_each(name: str, more: int, tmp_path: Path) -> None:
    """Nearly all numbers on one side of 0, as behind a ReLU: half of the steps of a symmetric row stand for nothing. A zero
    point is a byte a row, or half a byte for each of 3 blocks, rounded up."""
    vectors = np.random.default_rng(0).gamma(2.0, 1.0, (200, 80)).astype(np.float32) - 0.3
    lost, sizes = [], []
    for settings in ({}, {"asymmetric": True}):
        table = stored(name, vectors, tmp_path, **settings)
        lost.append(float(np.square(table.matrix() - vectors).mean()))
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "table").glob("*.bin")))
        if settings == {}:
            assert not (tmp_path / "table" / "zeros.bin").exists()
    assert lost[1] < 0.4 * lost[0]
    assert sizes[1] - sizes[0] == more * len(vectors)


def test_the_identity_refuses_other_vectors(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"item vectors \[3, 2\] are not the identity"):
        find("tables", "identity").write(np.ones((3, 2), np.float32), tmp_path, find("tables", "identity").Config(2))
