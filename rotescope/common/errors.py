"""What a user reads when something is wrong: one line that says what and what to do, and an exit code."""
import errno
import os
import sys
import traceback
from contextlib import contextmanager
from functools import wraps

from rotescope.common.quiet_libraries import hush_warnings
from rotescope.common.wording import printable

DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


class InputError(Exception):
    """The input is wrong and the user can mend it: one line, exit code 2."""


class RunError(Exception):
    """The run failed on good input: one line, exit code 3."""


@contextmanager
def _readers_may_leave():
    """A pipe that closed early, as before `head`, stops nothing and changes no exit code."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Patient, streams)
    try:
        yield
    finally:
        sys.stdout.flush()  # not while Python ends, which would make the code 120
        sys.stdout, sys.stderr = streams


class _Patient:
    """A stream whose reader may leave: what is still written goes nowhere."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        return self._unless_gone(self.stream.write, text)

    def flush(self):
        self._unless_gone(self.stream.flush)

    def _unless_gone(self, do, *given):
        try:
            return do(*given)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def exit_cleanly(main):
    """Turn the two errors, files that deny themselves, too little memory or disk, and Ctrl-C into one line and an exit code.

    Anything else is a failure that nobody foresaw: its traceback shows, and the code is 3, since 1 is a broken rule.
    """
    @wraps(main)
    @_readers_may_leave()
    def run(*args, **kwargs):
        hush_warnings()
        try:
            return main(*args, **kwargs)
        except (InputError, RunError) as error:
            _leave(str(error), 2 if isinstance(error, InputError) else 3)
        except KeyboardInterrupt:
            _leave("interrupted", 130)
        except Exception as error:
            line = _known(error)
            if line is None:
                traceback.print_exc()
                line = f"{type(error).__name__}, which is no fault of the input that rotescope knows of: see above"
            _leave(line, 2 if _is_denied(error) else 3, everyone=True)
    return run


def _known(error):
    """-> what a user reads of an error that no code foresaw where it arose, or None."""
    if _disk_is_full(error):
        return "the disk is full: free some space or write elsewhere; nothing half-written was kept"
    if isinstance(error, MemoryError) or "OutOfMemoryError" in type(error).__name__ or "can't allocate memory" in str(error):
        first = (str(error).splitlines() or [""])[0]
        return f"there is too little memory for this ({first}): take a smaller batch or resolution"
    if _is_denied(error):
        return f"{os.fsdecode(error.filename)}: {error.strerror}; name another, or see that it may be used"
    return None


def _is_denied(error):
    """Whether the system refused a file or folder as it was named. One that is not there may be our own mistake, and shows."""
    return isinstance(error, OSError) and error.errno in DENIED and bool(error.filename)


def _disk_is_full(error):
    """As Python says it, or as safetensors and arrow do, in words."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def _leave(line, code, everyone=False):
    """everyone: what befell one process alone is said by whichever it is; what befell all of them, by the first."""
    if everyone or int(os.environ.get("RANK", 0)) == 0:
        line = printable(" ".join(line.split()))  # file names may hold bytes that are no text
        print("error:", line, file=sys.stderr, flush=True)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # a launcher waits for every process
        os._exit(code)
    raise SystemExit(code)
