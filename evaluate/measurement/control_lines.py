"""The controls of one run: what was seen of the model, the images, the training set and this audit's own eye."""
from collections import Counter

from rotescope.evaluate.inputs.own_manifest import manifest_beside, overlap
from rotescope.evaluate.inputs.samples import pixels_sha256
from rotescope.evaluate.measurement.drawn import empty_pictures, real_pictures
from rotescope.evaluate.measurement.per_prompt import prompt_key
from rotescope.evaluate.measurement.planted import plant
from rotescope.evaluate.verdict.controls import (
    AdapterEffect,
    Looked,
    SetEvidence,
    attached_control,
    drawn_control,
    enough_control,
    planted_control,
    right_set_control,
)

BASELINE = "none"


def controls_of(samples, unadapted, layers, manifest, heldout, matcher, rules, prompts, p_values, trusted=False):
    """-> tuple of Control, in the order of a report.

    samples, unadapted: Samples of the model, and of its base or None. layers: {name: calibrated Layer}. prompts: PromptFindings.
    trusted: whether the user says that the model was trained on these data.
    """
    index, methods = layers["descriptor"].index, list(dict.fromkeys(method for method, _ in samples.cells))
    gate = list(dict.fromkeys(method for rule in rules for method in rule.scope(methods)))
    planted = plant(layers, manifest, matcher)
    return (_attached(samples, unadapted), _drawn(samples, gate, [e.open for e in (*index.examples, *(heldout or ()))]),
            _right_set(samples, manifest, index, prompts, trusted), planted_control(planted.found, planted.n, planted.edits),
            enough_control(rules, {method: _looked(prompts, method) for method in gate}, len(index),
                           p_values.needed, p_values.n))


def _attached(samples, unadapted):
    effect = samples.run.get("controls", {}).get("adapter")
    equal, n = _equal_images(samples, unadapted) if unadapted else (None, 0)
    return attached_control(effect and AdapterEffect(**effect), equal, n)


def _equal_images(samples, unadapted):
    """-> how many plain images are the base model's to the bit, of how many that both made."""
    ours, theirs = ({(prompt_key(r), r.seed): i for i, r in enumerate(some.records) if r.method == BASELINE}
                    for some in (samples, unadapted))
    both = [(ours[key], theirs[key]) for key in ours.keys() & theirs.keys()]
    alike = bool(samples.folder) == bool(unadapted.folder)  # else one has hashes of files, the other of pixels
    equal = sum(samples.sha256[i] == unadapted.sha256[j] if alike else
                pixels_sha256(samples.open(samples.records[i])) == pixels_sha256(unadapted.open(unadapted.records[j]))
                for i, j in both)
    return equal, len(both)


def _drawn(samples, gate, real):
    """real: what opens each training and held-out picture."""
    records = [r for r in samples.records if r.method in gate]
    found = empty_pictures([lambda r=r: samples.open(r) for r in records], real_pictures(real))
    example = next((r.image for r, kind in zip(records, found, strict=True) if kind), "")
    return drawn_control(Counter(kind for kind in found if kind), len(records), example)


def _right_set(samples, manifest, index, prompts, trusted):
    named = {r.image_id for r in samples.records} - {""}
    leaked = {(p.prompt_index, p.prompt, "" if p.prompt else p.image) for p in prompts if p.copies and p.leaked}
    return right_set_control(_evidence(samples.run, manifest, trusted), len(named & index.rows.keys()) if named else None,
                             len(named), len(leaked))


def _evidence(run, manifest, trusted):
    """What the audit that sampled wrote down, or what lies beside the model now; None where nothing is known of it."""
    if trusted:
        return SetEvidence("trusted")
    told = run.get("controls", {}).get("training_set")
    if told:
        return SetEvidence(**told)
    own = manifest_beside(run.get("model"), run.get("config", {}).get("lora"))
    return SetEvidence("manifest", *overlap(manifest, own)) if own else None


def _looked(prompts, method):
    own = [p for p in prompts if p.method == method]
    return Looked(len(own), sum(p.n for p in own), any(p.prompt_index is not None for p in own))
