"""Leanwatt: which cheaper version of a language model still does the job, and how many joules it saves.

Every command is a function of `leanwatt.verbs`, which is loaded when asked for: importing the package stays instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Study", "verbs"]

if TYPE_CHECKING:
    from leanwatt import verbs
    from leanwatt.study import Study


def __getattr__(name: str) -> Any:
    if name == "Study":
        return import_module("leanwatt.study").Study
    if name == "verbs":
        return import_module("leanwatt.verbs")
    raise AttributeError(f"module 'leanwatt' has no attribute '{name}'")
