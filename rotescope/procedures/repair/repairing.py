"""Repair a LoRA that gives training images back: audit, try ways from the cheapest on, keep the first that passes, prove it."""
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rotescope.common.console import say
from rotescope.common.errors import InputError, RunError
from rotescope.common.outputs import output_folder, sha256, write_text
from rotescope.common.settings import save
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.trainers.data_options import data_options
from rotescope.evaluate.inputs.output_checks import check_images, check_places
from rotescope.evaluate.inputs.training_and_heldout import apart, take_in
from rotescope.evaluate.report.report import Report
from rotescope.evaluate.verdict.controls import SetEvidence
from rotescope.mitigate.embedding_search.search import check_searchable
from rotescope.mitigate.sampling.picture_size import parse_resolution
from rotescope.mitigate.sampling.trained_use import sampled_as_trained
from rotescope.models.adapters.adapter_file import read_adapter
from rotescope.models.adapters.rewriting import PEFT_NAME, save_rewritten
from rotescope.models.model_files import LORA_FILES, find_lora, lora_names, lora_strength
from rotescope.models.pipelines import check_model, open_model
from rotescope.options.audit import AuditConfig
from rotescope.options.repair import WITHOUT_DATA, RepairConfig
from rotescope.procedures.audit import run_audit
from rotescope.procedures.repair.page import write_repair
from rotescope.procedures.repair.proof import prove
from rotescope.procedures.repair.trials import FAILED, Figures, RepairFindings, Trial, from_mildest, search_doses
from rotescope.train.repair.registry import WAYS
from rotescope.train.repair.weight_repair import RepairContext, WeightRepair

STANDS = ("manifest", "header", "trusted")  # evidence of the training set that a repair does not change
LEAST_OTHERS = 2                            # pictures that a way with data has to keep


class _NothingLeaks(Exception):
    """The audit broke no rule: its report is the argument, and no output is to be left."""


def run_repair(config: RepairConfig) -> RepairFindings:
    """Repair as `config` says; see the command. Whatever can be wrong with the input is found before a model is loaded."""
    config = sampled_as_trained(config)
    ways = ways_of(config)
    check_places(config, config.base, config.prompts, *config.model_inputs)
    check_model(config)
    read_adapter(find_lora(lora_names(config.lora)[0]))
    try:
        with output_folder(config.output_dir, config.overwrite) as draft:
            found = _with_data(config, ways, draft) if config.train_data else _without_data(config, ways, draft)
            save(config, draft / "config.yaml")
            write_repair(found, config, draft, {"lora": sha256(find_lora(lora_names(config.lora)[0])),
                                                **({"repaired": sha256(draft / found.file)} if found.file else {})})
            _name_for_good(draft, Path(config.output_dir).name)
        return found
    except _NothingLeaks as stopped:
        report = stopped.args[0]
        say(f"nothing to repair: the audit is {report.verdict.outcome} and breaks no rule; nothing was written")
        return RepairFindings(before=Figures.of(report), report=report)


def ways_of(config: RepairConfig) -> list[WeightRepair]:
    """The ways that `config` names, from the cheapest on. InputError for doses that one cannot have."""
    settings: dict[str, dict[str, Any]] = {
        "strength": {"doses": config.strengths}, "base-anchored": {"doses": config.quantiles, "base_rank": config.base_rank},
        "leak-directed": {"doses": config.shares},
        "unlearn": {"doses": config.unlearn_steps, "learning_rate": config.unlearn_rate}}
    ways = [way(**settings[name] | {"doses": tuple(settings[name]["doses"])})
            for name, way in WAYS.items() if name in config.ways]
    for way in ways:
        way.check()
    if not config.train_data and not any(way.name in WITHOUT_DATA for way in ways):
        raise InputError(f"without --train_data only {' and '.join(WITHOUT_DATA)} is written to files: name the training data, "
                         "or attach the LoRA at another strength, as in --lora mine.safetensors:0.6")
    return ways


# ----- with data: audit, try, prove

def _with_data(config, ways, draft):
    manifest, heldout, _ = take_in(config.train_data, config.heldout_data, True, "before/report.json", data_options(config))
    check_images(config, manifest, heldout)
    if config.retrigger:
        check_searchable(open_model(config))
    say("before the repair")
    before = _audited(config, config.lora, draft / "before")
    if before.verdict.outcome != FAILED:
        raise _NothingLeaks(before)
    leaking, others = leaking_and_others(before, manifest, apart(heldout, manifest)[0])
    seen, notes, trials = evidence_after(draft / "before", len(leaking)), [], []
    found = RepairFindings(before=Figures.of(before), report=before, leaked=len(leaking))
    attempt = _attempts(config, _context(config, leaking, others), draft, seen)
    for way in ways:
        if way.needs_data and (not leaking or len(others) < LEAST_OTHERS):
            notes.append(f"{way.name} was left out: it needs a picture that is copied, and {LEAST_OTHERS} captioned ones that "
                         "are not.")
            continue
        try:
            trials.extend(own := list(search_doses(way, attempt, config.all)))
        except InputError as error:  # a family, or a LoRA, that this way does not serve
            notes.append(f"{way.name} was left out: {error}.")
            continue
        if not config.all and (found := _proved(config, found, own, draft, seen)).holds:
            break
    found = _proved(config, found, trials, draft, seen) if config.all else found
    found = replace(found, trials=tuple(trials), notes=(*notes, *found.notes))
    return _sought_again(config, found, before, manifest, heldout, draft) if config.retrigger and found.chosen else found


def _proved(config, found, trials, draft, seen):
    """Audits of the trials that hold, the mildest first, each on seeds that no choice has seen, until no rule is broken there."""
    for trial in from_mildest(trials):
        if found.chosen:
            found = replace(found, notes=(*found.notes, f"{found.chosen.label} broke no rule on the seeds that it was chosen on, "
                                          f"and copies {found.after.copies:,} of {found.after.images:,} images on others."))
        file = _handed_over(draft / "tried" / trial.file, draft / repaired_name(config.lora))
        shutil.rmtree(draft / "after", ignore_errors=True)
        say(f"after {trial.label}, on other seeds")
        fresh = tuple(seed + (found.proofs + 1) * (max(config.seeds) + 1) for seed in config.seeds)
        after = _audited(replace(config, seeds=fresh), _at_strength(config, file), draft / "after", seen)
        found = replace(found, after=Figures.of(after), report=after, chosen=trial, proofs=found.proofs + 1,
                        file=file.relative_to(draft).as_posix())
        if found.holds:
            break
    return found


def _sought_again(config, found, before, manifest, heldout, draft):
    """Leaking pictures, sought on the LoRA and on the repaired one, on the seeds of the last audit."""
    config = replace(config, seeds=found.after.seeds)
    plain, repaired = (_audit_config(config, lora, draft) for lora in (config.lora, _at_strength(config, draft / found.file)))
    try:
        proof = prove(plain, repaired, before, manifest, heldout, config.retrigger, draft / "retrigger")
    except (InputError, RunError) as error:  # the repair stands without it
        return replace(found, notes=(*found.notes, f"The leaking pictures were not sought again: {error}."))
    none = () if proof else ("No picture was copied as a whole, so none was sought again.",)
    return replace(found, proof=proof, notes=(*found.notes, *none))


def _handed_over(tried, place):
    """A tried file, or PEFT's folder of one, copied to where the user looks for it -> the file."""
    if tried.name == PEFT_NAME:
        shutil.rmtree(place, ignore_errors=True)
        return shutil.copytree(tried.parent, place) / PEFT_NAME
    return shutil.copyfile(tried, place.with_name(f"{place.name}.safetensors"))


def _attempts(config: RepairConfig, context: RepairContext, draft: Path, seen: SetEvidence | None
              ) -> Callable[[WeightRepair, float], Trial]:
    """-> (way, dose) -> Trial: the repaired file is written, then audited as whoever gets it would use it."""
    def attempt(way, dose):
        started = time.monotonic()
        after = way.update(context, dose)
        kept = energy(after) / max(energy(context.updates), 1e-30)
        name, note = f"{way.name}-{dose:g}", {"way": way.name, way.dose_name: dose}
        place = draft / "tried" if config.train_data else draft
        file, plain = save_rewritten(context.found, context.updates, after, place, name, json.dumps(note))
        seconds, figures = time.monotonic() - started, None
        if config.train_data:
            say(f"{way.name}, {way.dose_name} {dose:g}: {kept:.0%} of the update is left")
            folder = place / f"{name}-audit"
            figures = Figures.of(_audited(config, _at_strength(config, file), folder, seen))
            for dear in ("samples", "base"):
                shutil.rmtree(folder / dear, ignore_errors=True)
        return Trial(way.name, dose, way.dose_name, kept, file.relative_to(place).as_posix(), plain, round(seconds, 1), figures)
    return attempt


