"""Ports for processes that cannot be told to choose one themselves."""

import random
import socket

# Below the ports that kernels give to outgoing connections: one of those could sit on the port of a killed process.
BLOCKS = range(10000, 30000, 50)

# The listener on a block's first port keeps every other process off the block, and this one from giving it twice: nobody
# listens yet on a port that was just given.
_held = []


def free_port():
    """A port where nobody listens."""
    with _listener(0) as probe:
        return probe.getsockname()[1]


def free_ports(count):
    """The first of `count` consecutive ports where nobody listens, and which no other test gets while this process lives."""
    assert count < BLOCKS.step, f"{count} ports in a row are more than a block has"
    for block in random.sample(BLOCKS, len(BLOCKS)):
        try:
            lock = _listener(block)
        except OSError:
            continue
        _held.append(lock)
        try:
            for port in range(block + 1, block + 1 + count):
                _listener(port).close()
        except OSError:
            continue
        return block + 1
    raise RuntimeError(f"no {count} free ports in a row")


def _listener(port):
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener
