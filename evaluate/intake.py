"""What an evaluation takes in: a picture that cannot be read is left out by name, and does not stop the rest."""
from rich.console import Console

from rotescope.datasets.records import Manifest
from rotescope.datasets.sources import read_source


def take_in(path, what, need_captions=False):
    """A file, folder or name of a data set -> (Manifest, what is left out of it: [{of, name, reason}]).

    what: "training" or "held-out", for the reader. Raises InputError where nothing is there or nothing is left.
    """
    source = read_source(path, need_captions)
    return source.manifest, [{"of": what, "name": q.name, "reason": q.reason} for q in source.quarantined]


def apart(heldout, training):
    """-> (the held-out pictures that are no training image too, those that are): as a null these would call copying chance."""
    known = {e.sha256 for e in training}
    both = [e for e in heldout or () if e.sha256 in known]
    rest = [e for e in heldout or () if e.sha256 not in known]
    return (Manifest(tuple(rest)) if rest else None), [
        {"of": "held-out", "name": e.name, "reason": f"{e.name} is a training image too"} for e in both]


def notes(left_out):
    """Left-out pictures -> a sentence for each kind of them."""
    for what in dict.fromkeys(item["of"] for item in left_out):
        own = [item for item in left_out if item["of"] == what]
        yield (f"{len(own):,} {what} {'picture is' if len(own) == 1 else 'pictures are'} left out: {own[0]['reason']}"
               + (f" (and {len(own) - 1:,} more, all in report.json)" if own[1:] else ""))


def announce_left_out(left_out):
    for note in notes(left_out):
        Console(stderr=True).print(f"warning: {note}", markup=False, highlight=False, soft_wrap=True)
