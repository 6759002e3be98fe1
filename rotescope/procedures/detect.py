"""Detectors score prompts (mitigate/detectors/scores.py), and evaluate/statistics/roc.py says how well."""
from rotescope.common.outputs import write_json
from rotescope.common.text_table import TextTable
from rotescope.common.whole_files import write_text
from rotescope.evaluate.statistics.roc import detection_table
from rotescope.mitigate.detectors import scores as scoring

FILE = "detection.md"
NOTE = ("n = {m} duplicated captions against {others}; –: there the detector cannot be asked. Intervals: Newcombe for AUC,\n"
        "Clopper-Pearson for TPR, the share above the lowest threshold that at most 1 % of the others exceed: none of them\n"
        "where they are fewer than 100.")


def run_detection(config):
    """Score as `config` says, the table beside the scores -> {detector: {other group: figures}}, and the same as TextTable
    or None."""
    found = {}

    def beside(folder, rows, run):
        found["table"] = detection_table(rows)
        found["shown"] = detector_table(found["table"], run["detectors"])
        if found["shown"]:
            write_json(folder / "detection.json", found["table"])
            write_text(folder / FILE, found["shown"].markdown())
    scoring.write_scores(config, beside)
    return found["table"], found["shown"]


def detector_table(table, detectors):
    """A row for each detector, the surest first, against each other group; under it what the numbers mean -> TextTable, or None
    without groups."""
    if not table:
        return None
    others = list(dict.fromkeys(group for cells in table.values() for group in cells))
    sizes = {g: max((c[g]["n_memorized"], c[g]["n_other"]) for c in table.values() if g in c) for g in others}
    heads = [f"{what}, {_named(g)} (95 %)" for g in others for what in ("AUC", "TPR at 1 % FPR")]
    rows = []
    for name in sorted(table, key=lambda name: -next(iter(table[name].values()))["auc"]):
        cells, about = [text for g in others for text in _cells(table[name].get(g), sizes[g])], detectors[name]
        rows.append((about["name"], *cells, f"{about['denoiser_rows']:,}", f"{about['seconds']:.2f}"))
    note = NOTE.format(m=max(m for m, _ in sizes.values()), others=", ".join(f"{n} {_named(g)}" for g, (_, n) in sizes.items()))
    return TextTable(("detector", *heads, "denoiser rows a prompt", "seconds a prompt"), tuple(rows), note)


def _cells(found, sizes):
    """AUC and TPR with their intervals, and n where it is not that of the table."""
    if found is None:
        return "–", "–"
    own = found["n_memorized"], found["n_other"]
    note = "" if own == sizes else f", n = {own[0]} and {own[1]}"
    return tuple(f"{found[what]:.2f} ({'–'.join(f'{end:.2f}' for end in found[what + '_interval'])}){note}"
                 for what in ("auc", "tpr"))


def _named(group):
    return {"heldout": "held-out", "": "ungrouped"}.get(group, group)
