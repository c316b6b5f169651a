"""A real JupyterHub as a process: dummy authenticator, local servers, real `jupyterhub-singleuser`."""

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from urllib.parse import quote, unquote

from ports import free_ports

API_TOKEN = "a-token-for-the-tests"

CONFIG = """
import sys
sys.path.append({tests!r})
from ports import free_ports

def give_a_port(spawner):
    # A server binds its port seconds after it was chosen, and the spawner chooses one that a connection may get meanwhile.
    spawner.port = free_ports(1)

c.JupyterHub.proxy_class = "holdfast"
c.JupyterHub.bind_url = "http://127.0.0.1:{public_port}{base_url}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{hub_port}"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {{"admin"}}
c.JupyterHub.allow_named_servers = True
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = {homes!r} + "/{{username}}"
c.Spawner.cmd = [{python!r}, "-m", "jupyterhub.singleuser", "--allow-root"]
c.Spawner.default_url = "/api/status"
c.Spawner.pre_spawn_hook = give_a_port
c.Spawner.start_timeout = 120
c.Spawner.http_timeout = 120
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 120}}
c.JupyterHub.last_activity_interval = 2
c.JupyterHub.services = [{{"name": "tests", "api_token": {token!r}}}]
c.JupyterHub.load_roles = [
    {{"name": "tests", "services": ["tests"], "scopes": ["admin:users", "admin:servers", "access:servers", "proxy", "read:metrics"]}}
]
"""

# Servers that answer with their user's name. They start at once and, unlike Jupyter Server, find themselves behind a quote.
STUB_SERVERS = f"c.Spawner.cmd = [{sys.executable!r}, {str(Path(__file__).with_name('stub_server.py'))!r}]"


class Hub:
    """JupyterHub in `directory`, with `settings` (lines of Python) after the configuration above.

    It may be stopped and started again; database and everything else stay in the directory. `python` is that of the
    environment it runs in.
    """

    def __init__(self, directory, public_port, settings, base_url="/", python=sys.executable):
        self.directory = Path(directory)
        self.directory.mkdir(exist_ok=True)
        self.homes = self.directory / "homes"
        self.homes.mkdir(exist_ok=True)
        self.log_path = self.directory / "hub.log"
        self.hub_port = free_ports(1)
        self.url = f"http://127.0.0.1:{self.hub_port}"
        self.public_url = f"http://127.0.0.1:{public_port}"
        # Of the certificates that `url` and `public_url` show, if they are https.
        self.ca = None
        self.base_url = base_url
        self.process = None
        self.python = python
        self.config_path = self.directory / "jupyterhub_config.py"
        config = CONFIG.format(
            public_port=public_port,
            base_url=base_url,
            hub_port=self.hub_port,
            homes=str(self.homes),
            tests=str(Path(__file__).parent),
            python=python,
            token=API_TOKEN,
        )
        self.config_path.write_text(config + "\n".join(settings) + "\n")

    def start(self):
        """Returns when the hub answers; raises with its log when it ends instead."""
        self.launch()
        self.wait()
        return self

    def launch(self):
        """Starts the process and does not wait for it."""
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(
                [self.python, "-m", "jupyterhub", "--config", self.config_path],
                cwd=self.directory,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self):
        """Returns when the hub answers; raises with its log when it ends instead."""
        until(self._answers, 90, "the hub answers", self)

    def move(self, base_url):
        """Puts the hub below another path, from its next start on."""
        self.base_url = base_url
        with self.config_path.open("a") as config:
            config.write(f"c.JupyterHub.bind_url = {self.public_url + base_url!r}\n")

    def _answers(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the hub ended with {self.process.returncode}:\n{self.log()}")
        # The line is the last step of a start: by then the routes have been checked.
        return "JupyterHub is now running" in self.log_since_start() and self.get("/").status == 200

    def log(self):
        return self.log_path.read_text()

    def log_since_start(self):
        return self.log().rpartition("Running JupyterHub version")[2]

    def stop(self, how=signal.SIGTERM):
        """Ends the hub; its servers and proxies follow its settings."""
        self.process.send_signal(how)
        # A server that ends slowly is asked twice, half a minute each time.
        self.process.wait(120)

    def api(self, method, path, body=None):
        """Calls the hub's API at its own port. Raises on an error, returns the decoded answer."""
        answer = self.get(path, method=method, body=body)
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.body!r}\n{self.log()}")
        return json.loads(answer.body) if answer.body else None

    def get(self, path, method="GET", body=None):
        """Calls the hub's API at its own port. An error is an answer."""
        return fetch(f"{self.url}{self.base_url}hub/api{path}", method=method, body=body, ca=self.ca)

    def routes(self):
        """Every route, as it was written."""
        return as_written(self.routes_and_activity())

    def routes_and_activity(self):
        """Every route. The hub's API gives them in pages."""
        routes, offset = {}, 0
        while page := self.api("GET", f"/proxy?offset={offset}&limit=200"):
            routes |= page
            # Not how many routes there are so far: a page begins with old ones when there are new ones before it.
            offset += len(page)
        return routes

    def start_server(self, user, name=""):
        """Returns when the server is ready, which is when its route has been added."""
        home = self.homes / user
        user, path = quote(user, safe=""), quote(name, safe="")
        if self.get(f"/users/{user}").status == 404:
            self.api("POST", f"/users/{user}")
        home.mkdir(exist_ok=True)
        # Tells whose server answers.
        (home / "owner.txt").write_text(home.name)
        self.api("POST", f"/users/{user}/servers/{path}" if name else f"/users/{user}/server")
        until(lambda: self._server(user, name).get("ready"), 120, f"the server {user}/{name} is ready", self)

    def stop_server(self, user, name=""):
        """Returns when the server is gone."""
        user, path = quote(user, safe=""), quote(name, safe="")
        self.api("DELETE", f"/users/{user}/servers/{path}" if name else f"/users/{user}/server")
        until(lambda: not self._server(user, name), 60, f"the server {user}/{name} is gone", self)

    def _server(self, user, name):
        # `user` is quoted, `name` is not.
        servers = self.api("GET", f"/users/{user}").get("servers", {})
        server = servers.get(name, {})
        return {} if server.get("stopped") else server

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def __repr__(self):
        return f"Answer({self.status}, {self.body[:300]!r})"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


