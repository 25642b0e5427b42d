"""The page in a real Chromium: the whole path, hostile tickets, a phone's width, the keyboard alone."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from offered import CAUSES, PROMISE, Echo, Even, offer_of

from leanwatt.batching import Batcher, Rules
from leanwatt.feedback import Feedback
from leanwatt.gate import Gate, Terms
from leanwatt.gauges import Gauges
from leanwatt.keys import Keys
from leanwatt.pace import Pace
from leanwatt.promise import Books
from leanwatt.prompt import Encoder
from leanwatt.routes import Desk, application

MARKUP = '<img src=x onerror="window.hit=1"><script>window.hit=1</script> & "quoted" </textarea><b>bold</b>'


@dataclass
class Site:
    """A running server with an engine that repeats the ticket, so that whatever is in a ticket comes back."""

    url: str
    feedback: Feedback
    key: str


@pytest.fixture(scope="module")
def site(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Site]]:
    """Real sockets; with or without keys."""
    import uvicorn
    from transformers import AutoTokenizer

    encoder = Encoder(AutoTokenizer.from_pretrained(tokenizer_folder), 256)
    running: list[tuple[Any, threading.Thread, Batcher]] = []

    def start(*, with_keys: bool = False) -> Site:
        folder = tmp_path_factory.mktemp("site")
        keys = Keys(folder / "keys.json")
        key = keys.add("noc")
        batcher, books = Batcher(Echo(), Even(), Rules(4, 0.0)), Books(PROMISE, "m1")
        feedback = Feedback(folder / "ratings.sqlite", 30)
        desk = Desk(offer_of(folder), encoder, batcher, books, Gauges(batcher, books), feedback, 64, 20.0)
        gate = Gate(application(desk), Terms(keys if with_keys else None, Pace(1000), 65536), desk.gauges.seen)
        server = uvicorn.Server(uvicorn.Config(gate, port=0, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.01)
        running.append((server, thread, batcher))
        port = server.servers[0].sockets[0].getsockname()[1]
        return Site(f"http://127.0.0.1:{port}", feedback, key)

    yield start
    for server, thread, batcher in running:
        server.should_exit = True
        thread.join(10)
        batcher.close()


@pytest.fixture(scope="module")
def opened(site: Callable[..., Site]) -> Site:
    return site()


def until(page: Any, claim: str) -> None:
    """Wait until a claim holds. Playwright's own waiting compiles code, which the page's policy forbids."""
    ends = time.monotonic() + 20
    while not page.evaluate(claim):
        assert time.monotonic() < ends, f"never so: {claim}; it says {page.inner_text('#said')!r}"
        time.sleep(0.02)


def ask(page: Any, ticket: str) -> None:
    page.fill("#ticket", ticket)
    page.click("#go")
    until(page, "document.getElementById('said').textContent === 'Answered.'")


def test_the_whole_path(page: Any, opened: Site) -> None:
    page.goto(opened.url)
    until(page, "document.getElementById('model').textContent !== ''")
    ask(page, "site A power lost")
    assert page.locator("#causes .name").all_inner_texts() == list(CAUSES)
    assert page.locator("#causes .share").first.inner_text().endswith("%")
    assert page.input_value("#draft") == "site A power lost"
    assert "2 J, between 1 J and 4 J (estimated)" in page.inner_text("#spent")
    assert "1 answer, 2 J estimated" in page.inner_text("#day")
    page.fill("#draft", "replaced the fuse at A")
    page.click("#copy")
    assert page.evaluate("navigator.clipboard.readText()") == "replaced the fuse at A"
    page.select_option("#cause", CAUSES[1])
    page.click("#wrong")
    page.wait_for_selector("#undo:not([hidden])")
    [kept] = opened.feedback.all()
    assert (kept.ticket, kept.said_cause, kept.cause, kept.is_right) == (
        "site A power lost",
        CAUSES[0],
        CAUSES[1],
        False,
    )
    assert (kept.said_response, kept.response) == ("site A power lost", "replaced the fuse at A")
    assert page.is_disabled("#right"), "rated once"
    page.click("#undo")
    until(page, "document.getElementById('said').textContent.startsWith('Taken back')")
    assert opened.feedback.all() == []
    page.click("#right")
    page.wait_for_selector("#undo:not([hidden])")
    assert opened.feedback.all()[0].is_right
    opened.feedback.clear()


def test_a_rating_is_kept_once_and_belongs_to_its_answer(page: Any, opened: Site) -> None:
    """Replies are held back, so that a second click and a new answer come before them."""
    held: list[Any] = []

    def let_go() -> None:
        before = len(opened.feedback.all())
        ends = time.monotonic() + 20
        while not held:
            assert time.monotonic() < ends, "nothing was sent"
            page.wait_for_timeout(10)
        held.pop(0).continue_()
        while len(opened.feedback.all()) == before:
            assert time.monotonic() < ends, "nothing was kept"
            page.wait_for_timeout(10)

    opened.feedback.clear()
    page.goto(opened.url)
    ask(page, "the first")
    page.route("**/v1/feedback", lambda route: held.append(route))  # noqa: PLW0108 - a bound method is refused
    page.evaluate("() => { for (const id of ['right', 'right', 'wrong']) at(id).click(); }")
    assert page.is_disabled("#right") and page.is_disabled("#wrong"), "before there is a reply"
    ask(page, "the second")
    let_go()
    page.wait_for_timeout(200)
    assert held == [], "one click, one rating"
    assert page.is_hidden("#undo"), "the second is not rated"
    assert page.is_enabled("#right")
    page.click("#wrong")
    let_go()
    page.wait_for_selector("#undo:not([hidden])")
    assert [(each.ticket, each.is_right) for each in opened.feedback.all()] == [
        ("the first", True),
        ("the second", False),
    ]
    page.unroute("**/v1/feedback")
    page.evaluate("() => { at('undo').click(); at('undo').click(); }")
    until(page, "document.getElementById('said').textContent.startsWith('Taken back')")
    assert [each.ticket for each in opened.feedback.all()] == ["the first"], "each has a number of its own"
    page.route("**/v1/feedback", lambda route: route.abort())
    page.click("#wrong")
    until(page, "document.getElementById('said').textContent.includes('cannot be reached')")
    assert page.is_enabled("#wrong"), "what failed can be tried again"
    assert page.evaluate("document.activeElement.id") == "wrong"
    opened.feedback.clear()


def test_markup_in_a_ticket_stays_text(page: Any, opened: Site) -> None:
    page.goto(opened.url)
    ask(page, MARKUP)
    assert page.input_value("#draft") == MARKUP, "the engine said it back, and it is text"
    assert page.evaluate("window.hit") is None
    assert page.locator("#answer img, #answer script, #answer b").count() == 0


def test_markup_in_causes_and_errors_stays_text(page: Any, opened: Site) -> None:
    page.goto(opened.url)
    page.evaluate(
        "text => { say(text); state.answer = { causes: [{ cause: text, probability: 1 }] }; showCauses(); }", MARKUP
    )
    assert page.inner_text("#said") == MARKUP
    assert page.text_content("#causes .name") == MARKUP
    assert page.evaluate("window.hit") is None


def test_inline_scripts_are_not_run_at_all(page: Any, opened: Site) -> None:
    page.goto(opened.url)
    page.evaluate(
        "() => { const it = document.createElement('script'); it.textContent = 'window.hit = 1'; "
        "document.body.append(it); }"
    )
    assert page.evaluate("window.hit") is None, "the policy forbids it"


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_it_fits_a_phone(width: int, page: Any, opened: Site) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(opened.url)
    ask(page, "site-A-" * 40)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    for button in ("#go", "#copy", "#right", "#wrong"):
        box = page.locator(button).bounding_box()
        assert box["height"] >= 44, "a thumb can hit it"
        assert box["x"] + box["width"] <= width


def test_the_keyboard_is_enough(page: Any, opened: Site) -> None:
    page.goto(opened.url)
    until(page, "document.getElementById('model').textContent !== ''")

    def focused() -> str:
        return str(page.evaluate("document.activeElement.id"))

    def tab_to(wanted: str) -> None:
        for _ in range(15):
            if focused() == wanted:
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{wanted} cannot be reached; at {focused()}")

    tab_to("ticket")
    page.keyboard.type("site B link down")
    page.keyboard.press("Control+Enter")
    until(page, "document.activeElement.id === 'answered'")
    tab_to("draft")
    page.keyboard.press("Control+A")
    page.keyboard.type("spliced")
    tab_to("copy")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('said').textContent === 'Copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == "spliced"
    tab_to("right")
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'undo'")
    assert [each.response for each in opened.feedback.all()] == ["spliced"]
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'right'")
    assert opened.feedback.all() == []
    tab_to("right")


def test_every_control_has_a_name(page: Any, opened: Site) -> None:
    page.goto(opened.url)
    ask(page, "site A")
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea')]"
        ".filter(e => !e.textContent.trim() && !e.labels?.length).map(e => e.id)"
    )
    assert nameless == []


def test_a_file_is_read(page: Any, opened: Site, tmp_path: Path) -> None:
    (tmp_path / "ticket.txt").write_text("alarm at Zürich", encoding="utf-8")
    page.goto(opened.url)
    page.set_input_files("#file", tmp_path / "ticket.txt")
    until(page, "document.getElementById('ticket').value === 'alarm at Zürich'")


def test_a_failure_is_said_and_the_page_goes_on(page: Any, opened: Site) -> None:
    page.goto(opened.url)
    page.fill("#ticket", "poison")
    page.click("#go")
    until(page, "document.getElementById('said').textContent.includes('failed')")
    page.route("**/v1/tickets", lambda route: route.abort())
    page.click("#go")
    until(page, "document.getElementById('said').textContent.includes('cannot be reached')")
    page.unroute("**/v1/tickets")
    ask(page, "site A")


def test_a_key_opens_the_page(page: Any, site: Callable[..., Site]) -> None:
    locked = site(with_keys=True)
    page.goto(locked.url)
    page.wait_for_selector("#door:not([hidden])")
    assert page.is_hidden("#ask")
    page.fill("#key", "lw-wrong")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('said').textContent.includes('A key is needed')")
    page.fill("#key", locked.key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#ask:not([hidden])")
    ask(page, "site A")
    assert page.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"


def test_the_watch_page_follows_a_study(page: Any) -> None:
    """Its own small server; what it shows changes with the records, and names stay text."""
    from invented import PRIMARIES, world

    from leanwatt.headway import Graded, headway
    from leanwatt.watch import Page

    here = world()
    begun = headway(here.needs(), PRIMARIES, [r for r in here.records() if r.job == "make"])
    graded = headway(here.needs(), PRIMARIES, [r for r in here.records() if r.job != "weigh"])
    states = [replace(begun, best=(Graded(MARKUP, {"root_cause": 0.8}),))] * 2 + [graded] * 50
    watched = Page(lambda: states.pop(0))
    thread = threading.Thread(target=watched.serve, daemon=True)
    thread.start()
    page.set_viewport_size({"width": 320, "height": 700})
    page.goto(watched.url)
    claim = "document.getElementById('stage').textContent === {!r}"
    until_stage = ("making and grading", "weighing")
    for stage in until_stage:
        ends = time.monotonic() + 20
        while not page.evaluate(claim.format(stage)):
            assert time.monotonic() < ends, stage
            time.sleep(0.02)
        if stage == until_stage[0]:
            assert page.text_content("#best .name") == MARKUP
            assert page.evaluate("window.hit") is None
    assert "4 of 4" in page.inner_text("#counts")
    assert "measured" in page.inner_text("#facts")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    watched.close()
    thread.join(5)
