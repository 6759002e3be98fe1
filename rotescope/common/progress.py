"""Progress on stderr: a bar for each part of a job on a terminal; a line every half minute in a file or a
pipe."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from rich.progress import Task as RichTask
from rich.text import Text

from rotescope.common.console import is_silent

EVERY = 30  # seconds between two lines of one part, where there is no terminal
UNKNOWN = "-:--:--"


class Advance(Protocol):
    """One more of part `name` is done; `to`: so many of it are done in all. `text` stands at the end of its
    line."""

    def __call__(self, name: str, text: str = "", to: int | None = None) -> None: ...


@dataclass
class Part:
    """One part of a job: how much of it is done, and since when. Times are seconds of one clock.

    The work on the first item began when whatever was done before it ended, not when the item was ready: a
    batch of 64 images that takes a minute advances 64 times in an instant.
    """

    name: str
    total: int
    done: int = 0
    text: str = ""
    began: float | None = None  # None until it moves
    moved: float | None = None  # the last time that it moved
    earlier: int = 0  # how many were done before the pace was first known
    since: float = 0.0  # when that was

    def move(self, before: float, now: float, text: str = "", to: int | None = None) -> None:
        """Count one more, or `to` in all. before: when the work that came before this part ended."""
        if self.began is None:
            self.began = self.since = before
            if to is not None:  # a resumed run stands at 500 at once: its pace is that of what follows
                self.earlier, self.since = to, now
        self.done, self.text, self.moved = self.done + 1 if to is None else to, text, now

    @property
    def complete(self) -> bool:
        return self.done >= self.total

    def elapsed(self, now: float) -> float:
        """Seconds from its beginning, until now or until it was complete."""
        if self.began is None or self.moved is None:
            return 0.0
        return (self.moved if self.complete else now) - self.began

    def left(self, now: float) -> float | None:
        """Seconds until it is complete, at its mean pace so far; None where that is not known."""
        if self.complete:
            return 0.0
        if self.moved is None or self.done <= self.earlier:
            return None
        pace = (self.moved - self.since) / (self.done - self.earlier)
        return max(pace * (self.total - self.done) - (now - self.moved), 0.0)


class Parts:
    """The parts of a job by name, and when any of them moved last."""

    def __init__(self, totals: Mapping[str, int], clock: Callable[[], float]):
        self.named = {name: Part(name, total) for name, total in totals.items()}
        self.clock, self.moved = clock, clock()

    def move(self, name: str, text: str = "", to: int | None = None) -> Part:
        now = self.clock()
        self.named[name].move(self.moved, now, text, to)
        self.moved = now
        return self.named[name]


def in_clock(seconds: float | None) -> str:
    """3725 -> 1:02:05; None -> dashes."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def line_of(part: Part, now: float) -> str:
    """stp 48/96, elapsed 0:00:30, ETA 0:00:30; without an ETA once it is complete."""
    ahead = "" if part.complete else f", ETA {in_clock(part.left(now))}"
    spent = in_clock(part.elapsed(now))
    return f"{part.name} {part.done:,}/{part.total:,}, elapsed {spent}{ahead} {part.text}".rstrip()


@contextmanager
def progress_bars(
    totals: Mapping[str, int],
    disable: bool = False,
    *,
    clock: Callable[[], float] = time.monotonic,
    stream: IO[str] | None = None,
) -> Iterator[Advance]:
    """Show how far each part of a job is.

    Parameters
    ----------
    totals
        How many items each part has, by its name. A part is shown once it moves.
    disable
        Show nothing, as inside `console.silenced`.
    clock
        Tells the time in seconds.
    stream
        Where to write; stderr unless given. A terminal gets bars, anything else lines.

    Yields
    ------
    Advance
        Call it once for each item: ``advance(name)``; or with how many are done: ``advance(name, to=48)``.
    """
    parts, console = Parts(totals, clock), Console(file=stream or sys.stderr)
    if disable or is_silent():
        yield _silent
    elif console.file.isatty() and not console.is_dumb_terminal or console.is_jupyter:
        with _bars(parts, console) as advance:
            yield advance
    else:
        with _lines(parts, console.file) as advance:
            yield advance


def _silent(name: str, text: str = "", to: int | None = None) -> None:
    """Show nothing."""


@contextmanager
def _bars(parts: Parts, console: Console) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description:>14}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Times(parts),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {
            name: progress.add_task(name, total=part.total, visible=False, text="")
            for name, part in parts.named.items()
        }

        def advance(name: str, text: str = "", to: int | None = None) -> None:
            part = parts.move(name, text, to)
            progress.update(tasks[name], visible=True, text=text, completed=part.done)

        yield advance


class _Times(ProgressColumn):
    """Elapsed and ETA of a part, by its own times."""

    def __init__(self, parts: Parts):
        super().__init__()
        self.parts = parts

    def render(self, task: RichTask) -> Text:
        part, now = self.parts.named[task.description], self.parts.clock()
        ahead = Text() if part.complete else Text(f" ETA {in_clock(part.left(now))}", "progress.remaining")
        return Text(in_clock(part.elapsed(now)), "progress.elapsed") + ahead


@contextmanager
def _lines(parts: Parts, stream: IO[str]) -> Iterator[Advance]:
    """A line of a part at most every EVERY seconds, and one when it is complete or the job ends."""
    said: dict[str, tuple[int, float]] = {}  # name -> (how many were done, when)

    def say(part: Part, now: float) -> None:
        said[part.name] = part.done, now
        print(line_of(part, now), file=stream, flush=True)

    def advance(name: str, text: str = "", to: int | None = None) -> None:
        part = parts.move(name, text, to)
        done, when = said.get(name, (0, part.began or 0.0))
        if part.complete and done < part.total or parts.moved - when >= EVERY:
            say(part, parts.moved)

    try:
        yield advance
    finally:
        for part in parts.named.values():
            if part.done > said.get(part.name, (0, 0))[0]:
                say(part, parts.clock())
