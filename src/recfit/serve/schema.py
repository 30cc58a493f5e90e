"""What goes over the wire: the JSON bodies, their decoding, and every way a request can be refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from recfit.types import Recommendation, Request

MAX_BODY = 64 * 1024
"""Bytes of a request's body; about a history of 5,000 ids."""


class RecommendRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who asks, and for how many items. At least one of `user_id` and `history` is given."""

    user_id: Annotated[
        str | int | None,
        Meta(description="An id of the bundle's data; an unknown one is answered from the fallback list"),
    ] = None
    history: Annotated[
        tuple[str, ...] | None, Meta(description="Item ids, oldest first; wins over what the bundle knows of the user")
    ] = None
    k: Annotated[int, Meta(ge=1, le=1000, description="How many items to return at most")] = 10
    exclude: Annotated[tuple[str, ...], Meta(description="Item ids that must not be returned")] = ()

    def request(self) -> Request:
        user_id = self.user_id
        return Request(None if user_id is None else str(user_id), self.history, self.exclude)


class ScoredItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One recommended item; `title` is left out where the bundle has none."""

    item_id: str
    score: float
    title: str | None = None


class RecommendResponse(msgspec.Struct, frozen=True):
    """The items, best first, with the bundle and the part of it that answered."""

    items: list[ScoredItem]
    bundle: str
    source: Literal["model", "cache", "fallback"]
    request_id: str


class Problem(msgspec.Struct, frozen=True):
    """What is wrong: `code` is for programs, `message` for people, `field` the part of the request it is about."""

    code: str
    message: str
    field: str | None = None


class ErrorResponse(msgspec.Struct, frozen=True):
    """The body of every answer with a status of 400 or more."""

    error: Problem


class BundleResponse(msgspec.Struct, frozen=True):
    """What is served: how it was made (`recipe`), and what was measured, how and where (`promise`; null before)."""

    name: str
    bundle: str
    created: str
    recipe: dict[str, Any]
    catalogue: dict[str, Any]
    promise: dict[str, Any] | None


class Health(msgspec.Struct, frozen=True):
    """The server's own state."""

    status: Literal["ok", "ready"]


class HttpError(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = encode(ErrorResponse(Problem(code, message, field)))


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RecommendRequest).decode
_UNKNOWN = "Object contains unknown field `"
_AT = " - at `$."


def parse(body: bytes | bytearray) -> RecommendRequest:
    """Decode a request's body. Raises `HttpError`: 400 for what is not JSON, 422 for JSON that is not a request."""
    try:
        asked = _decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f'the body is not JSON: {error}; send an object such as {{"user_id": "1", "k": 10}}'
        raise HttpError(400, "malformed_json", message) from None
    if asked.user_id is None and asked.history is None:
        message = "neither user_id nor history is given; give one of them, a new user has the history []"
        raise HttpError(422, "invalid_request", message, "user_id")
    return asked


def _invalid(text: str) -> HttpError:
    """A 422 from msgspec's text, such as "Expected `str`, got `int` - at `$.history[1]`"."""
    if text.startswith(_UNKNOWN):
        name = text[len(_UNKNOWN) : -1][:100]
        allowed = ", ".join(RecommendRequest.__struct_fields__)
        return HttpError(422, "invalid_request", f"there is no field {name!r}; the fields are {allowed}", name)
    what, _, path = text.partition(_AT)
    field = path.rstrip("`") or None
    return HttpError(422, "invalid_request", f"{field or 'the body'}: {what[0].lower()}{what[1:]}", field)


def describe(manifest: Mapping[str, Any]) -> bytes:
    """The body of `GET /v1/bundle`."""
    keys = ("name", "bundle_id", "created", "recipe", "catalogue", "promise")
    return encode(BundleResponse(*(manifest[key] for key in keys)))


def answer(found: Recommendation, titles: list[str | None], bundle: str, request_id: str) -> bytes:
    """The body of a 200."""
    items = [ScoredItem(*row) for row in zip(found.items, found.scores, titles, strict=True)]
    return encode(RecommendResponse(items, bundle, found.source, request_id))  # type: ignore[arg-type]
