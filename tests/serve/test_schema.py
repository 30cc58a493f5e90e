"""What the OpenAPI document says is what the server does, whatever is sent."""

from __future__ import annotations

import schemathesis
from fake_engine import FakeEngine, app_of
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi import checks

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
