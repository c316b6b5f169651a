"""TLS and tokens between hub and replicas: real replicas, and a real JupyterHub."""

import asyncio
import errno
import shutil
import time

import grpc
import pytest
from guarded import TOKEN, Authority, Guarded
from hub import Hub, until
from ports import free_ports
from scripted_replica import Refusal, ScriptedReplica
from traitlets import TraitError
from traitlets.config import Config
from users import owner
from waiting import eventually

from jupyterhub_holdfast import Credentials, HoldfastProxy, LockedOut, RouteClient, Unavailable

pytestmark = pytest.mark.timeout(300)

TARGET = "http://10.0.0.1:8888"
NO_TOKEN = Refusal(grpc.StatusCode.UNAUTHENTICATED, "this replica wants a token", "token")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """Shared: each test leaves it as it was."""
    with Guarded(tmp_path_factory.mktemp("guarded") / "cluster") as guarded:
        yield guarded


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
async def connect(guarded):
    clients = []

    def connect(endpoints=None, timeout=30.0, **other):
        client = RouteClient(endpoints or guarded.endpoints, timeout=timeout, credentials=guarded.credentials(**other))
        clients.append(client)
        return client

    await guarded.all_ready()
    yield connect
    for client in clients:
        await client.close()


async def test_every_call_gets_in_with_token_and_certificate(connect):
    client = connect()
    await client.put("/user/alice/", TARGET, "{}", wait_for_proxies=5.0)
    assert (await client.get("/user/alice/")).target == TARGET
    assert [route.routespec for route in await client.list("/user/alice/")] == ["/user/alice/"]
    assert (await client.status()).ready
    await client.delete("/user/alice/")


