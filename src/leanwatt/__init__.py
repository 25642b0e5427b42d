"""Leanwatt: which cheaper version of a language model still does the job, and how many joules it saves."""

__version__ = "0.1.0"
