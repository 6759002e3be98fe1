"""Progress on stderr: a bar with an estimate of the time left for each part of a job."""
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bars(totals, disable=False):
    """{name: total} -> a function advance(name, text="", to=None); one bar a name, shown once it moves."""
    columns = (TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"),
               TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(stderr=True), disable=disable) as progress:
        tasks = {name: progress.add_task(name, total=total, visible=False, text="") for name, total in totals.items()}

        def advance(name, text="", to=None):
            moved = {"advance": 1} if to is None else {"completed": to}
            progress.update(tasks[name], visible=True, text=text, **moved)
        yield advance
