"""Which tokens of a tokenizer are needed, and the same tokenizer without the others: on its JSON, without tensors.

The parts of BPE: a text's tokens are built by merges, lowest rank first. Kept are all tokens that these texts are built
from, intermediate ones too, and every merge between kept tokens. What was the lowest merge before is then still there
and still the lowest, so these texts are encoded as before. Unigram takes the best of all segmentations; the best stays
the best among fewer. Other texts fall into smaller tokens, down to bytes or single characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from leanwatt.errors import RefusedError
from leanwatt.quiet import quiet

_BLANK = "\u2581"
"""What SentencePiece writes for a blank; as bytes it would be decoded as itself."""
_BYTES = frozenset(f"<0x{number:02X}>" for number in range(256))


class Vocabulary:
    """The tokens of a fast tokenizer. Raises RefusedError for what cannot be cut soundly."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise RefusedError("prune vocabulary needs a fast tokenizer (tokenizer.json); this model has a slow one.")
        self.whole: dict[str, Any] = json.loads(backend.to_str())
        self._refuse_odd(self.whole["model"])
        self._is_unigram = self.whole["model"]["type"] == "Unigram"
        pieces = self.whole["model"]["vocab"]
        self.ids: dict[str, int] = {p: i for i, (p, _) in enumerate(pieces)} if self._is_unigram else dict(pieces)
        self._has_bytes = bool(self.whole["model"].get("byte_fallback")) and self.ids.keys() >= _BYTES
        self._ranks = {pair: rank for rank, pair in enumerate(self._merges())}

    @staticmethod
    def _refuse_odd(model: Mapping[str, Any]) -> None:
        if model["type"] not in ("BPE", "Unigram"):
            raise RefusedError(f"prune vocabulary: got a {model['type']} tokenizer; BPE and Unigram can be cut.")
        odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
        if odd:
            raise RefusedError(f"prune vocabulary: cannot cut a BPE tokenizer with {', '.join(odd)}.")

    def needed(self, used: Iterable[int]) -> set[int]:
        """Ids of the tokens `used`, of all that they are built from, of added tokens, and of what any text needs."""
        by_id = {number: token for token, number in self.ids.items()}
        found = set(used) | {token["id"] for token in self.whole["added_tokens"]}
        for number in sorted(found):
            if number in by_id:
                found |= {self.ids[part] for part in self._parts(by_id[number]) if part in self.ids}
        found |= {number for token, number in self.ids.items() if self._is_ground(token)}
        return found | self._anchors()

    def _is_ground(self, token: str) -> bool:
        """What other texts fall back on: bytes where the tokenizer has them all, else every single character."""
        if self._has_bytes:
            return token in _BYTES or token == _BLANK or (len(token) == 1 and token.isascii())
        return len(token) == 1 or token in _BYTES

    def _anchors(self) -> set[int]:
        """The unknown token; of Unigram also the least likely piece, which sets the price of an unknown character."""
        model = self.whole["model"]
        if self._is_unigram:
            scores = [score for _, score in model["vocab"]]
            return {scores.index(min(scores))} | ({model["unk_id"]} if model["unk_id"] is not None else set())
        return {self.ids[model["unk_token"]]} if model.get("unk_token") in self.ids else set()

    def _parts(self, token: str) -> set[str]:
        """All that BPE builds on its way to `token`: the same wherever the token stands in a text."""
        symbols, seen = list(token), set(token)
        while len(symbols) > 1 and self._ranks:
            pairs = enumerate(pairwise(symbols))
            known = [(self._ranks[pair], place) for place, pair in pairs if pair in self._ranks]
            if not known:
                break
            _, place = min(known)
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
            seen.add(symbols[place])
        return seen

    def _merges(self) -> list[tuple[str, str]]:
        merges = self.whole["model"].get("merges", [])
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
        return [(one, other) for one, other in pairs]

    def keep(self, tokenizer: Any, kept: Sequence[int]) -> Any:
        """The same tokenizer with these tokens only, numbered in this order."""
        new = {old: number for number, old in enumerate(kept)}
        cut = json.loads(json.dumps(self.whole))
        cut["added_tokens"] = [{**each, "id": new[each["id"]]} for each in cut["added_tokens"] if each["id"] in new]
        self._cut_model(cut["model"], new)
        _renumber(cut["post_processor"], new)
        if cut["padding"]:
            cut["padding"]["pad_id"] = _place(cut["padding"]["pad_id"], new)
        return _reopened(tokenizer, cut)

    def _cut_model(self, model: dict[str, Any], new: Mapping[int, int]) -> None:
        if self._is_unigram:
            pieces = model["vocab"]
            model["vocab"] = [pieces[old] for old in new if old < len(pieces)]
            model["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
            return
        stay = {token: new[old] for token, old in self.ids.items() if old in new}
        model["vocab"] = stay
        model["merges"] = [
            [one, other] for one, other in self._merges() if one in stay and other in stay and one + other in stay
        ]


def _renumber(processor: Any, new: Mapping[int, int]) -> None:
    """Ids of tokens that are put around every text, wherever a processor keeps them."""
    if isinstance(processor, list):
        for each in processor:
            _renumber(each, new)
    elif isinstance(processor, dict):
        for token in processor.get("special_tokens", {}).values():
            token["ids"] = [_place(old, new) for old in token["ids"]]
        for name in ("sep", "cls"):
            if name in processor:
                processor[name] = [processor[name][0], _place(processor[name][1], new)]
        _renumber(processor.get("processors"), new)


def _place(old: int, new: Mapping[int, int]) -> int:
    if old not in new:
        raise RefusedError(f"prune vocabulary: the tokenizer puts token {old} around texts, which has no embedding.")
    return new[old]


def _reopened(tokenizer: Any, whole: Mapping[str, Any]) -> Any:
    """Saved and opened as transformers would, so that nothing of the old numbers is left in memory."""
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder, quiet():
        tokenizer.save_pretrained(folder)
        place = Path(folder)
        (place / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
        settings = json.loads((place / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)  # Numbers of before; tokenizer.json has the new ones.
        (place / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder)
