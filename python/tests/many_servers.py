"""Users' servers in great number: one process for all of them, each at a loopback address of its own.

As a program it is these servers; as a module it is the spawner that gives them out.
"""

import subprocess
import sys
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

from jupyterhub.spawner import Spawner
from ports import free_ports
from stub_server import Answer
from traitlets import Integer


def address_of(number):
    """Where the server of this number is."""
    return f"127.{1 + number // 65_536}.{number // 256 % 256}.{number % 256}"


@contextmanager
def serve_many():
    """The settings of a hub that gives them out."""
    port = free_ports(1)
    servers = subprocess.Popen([sys.executable, __file__, str(port)])
    try:
        yield [
            "c.JupyterHub.spawner_class = 'many_servers.ManyServers'",
            f"c.ManyServers.servers_port = {port}",
            "c.Spawner.pre_spawn_hook = None",
        ]
    finally:
        servers.kill()
        servers.wait()


class ManyServers(Spawner):
    """Of user `user-N` the server is the one of number N. It runs whether it is asked for or not."""

    servers_port = Integer().tag(config=True)

    async def start(self):
        return address_of(int(self.user.name.removeprefix("user-"))), self.servers_port

    async def stop(self, now=False):
        pass

    async def poll(self):
        return None


class OwnAddress(Answer):
    def text(self):
        return self.connection.getsockname()[0]


if __name__ == "__main__":
    ThreadingHTTPServer.request_queue_size = 1_000
    # All of 127.0.0.0/8 is had by a wildcard alone.
    ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), OwnAddress).serve_forever()
