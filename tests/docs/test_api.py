"""docs/api.md is what the docstrings of the public names say, and their examples run on the embedded model."""
import ast
import doctest
import importlib.util
import inspect
import re

import pytest
from places import EMOJI, ROOT

import rotescope
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.report.report import Report
from rotescope.mitigate.contract.families import FAMILIES


def load(name):
    """A file of docs/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_api, build_families, build_memory = map(load, ("build_api", "build_families", "build_memory"))
NAMES = [name for name in rotescope.__all__ if not name.startswith("_")]


def docstrings(name):
    """Of a public name and of the methods that the page shows -> (name, docstring)."""
    thing = getattr(rotescope, name)
    yield name, inspect.getdoc(thing) or ""
    for method, member in build_api.methods(thing) if inspect.isclass(thing) else ():
        yield f"{name}.{method}", inspect.getdoc(member)


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    """What the page says that all examples share -> (names, folder): `photos` and the model lie there."""
    folder, names = tmp_path_factory.mktemp("examples"), {}
    (folder / "photos").mkdir()
    (folder / "train").symlink_to(ROOT / "train")
    for example in load_source(EMOJI / "heldout.parquet")[:6]:
        example.open().save(folder / f"photos/{example.image_id}.png")
        (folder / f"photos/{example.image_id}.txt").write_text(example.captions[0], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for example in doctest.DocTestParser().get_examples(build_api.BEGINNING):
            exec(compile(example.source, "docs/api.md", "exec"), names)
    return names, folder


def test_the_page_is_what_the_docstrings_say():
    assert (ROOT / "docs/api.md").read_text(encoding="utf-8") == build_api.page(), "run python docs/build_api.py"


def test_the_page_of_families_is_what_the_code_says():
    assert (ROOT / "docs/families.md").read_text(encoding="utf-8") == build_families.page(), "run python docs/build_families.py"
    assert set(build_families.NAMES) == set(FAMILIES)


def test_the_page_of_memory_is_what_the_numbers_say():
    assert (ROOT / "docs/memory.md").read_text(encoding="utf-8") == build_memory.page(), "run python docs/build_memory.py"
    assert set(build_memory.SIZES) == set(FAMILIES)
    flux = build_memory.SIZES["flux"]   # 12 B and T5's 4.7 B, with 0.2 B that stay: (12 + 4.7 + 0.2) · 2, 16.7 · 0.516 + 0.2 · 2
    assert flux.parts == pytest.approx((33.8, 9.0172))
    assert flux.fits() == "`--quantize nf4`"


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_described(name):
    text = build_api.described(name)
    assert inspect.getdoc(getattr(rotescope, name))
    assert text.startswith(f"### `{name}`")
    assert "(…)" not in text


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name, beginning, monkeypatch):
    (names, folder), said = beginning, []
    monkeypatch.chdir(folder)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for where, text in docstrings(name):
        test = doctest.DocTestParser().get_doctest(text, dict(names), where, "docs/api.md", 0)
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


# ----- what other pages say in Python

def python_of_pages():
    """The blocks of Python of the README and the pages, but for docs/api.md -> (page, node of the syntax tree)."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            if page != build_api.PAGE:
                yield page.name, ast.parse(block)


@pytest.mark.parametrize(("page", "tree"), python_of_pages())
def test_pages_import_public_names_and_call_them_as_they_are(page, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "rotescope":
            assert {alias.name for alias in node.names} <= set(NAMES)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
            inspect.signature(getattr(rotescope, node.func.id)).bind(*node.args, **{k.arg: k.value for k in node.keywords})


# ----- the script, on docstrings made here

DOC = '''Add two vectors.

More of it.

Parameters
----------
x : Tensor
    Of shape (n,),
    in pixels.
*more
    Others.

Returns
-------
Tensor

Examples
--------
Plainly:

>>> 1 + 1
2
'''


def test_sections_become_markdown():
    assert build_api.markdown(DOC) == (
        "Add two vectors.\n\nMore of it.\n\n**Parameters**\n\n- `x` (`Tensor`): Of shape (n,), in pixels.\n- `*more`: Others.\n\n"
        "**Returns**\n\n- `Tensor`\n\n**Examples**\n\nPlainly:\n\n```python\n>>> 1 + 1\n2\n```\n")


def some(a: int, b=2, *rest, c: str | None = None, **more) -> float:
    """Some function."""


def test_signatures_are_those_of_the_source():
    assert build_api.signature(some) == "```python\nsome(a: int, b=2, *rest, c: str | None = None, **more) -> float\n```\n"


def test_a_class_of_many_fields_shows_its_fields():
    assert build_api.signature(Report).startswith("```python\nclass Report:\n    schema_version: str\n")


def test_check_tells_a_stale_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build_api, "PAGE", tmp_path / "api.md")
    assert build_api.main(["--check"]) == 1
    assert "run python docs/build_api.py" in capsys.readouterr().err
    assert build_api.main([]) == 0
    assert build_api.main(["--check"]) == 0


def test_the_copy_for_the_site_has_packages_all_the_way(tmp_path):
    """griffe leaves out folders without __init__.py, and ours have none."""
    load("site_source").copy_package(ROOT / "rotescope", tmp_path / "rotescope")
    assert (tmp_path / "rotescope/mitigate/contract/mitigation.py").is_file()
    assert all((f.parent / "__init__.py").is_file() for f in tmp_path.rglob("*.py"))
