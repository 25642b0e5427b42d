"""A running study, watched from elsewhere: in a terminal, or as a page of this machine. Records are only read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from leanwatt.headway import Headway, energy_words
from leanwatt.store import Store

EVERY_SECONDS = 2.0
PAGES = {
    "/": ("watch.html", "text/html"),
    "/watch.js": ("watch.js", "text/javascript"),
    "/desk.css": ("desk.css", "text/css"),
}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:"

Look = Callable[[], Headway]


def ended(found: Headway, store: Store) -> Headway:
    """The same, with stage `done` where the report was written after the last record."""
    report = store.folder / "report" / "report.html"
    newest = max((path.stat().st_mtime for path in (store.folder / "records").glob("*.json")), default=0.0)
    is_done = found.stage == "confirming" and report.is_file() and report.stat().st_mtime >= newest
    return replace(found, stage="done") if is_done else found


def follow(look: Look, *, once: bool = False) -> None:
    """Show it in the terminal until it is done, or once where nobody looks."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    found = look()
    if once or not console.is_terminal:
        console.print(table(found))
        return
    with Live(table(found), console=console, auto_refresh=False) as live:
        while found.stage != "done":
            time.sleep(EVERY_SECONDS)
            found = look()
            live.update(table(found), refresh=True)


def table(found: Headway) -> Any:
    """For rich."""
    from rich.markup import escape
    from rich.table import Table

    grid = Table(title=escape(f"{found.study}: {found.stage}"), show_header=False, title_justify="left")
    for job, count in found.counts.items():
        grid.add_row(job, str(count.done) if count.wanted is None else f"{count.done} of {count.wanted}")
    if found.failed:
        grid.add_row("failed or refused", str(found.failed))
    if found.spent is not None:
        grid.add_row("energy so far", energy_words(found.spent))
        grid.add_row("CPU time so far", f"{found.spent.cpu_seconds:.0f} CPU-s in {found.spent.seconds:.0f} s")
    for graded in found.best:
        quality = ", ".join(f"{task} {value:.3f}" for task, value in graded.quality.items())
        grid.add_row(quality, escape(graded.label))
    for words in found.left():
        grid.add_row("left", words)
    grid.add_row("latest", escape(found.latest))
    return grid


class Page:
    """The same as a page, on loopback only; `url` says where."""

    def __init__(self, look: Look, port: int = 0) -> None:
        folder = Path(__file__).parent / "desk"
        files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in PAGES.items()}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.headers.get("host", "").rpartition(":")[0]
                if name not in ("127.0.0.1", "localhost"):
                    self.send_error(HTTPStatus.FORBIDDEN)
                elif self.path == "/state":
                    self._send(json.dumps(look().data(), allow_nan=False).encode(), "application/json")
                elif self.path in files:
                    self._send(*files[self.path])
                else:
                    self.send_error(HTTPStatus.NOT_FOUND)

            def _send(self, body: bytes, kind: str) -> None:
                self.send_response(HTTPStatus.OK)
                fields = {"content-type": kind, "content-length": str(len(body)), "content-security-policy": POLICY}
                for name, value in fields.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody needs to know who looks."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def serve(self) -> None:
        """Until Ctrl-C, or `close` from another thread."""
        self._server.serve_forever()

    def close(self) -> None:
        """End `serve`."""
        self._server.shutdown()
        self._server.server_close()
