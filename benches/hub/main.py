"""JupyterHub's proxy classes side by side: how long the hub waits for them, and what users see when the proxy dies.

    main.py [--quick] [--save] [--rounds NUMBER] [--rows add,list,incident] [--peers chp,traefik]

`make bench-hub` installs the peers, builds Holdfast for release, and runs it. --quick: a few seconds, to see that everything
works; the figures mean nothing. --save: the output also goes to benches/runs/<date>-hub.txt.
"""

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

import contenders
from ports import free_ports

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs"
TRAFFIC = [sys.executable, str(HERE / "traffic.py")]

ROUNDS = 5
CONCURRENCY = [1, 10, 50]
ADDS = 500
# traefik-proxy needs minutes for as many, of routes or of lists; fewer will do.
PATIENCE_SECONDS = 20
SERVERS = 16
RATE = 200
SETTLE_SECONDS = 180


class Sizes:
    """How much of everything: all that the question asks for, or enough to see that it works."""

    def __init__(self, is_quick):
        self.adds = ADDS // 25 if is_quick else ADDS
        self.few, self.many = (50, 500) if is_quick else (500, 10_000)
        self.lists = 2 if is_quick else 9
        self.calm_seconds = 0.5 if is_quick else 2


def main():
    flags = read_flags()
    run = Run(flags)
    run.say_where_it_comes_from()
    available = {}
    for contender in contenders.ALL:
        if contender.name not in ("holdfast", *flags.peers):
            continue
        try:
            available[contender] = contender.version()
            run.say(f"{contender.name:<9} {available[contender]}")
        except contenders.Missing as why:
            run.say(f"{contender.name:<9} MISSING: {why}")
            run.missing.append(contender.name)
    failed = set()
    # Interleaved: what the machine does meanwhile happens to all of them.
    for number in range(flags.rounds):
        for contender in available:
            for part in PARTS:
                # What has failed once would take its time each time.
                if part in flags.rows and (contender, part) not in failed:
                    run.progress(f"round {number + 1} of {flags.rounds}: {contender.name}, {part}")
                    if not asyncio.run(measure(run, contender, PARTS[part])):
                        failed.add((contender, part))
    run.say_figures()
    run.finish()
    return 1 if run.failures else 0


