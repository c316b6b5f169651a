"""Waiting for a condition, with a deadline."""

import asyncio
import inspect
import time


async def eventually(condition, what, seconds=60):
    """What `condition` gives once that is true; it may be a coroutine function. Fails, naming `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.05)
