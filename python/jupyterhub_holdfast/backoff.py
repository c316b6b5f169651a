"""How long to wait before the next try."""

import random
from collections.abc import Iterator

FIRST_SECONDS = 0.1
FACTOR = 2.0
LIMIT_SECONDS = 2.0


def backoff() -> Iterator[float]:
    """Waits in seconds, without end: doubling from 0.1 to 2, each between half of its limit and the whole of it.

    An election takes a fraction of a second, so the first waits are short. The jitter keeps the writes that failed at
    one moment from coming back at one moment; its lower half is cut off because a wait of nothing is a busy loop.
    """
    limit = FIRST_SECONDS
    while True:
        yield random.uniform(limit / 2, limit)
        limit = min(limit * FACTOR, LIMIT_SECONDS)
