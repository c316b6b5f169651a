"""A culler: what it stops is meant to go, however much it is, and who is active only through a proxy stays."""

import json
import sys
import time

import pytest
from holdfast_up import HoldfastUp
from hub import Hub, fetch, until
from many_servers import address_of, serve_many

pytestmark = pytest.mark.timeout(300)

# More than 10, and all but one of them at once: what nobody means is held.
USERS = [f"user-{n}" for n in range(13)]
BUSY = USERS[5]

CULLER = f"""
c.JupyterHub.services += [{{
    "name": "culler",
    "command": [{sys.executable!r}, "-m", "jupyterhub_idle_culler", "--timeout=20", "--cull-every=2"],
}}]
c.JupyterHub.load_roles += [{{
    "name": "culler",
    "services": ["culler"],
    "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
}}]
"""


def test_idle_servers_go_and_one_that_is_used_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_ACTIVITY_INTERVAL", "1s")
    with HoldfastUp(tmp_path / "up", replicas=3, proxies=2) as up, serve_many() as spawner:
        settings = [
            *up.settings,
            *spawner,
            *CULLER.splitlines(),
        ]
        with Hub(tmp_path / "hub", up.public_port, settings) as hub:
            hub.start()
            hub.api("POST", "/users", {"usernames": USERS})
            for user in USERS:
                hub.api("POST", f"/users/{user}/server")
            assert len(hub.routes()) == len(USERS) + 1

            def used():
                """At either proxy in turn: the hub hears of both."""
                answers = [fetch(f"{url}/user/{BUSY}/").body for url in up.public_urls]
                assert answers == [address_of(5).encode()] * 2, hub.log()
                return set(hub.routes()) == {"/", f"/user/{BUSY}/"}

            until(used, 90, "all idle servers are culled", hub)
            assert json.loads(up.ask("held", "-o", "json"))["held"] == []
            # And it goes on for longer than the culler waits.
            end = time.monotonic() + 30
            until(lambda: used() and time.monotonic() > end, 60, "the busy server is used on", hub)
            assert hub.api("GET", f"/users/{BUSY}")["server"] is not None
            hub.stop()
