"""What the tests of the Ray executor send to nodes, in a file of its own: their processes start quickly."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from leanwatt.errors import StoreError


def who(item: Any) -> tuple[Any, int, str, bool]:
    """Which process, in which folder, and whether Ray is in it."""
    return item, os.getpid(), os.getcwd(), "ray" in sys.modules


def fall(item: str) -> str:
    if item == "fall":
        os.kill(os.getpid(), signal.SIGSEGV)
    return item


def refuse(item: str) -> None:
    raise StoreError(f"no room for {item}")


def stay(place: str) -> str:
    """Says where it is, and stays there until it may go."""
    Path(place).write_text(f"{os.getpid()}")
    while not Path(f"{place}.go").exists():
        time.sleep(0.05)
    return place


def stamp(_item: Any) -> tuple[float, float]:
    begun = time.time()
    time.sleep(1.0)  # Longer than two processes need to start one after the other.
    return begun, time.time()
