"""What a command says: lines for people on stderr, and one line of JSON on stdout."""
import json

from rich.console import Console


def say(what):
    """A line, or a table of rich's, for people; text as it is, without markup."""
    if isinstance(what, str):
        Console(stderr=True).print(what, markup=False, highlight=False, soft_wrap=True)
    else:
        Console(stderr=True).print(what)


def answer(**content):
    """The result for machines: one short line of JSON, the last on stdout."""
    print(json.dumps(content, ensure_ascii=False))
