"""Load on a real server: lost and mixed-up answers, throughput, latency, memory, against one at a time and offline.

    python benchmarks/serving.py examples/tickets/study.yaml --variant LABEL --batch 32 --minutes 10

Prints a Markdown table. A finished study is needed. Every prompt is first asked alone; what many clients get at once is
compared with that: another prompt's answer is a mixed-up one; another wording of one's own is counted apart (16-bit
sums depend on the batch). Clients run in this process and share the machine's cores with the server, which costs it.
The same engine without a server is timed right before and right after each phase that is compared with it: a host's
speed changes within minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from leanwatt import catalog, verbs
from leanwatt.machine import describe
from leanwatt.offer import Offer
from leanwatt.prompt import plain
from leanwatt.question import Generate, Prompt
from leanwatt.study import Study

CYCLES = 4
"""Of all phases: memory is compared after the same phase."""
COMPARED = ("/v1/tickets", 64)
"""The load that is compared with the engine alone."""


@dataclass
class Load:
    """What one phase of the load was like, all cycles together."""

    path: str
    clients: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of the clients: what the server's machine lacked."""
    latencies: list[float] = field(default_factory=list)
    lost: int = 0
    mixed: int = 0
    reworded: int = 0
    tokens: int = 0

    @property
    def name(self) -> str:
        return f"{self.path}, {self.clients} client{'s' if self.clients > 1 else ''}"

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def row(self) -> str:
        ordered = sorted(self.latencies)
        p50, p95 = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95))
        cells = [self.name, len(ordered), self.lost, self.mixed, self.reworded, f"{self.per_second:.2f}"]
        return " | ".join(map(str, [*cells, f"{self.tokens / self.seconds:.1f}", f"{p50:.3f}", f"{p95:.3f}"]))


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Client:
    """Keep-alive HTTP with as little work as possible: what the clients burn, the server lacks."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> None:
        self._read, self._write = await asyncio.open_connection("127.0.0.1", self._port)

    async def post(self, path: str, body: bytes) -> tuple[int, Any]:
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        self._write.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        said = (await self._read.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(re.findall(r"content-length: (\d+)", said)[0])
        return int(said.split(" ")[1]), json.loads(await self._read.readexactly(length))


@dataclass(frozen=True)
class Asked:
    """A kind of request: where it goes, its bodies, and what tells its answers apart."""

    path: str
    bodies: tuple[bytes, ...]

    def gist(self, reply: Any) -> str:
        if self.path == "/v1/tickets":
            return json.dumps([reply["response"], reply["causes"][0]["cause"] if reply["causes"] else None])
        return str(reply["choices"][0]["text"])


async def load(asked: Asked, port: int, found: Load, seconds: float, alone: Sequence[str]) -> None:
    """So many clients, each sending its next request when it has its answer."""
    clients, ends = found.clients, time.monotonic() + seconds

    async def one(number: int) -> None:
        client, turn = Client(port), number
        await client.open()
        while time.monotonic() < ends:
            place, turn = turn % len(asked.bodies), turn + clients
            begun = time.monotonic()
            status, reply = await client.post(asked.path, asked.bodies[place])
            found.latencies.append(time.monotonic() - begun)
            if status != 200:
                found.lost += 1
                continue
            found.tokens += reply["usage"]["completion_tokens"]
            gist = asked.gist(reply)
            if gist != alone[place]:
                found.mixed += gist in alone
                found.reworded += gist not in alone

    begun, used = time.monotonic(), time.process_time()
    await asyncio.gather(*(one(number) for number in range(clients)))
    found.seconds += time.monotonic() - begun
    found.cpu_seconds += time.process_time() - used
    tell(f"{found.name}: {len(found.latencies)} requests in {found.seconds:.0f} s")


async def each_alone(asked: Asked, port: int) -> list[str]:
    client = Client(port)
    await client.open()
    return [asked.gist((await client.post(asked.path, body))[1]) for body in asked.bodies]


def tickets(study: Study, most: int) -> list[str]:
    """Distinct tickets of the validation split."""
    examples = catalog.build(study.tasks[0]).examples(0)
    bodies = [example.question.prompt.body for example in examples if example.split == "validation"]
    return list(dict.fromkeys(bodies))[:most]


def kinds(offer: Offer, texts: Sequence[str]) -> list[Asked]:
    """Tickets, and the writing task's prompts as plain completions, those that fit the context."""
    found = [Asked("/v1/tickets", tuple(json.dumps({"ticket": text}).encode() for text in texts))]
    encoder = offer.encoder()
    for task, question in offer.form.questions.items():
        if isinstance(question, Generate):
            asked = [Prompt("", plain(offer.form.about(text)[task].prompt), "", verbatim=True) for text in texts]
            fits = [each.body for each in asked if encoder.length(each) + question.limit <= encoder.context]
            data = [{"model": offer.name, "prompt": prompt, "max_tokens": question.limit} for prompt in fits]
            found.append(Asked("/v1/completions", tuple(json.dumps(each).encode() for each in data)))
    return found


