"""Users and their servers, each in a process of its own, so that neither waits for the program that measures.

    traffic.py servers FIRST COUNT              HTTP on COUNT ports of 127.0.0.1; each answers with its own number
    traffic.py users PORT ROUTES COUNT RATE     RATE requests a second to routes at random, until standard input ends
    traffic.py sweep PORT ROUTES COUNT          one request to each route, as fast as they are answered

Route i of ROUTES belongs to server i modulo COUNT. `users` and `sweep` print a line of JSON for each request: when it was sent, by the
machine's monotonic clock, and what came of it: right, wrong (another server's answer), none (the proxy has no route, or no
answer from behind it), refused (no connection, or it broke).
"""

import asyncio
import json
import random
import sys
import time

CONNECTIONS = 16
PATIENCE = 5.0
BROKEN = (OSError, EOFError, asyncio.TimeoutError)


async def servers(first, count):
    async def serve(number, reader, writer):
        body = f"server {number}".encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    listening = []
    for number in range(count):

        async def serve_this(reader, writer, number=number):
            await serve(number, reader, writer)

        listening.append(await asyncio.start_server(serve_this, "127.0.0.1", first + number, backlog=1024))
    print("ready", flush=True)
    await until_input_ends()


async def users(port, routes, count, rate):
    pick = random.Random(1)
    # Whoever waits for the first line may count on the others.
    await once(port, pick.randrange(routes), count)
    sys.stdout.flush()
    began = time.monotonic()
    under_way, sent = set(), 0
    ended = asyncio.ensure_future(until_input_ends())
    while not ended.done():
        # The next one is due by the clock and not by the last one's answer: who waits is counted too.
        await asyncio.sleep(max(0.0, began + sent / rate - time.monotonic()))
        sent += 1
        request = asyncio.ensure_future(once(port, pick.randrange(routes), count))
        under_way.add(request)
        request.add_done_callback(under_way.discard)
    if under_way:
        await asyncio.wait(under_way)


async def once(port, route, count):
    """One request on a connection of its own."""

    async def connect_and_ask():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            return await ask(reader, writer, route, count, "close")
        finally:
            writer.close()

    at = time.monotonic()
    try:
        outcome = await asyncio.wait_for(connect_and_ask(), PATIENCE)
    except BROKEN:
        outcome = "refused"
    tell(at, route, outcome)


async def sweep(port, routes, count):
    waiting = iter(range(routes))

    async def some():
        reader = writer = None
        for route in waiting:
            at = time.monotonic()
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                outcome = await asyncio.wait_for(ask(reader, writer, route, count, "keep-alive"), PATIENCE)
            except BROKEN:
                outcome, writer = "refused", None
            tell(at, route, outcome)

    await asyncio.gather(*(some() for _ in range(CONNECTIONS)))


async def ask(reader, writer, route, count, connection):
    head = f"GET {path(route)}x HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: {connection}\r\n\r\n"
    writer.write(head.encode())
    status, *headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    fields = dict(line.split(":", 1) for line in headers if ":" in line)
    if "chunked" in fields.get("transfer-encoding", ""):
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(fields.get("content-length", "0")))
    if status.split()[1] != "200":
        return "none"
    return "right" if body == b"server %d" % (route % count) else "wrong"


def path(route):
    return f"/user/user-{route}/"


def tell(at, route, outcome):
    print(json.dumps([at, route, outcome]))


async def until_input_ends():
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


if __name__ == "__main__":
    role, *numbers = sys.argv[1:]
    asyncio.run({"servers": servers, "users": users, "sweep": sweep}[role](*map(int, numbers)))
