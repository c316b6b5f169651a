"""Ports for processes that cannot be told to choose one themselves."""

import random
import socket
from contextlib import ExitStack


def free_port():
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_ports(count):
    """The first of `count` consecutive ports where nobody listens.

    Below the ports that the kernel gives to outgoing connections, so that none of ours becomes one before it is bound.
    """
    for first in random.sample(range(10000, 30000, 50), 100):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError(f"no {count} free ports in a row")