@contextmanager
def offline(offer: Offer, texts: Sequence[str], batch: int) -> Iterator[Callable[[float], float]]:
    """Tickets a second of the same engine at the same batch, without a server, timed for so many seconds."""
    questions = [question for text in texts for question in offer.form.about(text).values()]
    with catalog.build(offer.trial.engine).open(offer.artifact, batch) as session:
        session.answer(questions)

        def rate(seconds: float) -> float:
            begun, done = time.monotonic(), 0
            while time.monotonic() - begun < seconds:
                session.answer(questions)
                done += len(texts)
            return done / (time.monotonic() - begun)

        yield rate


class Server:
    """`leanwatt serve` in a process of its own."""

    def __init__(self, words: Sequence[str]) -> None:
        command = [sys.executable, "-m", "leanwatt", "serve", *words, "--port", "0", "--rate", "100000000"]
        command += ["--no-ratings", "--queue", "1024", "--keys", "no-such-file.json"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r":(\d+)/$", line.strip()):
                self.port = int(found[1])
                return
        raise SystemExit("the server did not start")

    def memory_mib(self) -> float:
        """Of the server and its engine; what they share is counted once."""
        root = self.process.pid
        below = Path(f"/proc/{root}/task/{root}/children").read_text(encoding="utf-8").split()
        each = [Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8") for pid in (root, *below)]
        return sum(int(re.findall(r"Pss:\s+(\d+) kB", rollup)[0]) for rollup in each) / 1024

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=120)[1]


@dataclass(frozen=True)
class Course:
    """What all cycles found."""

    loads: list[Load]
    memory_mib: list[float] = field(default_factory=list)
    """Of the server after each cycle."""
    shares: list[float] = field(default_factory=list)
    """Of each cycle: tickets a second at 64 clients, over those of the engine alone before and after them."""
    plain_rates: list[float] = field(default_factory=list)


async def measured(
    asked: Sequence[Asked], server: Server, minutes: float, plain_rate: Callable[[float], float]
) -> Course:
    """One client, then eight, then sixty-four, for each kind of request, equal times; and the whole again."""
    phases = [(kind, Load(kind.path, clients)) for kind in asked for clients in (1, 8, 64)]
    seconds = minutes * 60 / len(phases) / CYCLES
    course = Course([found for _, found in phases])
    tell("each prompt alone")
    alone = {kind.path: await each_alone(kind, server.port) for kind in asked}
    for _ in range(CYCLES):
        for kind, found in phases:
            if (kind.path, found.clients) != COMPARED:
                await load(kind, server.port, found, seconds, alone[kind.path])
                continue
            before, answered, took = plain_rate(seconds / 2), len(found.latencies), found.seconds
            await load(kind, server.port, found, seconds, alone[kind.path])
            plain = (before + plain_rate(seconds / 2)) / 2
            course.plain_rates.append(plain)
            course.shares.append((len(found.latencies) - answered) / (found.seconds - took) / plain)
        course.memory_mib.append(server.memory_mib())
    return course


def report(course: Course, said: str) -> None:
    print("| load | requests | lost | mixed up | reworded | requests/s | tokens/s | p50 s | p95 s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for each in course.loads:
        print(f"| {each.row()} |")
    rates = {(each.path, each.clients): each.per_second for each in course.loads}
    each_share = ", ".join(f"{share:.2f}" for share in course.shares)
    print(f"\nOffline, same engine and batch: {fmean(course.plain_rates):.2f} tickets/s.")
    print(f"The server at 64 clients: {fmean(course.shares):.2f} of it (in each cycle: {each_share}).")
    [most] = [each for each in course.loads if (each.path, each.clients) == COMPARED]
    print(f"The 64 clients themselves took {most.cpu_seconds:.1f} CPU-seconds of these {most.seconds:.0f} s.")
    if ("/v1/completions", 1) in rates:
        speed_up = rates["/v1/completions", 64] / rates["/v1/completions", 1]
        print(f"Generation, 64 clients against one request at a time: {speed_up:.2f} times.")
    print(f"Memory of the server after each cycle: {', '.join(f'{mib:.0f}' for mib in course.memory_mib)} MiB.")
    print(said.strip().splitlines()[-1])


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("study")
    reader.add_argument("--out")
    reader.add_argument("--variant")
    reader.add_argument("--batch", type=int, default=32)
    reader.add_argument("--minutes", type=float, default=10.0, help="of load, all phases together")
    reader.add_argument("--prompts", type=int, default=64, help="distinct tickets")
    given = reader.parse_args()
    offer = verbs.offer(given.study, given.out, given.variant)
    texts = tickets(Study.read(Path(given.study)), given.prompts)
    asked, machine = kinds(offer, texts), describe()
    print(f"{offer.trial.label}, served at batch {given.batch}; {len(texts)} distinct tickets; {machine['utc'][:10]}")
    print(f"{machine['cpu_model']}, {machine['usable_cpus']} CPUs; {machine['versions']}\n")
    options = [("--out", given.out), ("--variant", given.variant), ("--batch", str(given.batch))]
    tell("starting the server")
    server = Server([given.study, *(w for pair in options if pair[1] for w in pair)])
    try:
        with offline(offer, texts, given.batch) as plain_rate:
            course = asyncio.run(measured(asked, server, given.minutes, plain_rate))
    finally:
        said = server.stop()
    report(course, said)


if __name__ == "__main__":
    main()
