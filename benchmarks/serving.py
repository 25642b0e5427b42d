"""Load on a real server: lost and mixed-up answers, throughput, latency, memory, against one at a time and offline.

    python benchmarks/serving.py examples/tickets/study.yaml --variant LABEL --batch 32 --minutes 10

Prints a Markdown table. A finished study is needed. Every prompt is first asked alone; what many clients get at once is
compared with that: another prompt's answer is a mixed-up one; another wording of one's own is counted apart (16-bit
sums depend on the batch). Clients run in this process and share the machine's cores with the server, which costs it.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanwatt import catalog, verbs
from leanwatt.machine import describe
from leanwatt.offer import Offer
from leanwatt.prompt import plain
from leanwatt.question import Generate, Prompt
from leanwatt.study import Study

CYCLES = 4
"""Of all phases: memory is compared after the same phase."""


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


def offline(offer: Offer, texts: Sequence[str], batch: int, seconds: float) -> float:
    """Tickets a second of the same engine at the same batch, without a server."""
    questions = [question for text in texts for question in offer.form.about(text).values()]
    with catalog.build(offer.trial.engine).open(offer.artifact, batch) as session:
        session.answer(questions)
        begun, done = time.monotonic(), 0
        while time.monotonic() - begun < seconds:
            session.answer(questions)
            done += len(texts)
        return done / (time.monotonic() - begun)


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
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=120)[1]


async def measured(asked: Sequence[Asked], server: Server, minutes: float, memory: list[float]) -> list[Load]:
    """One client, then eight, then sixty-four, for each kind of request, equal times; and the whole again."""
    phases = [(kind, Load(kind.path, clients)) for kind in asked for clients in (1, 8, 64)]
    tell("each prompt alone")
    alone = {kind.path: await each_alone(kind, server.port) for kind in asked}
    for _ in range(CYCLES):
        for kind, found in phases:
            await load(kind, server.port, found, minutes * 60 / len(phases) / CYCLES, alone[kind.path])
        memory.append(server.memory_mib())
    return [found for _, found in phases]


def report(found: Sequence[Load], plain_rate: float, memory: Sequence[float], said: str) -> None:
    print("| load | requests | lost | mixed up | reworded | requests/s | tokens/s | p50 s | p95 s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for each in found:
        print(f"| {each.row()} |")
    rates = {(each.path, each.clients): each.per_second for each in found}
    ratio = rates["/v1/tickets", 64] / plain_rate
    print(f"\nOffline, same engine and batch: {plain_rate:.2f} tickets/s; the server at 64 clients: {ratio:.2f} of it.")
    [most] = [each for each in found if (each.path, each.clients) == ("/v1/tickets", 64)]
    print(f"The 64 clients themselves took {most.cpu_seconds:.1f} CPU-seconds of these {most.seconds:.0f} s.")
    if ("/v1/completions", 1) in rates:
        speed_up = rates["/v1/completions", 64] / rates["/v1/completions", 1]
        print(f"Generation, 64 clients against one request at a time: {speed_up:.2f} times.")
    print(f"Memory of the server after each cycle of the load: {', '.join(f'{mib:.0f}' for mib in memory)} MiB.")
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
    asked, machine, window = kinds(offer, texts), describe(), min(30.0, given.minutes * 6)
    print(f"{offer.trial.label}, served at batch {given.batch}; {len(texts)} distinct tickets; {machine['utc'][:10]}")
    print(f"{machine['cpu_model']}, {machine['usable_cpus']} CPUs; {machine['versions']}\n")
    options = [("--out", given.out), ("--variant", given.variant), ("--batch", str(given.batch))]
    tell("offline")
    before = offline(offer, texts, given.batch, window)
    tell("starting the server")
    server, memory = Server([given.study, *(w for pair in options if pair[1] for w in pair)]), list[float]()
    try:
        found = asyncio.run(measured(asked, server, given.minutes, memory))
    finally:
        said = server.stop()
    report(found, (before + offline(offer, texts, given.batch, window)) / 2, memory, said)


if __name__ == "__main__":
    main()
