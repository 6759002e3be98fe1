"""The report: one file that fetches nothing, says what report.json says, and shows in a browser on a desk and on a phone."""
import base64
import hashlib
import html
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from instruments import noise, samples_folder, training_set
from PIL import Image
from places import ROOT
from rich.console import Console

from rotescope.datasets.images.data_uri import data_uri
from rotescope.datasets.manifest import Manifest
from rotescope.evaluate.report import svg as charts
from rotescope.evaluate.report.findings import score_samples
from rotescope.evaluate.report.html import write_report
from rotescope.evaluate.report.json_types import as_json
from rotescope.evaluate.report.page_pictures import THUMBNAIL, spread_over
from rotescope.evaluate.report.page_tables import settings_in_words
from rotescope.evaluate.report.terminal import print_table
from rotescope.evaluate.statistics.estimate import share_estimate
from rotescope.evaluate.verdict.verdict import best_mitigation

METHODS = {"none": {"before": 0.0, "transition": 1000}, "stp": {"before": 0.0, "transition": 600},
           "og-dtp": {"before": -7.5, "transition": "dynamic"}}
HOSTILE = '"><script>alert(1)</script> & <b>bold</b>\n' + 500 * "long " + "🙂"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "img", "br", "line", "path", "circle", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting; collects tags, addresses and text."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.addresses, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.addresses += [v for key, v in attrs if key in ("src", "href", "srcset", "action", "data", "poster", "xlink:href")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for found, attrs in self.tags if found == tag]


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Plain guidance copies all duplicated and no control images, STP every fourth, OG + DTP none -> (report, folder)."""
    folder = tmp_path_factory.mktemp("report")
    data = training_set(folder / "train")

    def copied(method, i, seed):
        return i % 2 == 0 and (method == "none" or (method == "stp" and i % 8 == 0))
    samples = samples_folder(folder / "samples", data, copied, METHODS, ("duplicated", "control"))
    sweep = samples_folder(folder / "sweep", data.examples[:8], lambda method, i, seed: i < int(method[1:]) // 100,
                           {f"d{tau}": {"before": 0.0, "transition": tau} for tau in (300, 500, 700)})
    report = score_samples(samples, data, training_set(folder / "held", seed=8), sweep=sweep, config={"why": "a test"})
    write_report(report, folder / "out")
    return report, folder / "out"


@pytest.fixture(scope="module")
def page(reported):
    return Page((reported[1] / "report.html").read_text(encoding="utf-8"))


def test_json_holds_what_the_schema_promises(reported):
    report, folder = reported
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert found == report.as_json() == json.loads(report.to_json())
    assert found["schema_version"] == "2.0"
    assert {"verdict", "descriptor", "copy_threshold", "threshold_rule", "background", "seeds", "guidance_scale",
            "num_inference_steps", "alignment_metric", "fidelity_metric", "methods", "sweep", "hashes", "versions", "config",
            "pairs"} <= set(found)
    assert list(found["methods"]) == ["none", "stp", "og-dtp"]
    for method in found["methods"].values():
        assert set(method) == {"label", "settings", "groups"}
        assert set(method["groups"]) == {"duplicated", "control"}
        for cell in method["groups"].values():
            assert {"n", "n_prompts", "copies", "copy_rate", "copy_rate_interval", "own_copy_rate", "sim95", "top1_mean",
                    "alignment", "caption_accuracy", "denoiser_rows", "fidelity"} <= set(cell)
    assert [found["methods"][m]["groups"]["duplicated"]["copy_rate"] for m in METHODS] == [1, 0.25, 0]
    assert len(found["pairs"]) == 240
    assert set(found["verdict"]) >= {"passed", "text", "rule", "reasons"}
    assert "base64" not in json.dumps(found)


def test_page_is_one_file_that_fetches_nothing(reported, page):
    text = (reported[1] / "report.html").read_text(encoding="utf-8")
    assert len(text) < 5e6
    assert page.stack == []
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.search(r"url\(|@import|<script\s|<iframe|<object|fetch\(|XMLHttp", re.sub(r"&lt;.*?&gt;", "", text))
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(script) == 1  # ours, and no caption's
    own = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{own}'"


def test_page_says_the_verdict_first_and_the_figures(reported, page):
    report, _ = reported
    text = " ".join(page.text.split()).replace("\u2060", "")
    assert text.index(report.verdict.headline) < text.index("How often, and at what price")
    assert report.verdict.text in text
    assert "40 of 40 images made from captions of duplicated images copy a training image: 100% (91–100%)" in text
    for said in ("0% (0–8.8%)", "25% (13–41%)", "scale 0 until t = 600", "pixels-32-centred-fp32", report.hashes["samples"]):
        assert said in text


def test_page_can_be_used_without_eyes_or_mouse(page):
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {a["href"][1:] for a in page.all("a")} <= ids
    assert all(d["tabindex"] == "0" and d["aria-label"] for d in page.all("div") if "scroll" in d.get("class", "").split())
    assert len(page.all("h1")) == 1
    assert page.all("html")[0]["lang"] == "en"


def test_figures_say_in_words_what_they_draw(page):
    told = " ".join(svg["aria-label"] for svg in page.all("svg"))
    assert "Plain guidance, duplicated: 100% over the threshold" in told
    assert "Held-out pictures, never seen" in told
    assert told.count("Prediction gap under plain guidance") == 2  # for desk and phone


def test_captions_cannot_break_the_page(tmp_path):
    data = training_set(tmp_path / "train", 12)
    hostile = Manifest(tuple(type(e)(**vars(e) | {"captions": (HOSTILE + str(i),)}) for i, e in enumerate(data)))
    report = score_samples(samples_folder(tmp_path / "samples", hostile, lambda *_: True), hostile, title=HOSTILE)
    text = write_report(report, tmp_path / "out").read_text(encoding="utf-8")
    page = Page(text)
    assert page.stack == []
    assert text.count("<script") == 1  # the page's own, at its end
    assert "alert(1)" not in text[text.index("<script"):]
    assert "<b>bold" not in text
    assert json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["pairs"][0]["prompt"].startswith('"><script>')


def test_a_bare_folder_gets_a_page_without_what_is_not_known(tmp_path):
    data = training_set(tmp_path / "train", 12)
    (tmp_path / "made").mkdir()
    for i in range(3):
        noise(i, side=300).save(tmp_path / "made" / f"{i}.png")
    report = score_samples(tmp_path / "made", data)
    page = Page(write_report(report, tmp_path / "out").read_text(encoding="utf-8"))
    assert report.verdict.outcome == "undecided"
    assert "None is close enough to count as a copy" in " ".join(page.text.split())
    assert "Denoiser" not in page.text
    assert "The same prompt under every method" not in page.text
    assert any(image["src"].startswith("data:image/webp") for image in page.all("img"))  # a large one, as a thumbnail


def test_numbers_are_json_whatever_they_were():
    import numpy as np
    mixed = {"a": float("nan"), "b": np.float32(0.1234567), "c": (1, None, True), 4: "x", "d": 1.23456789e-9, "e": "\udcff"}
    assert as_json(mixed) == {"a": None, "b": 0.123457, "c": [1, None, True], "4": "x", "d": 1.23457e-9, "e": "\\udcff"}
    assert as_json(1 / 3, digits=None) == 1 / 3


def test_pictures_go_in_exactly_or_as_thumbnails():
    assert data_uri(noise(0), THUMBNAIL).startswith("data:image/png;base64,")
    assert len(data_uri(Image.effect_noise((1024, 512), 50).convert("RGB"), THUMBNAIL)) < 40_000


def test_small_parts():
    assert settings_in_words({"before": -2.0, "transition": 650}) == "scale −2 until t\u00a0=\u00a0650"
    assert settings_in_words({"before": 0.0, "transition": 1000}) == settings_in_words({}) == ""
    assert spread_over(list(range(24)), 4) == [0, 8, 15, 23]
    assert spread_over([1, 2], 4) == [1, 2]
    assert charts.ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert charts.ticks(19, 999, 4) == [250, 500, 750]
    canvas = charts.Canvas(200, 100, "t", "a")
    for _ in range(4):
        canvas.label(20, 50, "label", "value")
    boxes = canvas.texts
    assert len(boxes) == 4
    assert all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for i, a in enumerate(boxes) for b in boxes[:i])


def test_table_fits_a_terminal(reported):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_table(reported[0], console)
    lines = console.export_text().splitlines()
    assert len(lines) == 1 + 6 + 2
    assert max(map(len, lines[:-1])) <= 80
    assert "…" not in "".join(lines)
    assert lines[1].split()[:4] == ["none", "duplicated", "40/40", "100%"]
    assert lines[-1] == "failed by copy_rate>0.05: The generated images reproduce training images."


# ----- in a browser

def browse(page, profile, *options):
    """-> what headless Chromium prints."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
         f"--user-data-dir={profile}", *options, f"file://{page}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