def read_flags():
    def names(known):
        def parse(text):
            found = text.split(",")
            if unknown := set(found) - set(known):
                raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are {', '.join(known)}")
            return found

        return parse

    peers = [contender.name for contender in contenders.ALL if contender.name != "holdfast"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rows", type=names(PARTS), default=list(PARTS))
    parser.add_argument("--peers", type=names(peers), default=peers)
    flags = parser.parse_args()
    flags.rounds = flags.rounds or (1 if flags.quick else ROUNDS)
    return flags


async def measure(run, contender, part):
    """One part with one contender; False if it fails. What it finds before is kept, and the failure told."""
    try:
        await part(run, contender)
        return True
    except Exception as error:
        run.failures.append(f"{contender.name}, {part.__name__}: {type(error).__name__}: {error}")
        traceback.print_exc()
        return False


@contextlib.asynccontextmanager
async def running(contender):
    """The contender with nothing but the hub's own route, and users' servers behind it."""
    with tempfile.TemporaryDirectory(prefix="bench-hub-") as directory:
        # The last one is the hub, which answers where no other route does.
        first = free_ports(SERVERS + 1)
        servers = subprocess.Popen(
            [*TRAFFIC, "servers", str(first), str(SERVERS + 1)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            servers.stdout.readline()
            contestant = contender(directory, free_ports(40), first + SERVERS)
            contestant.routes = lambda count, prefix="user": [
                (
                    f"/user/{prefix}-{i}/",
                    f"http://127.0.0.1:{first + i % SERVERS}",
                    {"user": f"{prefix}-{i}", "server_name": ""},
                )
                for i in range(count)
            ]
            await contestant.start()
            try:
                yield contestant
            finally:
                await contestant.stop()
        finally:
            servers.stdin.close()
            servers.wait()


async def add(run, contender):
    """`add_route`, as many at a time as users start servers at a time."""
    for concurrency in CONCURRENCY:
        async with running(contender) as contestant:
            waiting = iter(contestant.routes(run.sizes.adds))
            seconds = []
            until = time.monotonic() + PATIENCE_SECONDS

            async def one_after_the_other(contestant=contestant, waiting=waiting, seconds=seconds, until=until):
                for route in waiting:
                    began = time.perf_counter()
                    await contestant.proxy.add_route(*route)
                    seconds.append(time.perf_counter() - began)
                    if time.monotonic() > until:
                        return

            await asyncio.gather(*(one_after_the_other() for _ in range(concurrency)))
        seconds.sort()
        name = f"add_route, {concurrency} at a time"
        run.found(f"{name}: median, ms", contender, 1000 * statistics.median(seconds))
        run.found(f"{name}: p99, ms", contender, 1000 * seconds[min(len(seconds) - 1, len(seconds) * 99 // 100)])


async def list_all(run, contender):
    """`get_all_routes`: once a minute, and whenever the hub starts."""
    for count in (run.sizes.few, run.sizes.many):
        async with running(contender) as contestant:
            await contestant.fill(contestant.routes(count))
            seconds = []
            while len(seconds) < run.sizes.lists and sum(seconds) < PATIENCE_SECONDS:
                began = time.perf_counter()
                found = await contestant.proxy.get_all_routes()
                seconds.append(time.perf_counter() - began)
                if len(found) != count + 1:
                    raise RuntimeError(f"{len(found)} routes are listed of {count + 1}")
        run.found(f"get_all_routes of {count:,}: median, ms", contender, 1000 * statistics.median(seconds))


async def incident(run, contender):
    """The proxy that users come to is killed, and started again at once, without the time until a hub would notice."""
    count = run.sizes.many
    async with running(contender) as contestant:
        routes = contestant.routes(count)
        await contestant.fill(routes)
        sweep_until_right(contestant, count, "they were given")
        with tempfile.TemporaryFile("w+") as answers:
            async with users(contestant, count, answers):
                await asyncio.sleep(run.sizes.calm_seconds)
                killed = time.monotonic()
                contestant.kill()
                await contestant.recover(routes)
                recovered = time.monotonic() if contestant.hub_recovers else killed
                last_bad = sweep_until_right(contestant, count, "the kill")
                await asyncio.sleep(run.sizes.calm_seconds)
            answers.seek(0)
            seen = [Answer(line) for line in answers]
    # One that was sent shortly before may have been under way.
    calm = Counter(answer.outcome for answer in seen if answer.at < killed - 0.2)
    if set(calm) != {"right"}:
        raise RuntimeError(f"before the kill users saw {dict(calm)}")
    after = [answer for answer in seen if answer.at >= killed - 0.2]
    ended = max([recovered, last_bad, *(answer.at for answer in after if answer.outcome != "right")])
    outcomes = Counter(answer.outcome for answer in after)
    name = f"proxy killed, {count:,} routes"
    run.found(f"{name}: all right again after, ms", contender, 1000 * (ended - killed))
    run.found(f"{name}: wrong or no-route answers", contender, outcomes["wrong"] + outcomes["none"])
    run.found(f"{name}: refused or broken", contender, outcomes["refused"])


@contextlib.asynccontextmanager
async def users(contestant, count, answers):
    """Users who go on asking, from before to after; what they see goes to the file."""
    command = [*TRAFFIC, "users", str(contestant.public_port), str(count), str(SERVERS), str(RATE)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=answers)

    async def have_begun():
        return os.fstat(answers.fileno()).st_size > 0

    try:
        await contenders.until(have_begun, "users' first answer", process)
        yield
    finally:
        process.stdin.close()
        process.wait()


def sweep_until_right(contestant, count, since):
    """Asks for each route, again and again until all answers are right. When the last one was sent that was not; 0 if none."""
    command = [*TRAFFIC, "sweep", str(contestant.public_port), str(count), str(SERVERS)]
    last_bad, deadline = 0, time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            left = max(1, deadline - time.monotonic())
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=left).stdout.splitlines()
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not all of {count:,} routes answer right {SETTLE_SECONDS} s after {since}") from None
        answers = [Answer(line) for line in told]
        if len(answers) != count:
            raise RuntimeError(f"a sweep of {count} routes asked {len(answers)}")
        bad = [answer.at for answer in answers if answer.outcome != "right"]
        if not bad:
            return last_bad
        last_bad = max(bad)


class Answer:
    def __init__(self, line):
        self.at, self.route, self.outcome = json.loads(line)


PARTS = {"add": add, "list": list_all, "incident": incident}


def targets(sizes):
    """Which figures have one: at most so many times a peer's."""
    found = defaultdict(list)
    for concurrency in CONCURRENCY:
        row = f"add_route, {concurrency} at a time: median, ms"
        if concurrency > 1:
            found[row].append(("chp", 1))
        found[row].append(("traefik", 1 / 50))
    found[f"get_all_routes of {sizes.many:,}: median, ms"].append(("chp", 1 / 3))
    found[f"proxy killed, {sizes.many:,} routes: all right again after, ms"].append(("chp", 1 / 50))
    found[f"proxy killed, {sizes.many:,} routes: wrong or no-route answers"].append((None, 0))
    return found


class Run:
    """One run: what it has found, and its output, which says where it came from."""

    def __init__(self, flags):
        self.flags, self.sizes = flags, Sizes(flags.quick)
        self.began = time.monotonic()
        self.figures = defaultdict(lambda: defaultdict(list))
        self.missing, self.failures, self.lines = [], [], []

    def say(self, line=""):
        print(line, flush=True)
        self.lines.append(line)

    def progress(self, what):
        print(f"{time.monotonic() - self.began:>4.0f} s  {what}", file=sys.stderr, flush=True)

    def found(self, row, contender, figure):
        self.figures[row][contender.name].append(figure)

    def say_where_it_comes_from(self):
        program = os.environ["HOLDFAST_BIN"]
        profile = "release" if "release" in Path(program).parts else "development"
        self.say("hub: JupyterHub's proxy classes side by side")
        self.say(f"command   {' '.join(['hub', *sys.argv[1:]])}")
        self.say(f"date      {datetime.datetime.now(datetime.timezone.utc):%F %T} UTC")
        self.say(f"version   commit {told_by('git', '-C', HERE, 'describe', '--always', '--dirty')}")
        self.say(
            f"profile   {profile} (Holdfast); Python {platform.python_version()}, JupyterHub {version('jupyterhub')}"
        )
        self.say(f"machine   {machine()}")
        self.say(f"load      {load()} (1, 5, 15 minutes, before the start)")
        self.say("holdfast  3 replicas that sync to disk, 2 proxies; a write waits until both serve it")
        self.say("chp       1 process; killed, it is started again and given its routes by its class, at once")
        self.say("traefik   1 Traefik, 1 Redis (appendonly, synced once a second)")
        if self.flags.quick:
            self.say("quick     these figures mean nothing")

    def say_figures(self):
        wanted = targets(self.sizes)
        medians = {row: {name: statistics.median(of) for name, of in by.items()} for row, by in self.figures.items()}
        names = ["holdfast", *self.flags.peers]
        width = max([len(row) for row in medians] + [10])
        self.say(
            f"\nmedians of {self.flags.rounds} rounds; targets are for Holdfast, as its share of the named peer's figure"
        )
        head = "".join(f"{name:>10}" for name in names)
        self.say(f"{'':<{width}}{head}{'share':>16}{'target':>12}{'met':>5}")
        for row, by in medians.items():
            cells = "".join(f"{self._cell(by, name):>10}" for name in names)
            for peer, most in wanted.get(row) or [("", None)]:
                share, bound, met = self._judged(by, peer, most)
                self.say(f"{row:<{width}}{cells}{share:>16}{bound:>12}{met:>5}")
        if self.failures:
            self.say("\nNO FIGURE")
            for failure in self.failures:
                self.say(failure)
        if self.missing:
            self.say(f"\nMISSING, so nothing is said about: {', '.join(self.missing)}")
        self.say(f"\nload      {load()} (1, 5, 15 minutes, at the end)")
        self.say("\nthe figures of each round")
        for row, by in self.figures.items():
            for name, of in by.items():
                self.say(f"{row} ({name}): {' '.join(map(short, of))}")

    def _cell(self, by, name):
        if name in by:
            return short(by[name])
        return "MISSING" if name in self.missing else "-"

    def _judged(self, by, peer, most):
        ours = by.get("holdfast")
        if most is None or ours is None:
            return "-", "-", "-"
        if peer is None:
            return short(ours), f"<= {most}", "yes" if ours <= most else "NO"
        bound = f"<= {most:.3g} x"
        if peer not in by:
            return f"? x {peer}", bound, "?"
        share = ours / by[peer]
        return f"{share:.3f} x {peer}", bound, "yes" if share <= most else "NO"

    def finish(self):
        self.say(f"\ntook {time.monotonic() - self.began:.0f} s")
        if self.flags.save:
            file = RUNS / f"{datetime.datetime.now(datetime.timezone.utc):%F}-hub.txt"
            file.write_text("\n".join(self.lines) + "\n")
            print(f"saved as {file}")


def short(figure):
    return f"{figure:.3g}" if figure < 1000 else f"{figure:.0f}"


def load():
    return " ".join(f"{of:.2f}" for of in os.getloadavg())


def machine():
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpus if line.startswith("model name")), "of unknown model")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    return f"{os.cpu_count()} CPUs, {model}; {memory} GiB; {platform.system()} {platform.release()}"


def told_by(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "?"


if __name__ == "__main__":
    sys.exit(main())
