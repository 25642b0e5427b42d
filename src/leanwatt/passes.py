"""Prefill and decode at fixed lengths, on tokens that mean nothing: what a shape's windows repeat."""

from typing import Any


class Passes:
    """The two phases of one backend, on random tokens that differ from pass to pass."""

    def __init__(self, backend: Any, batch: int, tokens: tuple[int, int], vocabulary: int) -> None:
        """`tokens`: of a prompt, and written after it. A vocabulary has at least 4 words, the first 3 special."""
        import numpy as np

        self._backend, self._batch, self._vocabulary = backend, batch, vocabulary
        self._prompt, self._answer = tokens
        self._dice = np.random.default_rng(0)

    def prefill(self) -> None:
        """Read a batch of prompts anew."""
        import numpy as np

        rows, width = self._batch, self._prompt
        mask = np.broadcast_to(np.tril(np.ones((width, width), bool)), (rows, width, width))
        positions = np.broadcast_to(np.arange(width), (rows, width))
        self._backend.prefill(self._tokens(width), positions.copy(), mask.copy(), 1)

    def decode(self) -> None:
        """Write after each prompt, one token at a time."""
        import numpy as np

        rows, width = self._batch, self._prompt
        for place in range(width, width + self._answer):
            at = np.full((rows, 1), place)
            self._backend.step(self._tokens(1), at, np.ones((rows, 1, place + 1), bool))

    def _tokens(self, width: int) -> Any:
        return self._dice.integers(3, self._vocabulary, (self._batch, width))
