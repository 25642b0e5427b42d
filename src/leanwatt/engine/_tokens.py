"""A tokenizer without transformers and torch, so that an engine of its own starts in a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROBES = (
    "07:12 PWR-ALM SITE-23; LINK-DOWN R3-R4 (minor), cell 5/2 unreachable",
    "  two  blanks,\ttabs\nand lines; 100 % of naïve café users, 你好 🙂",
    "Root cause:",
    " mains power loss",
)
"""Texts on which it must agree with transformers before it is used."""


class Tokens:
    """The part of a tokenizer that prompts need, on the `tokenizers` library alone."""

    chat_template = None

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._inner.no_padding()
        self._inner.no_truncation()
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self.eos_token_id = self._id(config.get("eos_token"))
        self.bos_token_id = self._id(config.get("bos_token"))

    @staticmethod
    def open(folder: Path, *, plain: bool) -> Any:
        """This one where it agrees (`plain`), else transformers' own."""
        if plain:
            return Tokens(folder)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    @staticmethod
    def agrees(folder: Path, other: Any) -> bool:
        """Whether this tokenizer gives the same tokens and texts as transformers' tokenizer of the same folder."""
        if getattr(other, "chat_template", None) or not (folder / "tokenizer.json").is_file():
            return False
        mine = Tokens(folder)
        if (mine.eos_token_id, mine.bos_token_id) != (other.eos_token_id, other.bos_token_id):
            return False
        for text in PROBES:
            ids = list(mine(text)["input_ids"])
            if ids != list(other(text, add_special_tokens=False)["input_ids"]):
                return False
            if mine.decode(ids, skip_special_tokens=True) != other.decode(ids, skip_special_tokens=True):
                return False
        return True

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": self._inner.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Tokens as text."""
        return str(self._inner.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def _id(self, token: Any) -> int | None:
        text = token.get("content") if isinstance(token, dict) else token
        found: int | None = self._inner.token_to_id(text) if text else None
        return found
