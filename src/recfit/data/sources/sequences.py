"""Sequence files: `user item item ...` a line, oldest first, as SASRec and S3-Rec publish them (also one pair a line).

The order is all the time there is, and an item may come again.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from recfit.data.table import Raw, Table, existing
from recfit.types import DataError

ACCEPTS = "*.txt, lines of `user item item ...`"


def claims(source: str) -> bool:
    return Path(source).suffix.lower() == ".txt"


def read(source: str, cache: Path) -> Raw:
    path = existing(Path(source))
    # bytes split at ASCII blanks only, so ids may hold any other character
    lines = [(number, line.split()) for number, line in enumerate(_utf8(path).split(b"\n"), 1)]
    good = [(number, words) for number, words in lines if len(words) > 1]
    malformed = tuple(
        (f"line {n}", f"user {words[0].decode()!r} has no items") for n, words in lines if len(words) == 1
    )
    sizes = np.array([len(words) - 1 for _, words in good], dtype=np.int64)
    users = _strings([words[0] for _, words in good]).take(pa.array(np.repeat(np.arange(len(good)), sizes)))
    items = _strings(list(chain.from_iterable(words[1:] for _, words in good)))
    return Raw(path.stem, Table(str(path), pa.table({"user_id": users, "item_id": items}), _event, malformed=malformed))


def _event(row: int) -> str:
    return f"event {row + 1}"


def _strings(words: list[bytes]) -> pa.Array:
    return pa.array(words, pa.binary()).cast(pa.string())


def _utf8(path: Path) -> bytes:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: {error.reason} {data[error.start]:#04x}; convert the file to UTF-8"
        ) from error
    return data
