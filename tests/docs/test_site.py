"""The site builds without a network, and nothing on it comes from elsewhere."""
import os
import re
import subprocess
import sys

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder], cwd=ROOT,
                          capture_output=True, text=True, timeout=120, env={**os.environ, **nowhere})
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_built(site):
    pages = {p.relative_to(ROOT / "docs").with_suffix(".html") for p in (ROOT / "docs").rglob("*.md")}
    built = {p.relative_to(site) for p in site.rglob("*.html")}
    assert {p.with_name("index.html") if p.name == "README.html" else p for p in pages} <= built


def test_nothing_comes_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^\"' >]+", text), page


def test_the_types_of_extensions_are_shown(site):
    text = (site / "extending.html").read_text(encoding="utf-8")
    assert "rotescope.mitigate.contract.mitigation.Mitigation" in text
    assert "survey" in text
