"""Tiny models, tiny tickets, temporary folders: no test needs a network, a GPU or a download."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("LEANWATT_QUIET", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # Tensors are tiny, and several tests run at once.
# What tests weigh is never looked at: they wait for nobody's measurement, and nobody's waits for them.
os.environ["LEANWATT_LEASES"] = tempfile.mkdtemp(prefix="leanwatt-leases-")
# A shell's job in the background ignores Ctrl-C, and so would what tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = (
    "Name the root cause of this fault Write note that closes ticket Root Resolution power link lost at site A B C D "
    "mains failure fibre cut alarm first then replaced reset in cell router down up"
)
FAMILIES = ("llama", "gpt2")
"""With every method; the others (`EVERY_FAMILY` of matrix.py) with each once."""


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer of 300 tokens."""
    from leanwatt.starter import tokenizer_of

    return tokenizer_of([WORDS] * 5, 300)


def untraced() -> dict[str, str]:
    """The environment without coverage, for programs that are to be interrupted.

    Where coverage follows greenlets, its tracer asks a WeakKeyDictionary at each call and clears whatever error comes
    of that, a Ctrl-C that arrives meanwhile included: the program then goes on as if nobody had pressed it.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def pytest_sessionfinish() -> None:
    """Leases go. A worker's coverage is saved: once it ends it has ten seconds, all of which a cluster may need."""
    shutil.rmtree(os.environ["LEANWATT_LEASES"], ignore_errors=True)
    coverage = sys.modules.get("coverage")
    current = coverage.Coverage.current() if coverage is not None else None
    if current is not None and "PYTEST_XDIST_WORKER" in os.environ:
        current.stop()
        current.save()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tokenizer, saved."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_module(family: str) -> Any:
    """A random model with two blocks."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if family == "gpt2":
        sizes |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 64}
    else:
        sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
        sizes |= {"ffn_dim": 64, "word_embed_proj_dim": 32} if family == "opt" else {"intermediate_size": 64}
        if family not in ("opt", "gpt_neox"):
            sizes |= {"num_key_value_heads": 2}
        if family == "qwen3" or family.startswith("gemma"):
            sizes |= {"head_dim": 8}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()


def save_tiny(family: str, folder: Path) -> None:
    """A tiny random model of a family, with the tiny tokenizer."""
    tiny_module(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="session")
def saved(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model of a family."""
    from transformers import AutoTokenizer

    folders: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            tiny_module(family).save_pretrained(folders[family])
            AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folders[family])
        return folders[family]

    return make


@pytest.fixture
def context(tmp_path: Path) -> Any:
    """What steps are given."""
    return examples(tmp_path)


def examples(folder: Path) -> Any:
    """Eight examples of two tasks to learn from and to calibrate on."""
    from leanwatt.contracts import Context
    from leanwatt.question import Example, Generate, Prompt, Score

    options = ("mains failure", "fibre cut")
    found = []
    for i in range(8):
        body = f"alarm first at site {'ABCD'[i % 4]} then {'power' if i % 2 else 'link'} lost"
        ask = Score(Prompt("Name the root cause of this fault.", body, "Root cause:"), options)
        write = Generate(Prompt("Write the note that closes this ticket.", body, "Resolution:"), limit=12)
        found.append(Example(f"c{i}", f"g{i}", "train", ask, options[i % 2]))
        found.append(Example(f"r{i}", f"g{i}", "train", write, f"replaced power at site {'ABCD'[i % 4]}"))
    return Context(found, found[:4], 0, folder, lambda _text, _share: None)


@pytest.fixture
def shared() -> Path:
    """Real data and trained models that are not part of the project; tests that use them skip without."""
    folder = os.environ.get("LEANWATT_SHARED")
    if not folder:
        pytest.skip("LEANWATT_SHARED does not name the folder with the real data and the trained models")
    return Path(folder)


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    """120 tickets whose cause is in their words."""
    rows = ["id,description,cause,resolution,place"]
    causes = {"mains failure": "power", "fibre cut": "link"}
    for i in range(120):
        cause = list(causes)[(i // 2) % 2]
        place = "ABCD"[i % 4]
        text = f"site {place}{i} {causes[cause]} lost then alarm {i * 7}"
        rows.append(f"t{i},{text},{cause},replaced {causes[cause]} at {place},{place}")
    path = tmp_path / "tickets.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def chromium() -> str:
    """Where it is; skips where there is none."""
    named = os.environ.get("LEANWATT_CHROMIUM")
    found = named or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("no Chromium: apt-get install chromium, or name one in LEANWATT_CHROMIUM")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium: the one that LEANWATT_CHROMIUM names, or `chromium` or `chromium-browser` on the PATH.

    Its event loop runs in this thread, so it ends with the module: others have loops of their own.
    """
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on which no script may fail."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    found, failures = context.new_page(), []
    found.set_default_timeout(20_000)
    found.on("pageerror", lambda error: failures.append(str(error)))
    yield found
    context.close()
    assert failures == []
