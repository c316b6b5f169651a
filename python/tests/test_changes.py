"""How changes become batches."""

import pytest

from jupyterhub_holdfast import changes
from jupyterhub_holdfast._proto import routes_pb2
from jupyterhub_holdfast.changes import Delete, Put, batches


def specs(*numbers):
    return [f"/user/u{number}/" for number in numbers]


def test_what_fits_is_one_batch_in_its_order():
    many = [Put(spec, "http://x") for spec in specs(*range(10_000))] + [Delete(spec, 7) for spec in specs(10_000)]
    assert list(batches(many)) == [many]
    assert list(batches([])) == []


@pytest.mark.parametrize(("bound", "value"), [("CHANGES_MAX", 3), ("BYTES_MAX", 3 * len("/user/u0/http://x{}"))])
def test_what_does_not_fit_is_several(monkeypatch, bound, value):
    monkeypatch.setattr(changes, bound, value)
    many = [Put(spec, "http://x") for spec in specs(*range(7))]
    assert list(batches(many)) == [many[:3], many[3:6], many[6:]]


def test_bytes_are_counted_and_not_characters():
    assert Put("/漢/", "http://x", "{}").size == 15


def test_a_change_that_is_too_large_by_itself_is_a_batch_of_its_own(monkeypatch):
    monkeypatch.setattr(changes, "BYTES_MAX", 20)
    large = Put("/a/", "http://" + "x" * 100)
    assert list(batches([Delete("/b/"), large, Delete("/c/")])) == [[Delete("/b/")], [large], [Delete("/c/")]]


def test_only_a_delete_of_a_known_version_has_a_precondition():
    request = routes_pb2.WriteRequest(namespace="hub-a")
    for change in (Put("/a/", "http://x", '{"a":1}'), Delete("/b/"), Delete("/c/", 7)):
        change.add_to(request)
    assert [change.WhichOneof("change") for change in request.changes] == ["put", "delete", "delete"]
    put = request.changes[0].put
    assert (put.routespec, put.target, put.data, put.namespace) == ("/a/", "http://x", '{"a":1}', "hub-a")
    [precondition] = request.preconditions
    assert (precondition.route_revision.routespec, precondition.route_revision.mod_revision) == ("/c/", 7)
