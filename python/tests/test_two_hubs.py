"""Two hubs on one cluster: what befalls one is nothing to the other. Real hubs, real replicas, real proxies."""

from contextlib import ExitStack

import pytest
from holdfast_up import HoldfastUp
from hub import Hub, fetch
from many_servers import address_of, serve_many

pytestmark = pytest.mark.timeout(600)

# More than 10 and all that a hub has, so that a hub that knows none of them looks like an accident.
USERS = [f"user-{n}" for n in range(12)]


@pytest.fixture
def up(tmp_path):
    with HoldfastUp(tmp_path / "data", replicas=1, proxies=1) as up:
        yield up


@pytest.fixture
def make_hub(up, tmp_path):
    with ExitStack() as stack:

        def make_hub(name, namespace):
            settings = [
                *up.settings,
                f"c.HoldfastProxy.namespace = {namespace!r}",
                "c.JupyterHub.cleanup_servers = False",
            ]
            spawner = stack.enter_context(serve_many())
            hub = Hub(tmp_path / name, up.public_port, settings + spawner, base_url=f"/{name}/")
            return stack.enter_context(hub)

        yield make_hub


def start_all(hub):
    hub.start()
    hub.api("POST", "/users", {"usernames": USERS})
    for user in USERS:
        hub.api("POST", f"/users/{user}/server")


def specs(hub):
    return {f"{hub.base_url}user/{user}/" for user in USERS} | {hub.base_url}


def wrong(up, hub):
    """The users who do not come to their own servers."""
    answers = {n: fetch(f"{up.public_urls[0]}{hub.base_url}user/{user}/").body for n, user in enumerate(USERS)}
    return [n for n, answer in answers.items() if answer != address_of(n).encode()]


def test_each_hub_has_its_own_routes_whatever_happens_to_the_other(up, make_hub):
    one, two = make_hub("one", "hub-one"), make_hub("two", "hub-two")
    for hub in (one, two):
        start_all(hub)
    for hub in (one, two):
        assert set(hub.routes()) == specs(hub)
        assert wrong(up, hub) == []

    one.stop()
    assert (wrong(up, one), wrong(up, two)) == ([], [])
    one.start()
    assert set(one.routes()) == specs(one)

    one.stop()
    (one.directory / "jupyterhub.sqlite").unlink()
    one.start()
    assert set(one.routes()) == {one.base_url}
    two.stop()
    two.start()
    assert set(two.routes()) == specs(two)
    assert (wrong(up, one), wrong(up, two)) == ([], [])


def test_a_hub_in_another_ones_place_does_not_start_and_says_why(up, make_hub):
    two = make_hub("two", "hub-two")
    start_all(two)
    two.stop()
    stranger = make_hub("two", "hub-three")
    stranger.launch()
    assert stranger.process.wait(60) != 0
    assert "belongs to namespace hub-two" in stranger.log()
    two = make_hub("two", "hub-two")
    two.start()
    assert set(two.routes()) == specs(two)
    assert wrong(up, two) == []
