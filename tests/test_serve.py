"""The server over HTTP: OpenAI's own client, many at once, everything that can be sent wrong, and a stop under load."""

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from offered import CAUSES, FORM, PROMISE, Echo, Even, folder_of, offer_of

from leanwatt import verbs
from leanwatt.batching import Batcher, Rules
from leanwatt.errors import MissingExtraError, StudyError, UserError
from leanwatt.feedback import Feedback, Rating
from leanwatt.gate import Gate, Terms
from leanwatt.gauges import Gauges
from leanwatt.keys import Keys
from leanwatt.pace import Pace
from leanwatt.promise import Books
from leanwatt.prompt import Encoder
from leanwatt.question import Prompt
from leanwatt.routes import Desk, application
from leanwatt.serve import SPARE_CONNECTIONS, _listen, _listening, open_to, opened
from leanwatt.serving import Settings

TICKET = {"ticket": "site A power lost"}


@pytest.fixture(scope="module")
def encoder(tokenizer_folder: Path) -> Encoder:
    from transformers import AutoTokenizer

    return Encoder(AutoTokenizer.from_pretrained(tokenizer_folder), 256)


@dataclass
class Server:
    """The application with an engine that repeats what it is asked."""

    gate: Gate
    batcher: Batcher
    desk: Desk


