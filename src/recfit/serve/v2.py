"""The Open Inference Protocol (KServe V2) over HTTP, for clients that speak it: health, metadata, and `infer`.

`infer` takes `user_id` (BYTES, [n] or [n, 1]), `history` (BYTES, [n, L], filled up with empty texts), values of user features
(`context.NAME`: BYTES, [n] or [n, 1]; an empty text says nothing), at least one of these, and `k` (an integer, [1]); it gives
`items` (BYTES, [n, k]) and `scores` (FP32, [n, k]), filled up with empty texts and the lowest number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np

from recfit.serve import caller, schema
from recfit.serve.http import Reply
from recfit.serve.schema import HttpError, encode
from recfit.serve.service import Service
from recfit.types import Recommendation, Request

LOWEST = float(np.finfo(np.float32).min)
MOST_ROWS = schema.MOST_REQUESTS
CONTEXT = "context."


class Tensor(msgspec.Struct, frozen=True):
    """Values in row-major order, flat or nested as the shape says."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferRequest(msgspec.Struct, frozen=True):
    """What the protocol lets a client say besides (`parameters`, `outputs`) changes nothing here."""

    inputs: list[Tensor]
    id: str | None = None


class InferResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """`parameters` says `degraded` where a row was answered by a cheaper bundle of the model, or without what its user did."""

    model_name: str
    model_version: str
    outputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, bool] = {}


class Metadata(msgspec.Struct, frozen=True):
    name: str
    versions: list[str]
    platform: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


class Server(msgspec.Struct, frozen=True):
    name: str
    version: str
    extensions: list[str]


class Live(msgspec.Struct, frozen=True):
    live: bool


class Ready(msgspec.Struct, frozen=True):
    ready: bool


class ModelReady(msgspec.Struct, frozen=True):
    name: str
    ready: bool


class Refused(msgspec.Struct, frozen=True):
    """The body of every answer of this protocol with a status of 400 or more."""

    error: str


def server() -> bytes:
    """The body of `GET /v2`."""
    return encode(Server("recfit", version("recfit"), []))


def metadata(name: str, bundle: str, context: Sequence[str]) -> bytes:
    """The body of `GET /v2/models/NAME`, whose requests may give values to the features in `context`."""
    told = [(CONTEXT + feature, "BYTES", [-1]) for feature in context]
    inputs = [("user_id", "BYTES", [-1]), ("history", "BYTES", [-1, -1]), *told, ("k", "INT64", [1])]
    outputs = [("items", "BYTES", [-1, -1]), ("scores", "FP32", [-1, -1])]
    described = [
        [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in part] for part in (inputs, outputs)
    ]
    return encode(Metadata(name, [bundle], "recfit", *described))


_parse = schema.Parser(
    InferRequest, '{"inputs": [{"name": "user_id", "shape": [1], "datatype": "BYTES", "data": ["7"]}]}'
)


async def infer(service: Service, name: str, body: bytes | bytearray, number: str) -> Reply:
    """The body of `POST /v2/models/NAME/infer`. Raises `HttpError`."""
    asked = _parse(body)
    tensors = {tensor.name: tensor for tensor in asked.inputs}
    requests, k = _requests(tensors), _k(tensors.get("k"))
    schema.check_total(k * len(requests))
    caller.charge.get()(len(requests) - 1)
    bundle, answers, degraded = await service.found(name, requests, k)
    told = {"degraded": True} if degraded else {}
    return Reply(encode(InferResponse(name, bundle, _outputs(answers, k), asked.id or number, told)), "model")


def _requests(tensors: dict[str, Tensor]) -> list[Request]:
    given = {name: _rows(tensor) for name, tensor in tensors.items() if _tells(name)}
    if not given:
        message = "neither user_id nor history nor context is given; give one of them"
        raise HttpError(422, "invalid_request", message, "inputs")
    (first, count), *others = ((name, len(rows)) for name, rows in given.items())
    for name, rows in others:
        if rows != count:
            message = f"{first} has {count} rows and {name} {rows}; give as many of both"
            raise HttpError(422, "invalid_request", message, name)
    if not 1 <= count <= MOST_ROWS:
        raise HttpError(422, "invalid_request", f"{count} rows are asked for; ask for 1 to {MOST_ROWS}", "inputs")
    return [_request({name: rows[row] for name, rows in given.items()}) for row in range(count)]


def _tells(name: str) -> bool:
    """Whether a tensor says who asks."""
    return name in ("user_id", "history") or name.startswith(CONTEXT)


def _request(given: Mapping[str, list[str]]) -> Request:
    """Of the texts of one row."""
    user, history = given.get("user_id"), given.get("history")
    told = {
        name.removeprefix(CONTEXT): texts[0] for name, texts in given.items() if name.startswith(CONTEXT) and texts[0]
    }
    return Request(
        user[0] if user else None,
        None if history is None else tuple(item for item in history if item),
        context=told or None,
    )


def _rows(tensor: Tensor) -> list[list[str]]:
    """Texts by row."""
    values = [*_flat(tensor.data)]
    rows = tensor.shape[0] if tensor.shape else 0
    width = tensor.shape[1] if len(tensor.shape) > 1 else 1
    sound = tensor.datatype == "BYTES" and len(tensor.shape) in (1, 2) and min(tensor.shape) >= 0
    if not sound or rows * width != len(values) or not all(isinstance(value, str) for value in values):
        message = f"{tensor.name} must be BYTES of shape [n] or [n, L] with that many texts"
        raise HttpError(422, "invalid_request", message, tensor.name)
    if tensor.name != "history" and width != 1:
        raise HttpError(422, "invalid_request", f"{tensor.name} has one value a row; give shape [n]", tensor.name)
    return [values[at * width : (at + 1) * width] for at in range(rows)]


def _flat(data: Sequence[Any]) -> Sequence[Any]:
    """One level of nesting is taken away where there is one."""
    return [value for row in data for value in (row if isinstance(row, list) else [row])]


def _k(tensor: Tensor | None) -> int:
    if tensor is None:
        return 10
    value = _flat(tensor.data)
    if len(value) != 1 or type(value[0]) is not int or not 1 <= value[0] <= 1000:
        raise HttpError(422, "invalid_request", "k must be one integer from 1 to 1000", "k")
    return value[0]


def _outputs(answers: Sequence[Recommendation], k: int) -> list[Tensor]:
    items, scores = [], []
    for answer in answers:
        missing = k - len(answer.items)
        items += [*answer.items, *[""] * missing]
        scores += [*answer.scores, *[LOWEST] * missing]
    shape = [len(answers), k]
    return [Tensor("items", shape, "BYTES", items), Tensor("scores", shape, "FP32", scores)]
