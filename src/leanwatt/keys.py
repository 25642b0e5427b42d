"""Keys of a server: shown once when made, kept as hashes in a file that only its owner can read."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leanwatt.errors import StoreError, StudyError, not_among

PREFIX = "lw-"


def default_file() -> Path:
    """Where keys are kept unless told: `LEANWATT_KEYS`, or the user's configuration."""
    named = os.environ.get("LEANWATT_KEYS")
    return Path(named) if named else Path.home() / ".config" / "leanwatt" / "keys.json"


@dataclass(frozen=True)
class Keys:
    """The keys in one file. A key is 256 random bits, so that a plain SHA-256 of it cannot be searched back."""

    file: Path
    _seen: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def names(self) -> dict[str, str]:
        """Name -> when it was made. Raises StoreError for a damaged file."""
        return {name: str(about["made"]) for name, about in self._read().items()}

    def add(self, name: str) -> str:
        """A new key; its text is nowhere kept. Raises StudyError for a name that is taken or unfit."""
        if not re.fullmatch(r"[A-Za-z0-9._@-]{1,64}", name):
            raise StudyError(f"keys: got the name {name!r}; 1 to 64 letters, digits and . _ @ - are allowed.")
        found = self._read()
        if name in found:
            raise StudyError(f"keys: '{name}' is there already. Remove it first, or choose another name.")
        key = PREFIX + secrets.token_urlsafe(32)
        self._write({**found, name: {"sha256": _hash(key), "made": datetime.now(UTC).isoformat(timespec="seconds")}})
        return key

    def remove(self, name: str) -> None:
        """Raises StudyError where there is none of that name."""
        found = self._read()
        if name not in found:
            raise StudyError(not_among(f"the keys of {self.file}", name, found))
        del found[name]
        self._write(found)

    def owner(self, key: str) -> str | None:
        """Whose key it is; None for a key that is none. Takes equally long for all of them."""
        mine, found = _hash(key), None
        for name, theirs in self._hashes().items():
            if hmac.compare_digest(mine, theirs):
                found = name
        return found

    def _hashes(self) -> dict[str, str]:
        """Read anew only when the file has changed: a key that is removed stops working at once."""
        found = self.file.stat() if self.file.exists() else None
        stamp = found and (found.st_mtime_ns, found.st_ino, found.st_size)  # Two changes may be within one tick.
        if "hashes" not in self._seen or self._seen["stamp"] != stamp:
            self._seen["hashes"] = {name: str(about["sha256"]) for name, about in self._read().items()}
            self._seen["stamp"] = stamp
        hashes: dict[str, str] = self._seen["hashes"]
        return hashes

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.file.exists():
            return {}
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            return {name: {"sha256": about["sha256"], "made": about["made"]} for name, about in found.items()}
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise StoreError(f"{self.file}: is no file of keys. Move it away, and add keys anew.") from error

    def _write(self, found: dict[str, dict[str, Any]]) -> None:
        """Readable by its owner alone, from the first byte on."""
        draft = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as to:
                json.dump(found, to, indent=1)
            draft.replace(self.file)
        except OSError as error:
            raise StoreError(f"{self.file}: cannot be written ({error.strerror}).") from error


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
