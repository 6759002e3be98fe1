"""One resolved config: a dataclass, a YAML over it, the command line over both; an unknown key is an error."""
import json
import sys
from collections import Counter
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from rotescope.common.errors import InputError
from rotescope.common.help_text import HelpFormatter, group_options, usage
from rotescope.common.options import Options
from rotescope.common.suggestions import option_meant
from rotescope.common.wording import printable

set_parsing_settings(docstring_parse_attribute_docstrings=True, parse_optionals_as_positionals=False)
ALIASES = {"train_data_dir": "train_data", "dataset_name": "train_data", "instance_data_dir": "train_data",
           "reg_data_dir": "class_data_dir"}  # as diffusers' scripts and kohya's call it


def parse(config_class, argv, *, prog, description, config=None):
    """argv -> an instance of the dataclass `config_class`.

    `--config FILE.yaml` may come first; --a-b and --a_b are one; --out is short for --output_dir; ALIASES stand for an option.
    argv: None for the process's own. config: the YAML that is used when argv has no --config. Raises InputError on an unknown
    key, a bad value, or an option that is given twice (an option that takes several values may be).
    """
    parser = _parser(config_class, prog, description)
    names = {f.name for f in fields(config_class)}
    lists = {f"--{f.name}": "str" in str(f.type) for f in fields(config_class) if "[" in str(f.type)}
    argv = _spelled(config_class, sys.argv[1:] if argv is None else argv)
    if config and not any(a.split("=")[0] == "--config" for a in argv):
        argv = ["--config", str(config), *argv]
    try:
        argv = _gathered(argv, lists)
        _check_once(argv)
        values = parser.parse_args(_with_known_keys(argv, names))
        values.pop("config")
        found = config_class(**parser.instantiate_classes(values).as_dict())
    except InputError:
        raise
    except Exception as error:  # jsonargparse raises several kinds, each with the key in its text
        meant = option_meant(str(error), {"config", *names})
        raise InputError(f"{prog}: {_first_lines(error)}{meant} (see {prog} --help)") from error
    if isinstance(found, Options):
        found.check()
    return found


def option_names(argv):
    """argv as for parse -> the names of its options, aliases resolved."""
    return {_underscored(a, _short({*ALIASES.values()}))[2:].partition("=")[0] for a in argv if a.startswith("--")}


def option_names_in_file(argv):
    """argv that parse has taken -> the names of the options in its --config."""
    files = [a.partition("=")[2] or after for a, after in pairwise([*argv, ""]) if a.split("=")[0] == "--config"]
    return {ALIASES.get(name, name) for file in files for name in _read_yaml(file) or ()}


def save(config, file):
    """The resolved config as YAML that `--config` takes back."""
    Path(file).write_text(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))


def plain(config):
    """A dataclass -> dict of JSON types; what JSON has no type for, such as a path or a mitigation, as text."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config)}


def _plain(value):
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


# ----- the parser

def _parser(config_class, prog, description):
    parser = ArgumentParser(prog=prog, usage=usage(prog, config_class), description=description, exit_on_error=False,
                            formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below; the command line wins")
    parser.add_class_arguments(config_class, as_group=False)
    group_options(parser, config_class)
    return parser


def _short(names):
    """-> {what may be typed: the option that it means}, of the options that there are."""
    short = {f"--{alias}": f"--{name}" for alias, name in ALIASES.items() if name in names and alias not in names}
    return short | ({"--out": "--output_dir"} if "output_dir" in names and "out" not in names else {})


def _spelled(config_class, argv):
    """argv as people type it -> with the options' own names, and a value for each switch."""
    short = _short({f.name for f in fields(config_class)})
    return _switched([_underscored(a, short) for a in argv], {f"--{f.name}" for f in fields(config_class) if f.type is bool})


def _underscored(argument, short):
    if not argument.startswith("--"):
        return argument
    key, equals, value = argument.partition("=")
    key = "--" + key[2:].replace("-", "_")
    return short.get(key, key) + equals + value


def _switched(argv, switches):
    """--overwrite alone means --overwrite true."""
    alone = [not after or after[0].startswith("--") for after in (argv[i + 1:i + 2] for i in range(len(argv)))]
    return [f"{a}=true" if a in switches and last else a for a, last in zip(argv, alone, strict=True)]


def _check_once(argv):
    """InputError on an option that is given twice: one of its values would be lost."""
    given = Counter(a.partition("=")[0] for a in argv if a.startswith("--"))
    twice = next((option for option, n in given.items() if n > 1), None)
    if twice:
        raise InputError(f"{twice} is given twice: give it once")


def _gathered(argv, list_flags):
    """--seeds 0 1 2, or --seeds 0 --seeds 1 --seeds 2, -> --seeds [0, 1, 2]. list_flags: {option that takes a list: is it
    one of texts?}."""
    out, lists, flag = [], {}, None
    for a in argv:
        if a.startswith("--"):
            key, equals, word = a.partition("=")
            flag = key if key in list_flags else None
            lists.setdefault(key, []).extend([word] if equals else []) if flag else out.append(a)
        elif flag:
            lists[flag].append(a)
        else:
            out.append(a)
    empty = next((option for option, words in lists.items() if not words), None)
    if empty:
        raise InputError(f"{empty} is given without a value: give one or more, or leave it out")
    for option, word in ((option, word) for option, words in lists.items() for word in words if not _is_text(word)):
        raise InputError(f"{option} {printable(word)} has a name that is no UTF-8, which this option does not take: name another")
    return out + [f"{k}={_as_list(v, list_flags[k])}" for k, v in lists.items()]


def _is_text(word):
    """Whether it can be written as UTF-8: bytes of a file's name need not be text."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_list(words, texts):
    """Words as typed -> a JSON list; a word that is a list already stands for it. texts: every word is one, be it 12 or null."""
    if len(words) == 1 and words[0].startswith("["):
        return json.dumps(yaml.load(words[0], yaml.BaseLoader)) if texts else words[0]
    return json.dumps(words if texts else [yaml.safe_load(w) for w in words])


# ----- files of options

def _with_known_keys(argv, names):
    """argv whose --config FILE uses an alias -> the same with the file's text in its place, under the options' own names."""
    return [_known_keys(a, names) if before == "--config" else a for before, a in pairwise(["", *argv])]


def _known_keys(file, names):
    found = (_read_yaml(file) if Path(file).is_file() else None) or {}
    meant = {key: ALIASES[key] for key in found if key in ALIASES and key not in names and ALIASES[key] in names}
    if not meant:
        return file
    if len({meant.get(key, key) for key in found}) < len(found):
        twice = next(name for name in meant.values() if [meant.get(key, key) for key in found].count(name) > 1)
        named = [key for key in found if meant.get(key, key) == twice]
        raise InputError(f"{file} names {' and '.join(named)} at once, which are one option: keep one of them")
    return yaml.safe_dump({meant.get(key, key): value for key, value in found.items()}, allow_unicode=True)


def _read_yaml(file):
    """InputError for a file that is no YAML, or holds something else than options."""
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"--config {file} is no YAML ({_first_lines(error)}): name a file of options, each as `name: value`") \
            from error
    if not isinstance(found, dict | None):
        raise InputError(f"--config {file} holds no options: write each of them as `name: value`")
    return found


def _first_lines(error):
    return " ".join(str(error).split())[:300]