def energy(updates) -> float:
    """Σ ‖ΔW‖² of updates by name."""
    return sum(update.energy for update in updates.values())


def leaking_and_others(report: Report, manifest: Manifest, heldout: Manifest | None) -> tuple[Manifest, Manifest]:
    """-> training pictures that images copy, whole or in part, and captioned ones that none copies; held-out pictures stand in
    where the training set leaves too few."""
    copied = {p.nearest for p in report.pairs if p.is_copy or p.is_partial}
    leaking = tuple(e for e in manifest if e.image_id in copied)
    others = tuple(e for e in manifest if e.image_id not in copied)
    if len(others) < LEAST_OTHERS:
        others += tuple(e for e in heldout or () if e.captions)
    return Manifest(leaking), Manifest(others)


def evidence_after(folder: Path, leaked: int) -> SetEvidence | None:
    """What shows, of a repaired LoRA, that the training set is the one that it has seen: what was known before, or that it copied
    pictures of it, which it no longer does."""
    run = json.loads((folder / "samples" / "run.json").read_text(encoding="utf-8"))
    known = SetEvidence(**run["controls"]["training_set"])
    return known if known.kind in STANDS or not leaked else SetEvidence("repaired", leaked)


def _audited(config, lora, folder, seen=None):
    """An audit into a folder of the draft. Where it fails, its samples stay beside the output: the draft will be gone."""
    return run_audit(_audit_config(config, lora, folder), seen, beside=f"{Path(config.output_dir)}-{folder.name}")


def _audit_config(config, lora, folder):
    own = {f.name: getattr(config, f.name) for f in fields(AuditConfig)}
    return AuditConfig(**own | {"lora": lora, "output_dir": str(folder), "overwrite": False, "retrigger": 0})


def _name_for_good(draft, name):
    """What names the draft, in the reports of its audits, names the folder that it will be."""
    for file in (f for f in draft.rglob("*") if f.suffix in (".json", ".html", ".md", ".yaml")):
        text = file.read_text(encoding="utf-8")
        if draft.name in text:
            write_text(file, text.replace(draft.name, name))


def _at_strength(config, file):
    """The repaired file at the strength at which the LoRA was named."""
    strength = lora_strength(lora_names(config.lora)[0])[1]
    return str(file) if strength == 1 else f"{file}:{strength:g}"


def repaired_name(lora) -> str:
    """`mine.safetensors`, or a folder `mine` that holds a LoRA -> `mine-repaired`."""
    file = find_lora(lora_names(lora)[0]).resolve()
    return f"{file.parent.name if file.name in LORA_FILES else file.stem}-repaired"


def _context(config, leaking=None, others=None):
    """The base without the LoRA, in fp32, as it is trained."""
    pipe = open_model(replace(config, lora=None, dtype="fp32"))
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    size = [side for side in parse_resolution(config.resolution) or () if isinstance(side, int)]
    side = min(size) if size else getattr(pipe, "vae_scale_factor", 8) * getattr(denoiser.config, "sample_size", 64)
    found = read_adapter(find_lora(lora_names(config.lora)[0]))
    return RepairContext(pipe, found, leaking, others, side, config.train_batch_size)


# ----- without data

def _without_data(config, ways, draft):
    """Every dose of the ways that need none, as files; nothing is judged."""
    attempt = _attempts(config, _context(config), draft, None)
    trials = [attempt(way, dose) for way in ways if way.name in WITHOUT_DATA for dose in way.doses]
    return RepairFindings(trials=tuple(trials), notes=(
        "No training data were given, so no image was compared with any: that these files leak less is not shown. Whoever has "
        "the pictures can audit each.",))
