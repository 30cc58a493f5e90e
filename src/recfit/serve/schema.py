"""What goes over the wire: the JSON bodies, their decoding, and every way a request can be refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from recfit.types import Request

S = TypeVar("S", bound=msgspec.Struct)
A = TypeVar("A", "RecommendRequest", "ScoreRequest")

MAX_BODY = 64 * 1024
"""Bytes of a request's body; about a history of 5,000 ids."""


UserId = Annotated[
    str | int | None, Meta(description="An id of the bundle's data; an unknown one is answered from the fallback list")
]
History = Annotated[
    tuple[str, ...] | None,
    Meta(description="Item ids, oldest first; wins over what the bundle and the server know of the user"),
]
Given = Annotated[
    dict[str, Annotated[str, Meta(max_length=1000)] | int | float] | None,
    Meta(description="Values of user features by name; they win over what the bundle knows of the user"),
]
Model = Annotated[str | None, Meta(description="A model of the server by name; the default one where it is left out")]
MOST_REQUESTS, MOST_EVENTS, MOST_ITEMS = 256, 1000, 25_600
"""In one body; the items are those of all its answers, a megabyte or two."""
Id = Annotated[str, Meta(max_length=256)]
"""What is kept. It is read again by every request of the user."""


class RecommendRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who asks, and for how many items. At least one of `user_id`, `history` and `context` is given."""

    user_id: UserId = None
    history: History = None
    context: Given = None
    k: Annotated[int, Meta(ge=1, le=1000, description="How many items to return at most")] = 10
    exclude: Annotated[tuple[str, ...], Meta(description="Item ids that must not be returned")] = ()
    candidates: Annotated[
        tuple[str, ...] | None, Meta(description="Rank these items and no others; what was seen is left out")
    ] = None
    explain: Annotated[bool, Meta(description="Tell the milliseconds of every stage; the request then runs alone")] = (
        False
    )
    model: Model = None
    deadline_ms: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="From here on; the best bundle that is expected to make it answers, 504 where none began"),
    ] = None
    variant: Annotated[
        str | None, Meta(description="Ask this arm of an experiment; such a request is not part of it")
    ] = None

    def request(self) -> Request:
        return Request(
            _text(self.user_id), self.history, self.exclude, candidates=self.candidates, context=self.context or None
        )


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Several requests, answered in their order."""

    requests: Annotated[tuple[RecommendRequest, ...], Meta(min_length=1, max_length=MOST_REQUESTS)]


class ScoreRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who asks, and the items that are to be scored. At least one of `user_id`, `history` and `context` is given."""

    items: Annotated[tuple[str, ...], Meta(description="Item ids, seen or not")]
    user_id: UserId = None
    history: History = None
    context: Given = None
    model: Model = None

    def request(self) -> Request:
        return Request(_text(self.user_id), self.history, context=self.context or None)


class Happened(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody met an item."""

    user_id: Annotated[
        Id | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)],
        Meta(description="An id of the bundle's data, or of somebody new"),
    ]
    item_id: Id

    @property
    def user(self) -> str:
        return str(self.user_id)


class EventsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What users did, oldest first."""

    events: Annotated[tuple[Happened, ...], Meta(min_length=1, max_length=MOST_EVENTS)]


class FeedbackRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody did with an answer."""

    request_id: Annotated[Id, Meta(description="Of the answer")]
    kind: Annotated[str, Meta(description="Such as click, like, order", max_length=100)] = "click"
    item_id: Id | None = None


def _text(user_id: str | int | None) -> str | None:
    return None if user_id is None else str(user_id)


class ScoredItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One recommended item; `title` is left out where the bundle has none."""

    item_id: str
    score: float
    title: str | None = None


class RecommendResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The items, best first, with the bundle and the part of it that answered; `timings_ms` where the request asked;
    `degraded` where a cheaper bundle than the best answered, or what the user did since could not be read."""

    items: list[ScoredItem]
    bundle: str
    source: Literal["model", "cache", "fallback"]
    request_id: str
    timings_ms: dict[str, float] | None = None
    degraded: bool = False
    variant: str | None = None


