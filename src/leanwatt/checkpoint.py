"""Checkpoints of a training: all that decides the next step, so that a killed run ends as if it had not been."""

from __future__ import annotations

import os
import pickle
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leanwatt.errors import StoreError

SECONDS_BETWEEN = 30.0
"""A kill loses no more than this, and the time of one step and one look."""
FILE = "checkpoint.pt"


class Checkpoint:
    """The newest state of one training, in a folder of its own; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, identity: str) -> None:
        self._path = folder / FILE if folder else None
        self._identity = identity
        """Of everything that must be the same for a state to be gone on from."""
        self._last = time.monotonic()

    def load(self) -> Mapping[str, Any] | None:
        """The state that was kept last; None where there is none, or it is of another training."""
        import torch

        if self._path is None or not zipfile.is_zipfile(self._path):
            return None
        try:
            state = torch.load(self._path, weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError):
            return None  # Not ours, or of another version.
        return state if isinstance(state, dict) and state.get("identity") == self._identity else None

    def offer(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Keep this state if it is time for it. Raises StoreError where it cannot be written."""
        if self._path is not None and time.monotonic() - self._last >= SECONDS_BETWEEN:
            self.keep(state())
            self._last = time.monotonic()

    def keep(self, state: Mapping[str, Any]) -> None:
        """Written beside, then renamed: a kill in between leaves the state before."""
        import torch

        if self._path is None:
            return
        draft = self._path.with_name(f"{FILE}.{os.getpid()}")
        try:
            torch.save({**state, "identity": self._identity}, draft)
            draft.replace(self._path)
        except (OSError, RuntimeError) as error:
            draft.unlink(missing_ok=True)
            raise StoreError(f"{self._path}: the checkpoint cannot be written ({error}).") from error
