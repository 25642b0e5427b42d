"""Takes the pictures of the documentation in Chromium, from a study that was run: `python docs/pictures.py [STUDY]`.

After `make study` it needs nothing but Chromium: the one that LEANWATT_CHROMIUM names, or `chromium` on the PATH.
"""

import argparse
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanwatt import catalog, verbs
from leanwatt.headway import Headway, headway
from leanwatt.plan import check
from leanwatt.runs import read, store_of
from leanwatt.watch import Page

ROOT = Path(__file__).parents[1]
WIDE, PHONE = {"width": 1280, "height": 940}, {"width": 390, "height": 844}
MOST_BYTES = 150_000
"""Of one picture."""
DONE_SHARE = 0.6
"""Of its weighings, where the study that is watched stands."""
SETTLE_MILLISECONDS = 700
SCALE, QUALITY = 1.25, 80
"""Pixels of the picture for one of the page, for sharp letters; and of WebP, to 100."""
EDGE = 12
"""Pixels around a part of a page."""


def main() -> None:
    """Take all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", default="examples/tickets/study.yaml", help="of a finished run")
    parser.add_argument("--out", help="folder of its results, if not the usual one")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "pictures")
    given = parser.parse_args()
    chromium = os.environ.get("LEANWATT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        sys.exit("No Chromium. Install it, or name it in LEANWATT_CHROMIUM.")
    from playwright.sync_api import sync_playwright

    given.to.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        take_report(browser, verbs.report(given.study, given.out), given.to)
        take_desk(browser, given.study, given.out, given.to)
        take_watch(browser, given.study, given.out, given.to)
        browser.close()
    for path in sorted(given.to.glob("*.webp")):
        size = path.stat().st_size
        print(f"{path.name}: {size / 1000:.0f} kB")
        if size > MOST_BYTES:
            sys.exit(f"{path}: more than {MOST_BYTES / 1000:.0f} kB")


def shoot(page: Any, path: Path, part: str = "", *, whole: bool = False) -> None:
    """The window, a part of the page, or the whole of it; as WebP, which playwright's `screenshot` does not write."""
    clip = {"x": 0, "y": page.evaluate("scrollY"), **page.viewport_size}
    if whole:
        clip |= {"y": 0, "height": page.evaluate("document.documentElement.scrollHeight")}
    if part:
        box = page.locator(part).bounding_box()
        clip |= {"x": box["x"] - EDGE, "y": box["y"], "width": box["width"] + 2 * EDGE, "height": box["height"] + EDGE}
    asked = {"format": "webp", "quality": QUALITY, "captureBeyondViewport": True, "clip": clip | {"scale": SCALE}}
    found = page.context.new_cdp_session(page).send("Page.captureScreenshot", asked)
    path.write_bytes(b64decode(found["data"]))


@contextmanager
def opened(browser: Any, url: str, scheme: str = "light", size: dict[str, int] = WIDE) -> Iterator[Any]:
    """A page, drawn."""
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    page.wait_for_function("[...document.querySelectorAll('.plot')].every(each => each.querySelector('.main-svg'))")
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    yield page
    context.close()


def take_report(browser: Any, paths: Any, to: Path) -> None:
    """Its first screen, the plane by night, what the weight decides, and a phone."""
    [html] = [path.resolve() for path in paths if path.suffix == ".html"]
    with opened(browser, html.as_uri()) as page:
        shoot(page, to / "report.webp")
    with opened(browser, html.as_uri(), "dark") as page:
        for button in page.locator(".zoom").all():
            button.click()
        page.wait_for_timeout(SETTLE_MILLISECONDS)
        shoot(page, to / "plane-dark.webp", "#cost-against-quality")
    with opened(browser, html.as_uri()) as page:
        shoot(page, to / "weights.webp", "#if-energy-mattered-more-or-less")
    with opened(browser, html.as_uri(), size=PHONE) as page:
        shoot(page, to / "report-phone.webp")


def take_desk(browser: Any, study: str, out: str | None, to: Path) -> None:
    """A ticket that was answered, by the winner."""
    with served(study, out) as url, opened(browser, url, size={"width": 1280, "height": 800}) as page:
        page.fill("#ticket", a_ticket(study))
        page.click("#go")
        page.wait_for_selector("#answer:not([hidden])")
        page.wait_for_timeout(SETTLE_MILLISECONDS)
        shoot(page, to / "desk.webp", whole=True)
        page.set_viewport_size(PHONE)
        page.emulate_media(color_scheme="dark")
        page.evaluate("document.getElementById('answered').scrollIntoView()")
        page.wait_for_timeout(SETTLE_MILLISECONDS)
        shoot(page, to / "desk-phone.webp")


@contextmanager
def served(study: str, out: str | None) -> Iterator[str]:
    """Where `leanwatt serve` listens."""
    command = [sys.executable, "-m", "leanwatt", "serve", study, "--port", "0", *(["--out", out] if out else [])]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        said = ""
        for line in server.stderr:
            said += line
            if found := re.search(r"http://\S+", line):
                threading.Thread(target=server.stderr.read, daemon=True).start()
                yield found[0]
                return
        sys.exit(f"leanwatt serve did not start:\n{said}")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def a_ticket(study: str) -> str:
    """The last one of the study's data."""
    asked = read(study).tasks[0].settings
    data = asked["data"]
    path = Path(data["path"] if isinstance(data, dict) else data)
    with path.open(encoding="utf-8", newline="") as file:
        return str(list(csv.DictReader(file))[-1][asked["text"]])


def take_watch(browser: Any, study: str, out: str | None, to: Path) -> None:
    """The study as it stood while it was weighed."""
    page = Page(midway(study, out))
    threading.Thread(target=page.serve, daemon=True).start()
    with opened(browser, page.url, size={"width": 820, "height": 760}) as shown:
        shoot(shown, to / "watch.webp", whole=True)
    page.close()


def midway(study: str, out: str | None) -> Callable[[], Headway]:
    """From the records that were there by then."""
    asked = read(study)
    store = store_of(asked, out)
    primaries = {choice.name: catalog.find("tasks", choice.name).primary for choice in asked.tasks}
    every = sorted(store.records(), key=lambda record: str(record.machine.get("utc") or ""))
    weighs = [record for record in every if record.job == "weigh"]
    last = weighs[int(DONE_SHARE * len(weighs))]
    then = [record for record in every if str(record.machine.get("utc")) <= str(last.machine.get("utc"))]
    found = headway(check(asked, store).needs, primaries, then)
    return lambda: replace(found)


if __name__ == "__main__":
    main()
