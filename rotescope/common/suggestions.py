"""What somebody may have meant by a name that there is not."""
import difflib
import re


def suggestion(word, known):
    """-> what to write after 'there is no such name: '."""
    close = difflib.get_close_matches(word, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"take one of {', '.join(known)}"


def option_meant(message, known):
    """A parser's complaint, the options that there are -> '; did you mean --seeds?', or nothing where it names none near one."""
    named = [one or other for one, other in re.findall(r"--(\w+)|Option '(\w+)'", message)]
    close = next((m for word in named if word not in known for m in difflib.get_close_matches(word, known, 1)), None)
    return f"; did you mean --{close}?" if close else ""
