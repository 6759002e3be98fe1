"""Make docs/api.md from the docstrings of the public names, `rotescope.__all__`.

    python docs/build_api.py            # writes docs/api.md
    python docs/build_api.py --check    # exit code 1 if docs/api.md is not what the docstrings say

Signatures are read off the source, so that the page is the same under every version of Python. Docstrings are numpydoc: a
section is a title over a line of dashes; an entry of Parameters, Returns, Raises or Attributes is `name : type` over an indented
text.
"""
import ast
import inspect
import re
import sys
import textwrap
from dataclasses import is_dataclass
from pathlib import Path

from generated_page import write_or_check

import rotescope

PAGE = Path(__file__).parent / "api.md"
ROOT = PAGE.parent.parent
GROUPS = {  # heading -> the names under it, in the order of a reader's work; others follow at the end
    "Measure": ("audit", "score", "Report", "CopyRate"),
    "Sample": ("mitigated", "guider_for", "generate", "list_mitigations", "get_mitigation", "TransitionGuidance", "Prompt"),
    "Find memorized captions": ("detect", "list_detectors", "get_detector"),
    "Prepare and train": ("load_manifest", "Manifest", "preflight", "finetune", "compare", "repair"),
    "Errors": ("InputError", "RunError"),
}
ENTRIES = ("Parameters", "Returns", "Yields", "Raises", "Attributes", "Other Parameters")  # sections that are lists of entries
WIDTH = 100   # of a signature on one line
FIELDS = 12   # of a dataclass that a reader might make
HEAD = """# The public Python names

*Made by `docs/build_api.py` from the docstrings; edit those.*

`import rotescope` is quick: each name loads what it needs on first use. Nothing is written to disk unless a
folder is given. Wrong input raises `InputError`, whose text says what is wrong and
what to do.

The examples below run in a test, on the embedded model. Their sizes show how a call looks and prove nothing.
`photos` is a folder of six captioned pictures. They share this beginning:
```python
{beginning}
```
"""
BEGINNING = """\
>>> from diffusers import StableDiffusionPipeline
>>> from rotescope import *
>>> model, photos = "train/base", "photos"
>>> pipe = StableDiffusionPipeline.from_pretrained(model)
>>> pipe.set_progress_bar_config(disable=True)
>>> images = pipe(["a cat on a blue background"] * 2, num_inference_steps=2).images"""


def page():
    """-> the text of docs/api.md."""
    known = [name for names in GROUPS.values() for name in names]
    others = [name for name in rotescope.__all__ if name not in known and not name.startswith("_")]
    parts = [HEAD.format(beginning=BEGINNING)]
    for heading, names in {**GROUPS, "More": others}.items():
        if found := [name for name in names if name in rotescope.__all__]:
            parts += [f"## {heading}\n", *(described(name) for name in found)]
    return "\n".join(parts).rstrip() + "\n"


def described(name):
    """A public name -> its heading, signature and docstring as Markdown, with the documented methods of a class."""
    thing = getattr(rotescope, name)
    parts = [f"### `{name}`\n", signature(thing), markdown(inspect.getdoc(thing) or "")]
    for method, member in methods(thing) if inspect.isclass(thing) else ():
        parts += [f"#### `{name}.{method}`\n", "" if isinstance(member, property) else signature(member),
                  markdown(inspect.getdoc(member))]
    return "\n".join(part for part in parts if part)


def methods(kind):
    """-> (name, member) of what a class itself defines and documents."""
    for name, member in vars(kind).items():
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)) and inspect.getdoc(member):
            yield name, member


# ----- signatures

