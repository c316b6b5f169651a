"""Ports for processes that cannot be told to choose one themselves."""

import random
import socket

# Below the ports that kernels give to outgoing connections: one of those could sit on the port of a killed process.
BLOCKS = range(10000, 30000, 50)

# The listener on a block's first port keeps every other process off the block.
_locks = []
# What is left of the last one: nobody listens yet on a port that was just given, so looking would give it twice.
_left = range(0)


def free_port():
    """A port where nobody listens."""
    with _listener(0) as probe:
        return probe.getsockname()[1]


def free_ports(count):
    """The first of `count` consecutive ports where nobody listens, and which no other test gets while this process lives."""
    global _left
    assert count < BLOCKS.step, f"{count} ports in a row are more than a block has"
    while True:
        while len(_left) >= count:
            given, _left = _left[:count], _left[count:]
            if all(map(is_free, given)):
                return given[0]
        _left = _take_block()


def _take_block():
    for block in random.sample(BLOCKS, len(BLOCKS)):
        try:
            _locks.append(_listener(block))
        except OSError:
            continue
        return range(block + 1, block + BLOCKS.step)
    raise RuntimeError("every block of ports is taken")


def is_free(port):
    """Whether nobody listens there."""
    try:
        _listener(port).close()
    except OSError:
        return False
    return True


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
