"""As much of a hub's memory as a check of its routes looks at, without the servers and the database behind it."""

from types import SimpleNamespace

from jupyterhub.utils import url_escape_path


class Hub:
    """Users with servers, services, and the hub's own address. All of it may be changed between two checks."""

    def __init__(self, host="http://127.0.0.1:8081", routespec="/", subdomain_host=""):
        self.host, self.routespec = host, routespec
        self.url = f"{host}/hub/"
        self.subdomain_host = subdomain_host
        self.internal_ssl = False
        self.users, self.services = {}, {}

    # A proxy asks `app.hub` and `hub` for the same things.
    @property
    def hub(self):
        return self

    def server(self, user, target, name="", ready=True, pending=False):
        """Gives a user a server, or changes the one that is there."""
        escaped = [url_escape_path(part) for part in ("user", user, name) if part]
        spawner = SimpleNamespace(
            ready=ready and not pending,
            pending=pending,
            server=SimpleNamespace(host=target),
            proxy_spec=f"/{'/'.join(escaped)}/",
        )
        owner = self.users.setdefault(user, SimpleNamespace(name=user, spawners={}))
        owner.spawners[name] = spawner
        return spawner.proxy_spec

    def service(self, name, target, prefix=None):
        self.services[name] = SimpleNamespace(
            name=name,
            server=target and SimpleNamespace(host=target),
            proxy_spec=prefix or f"/services/{name}/",
        )
