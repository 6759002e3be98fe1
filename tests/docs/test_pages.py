"""The pages say what is there: links, paths, commands, floors and rooms; and their lines are short."""
import re
from itertools import groupby

import pytest
from places import ROOT
from test_house import FLOORS

from rotescope.cli import COMMANDS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE = {ROOT / "docs/api.md"}   # by docs/build_api.py: its lines are those of the docstrings
WIDTH = 110
FOLDERS = "datasets|train|mitigate|evaluate|rotescope|tests|docs|benchmarks"
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def prose(page):
    """The lines of a page outside blocks of code -> (number, line)."""
    code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = line.lstrip().startswith("```")
        code ^= fence
        if not code and not fence:
            yield number, line


def code(page):
    """The text of the blocks of code of a page, lines that go on joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return "\n".join(blocks).replace("\\\n", " ")


def anchors(page):
    """The headings of a page as links name them, on GitHub and on the site."""
    titles = (line.lstrip("#").strip() for _, line in prose(page) if line.startswith("#"))
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def links(page):
    for _, line in prose(page):
        yield from re.findall(r"\]\(([^)\s]+)\)", line)


@every_page
def test_every_link_leads_somewhere(page):
    for link in links(page):
        if link.startswith(("http:", "https:")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


@every_page
def test_every_path_exists(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w/.:<>-])((?:{FOLDERS})/[\w./-]*\w)", text))
    gone = [path for path in named if not any((ROOT / (path + end)).exists() for end in ("", ".py"))]
    assert not gone, f"{page.name} names files that are not there: {gone}"


@every_page
def test_lines_are_short(page):
    if page in MADE:
        return
    long = [number for number, line in prose(page)
            if len(line) > WIDTH and not line.startswith("|") and "](" not in line and "http" not in line]
    assert not long, f"{page.name}: lines {long} are longer than {WIDTH} characters"


@every_page
def test_every_command_is_one(page):
    for name in re.findall(r"^rotescope ([a-z]\w*)", code(page), re.M):
        assert name in COMMANDS, f"{page.name} names the command {name}"


@every_page
def test_every_block_of_code_is_closed_and_has_one_heading_above(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("\n```") % 2 == 0
    assert sum(line.startswith("# ") for _, line in prose(page)) == 1


def test_every_page_is_on_the_site():
    """Each is named in mkdocs.yml, so that a reader finds it."""
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M))
    assert named == {str(p.relative_to(ROOT / "docs")) for p in PAGES if ROOT / "docs" in p.parents}


def test_the_architecture_shows_the_floors_of_the_house():
    page = ROOT / "docs/architecture.md"
    shown = re.search(r"^## The floors\n.*?^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)[1].splitlines()
    assert shown == [" · ".join(floor) for floor in FLOORS], "write the floors of tests/test_house.py into docs/architecture.md"


def test_the_architecture_names_every_room():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = {room.replace(".", "/") for floor in FLOORS for room in floor if "." in room}
    assert not [room for room in rooms if f"`{room}/`" not in text and f"`{room}.py`" not in text]


def test_the_readme_asks_in_the_order_of_a_reader():
    headings = [line[3:] for _, line in prose(ROOT / "README.md") if line.startswith("## ")]
    assert [h for h, _ in groupby(headings)] == [
        "Install", "Audit your LoRA", "Mitigate in one line", "Make a model memorize", "From Python", "How a copy is told",
        "Results", "Limits", "Further", "Licence"]
