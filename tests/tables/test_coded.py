"""Tables of codes (`pq`, `binary`): what they learn, store and refuse, and that every way of scanning agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recfit.registry import find
from recfit.types import ConfigError, FloatArray, Unsupported

N, DIM = 700, 24
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("pq", {"parts": 6, "codes": 32}),
    ("pq", {"parts": 6, "codes": 16}),
    ("pq", {"parts": 5, "codes": 16}),
    ("pq", {"parts": 7, "codes": 100}),
    ("pq", {"parts": 3, "codes": 16, "rotate": True}),
    ("binary", {"rotate": False}),
    ("binary", {"rotate": True}),
]


def spread(n: int = N, dim: int = DIM) -> FloatArray:
    """Vectors with most of their size in a few directions that are no coordinates, as trained ones have."""
    draws = np.random.default_rng(0)
    sizes = np.geomspace(1, 0.05, dim)
    turned = np.linalg.qr(draws.standard_normal((dim, dim)))[0]
    return (draws.standard_normal((n, dim)) * sizes @ turned).astype(np.float32)


def stored(name: str, vectors: FloatArray, directory: Path, **settings: Any) -> Any:
    module = find("tables", name)
    config = module.Config(vectors.shape[1], **settings)
    module.write(vectors, directory / "table", config)
    return module.open_table(directory / "table", config, 1)


def lost(table: Any, vectors: FloatArray) -> float:
    """The share of the vectors' energy that is not in the table's."""
    return float(np.square(table.matrix() - vectors).sum() / np.square(vectors).sum())


@pytest.mark.parametrize(("name", "settings"), SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_large_table_that_stays_codes_scores_alike(
    name: str, settings: dict[str, Any], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = stored(name, spread(), tmp_path, **settings)
    queries = np.random.default_rng(1).standard_normal((count, DIM)).astype(np.float32)
    wanted = queries @ table.matrix().T
    np.testing.assert_allclose(table.scores(queries), wanted, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("recfit.tables._coded.WIDENED", 0)
    monkeypatch.setattr("recfit.tables._coded.BLOCK", 128)
    again = stored(name, spread(), tmp_path, **settings)
    np.testing.assert_allclose(again.scores(queries), wanted, rtol=1e-4, atol=1e-4)
    assert "_session" not in vars(again._scan), "nothing is widened"


@pytest.mark.parametrize(("name", "settings"), SHAPES, ids=str)
def test_rows_are_those_of_the_matrix(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    table = stored(name, spread(), tmp_path, **settings)
    items = np.array([[0, 5], [N - 1, 5]])
    np.testing.assert_allclose(table.rows(items), table.matrix()[items], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "settings"), SHAPES, ids=str)
def test_every_byte_is_accounted_for(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    stored(name, spread(), tmp_path, **settings)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "table").iterdir()}
    width = -(-DIM // settings.get("parts", DIM // 8))
    parts = -(-DIM // width)
    wanted = {"codes.bin": N * (-(-parts // 2) if settings.get("codes") == 16 else parts)}
    if name == "pq":
        wanted["centroids.bin"] = parts * settings["codes"] * width * 2
    else:
        wanted["scales.bin"] = N * 4
    if settings.get("rotate"):
        wanted["rotation.bin"] = DIM * DIM * 2
    assert sizes.pop("scan.onnx") < 5000
    assert sizes == wanted


@pytest.mark.parametrize(("name", "settings"), [("pq", {"parts": 4, "codes": 64}), ("binary", {})])
def test_a_learned_rotation_loses_less(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    plain, turned = (
        lost(stored(name, spread(), tmp_path / str(rotate), **settings, rotate=rotate), spread())
        for rotate in (False, True)
    )
    assert turned < 0.9 * plain


def test_more_codes_and_parts_lose_less(tmp_path: Path) -> None:
    grid = [(2, 16), (6, 16), (6, 64), (12, 256)]
    losses = [
        lost(stored("pq", spread(), tmp_path / f"{parts}", parts=parts, codes=codes), spread()) for parts, codes in grid
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.02


def test_signs_keep_what_theory_says(tmp_path: Path) -> None:
    """Of Gaussian numbers, signs with the best scale lose 1 - 2 / pi of the energy."""
    vectors = np.random.default_rng(2).standard_normal((500, 64)).astype(np.float32)
    assert lost(stored("binary", vectors, tmp_path, rotate=False), vectors) == pytest.approx(1 - 2 / np.pi, abs=0.02)


def test_few_items_are_held_exactly(tmp_path: Path) -> None:
    vectors = spread(60).astype(np.float16).astype(np.float32)
    assert np.array_equal(stored("pq", vectors, tmp_path, parts=4, codes=64).matrix(), vectors)


def test_learning_twice_gives_the_same_files(tmp_path: Path) -> None:
    for folder in ("once", "again"):
        stored("pq", spread(), tmp_path / folder, parts=4, codes=16, rotate=True)
    for path in (tmp_path / "once" / "table").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "table" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("settings", [{"parts": 0}, {"codes": 1}, {"codes": 257}])
def test_impossible_codes_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"pq has parts = \d+, codes = \d+; give 1 part or more, 2 to 256 codes"):
        find("tables", "pq").Config(16, **settings)


def test_numbers_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="too large for the half precision of a codebook; store table='int8'"):
        stored("pq", np.full((3, 4), 1e6, np.float32), tmp_path)
