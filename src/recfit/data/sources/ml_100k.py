"""MovieLens-100K: 100,000 ratings of 943 users for 1,682 films, with age, gender, occupation, title, year and genres.

Fetched from GroupLens, or, where that host can't be reached, out of the `recbole` wheel on PyPI. Both hold the same
events in the same order. It is not shipped because its licence doesn't allow redistribution.
F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from recfit.data.table import Raw, Table
from recfit.types import DataError

ACCEPTS = "the name ml-100k"
TIMEOUT = 10  # seconds without an answer before the next origin is tried
GENRES = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


@dataclass(frozen=True)
class Origin:
    """An archive that holds the set: where it comes from, how it gets into a directory, how it is opened."""

    name: str
    archive: str
    sha256: str
    fetch: Callable[[Path], None]
    open: Callable[[zipfile.ZipFile], Raw]


def claims(source: str) -> bool:
    return source.lower().replace("_", "-") == "ml-100k"


def read(source: str, cache: Path) -> Raw:
    """The set from `cache`, filled at the first call. A damaged copy is fetched again."""
    for origin in ORIGINS:
        if _sound(origin, cache):
            return _opened(origin, cache)
    failures = []
    for origin in ORIGINS:
        print(f"recfit: fetching ml-100k from {origin.name} into {cache}", file=sys.stderr)
        try:
            _fetched(origin, cache)
            return _opened(origin, cache)
        except (OSError, subprocess.SubprocessError, DataError) as error:
            failures.append(f"{origin.name}: {error}")
    archives = " or ".join(origin.archive for origin in ORIGINS)
    raise DataError(f"ml-100k can't be fetched; {'; '.join(failures)}. Without a network put {archives} into {cache}")


def _sound(origin: Origin, cache: Path) -> bool:
    path = cache / origin.archive
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == origin.sha256


def _opened(origin: Origin, cache: Path) -> Raw:
    with zipfile.ZipFile(cache / origin.archive) as archive:
        return origin.open(archive)


def _fetched(origin: Origin, cache: Path) -> None:
    """Puts the archive into `cache`, complete and verified or not at all."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        origin.fetch(Path(scratch))
        if not _sound(origin, Path(scratch)):
            raise DataError(f"what came is not the {origin.archive} of sha256 {origin.sha256[:12]}")
        (Path(scratch) / origin.archive).replace(cache / origin.archive)


def _from_grouplens(directory: Path) -> None:
    url = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        (directory / "ml-100k.zip").write_bytes(answer.read())


def _from_pypi(directory: Path) -> None:
    """pip knows of proxies and mirrors, so it does the download."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run = subprocess.run(
        [*pip, "--dest", str(directory), "recbole==1.2.1"], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise DataError(f"pip download recbole==1.2.1 failed: {(run.stderr.strip().splitlines() or ['no output'])[-1]}")


def _official(archive: zipfile.ZipFile) -> Raw:
    events = _table(archive, "ml-100k/u.data", "\t", ("user_id", "item_id", "rating", "timestamp"))
    users = _table(archive, "ml-100k/u.user", "|", ("user_id", "age", "gender", "occupation", "zip_code"))
    films = ("item_id", "title", "released", "video", "imdb", *GENRES)
    items = _table(archive, "ml-100k/u.item", "|", films, encoding="latin-1")
    flags = zip(*(items[genre].to_pylist() for genre in GENRES), strict=True)
    genres = [[genre for genre, flag in zip(GENRES, row, strict=True) if flag == "1"] for row in flags]
    return _raw(events, users, items["item_id"], [title.strip() for title in items["title"].to_pylist()], genres)


def _recbole(archive: zipfile.ZipFile) -> Raw:
    prefix = "recbole/dataset_example/ml-100k/ml-100k"
    events, users, items = (_table(archive, f"{prefix}.{kind}", "\t") for kind in ("inter", "user", "item"))
    films = zip(items["movie_title"].to_pylist(), items["release_year"].to_pylist(), strict=True)
    # the one film without a title is "unknown" to GroupLens and "unkonwn" to RecBole
    titles = ["unknown" if year == "unkonwn" else f"{title} ({year})" for title, year in films]
    return _raw(events, users, items["item_id"], titles, [text.split() for text in items["class"].to_pylist()])


def _raw(events: pa.Table, users: pa.Table, item_id: pa.Array, titles: list[str], genres: list[list[str]]) -> Raw:
    years = [match[1] if (match := re.search(r"\((\d{4})\)", title)) else "" for title in titles]
    items = pa.table({"item_id": item_id, "title": titles, "year": years, "genre": genres})
    return Raw(
        "ml-100k",
        _placed("events", events),
        # a post code is nearly one a user: a key rather than a feature
        _placed("users", users.drop_columns("zip_code"), {"age": "float", "gender": "token", "occupation": "token"}),
        _placed("films", items, {"title": "token_seq", "year": "float"}),
    )


def _placed(part: str, data: pa.Table, kinds: dict[str, str] | None = None) -> Table:
    return Table(f"ml-100k {part}", data, lambda row: f"row {row + 1}", kinds or {})


def _table(
    archive: zipfile.ZipFile, member: str, delimiter: str, names: tuple[str, ...] = (), encoding: str = "utf8"
) -> pa.Table:
    """A member as columns of text, `name:type` headers cut to the name."""
    text = archive.read(member)
    names = names or tuple(text.split(b"\n", 1)[0].decode().split(delimiter))
    table = csv.read_csv(
        io.BytesIO(text),
        csv.ReadOptions(column_names=names, skip_rows=1 if ":" in names[0] else 0, encoding=encoding),
        csv.ParseOptions(delimiter=delimiter, quote_char=False),
        csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
    )
    return table.rename_columns([name.partition(":")[0] for name in names])


ORIGINS = (
    Origin(
        "files.grouplens.org",
        "ml-100k.zip",
        "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        _from_grouplens,
        _official,
    ),
    Origin(
        "PyPI (recbole 1.2.1)",
        "recbole-1.2.1-py3-none-any.whl",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        _from_pypi,
        _recbole,
    ),
)
