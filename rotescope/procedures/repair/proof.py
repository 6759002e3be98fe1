"""The proof of a repair: leaking pictures, beside ones that the model never saw, are sought again on the LoRA before it and after
it, by the same search at the same budget. What the search finds before shows its power."""
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rotescope.common.console import say
from rotescope.datasets.manifest import Manifest
from rotescope.evaluate.report.report import Report
from rotescope.evaluate.statistics.retrigger_tally import PLAIN, ROUTES
from rotescope.mitigate.embedding_search.targets import choose_targets
from rotescope.mitigate.prompts.prompt import HELDOUT
from rotescope.options.audit import AuditConfig
from rotescope.procedures.audit import search_options
from rotescope.procedures.retrigger import bring_back

LEAKING = "leaking"
SIGNIFICANCE = 0.05
STATUSES = {"untouched": "its own caption still brings it back", "suppressed": "only a paraphrase or a found embedding does",
            "erased": "nothing that was tried does"}
Tally = dict[str, dict[str, dict[str, Any]]]   # {LEAKING or HELDOUT: {route: figures}}


@dataclass(frozen=True)
class SoughtPicture:
    """A leaking picture, and the routes that brought it back before the repair and after it."""
    image_id: str
    status: str            # one of STATUSES
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class RepairProof:
    """What came back before the repair and after it; before and after have p and p_adjusted of each route, against never-seen
    pictures."""
    sentence: str
    counts: dict[str, int]   # of leaking pictures by STATUSES
    unfound: int             # of the erased, those that no found embedding brought back before the repair either
    pictures: tuple[SoughtPicture, ...]
    before: Tally
    after: Tally
    budget: dict[str, Any]   # of each search

    @property
    def counted(self) -> str:
        """The counts in words."""
        text = ", ".join(f"{n} {status}" for status, n in self.counts.items())
        beside = f", {self.unfound} of which no found embedding brought back before the repair either" if self.unfound else ""
        return f"Of {len(self.pictures)} leaking pictures: {text}{beside}."


def prove(before: AuditConfig, after: AuditConfig, report: Report, manifest: Manifest, heldout: Manifest, limit: int, folder: Path
          ) -> RepairProof | None:
    """Seek the `limit` pictures that were copied most, and as many held-out ones, on the LoRA of each config; None where no
    picture was copied as a whole. Samples, embeddings and pictures go to `folder`/before and `folder`/after.

    report: the audit before the repair. InputError where every held-out picture bears a training caption, RunError where a search
    diverges.
    """
    copied = Counter(p.nearest for p in report.pairs if p.is_copy)
    ids = [image_id for image_id, _ in copied.most_common(limit)]
    if not ids:
        return None
    chosen = choose_targets(manifest, heldout, ids, limit=limit)
    targets = [t if t.group == HELDOUT else replace(t, group=LEAKING) for t in chosen]
    found = {}
    for name, config in (("before", before), ("after", after)):
        say(f"{name} the repair: leaking pictures are sought again by own captions, paraphrases and found embeddings")
        place = folder / name
        found[name] = bring_back(search_options(replace(config, output_dir=str(place)), report, ids, limit), manifest, heldout,
                                 targets, place)
    return weighed(found["before"], found["after"])


def weighed(before: dict[str, Any], after: dict[str, Any]) -> RepairProof:
    """What retrigger.json holds, of the same targets before the repair and after it -> the proof."""
    came, comes = ({i["image_id"]: tuple(r for r, f in i["routes"].get(PLAIN, {}).items() if f["copies"])
                    for i in found["images"] if i["group"] == LEAKING} for found in (before, after))
    pictures = tuple(SoughtPicture(image_id, status_of(comes[image_id]), came[image_id], comes[image_id]) for image_id in comes)
    counts = {status: sum(p.status == status for p in pictures) for status in STATUSES}
    unfound = sum(p.status == "erased" and "embedding" not in p.before for p in pictures)
    old, new = before["results"][PLAIN], after["results"][PLAIN]
    return RepairProof(sentence_of(old, new), counts, unfound, pictures, old, new, after["budget"])


def status_of(routes: tuple[str, ...]) -> str:
    """-> untouched, suppressed or erased, of a picture that these routes bring back after the repair."""
    return "untouched" if "caption" in routes else "suppressed" if routes else "erased"


def sentence_of(before: Tally, after: Tally) -> str:
    """-> whether the pictures are gone, hidden, or whether nothing is shown."""
    if HELDOUT not in before or HELDOUT not in after:
        return "No picture that the model never saw was left to seek, and without them this proves nothing."
    still = [route for route, figures in after[LEAKING].items() if figures["p_adjusted"] <= SIGNIFICANCE]
    if still:
        return (f"After the repair {' and '.join(_beside(after, route) for route in still)}: more often than chance explains, so "
                "the pictures are not gone.")
    if before[LEAKING]["embedding"]["p_adjusted"] > SIGNIFICANCE:
        return (f"Before the repair {_beside(before, 'embedding')}: the search has no power here, and so what it does not find "
                "after the repair proves nothing.")
    left = any(figures["brought_back"] for figures in after[LEAKING].values())
    end = ("a difference that may be chance, which does not show that nothing is left" if left
           else "at this budget nothing of them is found any more")
    told = ", ".join(_beside(after, route) for route in after[LEAKING])
    return f"Before the repair {_beside(before, 'embedding')}, so the search finds what is there; after it {told}: {end}."


def _beside(tally, route):
    leaking, heldout = (tally[group][route] for group in (LEAKING, HELDOUT))
    return (f"{ROUTES[route]} bring back {leaking['brought_back']} of {leaking['images']} leaking and {heldout['brought_back']} "
            f"of {heldout['images']} never-seen pictures (adjusted p = {leaking['p_adjusted']:.2g})")