@cache
def trusting(ca):
    """TLS with certificates of this authority alone; those that the system trusts if it is None."""
    return ssl.create_default_context(cafile=ca)


@cache
def _opener(ca):
    tls = urllib.request.HTTPSHandler(context=trusting(ca))
    return urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}), tls)


def fetch(url, method="GET", body=None, host=None, ca=None):
    """One request; redirects and errors are answers. Raises OSError when there is none. By a unix socket for `http+unix://`.

    Some wait for a server's start, which takes a busy machine as long as the hub's settings allow.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"token {API_TOKEN}", "Content-Type": "application/json"}
    if host is not None:
        headers["Host"] = host
    if url.startswith("http+unix://"):
        return _fetch_by_socket(url, method, data, headers)
    request = urllib.request.Request(url, method=method, data=data, headers=headers)
    try:
        with _opener(ca).open(request, timeout=120) as response:
            return Answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as e:
        with e:
            return Answer(e.code, e.headers, e.read())


def by_socket(path):
    """The URL of what listens on this unix socket."""
    return f"http+unix://{quote(str(path), safe='')}"


def _fetch_by_socket(url, method, data, headers):
    path, _, target = url.removeprefix("http+unix://").partition("/")
    connection = http.client.HTTPConnection("localhost", timeout=120)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(unquote(path))
        connection.request(method, f"/{target}", data, headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def as_written(routes):
    """Without `last_activity`: no data of the hub's, and not known at once by every replica."""
    for route in routes.values():
        route["data"].pop("last_activity", None)
    return routes


def until(condition, seconds, what, hub=None):
    """Waits for `condition` to hold; a connection that is refused, and a socket that is not there, mean not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (ConnectionError, FileNotFoundError, urllib.error.URLError):
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}" + (f"\n{hub.log()}" if hub else ""))
        time.sleep(0.05)
