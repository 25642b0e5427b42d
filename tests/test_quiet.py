"""Libraries hold back what they say by themselves, and speak again afterwards."""

import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from leanwatt.quiet import quiet

TUNE = """
import sys
from pathlib import Path
from conftest import examples
from leanwatt import catalog
from leanwatt.model import load
from leanwatt.recipe import Choice
precision, base, out = sys.argv[1:]
lora = catalog.build(Choice("finetune", "lora", {"rank": 2, "epochs": 1, "precision": precision}))
lora.apply(load(base), examples(Path(out).parent)).save(Path(out))
"""
OPEN = """
import sys
from leanwatt.model import load
assert load(sys.argv[1]).has_adapters
"""


def said(program: str, *arguments: str | Path) -> str:
    """What a process of its own, which has not loaded a library yet, says beside its results."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stderr


def test_notices_are_held_back_and_errors_are_not(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("bitsandbytes.somewhere")
    with quiet(), warnings.catch_warnings(record=True) as seen:
        log.warning("a notice")
        log.error("an error")
        warnings.warn("some day", FutureWarning, stacklevel=1)
    assert [record.message for record in caplog.records] == ["an error"] and not seen
    log.warning("a notice again")
    assert caplog.records[-1].message == "a notice again"


def test_what_was_set_before_is_set_again_after_an_error() -> None:
    from transformers.utils import logging as transformers_log

    log = logging.getLogger("bitsandbytes")
    log.setLevel(logging.INFO)
    transformers_log.set_verbosity_info()
    try:
        with pytest.raises(ValueError), quiet():
            raise ValueError
        assert log.level == logging.INFO and transformers_log.get_verbosity() == logging.INFO
    finally:
        log.setLevel(logging.NOTSET)
        transformers_log.set_verbosity_warning()


@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
def test_adapters_are_made_and_opened_without_a_word_of_the_libraries(
    precision: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    assert said(TUNE, precision, saved("llama"), tmp_path / "tuned") == ""
    assert said(OPEN, tmp_path / "tuned") == ""