async def test_who_is_not_let_in_is_told_at_once_what_to_set(connect, guarded, stranger, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("another\n")
    cert, key = stranger.vouch_for("stranger")
    for other, expected in [
        ({"auth_token_file": ""}, "HoldfastProxy.auth_token_file"),
        ({"auth_token_file": str(wrong)}, "HoldfastProxy.auth_token_file or auth_token"),
        ({"auth_token_file": "", "auth_token": "x"}, "HoldfastProxy.auth_token_file or auth_token"),
        ({"ssl_ca": stranger.ca}, "endpoints_ssl_ca"),
        ({"server_name": "elsewhere.example"}, "endpoints_server_name"),
        ({"ssl_cert": "", "ssl_key": ""}, "endpoints_ssl_cert"),
        ({"ssl_cert": cert, "ssl_key": key}, "endpoints_ssl_cert"),
        ({"ssl_ca": "", "ssl_cert": "", "ssl_key": ""}, "endpoints_ssl_ca"),
    ]:
        client = connect(**other)
        began = time.monotonic()
        with pytest.raises(LockedOut) as caught:
            await client.put("/user/eve/", TARGET, "{}")
        assert expected in str(caught.value), f"{other}: {caught.value}"
        assert time.monotonic() - began < 10, other
    assert await connect().get("/user/eve/") is None


async def test_tls_where_there_is_none_is_told(connect, cluster):
    with pytest.raises(LockedOut, match="does not use TLS"):
        await connect(cluster.endpoints).list()


async def test_an_endpoint_with_https_asks_for_tls(connect, guarded):
    # gRPC's own authorities do not know the tests' one.
    with pytest.raises(LockedOut, match="endpoints_ssl_ca"):
        await connect([f"https://{guarded.endpoints[0]}"], ssl_ca="", ssl_cert="", ssl_key="").list()


async def test_one_that_was_let_in_before_tries_again_while_the_token_changes():
    async with ScriptedReplica() as replica:
        client = RouteClient([replica.address], timeout=10.0)
        await client.put("/a/", TARGET, "{}")
        replica.script += [NO_TOKEN] * 5
        await client.put("/b/", TARGET, "{}")
        # Refused before anybody looked at it: the same write each time.
        assert len({(call.session, call.sequence) for call in replica.calls[1:]}) == 1
        replica.script += [NO_TOKEN] * 100
        client.timeout = 1.0
        with pytest.raises(Unavailable, match="wants a token"):
            await client.put("/c/", TARGET, "{}")
        replica.script.clear()
        client.timeout = 10.0
        await client.put("/d/", TARGET, "{}")
        await client.close()


async def test_one_replica_that_reads_its_list_late_does_no_harm():
    async with ScriptedReplica([NO_TOKEN] * 100) as late, ScriptedReplica() as replica:
        client = RouteClient([late.address, replica.address], timeout=10.0)
        await client.put("/a/", TARGET, "{}")
        await client.close()


async def test_tokens_and_certificates_change_while_clients_work(connect, guarded, stranger):
    client = connect()
    stop = asyncio.Event()
    writes = 0

    async def work():
        nonlocal writes
        while not stop.is_set():
            await client.put("/user/alice/", f"{TARGET}/{writes}", "{}")
            await client.list()
            writes += 1

    async def goes_on():
        before = writes
        await eventually(lambda: writes > before + 3 or working.done(), "writes go on")
        assert not working.done(), working.exception()

    async def takes(**other):
        for endpoint in guarded.endpoints:
            other_client = connect([endpoint], timeout=5.0, **other)

            async def let_in(other_client=other_client):
                try:
                    return await other_client.status()
                except LockedOut:
                    return None

            await eventually(let_in, f"{endpoint} takes {other}")

    working = asyncio.ensure_future(work())
    try:
        await goes_on()
        guarded.write("tokens", TOKEN, "the-next-one")
        await takes(auth_token_file="", auth_token="the-next-one")
        guarded.write("token", "the-next-one")
        guarded.write("tokens", "the-next-one")
        await goes_on()

        guarded.believe(guarded.authority, stranger)
        guarded.show("replica", stranger.vouch_for("next"))
        await takes(ssl_ca=stranger.ca)
        guarded.show("hub", stranger.vouch_for("next-hub"))
        guarded.believe(stranger)
        await goes_on()
        # New connections to all, by the new certificates alone.
        for name in ("r0", "r1", "r2"):
            guarded.stop(name)
            guarded.start(name)
            await guarded.all_ready()
            await goes_on()
        stop.set()
        await working
    finally:
        stop.set()
        working.cancel()
        guarded.believe(guarded.authority)
        guarded.write("tokens", TOKEN)
        guarded.write("token", TOKEN)
        for name in ("replica", "hub"):
            guarded.show(name, guarded.authority.vouch_for(f"{name}-again"))
        for name in ("r0", "r1", "r2", "p0"):
            guarded.stop(name)
            guarded.start(name)
        await guarded.all_ready()
    await client.delete("/user/alice/")


async def test_a_file_that_is_half_written_or_gone_changes_nothing(connect, guarded, tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    client = connect(auth_token_file=str(token))
    await client.list()
    for change in (lambda: token.write_text(""), token.unlink):
        change()
        await client.list()


async def test_certificates_that_cannot_be_used_change_nothing(connect, guarded, stranger, tmp_path):
    cert, key = guarded.authority.vouch_for("another-hub")
    files = {"ssl_ca": guarded.authority.ca, "ssl_cert": cert, "ssl_key": key}
    ours = {name: tmp_path / name for name in files}
    for name, file in files.items():
        shutil.copy(file, ours[name])
    client = connect(timeout=5.0, **{name: str(path) for name, path in ours.items()})
    await client.list()
    _, key_of_another = stranger.vouch_for("another-hub")
    for change in (
        lambda: shutil.copy(key_of_another, ours["ssl_key"]),
        lambda: ours["ssl_ca"].write_text(""),
        lambda: ours["ssl_cert"].unlink(),
    ):
        change()
        await client.list()


def test_a_token_that_could_not_be_read_is_read_later(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    file = tmp_path / "token"
    file.write_text("one\n")
    credentials = Credentials(auth_token_file=str(file))
    assert credentials.metadata() == (("authorization", "Bearer one"),)
    file.write_text("another\n")
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("jupyterhub_holdfast.credentials._content", refuse)
        assert credentials.metadata() == (("authorization", "Bearer one"),)
    assert credentials.metadata() == (("authorization", "Bearer another"),)


def test_a_token_comes_as_it_is_meant_or_is_refused():
    assert Credentials(auth_token="one\n").metadata() == (("authorization", "Bearer one"),)
    for wrong in ("two words", "umläut", "two\nlines"):
        with pytest.raises(TraitError, match=r"HoldfastProxy\.auth_token: must be"):
            HoldfastProxy(config=Config(HoldfastProxy={"auth_token": wrong}))


@pytest.mark.parametrize(
    ("traits", "expected"),
    [
        ({"endpoints_ssl_ca": "/nonexistent"}, "endpoints_ssl_ca: /nonexistent cannot be read"),
        ({"endpoints_ssl_ca": __file__}, "endpoints_ssl_ca: .* holds no certificate in PEM"),
        ({"endpoints_ssl_cert": __file__}, "endpoints_ssl_cert: goes together with ssl_key"),
        ({"endpoints_ssl_cert": __file__, "endpoints_ssl_key": __file__}, "endpoints_ssl_cert: .* not a certificate"),
        ({"auth_token_file": "/nonexistent"}, "HoldfastProxy.auth_token_file: /nonexistent cannot be read"),
        ({"auth_token_file": __file__}, "HoldfastProxy.auth_token_file: .* no token in its first line"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_used_is_refused_by_name(traits, expected):
    with pytest.raises(TraitError, match=expected):
        HoldfastProxy(config=Config(HoldfastProxy=traits))


@pytest.mark.parametrize("traits", [{}, {"auth_token": "one"}, {"auth_token_file": "token"}], ids=str)
def test_a_token_that_is_patched_in_takes_the_others_place_unless_there_is_a_file(
    traits, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("of-the-file")
    proxy = HoldfastProxy(config=Config(HoldfastProxy=traits))
    proxy.auth_token = "patched"
    has_file = "auth_token_file" in traits
    shown = "of-the-file" if has_file else "patched"
    assert proxy.client.credentials.metadata() == (("authorization", f"Bearer {shown}"),)
    assert ("auth_token_file wins: write it into the first line of token" in caplog.text) == has_file
    with pytest.raises(TraitError, match=r"HoldfastProxy\.auth_token: must be"):
        proxy.auth_token = "two words"
    assert proxy.client.credentials.metadata() == (("authorization", f"Bearer {shown}"),)


async def test_a_hub_that_starts_its_own_holdfast_takes_no_certificates(stranger):
    proxy = HoldfastProxy(
        config=Config(HoldfastProxy={"endpoints_ssl_ca": stranger.ca}), public_url="http://127.0.0.1:8000"
    )
    with pytest.raises(RuntimeError, match=r"endpoints_ssl_ca.*should_start = False"):
        await proxy.start()


def test_a_secret_is_not_shown():
    assert "secret" not in repr(Credentials(auth_token="secret"))


class TestHub:
    """A real one."""

    @pytest.fixture
    def make_hub(self, guarded, tmp_path):
        made = []

        def make_hub(*more_settings, **other):
            settings = [*guarded.settings(**other), *more_settings]
            hub = Hub(tmp_path / f"hub{len(made)}", free_ports(1), settings)
            hub.public_url = guarded.public_url
            made.append(hub)
            return hub

        asyncio.run(guarded.all_ready())
        yield make_hub
        for hub in made:
            hub.__exit__()

    def test_it_works_with_token_and_certificates(self, guarded, make_hub):
        hub = make_hub().start()
        hub.start_server("alice")
        assert owner(guarded.public_url, "alice") == "alice"
        assert set(hub.routes()) == {"/", "/user/alice/"}
        hub.stop_server("alice")
        hub.stop()

    def test_a_token_that_is_patched_in_is_shown_from_then_on(self, guarded, make_hub):
        hub = make_hub("c.HoldfastProxy.timeout = 3", auth_token_file="", auth_token=TOKEN).start()
        hub.start_server("alice")
        for wrong in ("another", "two words"):
            assert hub.get("/proxy", method="PATCH", body={"auth_token": wrong}).status == 500
        assert "the token is none of this replica's" in hub.log_since_start()
        assert "auth_token: must be of printable ASCII characters" in hub.log_since_start()
        # The second one was none at all, so the first one is shown.
        assert hub.get("/proxy").status == 500
        assert owner(guarded.public_url, "alice") == "alice"
        hub.api("PATCH", "/proxy", {"auth_token": TOKEN})
        assert set(hub.routes()) == {"/", "/user/alice/"}
        hub.start_server("bob")
        assert owner(guarded.public_url, "bob") == "bob"
        hub.stop_server("bob")
        hub.stop_server("alice")
        hub.stop()

    def test_a_token_that_is_patched_in_has_no_effect_beside_a_file_and_the_log_says_so(self, guarded, make_hub):
        hub = make_hub().start()
        hub.api("PATCH", "/proxy", {"auth_token": "another"})
        assert f"auth_token_file wins: write it into the first line of {guarded.path('token')}" in hub.log()
        assert set(hub.routes()) == {"/"}
        hub.stop()

    @pytest.mark.parametrize(
        ("wrong", "expected"),
        [("token", "HoldfastProxy.auth_token_file"), ("authority", "endpoints_ssl_ca"), ("plain", "endpoints_ssl_ca")],
    )
    def test_one_that_is_not_let_in_ends_says_why_and_deletes_nothing(
        self, guarded, stranger, make_hub, tmp_path, wrong, expected
    ):
        first = make_hub().start()
        first.start_server("alice")
        before = set(first.routes())
        token = tmp_path / "wrong"
        token.write_text("another\n")
        other = {
            "token": {"auth_token_file": str(token)},
            "authority": {"ssl_ca": stranger.ca},
            "plain": {"ssl_ca": "", "ssl_cert": "", "ssl_key": ""},
        }
        hub = make_hub(**other[wrong])
        hub.launch()
        until(lambda: hub.process.poll() is not None, 60, "the hub ends", hub)
        assert hub.process.returncode != 0
        assert expected in hub.log()
        assert set(first.routes()) == before
        assert owner(guarded.public_url, "alice") == "alice"
        first.stop_server("alice")
        first.stop()
