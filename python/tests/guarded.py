"""Replicas that ask for a token and for certificates, as processes of the test's own."""

import shutil
import subprocess
from pathlib import Path

from certipy import Certipy
from holdfast_up import find_holdfast
from ports import free_ports
from waiting import eventually

from jupyterhub_holdfast import Credentials, RouteClient

TOKEN = "the-token-of-the-tests"


class Authority:
    """Vouches for 127.0.0.1."""

    def __init__(self, folder):
        self._store = Certipy(store_dir=str(folder))
        self.ca = self._store.create_ca("authority").get("files")["cert"]

    def vouch_for(self, name):
        """A certificate and its key, as paths."""
        files = self._store.create_signed_pair(name, "authority", alt_names=["IP:127.0.0.1"]).get("files")
        return files["cert"], files["key"]


class Guarded:
    """Replicas and one proxy in `directory`, with all that it takes to be let in.

    The replicas' files are `tokens`, `replica.pem`, `replica.key` and `ca.pem`; the hub's are `token`, `hub.pem`, `hub.key`
    and the same `ca.pem`.
    """

    def __init__(self, directory, replicas=3):
        self.directory = Path(directory)
        self.directory.mkdir()
        self.authority = Authority(self.directory / "authority")
        shutil.copy(self.authority.ca, self.path("ca.pem"))
        for name in ("replica", "hub"):
            self.show(name, self.authority.vouch_for(name))
        for name in ("tokens", "token"):
            self.write(name, TOKEN)
        self._first = free_ports(10 * replicas + 2)
        self.endpoints = [f"127.0.0.1:{self._first + 10 * i}" for i in range(replicas)]
        self.public_url = f"http://127.0.0.1:{self._first + 10 * replicas}"
        self._processes = {}

    def path(self, name):
        return str(self.directory / name)

    def write(self, name, *lines):
        """Puts a new file in the place of the old one, as tools do that renew things."""
        new = self.directory / f"{name}.new"
        new.write_text("".join(f"{line}\n" for line in lines))
        new.rename(self.path(name))

    def show(self, name, pair):
        """Puts another certificate and key in the place of these."""
        for source, suffix in zip(pair, ("pem", "key"), strict=True):
            shutil.copy(source, self.path(f"{name}.{suffix}"))

    def believe(self, *authorities):
        """Puts other authorities in the place of these, on both sides."""
        self.write("ca.pem", *(Path(authority.ca).read_text() for authority in authorities))

    def credentials(self, **other):
        ours = {
            "ssl_ca": self.path("ca.pem"),
            "ssl_cert": self.path("hub.pem"),
            "ssl_key": self.path("hub.key"),
            "auth_token_file": self.path("token"),
        }
        return Credentials(**ours | other)

    def settings(self, **other):
        """Of `HoldfastProxy`."""
        credentials = self.credentials(**other)
        settings = {
            "should_start": False,
            "endpoints": self.endpoints,
            "auth_token_file": credentials.auth_token_file,
            "auth_token": credentials.auth_token,
            "endpoints_ssl_ca": credentials.ssl_ca,
            "endpoints_ssl_cert": credentials.ssl_cert,
            "endpoints_ssl_key": credentials.ssl_key,
            "endpoints_server_name": credentials.server_name,
        }
        return [f"c.HoldfastProxy.{name} = {value!r}" for name, value in settings.items()]

    def log(self, name):
        return (self.directory / f"{name}.log").read_text()

    def start(self, name):
        """A replica (`r0`) or the proxy (`p0`)."""
        number = int(name[1:])
        first = self._first + 10 * number
        if name.startswith("r"):
            peers = (f"r{i}=127.0.0.1:{self._first + 10 * i + 1}" for i in range(len(self.endpoints)))
            flags = ["replica", "--peers", ",".join(peers), "--listen-client", f"127.0.0.1:{first}"]
            flags += ["--listen-peer", f"127.0.0.1:{first + 1}", "--listen-admin", f"127.0.0.1:{first + 2}"]
            flags += ["--api-token-file", self.path("tokens"), "--api-ssl-ca", self.path("ca.pem")]
            flags += ["--api-ssl-cert", self.path("replica.pem"), "--api-ssl-key", self.path("replica.key")]
        else:
            port = self._first + 10 * len(self.endpoints)
            flags = ["proxy", "--endpoints", ",".join(self.endpoints), "--ip", "127.0.0.1", "--port", str(port)]
            flags += ["--listen-admin", f"127.0.0.1:{port + 1}", "--drain-delay", "0s", "--drain-timeout", "2s"]
            flags += ["--endpoints-token-file", self.path("token"), "--endpoints-ssl-ca", self.path("ca.pem")]
            flags += ["--endpoints-ssl-cert", self.path("hub.pem"), "--endpoints-ssl-key", self.path("hub.key")]
        command = [find_holdfast(), *flags, "--name", name, "--data-dir", self.path(name)]
        with (self.directory / f"{name}.log").open("a") as log:
            self._processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self, name):
        process = self._processes.pop(name)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    async def all_ready(self):
        for endpoint in self.endpoints:
            client = RouteClient([endpoint], credentials=self.credentials(), timeout=5.0)

            async def ready(client=client):
                return (await client.status()).ready

            await eventually(ready, f"the replica at {endpoint} is ready")
            await client.close()

    def __enter__(self):
        for number in range(len(self.endpoints)):
            self.start(f"r{number}")
        self.start("p0")
        return self

    def __exit__(self, *_):
        for name in list(self._processes):
            self.stop(name)
