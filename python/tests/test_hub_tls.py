"""A real JupyterHub with TLS towards its users, and between all of its parts."""

import json
import os
import signal
import subprocess
from http.client import HTTPException

import pytest
from certipy import Certipy
from holdfast_up import find_holdfast
from hub import API_TOKEN, Hub, fetch, until
from ports import free_ports
from users import owner, type_in_terminal

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Of an authority of the tests' own: its certificate, and key and certificate for 127.0.0.1."""
    store = Certipy(store_dir=str(tmp_path_factory.mktemp("certificates")))
    store.create_ca("authority")
    store.create_signed_pair("hub", "authority", alt_names=["IP:127.0.0.1"])
    ca, pair = (store.store.get_record(name)["files"] for name in ("authority", "hub"))
    return {"ca": ca["cert"], "key": pair["key"], "cert": pair["cert"]}


@pytest.fixture
def make_hub(tmp_path, certificate):
    made = []

    def make_hub(*more_settings, tls=True, base_url="/"):
        ports = free_ports(16)
        settings = [
            f"c.HoldfastProxy.command = [{find_holdfast()!r}]",
            f"c.HoldfastProxy.base_port = {ports}",
            f"c.HoldfastProxy.proxy_admin_base = {ports + 12}",
            # By a full path: servers that this spawner starts look from their homes.
            f"c.JupyterHub.internal_certs_location = {str(tmp_path / 'internal-ssl')!r}",
            *more_settings,
        ]
        if tls:
            settings += [
                f"c.JupyterHub.ssl_key = {certificate['key']!r}",
                f"c.JupyterHub.ssl_cert = {certificate['cert']!r}",
            ]
        hub = Hub(tmp_path / "hub", ports + 10, settings, base_url)
        hub.endpoint = f"127.0.0.1:{ports}"
        made.append(hub)
        if tls:
            hub.public_url = hub.public_url.replace("http:", "https:")
            hub.ca = certificate["ca"]
        return hub

    yield make_hub
    for hub in made:
        if hub.process is not None and hub.process.poll() is None:
            hub.stop()


def test_users_come_by_tls(make_hub):
    hub = make_hub("c.HoldfastProxy.proxies = 2")
    hub.start()
    hub.start_server("alice")
    for number in range(2):
        # The second proxy is on the port after the first one's.
        scheme, address, port = hub.public_url.rsplit(":", 2)
        url = f"{scheme}:{address}:{int(port) + number}"
        assert owner(url, "alice", ca=hub.ca) == "alice"
        assert f"proxy{number}-42" in type_in_terminal(url, "alice", f"proxy{number}", ca=hub.ca)
        assert fetch(f"{url}/hub/login", ca=hub.ca).status == 200
        # Nobody is served without, nor believed who has another authority.
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(f"{url}/hub/login")
        with pytest.raises((OSError, HTTPException)):
            fetch(f"{url.replace('https', 'http')}/hub/login")
    hub.stop_server("alice")


def test_a_page_for_what_fails_is_the_hubs_own(make_hub):
    hub = make_hub("c.HoldfastProxy.extra_routes = {'/jupyter/dead': 'http://127.0.0.1:1'}", base_url="/jupyter/")
    hub.start()
    answer = fetch(f"{hub.public_url}/jupyter/dead/x", ca=hub.ca)
    assert answer.status == 503
    assert b"JupyterHub" in answer.body
    assert b"Service Unavailable" in answer.body


def test_every_part_speaks_tls_with_every_other(make_hub, tmp_path):
    hub = make_hub(
        "c.JupyterHub.internal_ssl = True",
        'c.JupyterHub.load_roles[0]["scopes"] += ["list:services", "read:services"]',
    )
    # The hub itself wants a certificate of its own authorities. It is the proxy that shows one.
    direct, hub.url = hub.url.replace("http:", "https:"), hub.public_url
    hub.start()
    with pytest.raises(OSError, match=r"_ssl\.c"):
        fetch(f"{direct}/hub/api/", ca=str(tmp_path / "internal-ssl" / "hub-ca" / "hub-ca.crt"))
    assert all(route["target"].startswith("https://") for route in hub.routes().values())
    hub.start_server("alice")
    hub.start_server("alice", "second")
    assert hub.routes()["/user/alice/"]["target"].startswith("https://")
    assert owner(hub.public_url, "alice", ca=hub.ca) == "alice"
    assert owner(hub.public_url, "alice", "second", ca=hub.ca) == "alice"
    assert "typed-42" in type_in_terminal(hub.public_url, "alice", "typed", ca=hub.ca)
    reconciled(hub, direct, tmp_path)
    hub.stop_server("alice", "second")
    hub.stop_server("alice")
    assert set(hub.routes()) == {"/"}


def reconciled(hub, url, directory):
    """Asks the hub itself, with the certificate that its proxy shows."""
    certificates, token = directory / "internal-ssl", directory / "token"
    token.write_text(API_TOKEN)
    flags = {
        "--hub-url": url,
        "--token-file": token,
        "--endpoints": hub.endpoint,
        "--endpoints-token-file": hub.directory / "holdfast-data" / "api-token",
        "--url-ssl-ca": certificates / "hub-ca" / "hub-ca.crt",
        "--url-ssl-cert": certificates / "proxy-client" / "proxy-client.crt",
        "--url-ssl-key": certificates / "proxy-client" / "proxy-client.key",
    }
    done = run_reconcile(flags)
    assert (done.returncode, json.loads(done.stdout)["servers"]) == (0, 2), done
    # An authority that vouches for others.
    done = run_reconcile(flags | {"--url-ssl-ca": hub.ca})
    assert (done.returncode, "no TLS: see --url-ssl-ca" in done.stderr) == (2, True), done


def run_reconcile(flags):
    command = [find_holdfast(), "reconcile", "-o", "json", *(str(part) for flag in flags.items() for part in flag)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_parts_may_speak_tls_where_users_do_not(make_hub):
    hub = make_hub("c.JupyterHub.internal_ssl = True", tls=False)
    hub.url = hub.public_url
    hub.start()
    hub.start_server("alice")
    assert owner(hub.public_url, "alice") == "alice"
    # What starts it again says the same about TLS.
    up = hub.directory / "holdfast-data" / "up.json"
    pid = json.loads(up.read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: up.exists() and json.loads(up.read_text())["pid"] != pid, 60, "Holdfast is started again", hub)
    until(lambda: owner(hub.public_url, "alice") == "alice", 60, "alice's server is reached again", hub)
    hub.stop_server("alice")
