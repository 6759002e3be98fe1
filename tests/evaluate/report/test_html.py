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

import numpy as np
import pytest
from instruments import finder, laid, noise, samples_folder, training_set
from PIL import Image
from places import ROOT
from rich.console import Console

from rotescope.datasets.images.data_uri import data_uri
from rotescope.datasets.manifest import Manifest
from rotescope.evaluate.measurement import findings
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.report import svg as charts
from rotescope.evaluate.report.html import write_report
from rotescope.evaluate.report.json_types import as_json
from rotescope.evaluate.report.page_pictures import THUMBNAIL, spread_over
from rotescope.evaluate.report.page_tables import settings_in_words
from rotescope.evaluate.report.table_layout import method_words, prompts_together
from rotescope.evaluate.report.terminal import print_table
from rotescope.evaluate.statistics.estimate import share_estimate
from rotescope.evaluate.statistics.significance import benjamini_hochberg
from rotescope.evaluate.verdict.best_mitigation import best_mitigation

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
    """Plain guidance copies all duplicated and no control images, stp every fourth, og-dtp none -> (report, folder)."""
    folder = tmp_path_factory.mktemp("report")
    data = training_set(folder / "train")

    def copied(method, i, seed):
        return i % 2 == 0 and (method == "none" or (method == "stp" and i % 8 == 0))
    samples = samples_folder(folder / "samples", data, copied, METHODS, ("duplicated", "control"))
    sweep = samples_folder(folder / "sweep", data.examples[:8], lambda method, i, seed: i < int(method[1:]) // 100,
                           {f"d{tau}": {"before": 0.0, "transition": tau} for tau in (300, 500, 700)})
    with pytest.MonkeyPatch.context() as patched:
        part = laid(5, (0.5, 0, 0, 0, 0.5, 0), 1.0, 0.25)
        patched.setattr(findings, "make_matcher", finder({"stp/images/P00001-S0.png": [part]}))
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
    assert found["schema_version"] == "3.0"
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
    assert "40 of 40 images made from captions of duplicated images copy a training image: 100% (83–100%)" in text
    for said in ("0% (0–17%)", "25% (8.7–49%)", "scale 0 until t = 600", "pixels-32-centred-fp32", report.hashes["samples"]):
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
    report = score_samples(samples_folder(tmp_path / "samples", hostile, lambda *_: True), hostile, title=HOSTILE, verify=False)
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
    report = score_samples(tmp_path / "made", data, verify=False)
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
    assert settings_in_words({"before": 0.0, "transition": "noise:0.7"}) == "scale 0 until a noise share of 0.7"
    assert settings_in_words({"before": 0.0, "transition": "steps:0.35"}) == "scale 0 until 0.35 of the steps"
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
    assert len(lines) == 1 + 6 + 1 + 5 + 2  # the table, the controls, the verdict
    assert max(map(len, lines[:7])) <= 80
    assert "…" not in "".join(lines)
    assert [line.partition(":")[0] for line in lines[8:13]] == [
        "– attached", "✓ drawn", "✓ the right set", "? a planted copy is found", "✓ enough"]
    assert lines[1].split()[:4] == ["none", "duplicated", "40/40", "100%"]
    assert lines[-1] == "failed by leaked_prompts>0: The generated images reproduce training images."


def test_no_label_of_a_chart_is_clipped(reported):
    report, _ = reported
    points = [("delayed", "500", 0.2, (0.1, 0.3), 0.92), ("opposite", "700", 0.2, (0.1, 0.3), 0.92),
              ("plain", "plain guidance", 1.0, (0.96, 1.0), 0.93), ("method", "og-stp-layout", 0.01, (0, 0.05), 0.91)]
    for width in (charts.WIDE, charts.NARROW):
        for drawn in (charts.draw_strips(report, width), charts.draw_tradeoff(points, width)):
            for left, top, right, bottom in drawn.texts:
                assert left + 3 >= 0, drawn.title
                assert right - 3 <= drawn.width, drawn.title
                assert top >= 0, drawn.title
                assert bottom <= drawn.height, drawn.title


