"""Files and folders that appear whole or not at all, with the permissions that a user's other files have."""
import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(file):
    """Yields the path of a draft beside `file`, which takes its name once it is whole.

    If nothing is written to the draft, an older `file` goes. If the writing fails, the older one stays as it was.
    """
    file = Path(file)
    draft = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        yield draft
        if draft.exists():
            usual_permissions(draft)
            draft.replace(file)
        else:
            file.unlink(missing_ok=True)
    finally:
        draft.unlink(missing_ok=True)


def write_text(file, text):
    """UTF-8; bytes of a file name that are no text stand as \\udcff, which JSON reads back as they were."""
    with whole_file(file) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def usual_permissions(path):
    """Give a file, or all files of a folder, what the user's umask leaves: safetensors writes files that nobody else may read."""
    umask = os.umask(0)
    os.umask(umask)
    for entry in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if not entry.is_symlink():
            entry.chmod((0o777 if entry.is_dir() else 0o666) & ~umask)