class Sent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A `RecommendResponse` whose items are encoded already."""

    items: msgspec.Raw
    bundle: str
    source: str
    request_id: str
    timings_ms: dict[str, float] | None = None
    degraded: bool = False
    variant: str | None = None


class ScoreResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """A score for each item; null for one that the bundle does not know, and for all where the model knows nothing of who
    asks. `degraded` where what the user did since could not be read."""

    scores: list[float | None]
    bundle: str
    request_id: str
    degraded: bool = False


class EventsResponse(msgspec.Struct, frozen=True):
    """How many events were kept, and how many of them are of items that the bundle does not know."""

    kept: int
    unknown_items: int
    request_id: str


class FeedbackResponse(msgspec.Struct, frozen=True):
    """It is queued for the log, and written within a second while the disk takes it."""

    kept: bool


class Problem(msgspec.Struct, frozen=True):
    """What is wrong: `code` is for programs, `message` for people, `field` the part of the request it is about."""

    code: str
    message: str
    field: str | None = None


class ErrorResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every answer with a status of 400 or more. One to a request that did not come in has no `request_id`."""

    error: Problem
    request_id: str | None = None


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one request of a batch: one of the two."""

    answer: RecommendResponse | None = None
    error: Problem | None = None


class SentOutcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """An `Outcome` whose answer is encoded in part already."""

    answer: Sent | None = None
    error: Problem | None = None


class BatchResponse(msgspec.Struct, frozen=True):
    """An outcome for each request, in their order."""

    outcomes: list[Outcome]


class ModelState(msgspec.Struct, frozen=True):
    """A model of the server and its bundles, the best first; none while it is not loaded."""

    name: str
    bundles: list[str]


class ModelsResponse(msgspec.Struct, frozen=True):
    """What can be asked for as `model`."""

    models: list[ModelState]


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

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        field: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.problem = Problem(code, message, field)

    @property
    def body(self) -> bytes:
        return encode(ErrorResponse(self.problem))


encode = msgspec.json.Encoder().encode
_UNKNOWN = "Object contains unknown field `"
_AT = " - at `$."


class Parser(Generic[S]):
    """Decodes bodies of one kind. Raises `HttpError`: 400 for what is not JSON, 422 for JSON that is something else."""

    def __init__(self, struct: type[S], example: str) -> None:
        self._struct, self._example = struct, example
        self._decode = msgspec.json.Decoder(struct).decode

    def __call__(self, body: bytes | bytearray) -> S:
        try:
            return self._decode(body)
        except msgspec.ValidationError as error:
            raise self._invalid(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            message = f"the body is not JSON: {error}; send an object such as {self._example}"
            raise HttpError(400, "malformed_json", message) from None

    def _invalid(self, text: str) -> HttpError:
        """A 422 from msgspec's text, such as "Expected `str`, got `int` - at `$.history[1]`"."""
        if text.startswith(_UNKNOWN):
            name, _, place = text[len(_UNKNOWN) :].partition("`" + _AT)
            name = (name if place else name[:-1])[:100]
            fields = f"; the fields are {', '.join(self._struct.__struct_fields__)}" if not place else ""
            where = f" in {place.rstrip('`')}" if place else ""
            return HttpError(422, "invalid_request", f"there is no field {name!r}{where}{fields}", name)
        what, _, path = text.partition(_AT)
        field = path.rstrip("`") or None
        return HttpError(422, "invalid_request", f"{field or 'the body'}: {what[0].lower()}{what[1:]}", field)


_recommend = Parser(RecommendRequest, '{"user_id": "1", "k": 10}')
_score = Parser(ScoreRequest, '{"user_id": "1", "items": ["7"]}')
parse_batch = Parser(BatchRequest, '{"requests": [{"user_id": "1"}]}')
parse_feedback = Parser(FeedbackRequest, '{"request_id": "...", "kind": "click", "item_id": "7"}')
parse_events = Parser(EventsRequest, '{"events": [{"user_id": "1", "item_id": "7"}]}')


def parse_recommend(body: bytes | bytearray) -> RecommendRequest:
    return check(_recommend(body))


def parse_score(body: bytes | bytearray) -> ScoreRequest:
    return check(_score(body))


def check(asked: A) -> A:
    """`asked`, if it says who asks."""
    if asked.user_id is None and asked.history is None and not asked.context:
        message = "neither user_id nor history nor context is given; give one of them, a new user has the history []"
        raise HttpError(422, "invalid_request", message, "user_id")
    return asked


def check_total(items: int) -> None:
    """That all answers to one body together are not too long."""
    if items > MOST_ITEMS:
        message = f"the requests ask for {items} items together; ask for {MOST_ITEMS} at most, or send them apart"
        raise HttpError(422, "invalid_request", message, "k")


def describe(manifest: Mapping[str, Any]) -> bytes:
    """The body of `GET /v1/bundle`."""
    keys = ("name", "bundle_id", "created", "recipe", "catalogue", "promise")
    return encode(BundleResponse(*(manifest[key] for key in keys)))