def test_labels_of_the_tradeoff_lie_on_no_line():
    points = [("delayed", f"{t}", x, (x - 0.05, x + 0.05), 0.92 + x / 50) for t, x in ((500, 0.2), (600, 0.4), (700, 0.6))]
    points += [("opposite", f"{t}", x, (x - 0.05, x + 0.05), 0.92 + x / 60) for t, x in ((500, 0.1), (600, 0.3), (700, 0.5))]
    for width in (charts.WIDE, charts.NARROW):
        canvas = charts.draw_tradeoff(points, width)
        labels = canvas.texts[-len(points):]
        number = '="([\\d.]+)" '
        whisker = f'<line x1{number}y1{number}x2{number}y2{number}class="whisker"'
        lines = re.findall(whisker, "".join(canvas.parts))
        assert len(lines) == len(points)
        for x1, y, x2, _ in (map(float, line) for line in lines):
            assert not any(a < x2 and x1 < c and b < y < d for a, b, c, d in labels)


def luminance(colour):
    """WCAG 2's relative luminance of #rrggbb."""
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "paper"])
def test_colours_can_be_read(scheme):
    """Text at 4.5 : 1 on every ground, marks and bars at 3 : 1."""
    css = (ROOT / "evaluate/report/report.css.j2").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6});", re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]))
    colours = {k: v if len(v) == 7 else "#" + "".join(2 * c for c in v[1:]) for k, v in colours.items()}
    for ground in ("paper", "card"):
        for ink, least in (("ink", 4.5), ("soft", 4.5), ("accent", 4.5), ("calm", 3)):
            light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least, (ink, ground)


def test_prompts_that_are_significant_together():
    """800 pictures give 4 images a p of 4/804 at least; of 48 prompts 5 must share it: 4/804 · 48 / 5 ≤ 0.05 < 4/804 · 48 / 4."""
    assert prompts_together(4 / 804, ["none"] * 48 + ["stp"] * 7, 0.05) == 5
    assert prompts_together(0.05 / 48, ["none"] * 48, 0.05) == 1
    p = np.full(48, 0.9)
    p[:5] = 4 / 804
    assert (benjamini_hochberg(p)[:5] <= 0.05).all()
    p[4] = 0.9
    assert (benjamini_hochberg(p) > 0.05).all()


def test_words_are_explained_that_the_labels_use():
    assert method_words({"none": "plain guidance"}) == []
    terms = [term for term, _ in method_words({"none": "plain guidance", "og-dtp": "og-dtp"})]
    assert terms == ["dtp, dynamic transition point", "og, opposite guidance", "Transition, τ"]


def test_page_says_beside_the_outcome_what_was_looked_at(reported, page):
    text = " ".join(page.text.split())
    assert "Failed · looked at 80 images of 40 prompts, in each of 3 ways of sampling" in text
    for term in ("Copy, copy threshold", "Null", "Leak", "stp, static transition point", "Transition, τ"):
        assert text.index(term) < text.index("What was copied")


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


TABLES = """<body><script>
  const texts = TEXTS, pages = PAGES, seen = [];
  const look = (inner, place) => {
    const d = inner.contentDocument, wide = inner.clientWidth, found = [];
    for (const e of d.querySelectorAll("details")) e.open = true;
    const within = e => { const b = e.getBoundingClientRect(); return b.width > 0 && b.left >= -0.5 && b.right <= wide + 0.5; };
    const named = c => [d.defaultView.getComputedStyle(c, "::before").content.replace(/^"|"( \\/ "")?$/g, ""), c.dataset.label];
    for (const table of d.querySelectorAll("table.stack")) {
      const heads = [...table.tHead.rows[0].cells].filter(within).length;
      const rows = [...table.querySelectorAll("tbody tr:not(.group):not([hidden])")];
      found.push({section: table.closest("section").id, columns: table.tHead.rows[0].cells.length, heads,
        cells: rows.map(r => r.cells.length), lost: rows.flatMap(r => [...r.cells].filter(c => !within(c))).length,
        cards: d.defaultView.getComputedStyle(rows[0]).display === "grid",
        unnamed: rows.flatMap(r => [...r.querySelectorAll("td")].map(named)).filter(
          ([shown, label]) => !label || shown !== label).length});
    }
    const hinted = e => !!e && within(e) && e.className.includes("hint");
    const scrolls = [...d.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1)
      .map(e => [e.className, e.tabIndex, hinted(e.previousElementSibling)]);
    seen.push([pages[place], {over: d.documentElement.scrollWidth - wide, found, scrolls}]);
    if (seen.length === pages.length) document.title = JSON.stringify(seen);
  };
  pages.forEach(([width, medium], place) => {
    const inner = document.createElement("iframe");
    inner.style = `width: ${width}px; border: 0`; inner.srcdoc = texts[medium]; inner.onload = () => look(inner, place);
    document.body.append(inner);
  });
</script>"""


