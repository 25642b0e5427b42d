"""How to serve: address, batches, limits, keys and ratings, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leanwatt.errors import StudyError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """How to serve; the defaults suit one machine and its users."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    batch: int | None = None
    """Requests answered at once; None takes the batch size that the variant was weighed at."""
    wait_seconds: float = 0.02
    queue: int = 256
    timeout_seconds: float = 60.0
    per_minute: int = 600
    """Requests of one client."""
    most_tokens: int = 512
    body_bytes: int = 256 * 1024
    keys: Path | None = None
    """File of the keys."""
    ratings: Path | None = None
    """File of the ratings; None takes none."""
    rating_days: int = 90

    def __post_init__(self) -> None:
        """Raises StudyError for what cannot be."""
        least = {"batch": 1, "queue": 1, "per_minute": 1, "most_tokens": 1, "body_bytes": 1024, "rating_days": 1}
        for name, most in least.items():
            value = getattr(self, name)
            if value is not None and value < most:
                raise StudyError(f"serve: {name} is {value}; at least {most} is needed.")
        if self.wait_seconds < 0 or self.timeout_seconds <= 0:
            raise StudyError("serve: times must be above 0.")

    @property
    def is_local(self) -> bool:
        """Only this machine can reach it."""
        return self.host in LOOPBACK
