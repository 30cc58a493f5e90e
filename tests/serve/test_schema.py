"""What the OpenAPI document says is what the server does, whatever is sent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
import schemathesis
from fake_engine import FakeEngine, app_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi import checks
from starlette.types import ASGIApp

from recfit.serve.app import make_app
from recfit.serve.fleet import Fleet, opened

schema = schemathesis.openapi.from_asgi("/openapi.json", app_of(FakeEngine()))


def never_fails(ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """503 and 504 say that it cannot be now, or not that fast; 500 that something is wrong."""
    assert response.status_code != 500, response.text


# JSON Schema cannot say that one of two fields is needed, or that a body is too large, so what is refused is not compared.
CHECKS = [
    never_fails,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
]


@schema.parametrize()
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_what_the_document_says(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)


@pytest.fixture(scope="module")
def real(bundle: Path) -> ASGIApp:
    """A trained model's graph and table behind the routes."""
    return make_app(Fleet([opened(bundle)]))


OF_MODELS = ("recommend", "score", "similar", "infer")


def test_a_bundle_answers_as_the_document_says(real: ASGIApp) -> None:
    document = schemathesis.openapi.from_asgi("/openapi.json", real)
    operations = [found.ok() for found in document.get_all_operations()]
    asked = [operation for operation in operations if any(word in operation.path for word in OF_MODELS)]
    assert len(asked) == 6
    for operation in asked:

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def answers(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS)

        answers()


IDS = st.sampled_from(["i0", "i7", "1", "2"]) | st.text(max_size=5)
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "user_id": IDS | st.integers(),
        "history": st.lists(IDS, max_size=300) | st.none(),
        "exclude": st.lists(IDS, max_size=20),
        "candidates": st.lists(IDS, max_size=20),
        "k": st.integers(0, 1001),
        "explain": st.booleans(),
        "items": st.lists(IDS, max_size=20),
    },
).map(lambda value: json.dumps(value).encode())


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/score"])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies=st.lists(st.binary(max_size=300) | LIKELY, min_size=1, max_size=8))
def test_no_bytes_make_a_bundle_fail(real: ASGIApp, path: str, bodies: list[bytes]) -> None:
    async def run() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(real), base_url="http://recfit") as client:
            return [one.status_code for one in await asyncio.gather(*(client.post(path, content=b) for b in bodies))]

    assert set(asyncio.run(run())) <= {200, 400, 422}
