"""Which changes a check finds: the rules of JupyterHub's base class, and what is mended of them."""

import logging

import pytest
from hub_stand_in import Hub

from jupyterhub_holdfast.changes import Delete, Put
from jupyterhub_holdfast.check import LINES_MAX, TableRoutes, Wanted, as_text

HUB = "http://127.0.0.1:8081"
TARGET = "http://10.0.0.1:8888"
log = logging.getLogger("test")


def table(*routes):
    """Routes with the revisions 1, 2, ..."""
    table = TableRoutes()
    for n, (spec, target, data) in enumerate(routes, start=1):
        table[spec] = {"routespec": spec, "target": target, "data": data}
        table.mod_revisions[spec] = n
    return table


def changes(hub, routes, extra_routes=None):
    wanted = Wanted.by(hub.routespec, hub, hub.users.values(), hub.services.values(), extra_routes or {})
    return wanted.changes_to(routes, log)


HUB_ROUTE = ("/", HUB, {"hub": True})
ALICE = ("/user/alice/", TARGET, {"user": "alice", "server_name": ""})


@pytest.fixture
def hub():
    return Hub(HUB)


def test_a_table_that_is_right_needs_nothing(hub):
    hub.server("alice", TARGET)
    hub.service("s", TARGET)
    routes = table(HUB_ROUTE, ALICE, ("/services/s/", TARGET, {"service": "s"}), ("/extra/", TARGET, {"extra": True}))
    assert changes(hub, routes, {"/extra/": TARGET}) == []


def test_an_empty_table_gets_everything_that_is_wanted(hub):
    hub.server("alice", TARGET)
    hub.server("alice", TARGET, "second server")
    hub.service("s", TARGET)
    hub.service("without a server", None)
    assert changes(hub, {}, {"/extra/": TARGET}) == [
        Put("/", HUB, '{"hub":true}'),
        Put("/user/alice/", TARGET, '{"server_name":"","user":"alice"}'),
        Put("/user/alice/second%20server/", TARGET, '{"server_name":"second server","user":"alice"}'),
        Put("/services/s/", TARGET, '{"service":"s"}'),
        Put("/extra/", TARGET, '{"extra":true}'),
    ]


def test_what_nobody_wants_goes_in_the_version_that_was_seen(hub):
    assert changes(hub, table(HUB_ROUTE, ALICE)) == [Delete("/user/alice/", 2)]


def test_a_route_of_unknown_version_goes_in_any(hub):
    spec, target, data = ALICE
    routes = table(HUB_ROUTE) | {spec: {"routespec": spec, "target": target, "data": data}}
    assert changes(hub, routes) == [Delete("/user/alice/")]


@pytest.mark.parametrize("pending", ["spawn", "stop", "check", "rename"])
def test_a_pending_server_keeps_the_route_it_has_and_gets_none(hub, pending):
    hub.server("alice", "http://10.0.0.2:1", pending=pending)
    assert changes(hub, table(HUB_ROUTE, ALICE)) == []
    assert changes(hub, table(HUB_ROUTE)) == []


def test_a_server_that_is_neither_ready_nor_pending_has_no_route(hub):
    hub.server("alice", TARGET, ready=False)
    assert changes(hub, table(HUB_ROUTE, ALICE)) == [Delete("/user/alice/", 2)]


@pytest.mark.parametrize("target", [f"{TARGET}/", "http://10.0.0.1:8889", "https://10.0.0.1:8888"])
def test_a_target_that_differs_by_any_byte_is_replaced(hub, target):
    hub.server("alice", target)
    assert changes(hub, table(HUB_ROUTE, ALICE)) == [Put("/user/alice/", target, '{"server_name":"","user":"alice"}')]


def test_a_hub_that_moved_takes_its_route_along(hub):
    hub.host = "http://10.0.0.9:8081"
    assert changes(hub, table(HUB_ROUTE)) == [Put("/", "http://10.0.0.9:8081", '{"hub":true}')]


@pytest.mark.parametrize(
    "data", [{}, {"user": "alice"}, {"user": "bob", "server_name": ""}, {"service": "alice"}, {"hub": True}]
)
def test_a_route_on_behalf_of_somebody_else_is_replaced(hub, data):
    hub.server("alice", TARGET)
    [put] = changes(hub, table(HUB_ROUTE, ("/user/alice/", TARGET, data)))
    assert put == Put("/user/alice/", TARGET, '{"server_name":"","user":"alice"}')


def test_data_may_say_more_than_the_hub_does(hub):
    hub.server("alice", TARGET)
    spec, target, data = ALICE
    more = data | {"last_activity": "2026-01-01T00:00:00Z", "note": {"nested": [1]}}
    assert changes(hub, table(HUB_ROUTE, (spec, target, more))) == []


def test_a_service_whose_prefix_changed_is_routed_there(hub):
    """The base class looks for services by name alone: it adds nothing, and deletes the old route as stale."""
    hub.service("s", TARGET, "/jupyter/services/s/")
    routes = table(HUB_ROUTE, ("/services/s/", TARGET, {"service": "s"}))
    assert changes(hub, routes) == [
        Put("/jupyter/services/s/", TARGET, '{"service":"s"}'),
        Delete("/services/s/", 2),
    ]


def test_a_service_whose_server_went_has_no_route(hub):
    hub.service("s", None)
    routes = table(HUB_ROUTE, ("/services/s/", TARGET, {"service": "s"}))
    assert changes(hub, routes) == [Delete("/services/s/", 2)]


def test_extra_routes_are_written_when_they_differ_and_not_otherwise(hub):
    extra = {"/docs/": TARGET}
    assert changes(hub, table(HUB_ROUTE), extra) == [Put("/docs/", TARGET, '{"extra":true}')]
    assert changes(hub, table(HUB_ROUTE, ("/docs/", TARGET, {"extra": True})), extra) == []
    assert changes(hub, table(HUB_ROUTE, ("/docs/", HUB, {"extra": True})), extra) == [
        Put("/docs/", TARGET, '{"extra":true}')
    ]


def test_each_difference_has_a_line_and_thousands_have_a_sum(hub, caplog):
    for n in range(LINES_MAX + 5):
        hub.server(f"u{n}", TARGET)
    changes(hub, table(HUB_ROUTE, ("/stale/", TARGET, {})))
    lines = caplog.messages
    assert lines[0] == f"Adding missing route /user/u0/ → {TARGET}"
    assert lines[LINES_MAX:] == ["Adding missing route: 5 more", f"Deleting stale route /stale/ → {TARGET}"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (None, "{}"),
        ({}, "{}"),
        ({"b": 1, "a": {"d": [], "c": None}}, '{"a":{"c":null,"d":[]},"b":1}'),
        ({1: "one", "a": True}, '{"1":"one","a":true}'),
        ({"x": (1, 2.5)}, '{"x":[1,2.5]}'),
    ],
)
def test_equal_data_is_one_text(data, text):
    assert as_text(data) == text