@pytest.fixture
def server(encoder: Encoder, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    made: list[Batcher] = []

    def make(session: Any = None, terms: Terms | None = None, rules: Rules | None = None, **changes: Any) -> Server:
        batcher = Batcher(session or Echo(), Even(), rules or Rules(8, 0.002))
        made.append(batcher)
        books = Books(replace(PROMISE, machine=None), None)
        feedback = Feedback(tmp_path / "ratings.sqlite", 30)
        desk = Desk(offer_of(tmp_path), encoder, batcher, books, Gauges(batcher, books), feedback, 64, 20.0)
        desk = replace(desk, **changes)
        gate = Gate(application(desk), terms or Terms(None, Pace(100_000), 4096), desk.gauges.seen)
        return Server(gate, batcher, desk)

    yield make
    for each in made:
        each.close()


@asynccontextmanager
async def client_of(server: Server, **settings: Any) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(server.gate)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", **settings) as client:
        yield client


def sent(server: Server, method: str, path: str, **what: Any) -> httpx2.Response:
    """One request."""

    async def once() -> httpx2.Response:
        async with client_of(server) as client:
            return await client.request(method, path, **what)

    return asyncio.run(once())


def metric(server: Server, name: str) -> float:
    found = re.findall(rf"^{re.escape(name)} (\S+)$", sent(server, "GET", "/metrics").text, re.MULTILINE)
    return float(found[0])


def test_many_at_once_are_answered_each_with_their_own(server: Callable[..., Server]) -> None:
    here = server(Echo(seconds=0.001))

    async def one(client: httpx2.AsyncClient, number: int) -> bool:
        text = f"ticket {number}"
        if number % 3 == 0:
            reply = await client.post("/v1/tickets", json={"ticket": text})
            return bool(reply.json()["response"] == text)
        body = {"model": "tiny", "prompt": text, "stream": number % 3 == 1}
        reply = await client.post("/v1/completions", json=body)
        if number % 3 == 2:
            return bool(reply.json()["choices"][0]["text"] == text)
        events = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: {")]
        return "".join(choice["text"] for event in events for choice in event["choices"]) == text

    async def all_of_them() -> list[bool]:
        async with client_of(here) as client:
            return await asyncio.gather(*(one(client, number) for number in range(150)))

    assert asyncio.run(all_of_them()) == [True] * 150
    assert here.batcher.accepted == here.batcher.answered == 150
    assert here.batcher.batches < 150


def test_a_ticket_has_causes_a_draft_and_its_energy(server: Callable[..., Server]) -> None:
    here = server()
    reply = sent(here, "POST", "/v1/tickets", json=TICKET).json()
    assert [each["cause"] for each in reply["causes"]] == list(CAUSES)
    assert sum(each["probability"] for each in reply["causes"]) == pytest.approx(1)
    assert reply["response"] == TICKET["ticket"]
    assert reply["energy"]["joules"] == 2.0, "two answers of one joule"
    assert reply["energy"]["provenance"] == "estimated"
    assert (reply["energy"]["lower"], reply["energy"]["upper"]) == (1.0, 4.0)
    assert reply["usage"] == {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}
    assert not reply["truncated"]


class Unknown(Even):
    """A window that has not seen enough."""

    def shares(self, *parts: Any) -> Any:
        from leanwatt.measurement import Energy

        return [Energy(None, flags=("no window yet: the sensors need 5 s",)) for _ in parts]


def test_energy_that_is_not_known_is_absent_and_says_why(server: Callable[..., Server]) -> None:
    here = server()
    here.batcher._window = Unknown()
    energy = sent(here, "POST", "/v1/tickets", json=TICKET).json()["energy"]
    assert energy == {"joules": None, "provenance": "absent", "why": "no window yet: the sensors need 5 s"}
    assert metric(here, 'leanwatt_requests_of_unknown_energy_total{route="/v1/tickets"}') == 1
    assert "leanwatt_spent_joules_per_ticket " not in sent(here, "GET", "/metrics").text
    assert sent(here, "GET", "/v1/energy").json()["day"] | {"since": ""} == {
        "since": "",
        "answers": 1,
        "joules": {},
        "unknown": 1,
    }


def test_metrics_and_health_tell_of_drift(server: Callable[..., Server]) -> None:
    here = server(books=None)
    books = Books(replace(PROMISE, joules=1.5, machine=None), None)
    here = server(books=books, gauges=Gauges(here.batcher, books))
    for _ in range(20):
        assert sent(here, "POST", "/v1/tickets", json=TICKET).status_code == 200
    health = sent(here, "GET", "/healthz")
    assert health.status_code == 200
    assert health.json()["energy"]["status"] == "drifts"
    assert health.json()["energy"]["ratio"] == pytest.approx(2 / 1.5)
    assert metric(here, "leanwatt_spent_to_promised") == pytest.approx(2 / 1.5)
    assert metric(here, "leanwatt_promised_joules_per_ticket") == 1.5
    assert metric(here, 'leanwatt_request_joules_sum{provenance="estimated",route="/v1/tickets"}') == 40
    assert metric(here, 'leanwatt_requests_total{route="/v1/tickets",status="200"}') == 20
    assert metric(here, 'leanwatt_tokens_total{direction="in"}') == 120
    here.batcher.close()
    assert sent(here, "GET", "/healthz").status_code == 503


BAD: list[tuple[str, dict[str, Any], int, str]] = [
    ("/v1/tickets", {"content": b'{"ticket": '}, 400, "no valid JSON"),
    ("/v1/tickets", {"content": b"[" * 3000}, 400, ""),
    ("/v1/tickets", {"content": b'"\xff\xfe"'}, 400, ""),
    ("/v1/tickets", {"content": b'{"ticket": "\\ud800"}'}, 400, "ticket"),
    ("/v1/tickets", {"json": {"ticket": "  \n"}}, 400, "empty"),
    ("/v1/tickets", {"json": {"ticket": 7}}, 400, "ticket"),
    ("/v1/tickets", {"json": {"tickets": "SECRET"}}, 400, "ticket"),
    ("/v1/tickets", {"json": {"ticket": "x", "model": "gpt"}}, 404, "There is one model here: 'tiny'"),
    ("/v1/tickets", {"json": {"ticket": "x" * 5000}}, 413, "4096 bytes"),
    ("/v1/completions", {"json": {"model": "tiny", "prompt": "SECRET " * 400}}, 400, "256 is the most"),
    ("/v1/completions", {"json": {"model": "tiny", "prompt": "x", "max_tokens": 65}}, 400, "at most 64"),
    ("/v1/completions", {"json": {"model": "tiny", "prompt": "x", "max_tokens": 0}}, 400, "max_tokens"),
    ("/v1/completions", {"json": {"model": "tiny", "prompt": "x", "temperature": 0.7}}, 400, "temperature"),
    ("/v1/completions", {"json": {"model": "tiny", "prompt": "x", "tools": []}}, 400, "body: unknown field"),
    ("/v1/tickets", {"json": {"ticket": "x", "SECRET": 1}}, 400, "body: unknown field"),
    (
        "/v1/chat/completions",
        {"json": {"model": "tiny", "messages": [{"role": "user", "content": "x", "SECRET": 1}]}},
        400,
        "messages.0: unknown field",
    ),
    ("/v1/completions", {"json": {"model": "other", "prompt": "x"}}, 404, "one model"),
    ("/v1/chat/completions", {"json": {"model": "tiny", "messages": []}}, 400, "messages"),
    ("/v1/chat/completions", {"json": {"model": "tiny", "messages": [{"role": "cat", "content": ""}]}}, 400, "role"),
    ("/v1/feedback", {"json": {"ticket": "x", "is_right": True, "cause": "moon"}}, 400, "none of the model's causes"),
    ("/v1/nothing", {"json": {}}, 404, "no such path"),
    ("/v1/models", {"json": {}}, 405, "Not Allowed"),
]


@pytest.mark.parametrize(("path", "what", "status", "words"), BAD)
def test_what_is_wrong_gets_its_status_and_leaks_nothing(
    path: str, what: dict[str, Any], status: int, words: str, server: Callable[..., Server]
) -> None:
    here = server()
    headers = {"content-type": "application/json"}
    reply = sent(here, "POST", path, headers=headers, **what)
    assert reply.status_code == status, reply.text
    message = reply.json()["error"]["message"]
    assert words in message
    assert "SECRET" not in reply.text
    assert "Traceback" not in reply.text
    assert sent(here, "POST", "/v1/tickets", json=TICKET).status_code == 200, "the server stays up"


def test_an_engine_that_fails_is_a_500_without_its_words(
    server: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    here = server()
    reply = sent(here, "POST", "/v1/tickets", json={"ticket": "poison"})
    assert reply.status_code == 500
    assert "secret" not in reply.text
    body = {"model": "tiny", "prompt": "poison", "stream": True}
    streamed = sent(here, "POST", "/v1/completions", json=body)
    assert '"type": "server_error"' in streamed.text
    assert "secret" not in streamed.text
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert "poison" not in said
    assert metric(here, 'leanwatt_requests_total{route="/v1/tickets",status="500"}') == 1
    assert sent(here, "POST", "/v1/tickets", json=TICKET).status_code == 200


def test_only_keys_open_the_door(server: Callable[..., Server], tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    key = keys.add("noc")
    here = server(terms=Terms(keys, Pace(3), 4096))
    for headers in ({}, {"authorization": "Bearer lw-wrong"}, {"authorization": f"Basic {key}"}):
        for path in ("/v1/models", "/metrics", "/v1/energy", "/nothing"):
            reply = sent(here, "GET", path, headers=headers)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
    assert sent(here, "GET", "/healthz").status_code == 200
    assert sent(here, "GET", "/").status_code == 200
    mine = {"authorization": f"Bearer {key}"}
    statuses = [sent(here, "GET", "/v1/models", headers=mine) for _ in range(4)]
    assert [reply.status_code for reply in statuses] == [200, 200, 200, 429]
    assert statuses[-1].headers["retry-after"] == "20"
    assert statuses[-1].json()["error"]["code"] == "rate_limit_exceeded"


def test_a_full_queue_is_a_429_with_retry_after(server: Callable[..., Server]) -> None:
    here = server(Echo(seconds=0.05), rules=Rules(1, 0.0, queue=2))

    async def crowd() -> list[httpx2.Response]:
        async with client_of(here) as client:
            return await asyncio.gather(*(client.post("/v1/tickets", json=TICKET) for _ in range(12)))

    replies = asyncio.run(crowd())
    refused = [reply for reply in replies if reply.status_code == 429]
    assert {reply.status_code for reply in replies} == {200, 429}
    assert len(replies) - len(refused) == here.batcher.answered
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    stream = {"model": "tiny", "prompt": "x", "stream": True}
    here.batcher._rules = Rules(1, 0.0, queue=0)
    assert sent(here, "POST", "/v1/completions", json=stream).status_code == 429, "also where it would stream"


def test_what_takes_too_long_is_a_504(server: Callable[..., Server]) -> None:
    here = server(Echo(seconds=0.5), timeout_seconds=0.05)
    assert sent(here, "POST", "/v1/tickets", json=TICKET).status_code == 504
    stream = {"model": "tiny", "prompt": "x", "stream": True}
    assert '"code": "timeout"' in sent(here, "POST", "/v1/completions", json=stream).text


@pytest.mark.parametrize("stream", [False, True])
def test_what_nobody_waited_for_was_spent_all_the_same(stream: bool, server: Callable[..., Server]) -> None:
    here = server(Echo(seconds=0.3), timeout_seconds=0.05)
    route, body = "/v1/completions", {"model": "tiny", "prompt": "x", "stream": stream}

    async def gives_up() -> int:
        async with client_of(here) as client:
            reply = await client.post(route, json=body)
            await asyncio.to_thread(here.batcher.close)
            return reply.status_code

    assert asyncio.run(gives_up()) == (200 if stream else 504)
    assert (here.desk.books.day().answers, here.desk.books.day().joules) == (1, {"estimated": 1.0})
    assert metric(here, f'leanwatt_request_joules_sum{{provenance="estimated",route="{route}"}}') == 1
    assert metric(here, 'leanwatt_tokens_total{direction="out"}') == 2


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_waited_for_is_booked_once(stream: bool, server: Callable[..., Server]) -> None:
    here = server()
    for _ in range(3):
        sent(here, "POST", "/v1/completions", json={"model": "tiny", "prompt": "x", "stream": stream})
    assert (here.desk.books.day().answers, here.desk.books.day().joules) == (3, {"estimated": 3.0})
    sent(here, "POST", "/v1/completions", json={"model": "tiny", "prompt": "poison", "stream": stream})
    assert here.desk.books.day().answers == 3, "what failed was not answered"


def test_who_gives_up_while_waiting_is_withdrawn(server: Callable[..., Server]) -> None:
    here = server(Echo(seconds=0.3), rules=Rules(1, 0.0), timeout_seconds=0.05)

    async def crowd() -> list[httpx2.Response]:
        async with client_of(here) as client:
            return await asyncio.gather(*(client.post("/v1/tickets", json=TICKET) for _ in range(4)))

    assert [reply.status_code for reply in asyncio.run(crowd())] == [504] * 4
    here.batcher.close()
    assert (here.batcher.accepted, here.batcher.answered, here.batcher.withdrawn) == (4, 1, 3)
    assert here.desk.books.day().answers == 1


def test_how_many_wait_and_how_long_requests_took_are_told(server: Callable[..., Server]) -> None:
    here = server(Echo(seconds=0.2), rules=Rules(1, 0.0))

    async def crowd() -> list[float]:
        """What the queue says while the engine is at the first of four."""
        async with client_of(here) as client:
            asked = [asyncio.create_task(client.post("/v1/tickets", json=TICKET)) for _ in range(4)]
            while here.batcher.accepted < 4 or here.batcher.waiting == 4:
                await asyncio.sleep(0.001)
            said = (await client.get("/metrics")).text
            await asyncio.gather(*asked)
            return [float(found) for found in re.findall(r"^leanwatt_queue (\S+)$", said, re.MULTILINE)]

    assert asyncio.run(crowd()) == [3]
    assert metric(here, "leanwatt_queue") == 0
    assert metric(here, 'leanwatt_request_seconds_count{route="/v1/tickets"}') == 4
    assert metric(here, 'leanwatt_request_seconds_sum{route="/v1/tickets"}') >= 0.2 + 0.4 + 0.6 + 0.8
    assert metric(here, 'leanwatt_request_seconds_bucket{le="0.1",route="/v1/tickets"}') == 0
    assert metric(here, "leanwatt_queued_seconds_count") == 4


def test_a_body_that_dawdles_or_breaks_off_is_refused(server: Callable[..., Server]) -> None:
    here = server(terms=Terms(None, Pace(1000), 4096, read_seconds=0.05))
    said: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        said.append(message)

    async def never() -> Any:
        await asyncio.sleep(10)

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/v1/tickets", "headers": [], "client": None}
    asyncio.run(here.gate(scope, never, send))
    asyncio.run(here.gate(scope, gone, send))
    assert [message["status"] for message in said if "status" in message] == [408, 400]


def test_other_names_for_this_machine_are_refused(server: Callable[..., Server]) -> None:
    here = server(terms=Terms(None, Pace(1000), 4096, hosts=frozenset({"localhost", "[::1]"})))
    for host, status in (("localhost:8000", 200), ("[::1]:8000", 200), ("evil.example", 403), ("", 403)):
        assert sent(here, "GET", "/v1/models", headers={"host": host}).status_code == status, host


def test_ratings_are_kept_and_taken_back(server: Callable[..., Server]) -> None:
    here = server()
    body = {**TICKET, "said_cause": CAUSES[0], "is_right": False, "cause": CAUSES[1], "response": "spliced"}
    reply = sent(here, "POST", "/v1/feedback", json=body)
    assert reply.status_code == 201
    assert here.desk.feedback is not None
    [kept] = here.desk.feedback.all()
    assert (kept.true_cause, kept.true_response, kept.variant) == (CAUSES[1], "spliced", here.desk.offer.trial.label)
    assert sent(here, "DELETE", f"/v1/feedback/{reply.json()['id']}").status_code == 204
    for number in (reply.json()["id"], 0, -1, 2**63 - 1, 2**63, 99999999999999999999999):
        assert sent(here, "DELETE", f"/v1/feedback/{number}").status_code == 404, number
    assert here.desk.feedback.all() == []
    none = server(feedback=None)
    assert sent(none, "POST", "/v1/feedback", json=body).status_code == 404
    assert sent(none, "GET", "/v1/models").json()["data"][0]["leanwatt"]["rating_days"] is None


def test_ratings_go_also_on_a_server_that_nobody_rates(
    server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanwatt.routes.EXPIRE_SECONDS", 0.01)
    here = server()
    assert here.desk.feedback is not None
    file = here.desk.feedback.file
    here.desk.feedback.add(Rating("v", "an old ticket", None, None, is_right=True))

    def changed(command: str) -> list[Any]:
        with closing(sqlite3.connect(file, timeout=10)) as base, base:
            return base.execute(command).fetchall()

    async def run() -> None:
        app = application(here.desk)
        async with app.router.lifespan_context(app):
            ends = time.monotonic() + 10
            while changed("SELECT * FROM ratings") and time.monotonic() < ends:
                await asyncio.sleep(0.01)

    changed("UPDATE ratings SET at = '2020-01-01T00:00:00+00:00'")
    asyncio.run(run())
    assert changed("SELECT * FROM ratings") == []


def test_the_page_may_load_nothing_from_elsewhere(server: Callable[..., Server]) -> None:
    here = server()
    for path in ("/", "/desk/desk.js", "/desk/desk.css"):
        reply = sent(here, "GET", path)
        assert reply.status_code == 200
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert not re.search(r"https?://", reply.text), path
        assert "innerHTML" not in reply.text
    assert sent(here, "GET", "/desk/../provenance.json").status_code == 404


def test_others_may_only_ask_with_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    assert open_to(Settings(keys=keys)) is None, "this machine may ask without"
    with pytest.raises(StudyError, match="leanwatt keys add"):
        open_to(Settings(host="0.0.0.0", keys=keys))
    Keys(keys).add("noc")
    for host in ("0.0.0.0", "127.0.0.1"):
        found = open_to(Settings(host=host, keys=keys))
        assert found is not None
        assert list(found.names()) == ["noc"]


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"queue": 0}, {"timeout_seconds": 0.0}, {"wait_seconds": -1.0}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match="serve"):
        Settings(**wrong)


def test_what_is_no_export_is_said(tmp_path: Path, saved: Callable[[str], Path]) -> None:
    with pytest.raises(StudyError, match="no provenance"):
        verbs.offer(tmp_path)
    folder = folder_of(saved("llama"), tmp_path / "exported")
    assert verbs.offer(folder) == offer_of(folder)
    with pytest.raises(StudyError, match="holds one variant"):
        verbs.offer(folder, variant="x")
    data = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    wrong: list[tuple[Any, str]] = [
        ([], "damaged"),
        ({**data, "prompt_version": 0}, "prompts of version 0"),
        ({key: value for key, value in data.items() if key != "promise"}, "lacks what a server needs"),
        ({**data, "questions": {"a": {"kind": "score"}}}, "does not hold the questions"),
    ]
    for content, words in wrong:
        (folder / "provenance.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(StudyError, match=words):
            verbs.offer(folder)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in ("leanwatt.serve", "leanwatt.routes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'leanwatt\[serve\]'"):
        verbs.serve("study.yaml", Settings())


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    from leanwatt.serve import serve

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be used"):
            serve(offer_of(tmp_path), Settings(port=port))


def test_two_servers_that_load_at_the_same_time_want_one_port_and_the_later_is_told() -> None:
    first = _listening(Settings(port=0))
    settings = Settings(port=first.getsockname()[1])
    with first, _listening(settings) as second:
        _listen(first, 8, settings)
        with pytest.raises(UserError, match=f":{settings.port} cannot be used"):
            _listen(second, 8, settings)


@pytest.fixture(scope="module")
def folder(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(saved("llama"), tmp_path_factory.mktemp("served") / "exported")


def test_a_real_engine_is_opened_warm_and_closed(folder: Path, tmp_path: Path) -> None:
    settings = Settings(ratings=tmp_path / "ratings.sqlite")
    with opened(verbs.offer(folder), settings) as (gate, batcher):
        here = Server(gate, batcher, None)  # type: ignore[arg-type]
        reply = sent(here, "POST", "/v1/tickets", json=TICKET).json()
        assert reply["energy"]["provenance"] == "estimated"
        assert reply["energy"]["joules"] > 0
        assert {each["cause"] for each in reply["causes"]} == set(CAUSES)
        body = {"model": "tiny", "prompt": "site A power", "max_tokens": 12}
        whole = sent(here, "POST", "/v1/completions", json=body).json()["choices"][0]["text"]
        events = sent(here, "POST", "/v1/completions", json={**body, "stream": True}).text.split("\n\n")
        pieces = [json.loads(line[6:]) for line in events if line.startswith("data: {")]
        assert "".join(choice["text"] for event in pieces for choice in event["choices"]) == whole
        figures = dict(line.split(" ") for line in sent(here, "GET", "/metrics").text.splitlines() if line[0] != "#")
        assert float(figures["leanwatt_engine_process_cpu_seconds_total"]) > 0.1, "the engine's process, not ours"
    assert not batcher.is_alive


def test_a_conversation_with_the_tasks_words_is_the_prompt_it_was_tuned_to(encoder: Encoder) -> None:
    asked = FORM.about("alarm at A")["response"]
    prompt = getattr(asked, "prompt")  # noqa: B009
    turns = [("system", prompt.instruction), ("user", f"{prompt.body}\n{prompt.lead}")]
    assert encoder.prompt(encoder.conversation(turns), 8) == encoder.prompt(prompt, 8)
    assert encoder.length(Prompt("", "", "", verbatim=True)) == 1, "the begin token alone"


class Running:
    """`leanwatt serve` in a process of its own."""

    def __init__(self, folder: Path, keys: Path, *words: str) -> None:
        command = [sys.executable, "-m", "leanwatt", "serve", str(folder), "--port", "0", "--keys", str(keys), *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"on (http://\S+)/$", line.strip()):
                self.url = found[1]
                return
        raise AssertionError("".join(self.said))

    def stop(self) -> str:
        """What it says at the end."""
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=60)
        return said


@pytest.fixture(scope="module")
def running(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    key = Keys(keys).add("test")
    found = Running(folder, keys)
    found.key = key  # type: ignore[attr-defined]
    yield found
    if found.process.poll() is None:
        found.stop()


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.key, max_retries=0) as found:  # type: ignore[attr-defined]
        yield found


MESSAGES: list[Any] = [{"role": "system", "content": "Write."}, {"role": "user", "content": "site A\nResolution:"}]


def test_openai_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "leanwatt"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_openai_chats_whole_and_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12, temperature=0)
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 12
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.model_extra is not None
    assert whole.model_extra["energy"]["provenance"] == "estimated"
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_completion_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 3, "it came in pieces"


def test_openai_completes_and_stops(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="power lost", max_tokens=10)
    text = whole.choices[0].text
    assert text
    pieces = client.completions.create(model="tiny", prompt="power lost", max_tokens=10, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == text
    stop = text[len(text) // 2]
    cut = client.completions.create(model="tiny", prompt="power lost", max_tokens=10, stop=stop).choices[0].text
    assert cut == text[: text.index(stop)].strip()


def test_openai_is_told_of_mistakes_in_its_own_way(client: openai.OpenAI, running: Running) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=MESSAGES, n=3)
    assert bad.value.param == "n"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt="x " * 500)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="lw-wrong").models.list()
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model="tiny", prompt="x" * 2_000_000)
    assert large.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="tiny", prompt="x", temperature=1.3)
    assert running.process.poll() is None