PROBE = """<body><script>
  const inner = document.createElement("iframe");
  inner.style = "width: WIDTHpx; border: 0"; inner.srcdoc = PAGE;
  inner.onload = () => {
    const d = inner.contentDocument, seen = e => e.getBoundingClientRect().width > 0;
    document.title = JSON.stringify({
      over: d.documentElement.scrollWidth - inner.clientWidth, images: d.images.length,
      broken: [...d.images].filter(i => i.complete && !i.naturalWidth).length,
      charts: [...d.querySelectorAll("svg")].filter(seen).map(e => e.getAttribute("viewBox").split(" ")[2])});
  };
  document.body.append(inner);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (390, 0)])
def test_browser_shows_the_page_without_overflow_or_violation(reported, tmp_path, width, scheme):
    """The page itself must raise no complaint; a copy that may run a script then measures what the browser made of it."""
    report = reported[1] / "report.html"
    shot = tmp_path / "shot.png"
    done = browse(report, tmp_path / "a", f"--window-size={max(width, 500)},2000", f"--screenshot={shot}",
                  f"--blink-settings=preferredColorScheme={scheme}")
    assert "Content Security Policy" not in done.stderr
    background = Image.open(shot).convert("RGB").getpixel((5, 5))
    assert (sum(background) > 600) == (scheme == 1)  # light, dark
    text = re.sub(r"<meta http-equiv[^>]*>", "", report.read_text(encoding="utf-8"))
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)).replace("PAGE", json.dumps(text).replace("</", "<\\/")), encoding="utf-8")
    printed = browse(probe, tmp_path / "b", "--dump-dom", "--virtual-time-budget=5000").stdout
    title = re.search(r"<title>(\{.*?\})</title>", printed)
    found = json.loads(title[1])
    assert found["over"] <= 0
    assert found["broken"] == 0
    assert found["images"] > 50
    assert found["charts"] == [str(charts.WIDE if width > 640 else charts.NARROW)] * 2  # similarity and gap; no trade-off here


USER = """<body><script>
  const inner = document.createElement("iframe");
  inner.srcdoc = PAGE;
  inner.onload = () => {
    const d = inner.contentDocument, section = d.querySelector("#prompts"), found = [];
    const look = column => found.push(
      [...section.querySelectorAll("tbody tr")].filter(r => !r.hidden).map(r => r.cells[column].textContent));
    const set = (what, change) => {
      const control = section.querySelector(what);
      change(control);
      control.dispatchEvent(new Event("input", {bubbles: true}));
    };
    const heads = section.querySelectorAll("thead button");
    look(3);                                        // as it stands
    heads[3].click(); look(3);                      // the other way round
    heads[0].click(); heads[0].click(); look(0);    // by prompt, from a on
    set("select", e => e.value = "stp"); set("input[type=checkbox]", e => e.checked = true); look(2);
    set("input[type=search]", e => e.value = "NO SUCH PROMPT"); look(2);
    document.title = JSON.stringify({found, said: section.querySelector("output").value,
      hidden: section.querySelector(".tools").hidden, sorted: heads[0].closest("th").getAttribute("aria-sort")});
  };
  document.body.append(inner);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_browser_sorts_and_filters_the_prompts(reported, tmp_path):
    report, folder = reported
    text = re.sub(r"<meta http-equiv[^>]*>", "", (folder / "report.html").read_text(encoding="utf-8"))
    page = tmp_path / "user.html"
    page.write_text(USER.replace("PAGE", json.dumps(text).replace("</", "<\\/")), encoding="utf-8")
    printed = browse(page, tmp_path / "a", "--dump-dom", "--virtual-time-budget=5000").stdout
    seen = json.loads(html.unescape(re.search(r"<title>(\{.*?\})</title>", printed, re.DOTALL)[1]))
    similar, reverse, named, copies, none = seen["found"]
    assert not seen["hidden"]
    assert similar == sorted(similar, reverse=True)
    assert reverse == similar[::-1]
    assert named == sorted(named, key=str.lower)
    assert len(named) == sum(p.method == "none" for p in report.prompts)  # plain guidance, until another is chosen
    assert len(copies) == sum(p.method == "stp" and p.copies > 0 for p in report.prompts) > 0
    assert (none, seen["said"], seen["sorted"]) == ([], f"0 of {len(report.prompts)} lines", "ascending")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_script_runs_under_the_pages_own_policy(reported, tmp_path):
    printed = browse(reported[1] / "report.html", tmp_path / "a", "--dump-dom", "--virtual-time-budget=5000").stdout
    assert '<div class="tools" role="search">' in printed


