"""What is taken for an endpoint, and which one is asked next."""

import pytest

from jupyterhub_holdfast.backoff import LIMIT_SECONDS, backoff
from jupyterhub_holdfast.endpoints import Endpoints, parse_endpoint, parse_endpoints


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("replica-0:7011", "replica-0:7011"),
        (" 127.0.0.1:7011 ", "127.0.0.1:7011"),
        ("http://replica-0.ns.svc:7011", "replica-0.ns.svc:7011"),
        ("http://replica-0:7011/", "replica-0:7011"),
        ("https://replica-0:7011/", "https://replica-0:7011"),
        ("[::1]:7011", "[::1]:7011"),
    ],
)
def test_an_endpoint_is_host_and_port(text, address):
    assert parse_endpoint(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "replica-0",
        ":7011",
        "replica-0:",
        "replica-0:port",
        "replica-0:70110",
        "http://replica-0",
        "unix:/run/x",
        "grpc://replica-0:7011",
        "replica-0:7011/path",
        "user@replica-0:7011",
        "::1:7011",
    ],
)
def test_anything_else_is_refused_by_name(text):
    with pytest.raises(ValueError, match="endpoint") as caught:
        parse_endpoint(text)
    assert repr(text) in str(caught.value)


def test_a_text_may_hold_several():
    assert parse_endpoints("a:1, http://b:2,") == ["a:1", "b:2"]
    with pytest.raises(ValueError, match="no endpoint"):
        parse_endpoints(" , ")


def test_each_endpoint_is_offered_once_a_round():
    endpoints = Endpoints(["a:1", "b:1", "c:1"])
    tried = set()
    while (address := endpoints.next(tried)) is not None:
        tried.add(address)
    assert tried == {"a:1", "b:1", "c:1"}


def test_the_one_that_answered_stays_first_until_it_fails():
    endpoints = Endpoints(["a:1", "b:1"])
    endpoints.answered("b:1")
    assert endpoints.next(set()) == "b:1"
    endpoints.failed("b:1")
    assert endpoints.next(set()) == "a:1"


def test_a_hint_that_is_no_address_is_ignored():
    endpoints = Endpoints(["a:1"])
    endpoints.heard_of_leader("nonsense")
    assert endpoints.next(set()) == "a:1"


def test_waits_grow_to_their_limit_and_are_never_nothing():
    waits = backoff()
    first = next(waits)
    assert 0.05 <= first <= 0.1
    later = [next(waits) for _ in range(50)]
    assert all(0.1 <= wait <= LIMIT_SECONDS for wait in later)
    assert all(wait >= LIMIT_SECONDS / 2 for wait in later[10:])
    assert len(set(later[10:])) > 10
