"""Preflight -> one HTML page that needs no network. The template engine escapes captions and names."""
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rotescope.datasets.images.clusters import CHAINS, METHOD, VERIFIED
from rotescope.datasets.images.data_uri import data_uri
from rotescope.datasets.inspection.risk import repeated

RISKIEST, CLUSTERS, IN_CLUSTER, CAPTIONS, LEFT_OUT = 12, 60, 12, 20, 100   # how many of each the page shows
THUMBNAIL = 136   # pixels
CAPTION = 200     # characters of a caption under a picture


def preflight_page(found, title):
    """-> the page, as text."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.j2").render(
        title=title, s=found.summary, riskiest=riskiest(found), clusters=[_cluster(found, c) for c in found.clusters[:CLUSTERS]],
        repeated=repeated(found.manifest, found.pictures.labels)[:CAPTIONS],
        quarantined=[" ".join(q.reason.split()) for q in found.quarantined[:LEFT_OUT]], 
        shared=found.shared and [(Path(s.own.name).name, s.other.name, s.how) for s in found.shared[:LEFT_OUT]],
        method=METHOD + (VERIFIED if found.verified else "") + CHAINS)


def riskiest(found):
    """The first image of each of the riskiest pictures, with its figures."""
    first, images = {}, {}
    for i in found.order:
        label = int(found.pictures.labels[i])
        first.setdefault(label, i)
        images[label] = images.get(label, 0) + 1
    return [_shown(found, i) | {
        "risk": found.risks[i].risk, "exposures": found.risks[i].exposures, "caption": _short(found.risks[i].caption),
        "caption_pictures": found.risks[i].caption_pictures, "own_words": _short(" ".join(found.risks[i].own_words)),
        "images": images[label]} for label, i in list(first.items())[:RISKIEST]]


def _cluster(found, images):
    captions = {c for i in images for c in found.manifest[i].captions}
    seen, pictures = set(), []
    for i in images[:IN_CLUSTER]:
        sha = found.manifest[i].sha256
        pictures.append(_shown(found, i) | {"exact": sha in seen})
        seen.add(sha)
    return {"count": len(images), "pictures": pictures, "captions": len(captions),
            "risk": found.risks[images[0]].risk, "exposures": found.risks[images[0]].exposures}


def _shown(found, i):
    e = found.manifest[i]
    width, height = found.pictures.looks[e.sha256].size
    return {"uri": data_uri(e.open(), THUMBNAIL), "caption": _short(e.captions[0]) if e.captions else "",
            "where": Path(e.name).name, "size": f"{width} × {height}"}


def _short(text):
    return text if len(text) <= CAPTION else text[:CAPTION - 1].rstrip() + "…"