def test_sigterm_under_load_loses_no_accepted_request(folder: Path, tmp_path: Path) -> None:
    server, replies = Running(folder, tmp_path / "none.json", "--rate", "1000000"), []
    stopping = threading.Event()

    def load(number: int) -> None:
        stream = {"model": "tiny", "prompt": f"site {number}", "max_tokens": 8, "stream": True}
        what = ("/v1/completions", stream) if number % 3 else ("/v1/tickets", {"ticket": f"site {number} power lost"})
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            while True:
                try:
                    reply = client.post(what[0], json=what[1])
                except httpx2.TransportError:
                    assert stopping.is_set(), "nobody is cut off before it stops"
                    return
                assert what[1] is not stream or reply.text.endswith("data: [DONE]\n\n"), "no stream breaks off"
                replies.append(reply.status_code)

    clients = [threading.Thread(target=load, args=(number,)) for number in range(12)]
    for each in clients:
        each.start()
    while len(replies) < 30:
        time.sleep(0.01)
    stopping.set()
    said = server.stop()
    for each in clients:
        each.join(60)
    assert server.process.returncode == 0
    [(accepted, answered)] = re.findall(r"Accepted (\d+) requests, and answered (\d+)\.", said)
    assert set(replies) == {200}
    assert len(replies) == int(accepted) == int(answered) >= 30
    assert "Traceback" not in said


def test_there_are_only_so_many_connections(folder: Path, tmp_path: Path) -> None:
    server = Running(folder, tmp_path / "none.json", "--queue", "1")
    host, port = server.url.removeprefix("http://").split(":")
    with ExitStack() as open_ones:
        for _ in range(1 + SPARE_CONNECTIONS):
            open_ones.enter_context(socket.create_connection((host, int(port)), timeout=10))
        extra = open_ones.enter_context(socket.create_connection((host, int(port)), timeout=10))
        assert extra.recv(4096).startswith(b"HTTP/1.1 503")
    ends = time.monotonic() + 10
    while httpx2.get(f"{server.url}/healthz").status_code != 200:
        assert time.monotonic() < ends, "there is room again"
    server.stop()
