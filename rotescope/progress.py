"""Progress on stderr: a bar with an estimate of the time left for each part of a job."""
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bars(totals):
    """{name: total} -> a function advance(name); one bar a name, shown once it moves."""
    with Progress(TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True)) as progress:
        tasks = {name: progress.add_task(name, total=total, visible=False) for name, total in totals.items()}
        yield lambda name: progress.update(tasks[name], advance=1, visible=True)