@pytest.fixture(scope="module")
def six_methods(tmp_path_factory):
    """Six methods and two groups, with alignment and fidelity: every column that a table can have -> report.html."""
    folder = tmp_path_factory.mktemp("six")
    methods = METHODS | {"og-stp": {"before": -2.0, "transition": 600}, "dtp": {"before": 0.0, "transition": "dynamic"},
                         "og-stp-layout": {"before": -2.0, "transition": 600, "colour": 1.0}}
    data = training_set(folder / "train", 16)
    samples = samples_folder(folder / "samples", data, lambda method, i, seed: i % 4 == 0, methods, ("duplicated", "control"))
    report = score_samples(samples, data, training_set(folder / "held", 20, seed=8), alignment=str(ROOT / "train/base/alignment"),
                           verify=False)
    return write_report(report, folder / "out")


WIDTHS = [(1200, "screen"), (961, "screen"), (768, "screen"), (390, "screen"), (680, "print")]


@pytest.fixture(scope="module")
def tables_at(six_methods, tmp_path_factory):
    """What a browser makes of the page at all widths, in frames of one window -> {(width, medium): what it saw}."""
    folder = tmp_path_factory.mktemp("tables")
    text = re.sub(r"<meta http-equiv[^>]*>", "", six_methods.read_text(encoding="utf-8"))
    paper = text.replace("@media print {", "@media all {").replace("@media screen and", "@media not all and")
    texts = json.dumps({"screen": text, "print": paper}).replace("</", "<\\/")
    page = folder / "tables.html"
    page.write_text(TABLES.replace("PAGES", json.dumps(WIDTHS)).replace("TEXTS", texts), encoding="utf-8")
    printed = browse(page, folder / "a", "--dump-dom", "--window-size=1400,2000", "--virtual-time-budget=8000").stdout
    seen = json.loads(html.unescape(re.search(r"<title>(\[.*?\])</title>", printed, re.DOTALL)[1]))
    return {tuple(place): found for place, found in seen}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize(("width", "medium"), WIDTHS)
def test_browser_reaches_every_column_without_scrolling_sideways(tables_at, width, medium):
    """On a desk and on paper, A4 between its margins, tables are tables; on narrower screens they are cards, in which every
    figure stands under the name of its column."""
    seen = tables_at[width, medium]
    assert seen["over"] <= 0
    tables = {table["section"]: table for table in seen["found"]}
    assert set(tables) == {"prompts", "found", "published"}
    assert (tables["found"]["columns"], len(tables["found"]["cells"])) == (7, 12)
    for table in tables.values():
        assert table["cards"] == (width <= 960 and medium == "screen")
        assert table["lost"] == 0
        assert set(table["cells"]) == {table["columns"]}
        if table["cards"]:
            assert table["unnamed"] == 0
        else:
            assert table["heads"] == table["columns"]
    for where, tab, hinted in seen["scrolls"]:  # the grid of pictures may scroll, and says so
        assert (where, tab, hinted) == ("scroll grid", 0, True)
        assert medium == "screen"


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
    report = score_samples(samples_folder(tmp_path / "samples", data, lambda *_: True, groups=("[/x]",)), data, verify=False)
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


@pytest.mark.on_demand("README_SCREENSHOTS")
def test_the_screenshot_of_the_demos_grid():
    from rotescope.procedures.plots.grid import draw_grid
    file = Path(os.environ["README_SCREENSHOTS"]).absolute() / "grid.png"
    draw_grid(DEMO.parent / "samples", DEMO.parent / "checkpoint/manifest.parquet", file)
    assert Image.open(file).width > 900


def test_the_best_method_is_not_the_one_whose_images_are_mush():
    def found(copies, alignment):
        return SimpleNamespace(copy_rate=share_estimate(copies, 10, 10), alignment=alignment)
    findings = {"mush": found(0, 0.2), "good": found(1, 0.88), "weak": found(5, 0.97)}
    assert best_mitigation(findings, found(9, 0.95)) == "good"
    assert best_mitigation(findings, found(9, None)) == "mush"
    assert best_mitigation({"mush": findings["mush"]}, found(9, 0.95)) == "mush"