def test_markup_in_a_group_name_is_text_in_the_terminal(tmp_path):
    data = training_set(tmp_path / "train", 12)
    report = score_samples(samples_folder(tmp_path / "samples", data, lambda *_: True, groups=("[/x]",)), data)
    console = Console(record=True, width=200, file=io.StringIO())
    print_table(report, console)
    assert "[/x]" in console.export_text()


DEMO = ROOT / "runs/demo/report.html"


@pytest.mark.on_demand("README_SCREENSHOTS")
def test_the_screenshot_that_the_readme_shows(tmp_path):
    assert CHROMIUM, "Chromium draws the picture: install it first"
    assert DEMO.exists(), "make demo first"
    shot = Path(os.environ["README_SCREENSHOTS"]).absolute() / "report.png"
    done = browse(DEMO, tmp_path / "a", "--window-size=1020,740", "--blink-settings=preferredColorScheme=1",
                  f"--screenshot={shot}")
    assert "Content Security Policy" not in done.stderr
    assert Image.open(shot).size == (1020, 740)


def test_the_best_method_is_not_the_one_whose_images_are_mush():
    def found(copies, alignment):
        return SimpleNamespace(copy_rate=share_estimate(copies, 10, 10), alignment=alignment)
    findings = {"mush": found(0, 0.2), "good": found(1, 0.88), "weak": found(5, 0.97)}
    assert best_mitigation(findings, found(9, 0.95)) == "good"
    assert best_mitigation(findings, found(9, None)) == "mush"
    assert best_mitigation({"mush": findings["mush"]}, found(9, 0.95)) == "mush"
