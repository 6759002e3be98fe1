"""How --help looks: a short usage, options under headings, examples on lines of their own, at most the terminal's width."""
import textwrap
from dataclasses import MISSING, fields

from jsonargparse import DefaultHelpFormatter


class HelpFormatter(DefaultHelpFormatter):
    """Paragraphs are filled; indented lines, which are commands to copy, stay as they are."""

    def _fill_text(self, text, width, indent):
        paragraphs = [p for p in text.strip("\n").split("\n\n") if p.strip()]
        return "\n\n".join(self._filled(p, width, indent) for p in paragraphs)

    def _split_lines(self, text, width):
        """No name is parted at its hyphens."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    @staticmethod
    def _filled(paragraph, width, indent):
        if paragraph.startswith("    "):
            return "\n".join(continued(line, width) for line in paragraph.splitlines())
        return textwrap.fill(" ".join(paragraph.split()), width, initial_indent=indent, subsequent_indent=indent,
                             break_on_hyphens=False)


def continued(line, width):
    """A command to copy -> the same over several lines, each but the last with a backslash, where it is too long for one."""
    if len(line) <= width or " # " in line:
        return line
    lines = textwrap.wrap(line.strip(), width - 2, initial_indent="    ", subsequent_indent=" " * 8, break_long_words=False,
                          break_on_hyphens=False)
    return " \\\n".join(lines)


def usage(prog, config_class):
    """-> the options that must be given, and a word for the others."""
    needed = [f"--{f.name} {f.name.upper()}" for f in fields(config_class) if f.default is f.default_factory is MISSING]
    text = " ".join([prog, *needed, "[--option VALUE …]"])
    return textwrap.fill(text, 72, subsequent_indent=" " * 7, break_on_hyphens=False)  # "usage: " comes before it


def headings_of(config_class):
    """-> {first option of a group: its heading}, as the class and those that it is derived from have them in HEADINGS."""
    found = {}
    for kind in reversed(config_class.__mro__):
        found |= vars(kind).get("HEADINGS", {})
    return found


def group_options(parser, config_class):
    """Show the options of a parser under the headings of its config class, in the order of its fields; those that a class without
    keyword-only fields takes over from one that has them come last, and after those the ones that say so in their metadata."""
    headings, group, groups = headings_of(config_class), None, {}
    actions = {option.lstrip("-"): action for action in parser._actions for option in action.option_strings}
    for f in sorted(fields(config_class), key=lambda f: (f.kw_only is True, f.metadata.get("last", False))):
        if heading := headings.get(f.name):
            group = groups.get(heading) or groups.setdefault(heading, parser.add_argument_group(heading))
        if group is not None and f.name in actions:
            _move(parser, actions[f.name], group)


def _move(parser, action, group):
    for other in parser._action_groups:
        if action in other._group_actions:
            other._group_actions.remove(action)
    group._group_actions.append(action)
