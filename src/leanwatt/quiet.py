"""What the libraries say by themselves, held back while they work: a study tells what goes on in its own words."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, notices and deprecations of the libraries inside. Errors are still said."""
    from transformers.utils import logging as transformers_log

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    verbosity = transformers_log.get_verbosity()
    transformers_log.set_verbosity_error()
    transformers_log.disable_progress_bar()
    bitsandbytes_log = logging.getLogger("bitsandbytes")  # It warns that it fetched no faster kernels from a hub.
    level = bitsandbytes_log.level
    bitsandbytes_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        bitsandbytes_log.setLevel(level)
        transformers_log.set_verbosity(verbosity)
