"""Text files of any origin as text: decoded where the encoding is certain, else refused with a guess at
it."""
import codecs
import re
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.common.wording import printable

MARKS = (   # UTF-32's mark begins as UTF-16's does
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
KANA = re.compile("[\u3041-\u30fe]")        # hiragana and katakana
HAN = re.compile("[\u3041-\u30fe\u4e00-\u9fff]")   # and Chinese characters
UNSURE = 0.6   # share of the characters beyond ASCII that have to be of a script


def read_text(file: str | Path, encoding: str = "") -> str:
    """The text of a file.

    Parameters
    ----------
    file : str or Path
        A caption, a table or a configuration.
    encoding : str
        As Python calls it. Unless given: UTF-8, or UTF-16 or UTF-32 where a mark at the beginning or zero
        bytes show it.

    Returns
    -------
    str
        Without the mark; every line ends in a line feed.

    Raises
    ------
    InputError
        If the file cannot be read, or its encoding is not certain; the message names the likeliest.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"{printable(str(file))} cannot be read ({error.strerror}): mend it or leave it "
                         "out") from error
    return decode_text(data, printable(str(file)), encoding)


def decode_text(data: bytes, name: str, encoding: str = "") -> str:
    """The bytes of a file -> its text, as read_text has it; `name` is what an InputError calls it."""
    marked = next((kind for mark, kind in MARKS if data.startswith(mark)), "")
    try:
        text = data.decode(marked or encoding or _by_zeros(data) or "utf-8")
    except (UnicodeDecodeError, LookupError) as error:
        kind = guess_encoding(data)
        raise InputError(f"{name} is no {(encoding or 'UTF-8')}; it looks like {kind}: save it as UTF-8, or "
                         f"pass --caption_encoding {kind}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def guess_encoding(data: bytes) -> str:
    """The likeliest of shift_jis, gbk and cp1252, for bytes that are no UTF-8.

    Kana show Japanese. Other East Asian bytes come in pairs, so letters beyond ASCII stand in runs; an
    accented letter of Western Europe stands alone.
    """
    if _is_mostly(data, "shift_jis", KANA):
        return "shift_jis"
    runs = re.findall(rb"[\x80-\xff]+[\x40-\xff]?", data)
    alone = sum(len(run.rstrip(bytes(range(0x80)))) == 1 for run in runs)
    if alone > len(runs) / 2:
        return "cp1252"
    return next((kind for kind in ("gbk", "shift_jis") if _is_mostly(data, kind, HAN)), "cp1252")


def check_encoding(encoding: str) -> None:
    """InputError if Python knows no encoding of this name; an empty name is passed over."""
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError as error:
        raise InputError(f"no encoding {encoding!r}: name one such as utf-8, cp1252, shift_jis or "
                         "gbk") from error


def _is_mostly(data, kind, script):
    try:
        letters = [c for c in data.decode(kind) if ord(c) > 127]
    except UnicodeDecodeError:
        return False
    need = 0.2 if script is KANA else UNSURE   # Japanese mixes kana and Chinese characters
    return sum(bool(script.match(c)) for c in letters) >= need * len(letters) > 0


def _by_zeros(data):
    """UTF-16 without a mark, of mostly Latin letters: every other byte is zero."""
    if len(data) < 4 or len(data) % 2 or b"\0" not in data:
        return ""
    half = len(data) // 2
    zeros = data[0::2].count(0), data[1::2].count(0)
    if zeros[0] > 0.7 * half and not zeros[1]:
        return "utf-16-be"
    return "utf-16-le" if zeros[1] > 0.7 * half and not zeros[0] else ""
