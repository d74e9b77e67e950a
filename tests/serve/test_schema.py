"""Schemathesis reads the description and sends what it allows and what it does not: no 5xx, nothing undescribed."""

import collections

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis; install the extra test")
pytestmark = pytest.mark.slow
TOKEN = "a-token-of-some-length"
FOUND = {"positive": {200}, "negative": {422, 415, 405, 400}}  # some of which every run must meet


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_nothing_it_sends_breaks_the_service(make_service, classifier, token, mode):
    service = make_service(classifier, token, {"testserver"}, max_text=50, max_items=4)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    schema = schemathesis.openapi.from_asgi("/openapi.json", service, headers=headers)
    statuses: collections.Counter[int] = collections.Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode == "negative" and operation.path == "/health":
            continue  # it takes nothing

        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def check(case):
            response = case.call(headers=headers)
            statuses[response.status_code] += 1
            assert response.status_code < 500
            case.validate_response(response, headers=headers)

        check()
    assert set(statuses) & FOUND[mode], statuses
    assert service.in_flight == 0