def signature(thing):
    """-> the call as its source has it, in a block of code; of a class with many fields, which others make, the fields; of an
    exception nothing."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return ""
    name, arguments, result = thing.__name__, *_call(thing)
    if inspect.isclass(thing) and is_dataclass(thing) and len(arguments) > FIELDS:
        return f"```python\nclass {name}:\n" + "".join(f"    {a.partition(' = ')[0]}\n" for a in arguments) + "```\n"
    line = f"{name}({', '.join(arguments)}){result}"
    if len(line) > WIDTH:
        line = f"{name}(\n" + "".join(f"    {a},\n" if a != "*" else "    *,\n" for a in arguments) + f"){result}"
    return f"```python\n{line}\n```\n"


def _call(thing):
    """-> (arguments, " -> result") of a function, of a dataclass, or of another class's __init__."""
    if inspect.isclass(thing) and is_dataclass(thing):
        return _fields(thing), ""
    function = _source(thing.__init__ if inspect.isclass(thing) else inspect.unwrap(thing))
    if not isinstance(function, ast.FunctionDef):
        return ["…"], ""
    arguments = [a for a in _arguments(function.args) if a not in ("self", "cls")]
    return arguments, f" -> {ast.unparse(function.returns)}" if function.returns and not inspect.isclass(thing) else ""


def _fields(kind):
    """The fields of a dataclass and of those that it is derived from -> texts."""
    found = {}
    for base in reversed(kind.__mro__):
        if "__dataclass_fields__" in vars(base):
            lines = (line for line in _source(base).body if isinstance(line, ast.AnnAssign))
            found |= {line.target.id: ast.unparse(line) for line in lines if "ClassVar" not in ast.unparse(line.annotation)}
    return list(found.values())


def _arguments(args):
    """ast.arguments -> texts, each with its annotation and default."""
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    yield from map(_argument, plain, defaults)
    if args.vararg:
        yield "*" + _argument(args.vararg, None)
    elif args.kwonlyargs:
        yield "*"
    yield from map(_argument, args.kwonlyargs, args.kw_defaults)
    if args.kwarg:
        yield "**" + _argument(args.kwarg, None)


def _argument(argument, default):
    text = ast.unparse(argument)
    return text if default is None else f"{text}{' = ' if argument.annotation else '='}{ast.unparse(default)}"


def _source(thing):
    """-> the node of a function or class; None where there is no source."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    except (OSError, TypeError):
        return None


# ----- docstrings

def markdown(doc):
    """A numpydoc docstring -> Markdown."""
    return "\n".join(_section(title, body) for title, body in sections(doc))


def sections(doc):
    """-> (title, text) of each section; that before the first title has none."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}[ ]*$", doc, flags=re.M)
    yield "", parts[0].strip("\n")
    yield from ((title, body.strip("\n")) for title, body in zip(parts[1::2], parts[2::2], strict=True))


def _section(title, body):
    if not body:
        return ""
    text = "\n".join(_entries(body)) if title in ENTRIES else fenced(body)
    return (f"**{title}**\n\n" if title else "") + text + "\n"


def _entries(body):
    """`name : type` over an indented text -> an item of a list."""
    for entry in re.split(r"\n(?=\S)", body):
        head, _, text = entry.partition("\n")
        name, _, kind = (part.strip() for part in head.partition(" : "))
        what = " ".join(textwrap.dedent(text).split())
        yield f"- {_quoted(name)}" + (f" ({_quoted(kind)})" if kind else "") + (f": {what}" if what else "")


def _quoted(text):
    return text if "`" in text else f"`{text}`"


def fenced(body):
    """Examples and indented blocks -> blocks of code, without remarks to doctest; other lines as they are."""
    blocks = []
    for block in re.split(r"\n\s*\n", re.sub(r" *# doctest:.*", "", body)):
        code = block.startswith(">>>") or all(line.startswith("    ") for line in block.splitlines())
        blocks.append(f"```python\n{textwrap.dedent(block)}\n```" if code else block)
    return "\n\n".join(blocks)


def main(argv=None):
    return write_or_check(PAGE, page(), __file__, "the docstrings say", argv)


if __name__ == "__main__":
    sys.exit(main())
