"""What a command says: lines for people on stderr, and one line of JSON on stdout. A library call is silent."""
import json
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console

_SILENT = ContextVar("silent", default=False)


def say(what, style=None):
    """A line, or a table of rich's, for people; text as it is, without markup."""
    if _SILENT.get():
        return
    if isinstance(what, str):
        Console(stderr=True).print(what, style=style, markup=False, highlight=False, soft_wrap=True)
    else:
        Console(stderr=True).print(what)


def answer(**content):
    """The result for machines: one short line of JSON, the last on stdout."""
    print(json.dumps(content, ensure_ascii=False))


@contextmanager
def silenced(silent=True):
    """Nothing is said inside, and no bars are shown: for a function that is called from Python."""
    token = _SILENT.set(silent)
    try:
        yield
    finally:
        _SILENT.reset(token)


def is_silent():
    """Whether nothing is to be said now."""
    return _SILENT.get()
