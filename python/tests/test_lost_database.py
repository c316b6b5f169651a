"""A hub without its database deletes the routes of servers that run. Real hub, real replicas, real proxies."""

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from holdfast_up import HoldfastUp
from hub import STUB_SERVERS, Hub, fetch, until
from many_servers import address_of, serve_many

pytestmark = pytest.mark.timeout(600)

# More than 10, and all that there are.
USERS = [f"user-{n}" for n in range(12)]
SPECS = {f"/user/{user}/" for user in USERS}


@pytest.fixture
def up(tmp_path):
    with HoldfastUp(tmp_path / "data", replicas=3, proxies=2) as up:
        yield up


@pytest.fixture
def make_hub(up, tmp_path):
    made, pids = [], []

    def make_hub(*more_settings):
        """A hub with a server for each of `USERS`."""
        settings = [
            *up.settings,
            STUB_SERVERS,
            *more_settings,
        ]
        hub = Hub(tmp_path / "hub", up.public_port, settings)
        made.append(hub)
        hub.start()
        hub.api("POST", "/users", {"usernames": USERS})
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(hub.start_server, USERS))
        for user in USERS:
            state = hub.api("GET", f"/users/{user}?include_stopped_servers")["servers"][""]["state"]
            pids.append(state["pid"])
        return hub

    yield make_hub
    for hub in made:
        hub.__exit__()
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def held(up):
    return {held["route"]["routespec"] for held in json.loads(up.ask("held", "-o", "json"))["held"]}


def listed(up):
    return {route["routespec"] for route in json.loads(up.ask("routes", "list", "-o", "json"))["routes"]}


def served(up):
    """The users whose own servers answer at every proxy."""
    return [user for user in USERS if all(fetch(f"{url}/user/{user}/").body == user.encode() for url in up.public_urls)]


def checks(hub):
    """How many times the hub has checked its routes since its start."""
    metrics = fetch(f"{hub.url}/hub/metrics").body.decode().splitlines()
    line = next(line for line in metrics if line.startswith("jupyterhub_check_routes_duration_seconds_count"))
    return float(line.split()[-1])


def checked_twice(hub):
    before = checks(hub)
    until(lambda: checks(hub) >= before + 2, 60, "the hub checks its routes twice", hub)


def test_no_live_route_is_lost_before_an_operators_word_and_a_database_that_is_back_needs_none(up, make_hub):
    hub = make_hub("c.JupyterHub.cleanup_servers = False")
    assert served(up) == USERS
    assert held(up) == set()
    hub.stop()
    assert listed(up) == SPECS | {"/"}
    database = hub.directory / "jupyterhub.sqlite"
    kept = shutil.move(database, hub.directory / "kept.sqlite")

    hub.start()
    assert set(hub.routes()) == {"/"}
    assert listed(up) == {"/"}
    assert held(up) == SPECS
    assert served(up) == USERS
    assert "12 routes that this hub does not know are served on" in hub.log_since_start()
    status = up.ask("status", exit_code=1)
    assert "12 routes are held" in status

    # What is held is not listed, so the hub has nothing more to delete.
    revision = json.loads(up.ask("held", "-o", "json"))["revision"]
    checked_twice(hub)
    assert json.loads(up.ask("held", "-o", "json"))["revision"] == revision
    # And what is rejected is deleted again, and held again, for as long as nobody has mended the hub.
    assert "12 routes listed again" in up.ask("held", "reject", "--all")
    until(lambda: held(up) == SPECS, 60, "the hub has deleted them again", hub)
    assert served(up) == USERS

    hub.stop()
    shutil.move(kept, database)
    hub.start()
    assert set(hub.routes()) == SPECS | {"/"}
    assert held(up) == set()
    assert served(up) == USERS
    up.ask("status")
    hub.stop()


def test_of_a_thousand_live_routes_none_is_lost(up, tmp_path):
    settings = [
        *up.settings,
        "c.JupyterHub.cleanup_servers = False",
    ]
    users = [f"user-{n}" for n in range(1_000)]

    def wrong(url):
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda user: fetch(f"{url}/user/{user}/").body.decode(), users)
        return [user for n, (user, answer) in enumerate(zip(users, answers, strict=True)) if answer != address_of(n)]

    with serve_many() as spawner, Hub(tmp_path / "hub", up.public_port, settings + spawner) as hub:
        hub.start()
        hub.api("POST", "/users", {"usernames": users})
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda user: hub.api("POST", f"/users/{user}/server"), users))
        assert [wrong(url) for url in up.public_urls] == [[], []]
        hub.stop()
        (hub.directory / "jupyterhub.sqlite").unlink()
        hub.start()
        assert set(hub.routes()) == {"/"}
        assert [wrong(url) for url in up.public_urls] == [[], []]
        assert "1000 routes that this hub does not know are served on" in hub.log_since_start()
        print(*(line for line in hub.log_since_start().splitlines() if "served on" in line), sep="\n")
        print(up.ask("held").splitlines()[-1], up.ask("status", exit_code=1), sep="\n")
        assert held(up) == {f"/user/{user}/" for user in users}
        assert "1000 routes listed again" in up.ask("held", "reject", "--all")
        assert [wrong(url) for url in up.public_urls] == [[], []]


def test_a_confirmed_deletion_goes_at_once_and_a_user_who_is_back_is_not_held(up, make_hub):
    hub = make_hub("c.JupyterHub.cleanup_servers = False")
    hub.stop()
    (hub.directory / "jupyterhub.sqlite").unlink()
    hub.start()
    assert held(up) == SPECS
    # Her new server takes the place of the one that nobody knows any more.
    hub.start_server("user-3")
    assert held(up) == SPECS - {"/user/user-3/"}
    assert served(up) == USERS
    assert "11 routes deleted" in up.ask("held", "confirm", "--all")
    assert held(up) == set()
    until(lambda: served(up) == ["user-3"], 30, "the proxies have let go")
    hub.stop_server("user-3")
    assert listed(up) == {"/"}
    assert held(up) == set(), "the hub knows what it deletes"
    hub.stop()


def test_a_hub_that_stops_its_servers_at_its_end_takes_their_routes_along(up, make_hub):
    hub = make_hub()
    hub.stop()
    assert listed(up) == {"/"}
    assert held(up) == set()
    assert served(up) == []
    up.ask("status")
    hub.start()
    assert "stale route" not in hub.log_since_start()
    assert set(hub.routes()) == {"/"}
    hub.stop()
