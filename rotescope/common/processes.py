"""Which of several processes this is, asked before there is an Accelerator; and which folders a run that lives has for itself."""
import errno
import fcntl
import os
import socket
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rotescope.common.errors import InputError

TAKEN = (errno.EACCES, errno.EAGAIN)
_held: dict[Path, int] = {}  # lock file -> how many runs of this process, one within the other, have it


def is_first_process():
    """Whether this is the process that writes, asked before there is an Accelerator."""
    return os.environ.get("RANK", "0") == "0"


def process_count():
    """How many there are, asked before there is an Accelerator."""
    return int(os.environ.get("WORLD_SIZE", "1"))


# ----- one run a folder

@contextmanager
def alone_in(folder):
    """No other run fills `folder` meanwhile. InputError that names the one that does: its process, its host, its start.

    The system holds the lock on .NAME.lock beside the folder, and lets go of it however the process ends. Of the processes of
    one run the first takes it; a process may take it again within. A disk that knows no locks is used without.
    """
    file = _lock_file(folder)
    if not is_first_process():
        yield
        return
    stream = None if file in _held else _locked(file, folder)
    _held[file] = _held.get(file, 0) + 1
    try:
        yield
    finally:
        _held[file] -= 1
        if not _held[file]:
            del _held[file]
        if stream:
            file.unlink(missing_ok=True)
            stream.close()


def check_alone(folder):
    """InputError if a run that lives fills `folder` now, as alone_in says it."""
    file = _lock_file(folder)
    if is_first_process() and file not in _held and file.exists():
        stream = _locked(file, folder)
        if stream:
            stream.close()


def _lock_file(folder):
    real = Path(os.path.realpath(folder))
    return real.with_name(f".{real.name}.lock") if real.name else real / ".lock"


def _locked(file, folder):
    """-> the open lock file, which says whose it is; None where there can be none."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            stream = open(file, "a+", encoding="utf-8")  # noqa: SIM115  (open as long as it is held)
        except OSError:  # a folder that takes no file: whoever writes there says so
            return None
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            told = " ".join(stream.read().split()) or "which does not say its name yet"
            stream.close()
            if error.errno not in TAKEN:
                return None
            raise InputError(f"another run is alive in {folder} ({told}): wait for it, or name another folder") from error
        if _is_there(stream, file):  # else the other run has ended and removed it in between
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
            stream.flush()
            return stream
        stream.close()


def _is_there(stream, file):
    try:
        return os.path.samestat(os.fstat(stream.fileno()), file.stat())
    except FileNotFoundError:
        return False
