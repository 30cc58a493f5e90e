"""Requests in, recommendations out, as files. Standard library only: the serving install reads requests, too.

Requests are CSV (`user_id`, and optionally `history`, `exclude`: ids set apart by blanks, or a JSON list where ids hold
blanks; `context`: a JSON object) or JSON lines (`{"user_id": "7", "history": ["12", "5"], "exclude": ["9"], "context":
{"hour": "13"}}`). A `query` number may be there.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recfit.types import DataError, Queries, Recommendation, Request, RequestContext

KEYS = ("user_id", "history", "exclude", "context", "query")


def read_requests(path: Path) -> list[Request]:
    """The requests of a `.csv` or `.jsonl` file, in its order. Raises `DataError` naming file, line, key and value."""
    if path.suffix not in READERS:
        raise DataError(
            f"{path}: requests are read from {' or '.join(READERS)}, not from {path.suffix or 'a file without suffix'}"
        )
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the path")
    try:
        requests = [_request(f"{path}, line {line}", fields) for line, fields in READERS[path.suffix](path)]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except csv.Error as error:
        raise DataError(f"{path} is no CSV ({error}); long histories fit into JSON lines") from error
    if not requests:
        raise DataError(f"{path} holds no request; it needs one a line")
    return requests


def write_recommendations(path: Path, requests: Sequence[Request], recommendations: Sequence[Recommendation]) -> None:
    """CSV `user_id, item_id, score, rank`, rank from 1.

    Where a user asks more than once, `query` (the request's position, from 0) follows, to tell the answers apart.
    """
    several = max(Counter(request.user_id for request in requests).values(), default=0) > 1
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user_id", "item_id", "score", "rank", *(["query"] if several else [])])
        for query, (request, answer) in enumerate(zip(requests, recommendations, strict=True)):
            for rank, (item, score) in enumerate(zip(answer.items, answer.scores, strict=True), 1):
                rows.writerow([request.user_id, item, repr(float(score)), rank, *([query] if several else [])])


def write_queries(
    queries: Queries, user_ids: Sequence[str], item_ids: Sequence[str], requests_path: Path, targets_path: Path
) -> None:
    """Requests as JSON lines and their answers as CSV `query, user_id, item_id`; `query` counts from 0 in both."""
    with (
        requests_path.open("w", encoding="utf-8") as asked,
        targets_path.open("w", encoding="utf-8", newline="") as known,
    ):
        targets = csv.writer(known)
        targets.writerow(["query", "user_id", "item_id"])
        for query, user in enumerate(queries.user.tolist()):
            history = [item_ids[row] for row in queries.history[query].tolist()]
            line = {"query": query, "user_id": user_ids[user], "history": history}
            asked.write(json.dumps(line, ensure_ascii=False) + "\n")
            targets.writerows([query, user_ids[user], item_ids[row]] for row in queries.targets[query].tolist())


def _csv_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise DataError(
                    f"{place}: the number of fields differs from the header's {len(reader.fieldnames or ())}"
                )
            lists = {key: _cell(place, key, row[key]) for key in ("history", "exclude") if row.get(key)}
            user = {"user_id": row["user_id"]} if row.get("user_id") else {}
            told = {"context": _json(f"{place}, context", row["context"])} if row.get("context") else {}
            extra = {key: value for key, value in row.items() if key == "query" or key not in KEYS}
            yield reader.line_num, {**extra, **user, **lists, **told}


def _cell(place: str, key: str, text: str) -> Any:
    """Ids set apart by blanks, or a JSON list."""
    return _json(f"{place}, {key}", text) if text.lstrip().startswith("[") else text.split()


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path}, line {number}"
                fields = _json(place, line)
                if not isinstance(fields, dict):
                    raise DataError(
                        f'{place}: {line.strip()[:60]!r} is not an object; write {{"user_id": ..., "history": [...]}}'
                    )
                yield number, fields


READERS = {".csv": _csv_lines, ".jsonl": _json_lines}


def _json(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: {text.strip()[:60]!r} is not JSON ({error.msg} at column {error.colno})") from error


def _request(place: str, fields: Mapping[str, Any]) -> Request:
    for key in fields:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{place}: a request has no {key!r}{hint} It may have {', '.join(KEYS)}")
    user, history = fields.get("user_id"), fields.get("history")
    if user is None and history is None and not fields.get("context"):
        raise DataError(f"{place}: a request needs a user_id, a history or a context")
    return Request(
        user_id=None if user is None else _id(f"{place}, user_id", user),
        history=None if history is None else _ids(f"{place}, history", history),
        exclude=_ids(f"{place}, exclude", fields.get("exclude") or []),
        context=_context(f"{place}, context", fields.get("context")),
    )


def _context(place: str, values: Any) -> RequestContext | None:
    if values is not None and not isinstance(values, dict):
        raise DataError(f"{place}: {values!r} is not an object of features and their values")
    for name, value in (values or {}).items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise DataError(f"{place}, {name}: {value!r} is not a value; values are texts or numbers")
    return values or None


def _ids(place: str, values: object) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise DataError(f"{place}: {values!r} is not a list of item ids")
    return tuple(_id(place, value) for value in values)


def _id(place: str, value: object) -> str:
    """Whole numbers are taken as the ids they spell."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{place}: {value!r} is not an id; ids are texts that are not empty")
    return str(value)
