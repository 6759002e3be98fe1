"""Audit a checkpoint against its training images: sample its captions, look for copies, report, pass or fail."""
import json
import shutil
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

from rotescope.common.console import say
from rotescope.common.errors import InputError, RunError
from rotescope.common.outputs import output_folder, write_json
from rotescope.common.progress import progress_bars
from rotescope.common.settings import plain
from rotescope.datasets.trainers.data_options import data_options
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.inputs.output_checks import check_images, check_places, samples_kept
from rotescope.evaluate.inputs.samples import read_samples
from rotescope.evaluate.inputs.training_and_heldout import apart, take_in
from rotescope.evaluate.measurement.evaluation import write_all
from rotescope.evaluate.measurement.findings import score_samples, totals
from rotescope.evaluate.measurement.layers import check_measuring
from rotescope.evaluate.options import Measuring, ScoreConfig, measuring
from rotescope.evaluate.quality.alignment import find_alignment, get_alignment
from rotescope.evaluate.report.terminal import announce
from rotescope.evaluate.verdict.rules import check_ids, check_own, check_power, check_verified, parse_rules
from rotescope.mitigate.budget.budgeted_sampling import check_plan, sample_ranked, uniform_seeds
from rotescope.mitigate.embedding_search.search import check_searchable
from rotescope.mitigate.embedding_search.targets import choose_targets
from rotescope.mitigate.prompts.prompt import further_prompts
from rotescope.mitigate.prompts.prompt_sets import Sources, gather
from rotescope.mitigate.sampling.conditioning import check_embedding_words
from rotescope.mitigate.sampling.generation import check_generation
from rotescope.mitigate.sampling.jobs import jobs_of
from rotescope.mitigate.sampling.options import GenerateConfig, named_policies
from rotescope.mitigate.sampling.picture_size import prompts_in_buckets
from rotescope.mitigate.sampling.run_description import sample_with
from rotescope.mitigate.sampling.trained_use import sampled_as_trained
from rotescope.models.adapters.attachment import switch_adapters
from rotescope.models.model_files import find_model
from rotescope.models.pipelines import open_model
from rotescope.options.retrigger import RetriggerConfig
from rotescope.procedures import retrigger
from rotescope.procedures.audit_controls import controls_before_sampling
from rotescope.procedures.understanding import agreement_with_data

ADAPTER_OFF = "the same pipeline with the LoRA's adapter off"
SHARED = "to_share"  # the folder, in output_dir, of a redacted report
REDACTED = ("report.html", "report.json", "pairs.parquet", "model_card.md", "badge.svg")
COUNTS = ("leaked_prompts", "leaked_prompts_any", "copies", "partial_copies", "any_copies_of")


def run_audit(config, seen=None, beside=None):
    """Audit as `config` says -> Report. Whatever can be wrong with the input is found before the model is loaded.

    seen: SetEvidence that is known of the model already, as of a LoRA that was repaired and no longer shows it.
    beside: the output that samples are kept beside where the audit fails, if it is a part of a run whose draft will be gone.
    """
    config = sampled_as_trained(config)
    check_places(config, config.base, config.prompts)
    check_generation(_generate_config(config), config.train_data)
    rules, base = rules_of(config), find_base(config)
    get_alignment(find_alignment(config.model) if config.alignment == "auto" else config.alignment)
    get_descriptor(config.descriptor, trust_sha256=config.trust_sha256)
    manifest, heldout, left_out = take_in(config.train_data, config.heldout_data, True, options=data_options(config))
    policies = named_policies(config.mitigation, manifest)  # those that need training images read them as this audit does
    check_images(config, manifest, heldout)
    check_measuring(Measuring(**measuring(config)), manifest, apart(heldout, manifest)[0], base)
    check_ids(rules, {e.image_id for e in manifest})
    check_verified(rules, config.verify)
    if config.retrigger < 0:
        raise InputError("retrigger must be 0, which leaves the check out, or the number of images to seek")
    if config.empty_images < 1 or config.paraphrases < 1:
        raise InputError("empty_images and paraphrases must be 1 or more: leave the set out of --prompt_sets instead")
    for line in unasked_captions(config.prompt_sets, manifest):
        say(line)
    prompts, sizes = gather(config.prompt_sets, Sources(manifest, heldout, config.prompts, config.paraphrases),
                            config.max_prompts)
    check_embedding_words(config.embedding, prompts)
    prompts = prompts_in_buckets(config, prompts, manifest)
    check_plan(config, prompts)
    for rule in rules:
        rule.scope(list(policies))
    if config.plan == "uniform":
        jobs = jobs_of(prompts, uniform_plan(config, prompts)[0])
        images = Counter(prompts[i].group for i, _ in jobs)
        if config.fail_on:
            check_own(rules, manifest, {prompts[i].image_id for i, _ in jobs})
            asked = Counter(prompts[i].group for i in {i for i, _ in jobs})
            check_power(rules, {(m, group): n for m in policies for group, n in asked.items()})
    else:  # at most
        images = Counter(p.group for p in prompts for _ in config.seeds) & Counter({p.group: config.budget for p in prompts})
    for line in agreement_with_data(config):
        say(f"note: {line}")
    announce(rules, config, max(images.values()))
    with output_folder(config.output_dir, config.overwrite) as draft, samples_kept(draft, going_on(config, beside)):
        folders = sample_for_audit(config, base, prompts, policies, draft, manifest, heldout, sizes, seen)
        samples, unadapted = (name in folders and read_samples(folders[name]) for name in ("samples", "base"))
        with progress_bars(totals(samples, manifest, heldout, base=unadapted, verify=config.verify)) as on_image:
            report = score_samples(
                samples, manifest, heldout, base=unadapted, config=plain(config), title=config.title,
                rule=rules, left_out=left_out, on_image=on_image, **measuring(config))
        if config.retrigger:
            report = replace(report, retrigger=sought_again(config, report, manifest, heldout, draft / "retrigger"))
        write_all(report, draft, config)
        if config.redact:
            set_apart(draft)
            say(f"without pictures of training images, to be handed on: {Path(config.output_dir) / SHARED}")
    return report


def unasked_captions(prompt_sets, manifest):
    """-> a line where pictures have several captions, and not all are asked."""
    pictures = len({p.image_id for p in further_prompts(manifest)})
    if pictures and "captions" in prompt_sets and "further_captions" not in prompt_sets:
        have = "1 picture has" if pictures == 1 else f"{pictures:,} pictures have"
        yield (f"note: {have} several captions, of which the first is asked: --prompt_sets captions further_captions asks "
               "them all")


def set_apart(folder):
    """The files of a redacted report once more, in a folder of their own: beside them lie samples that may copy training images,
    and under --retrigger the images themselves and embeddings that bring them back."""
    (folder / SHARED).mkdir()
    for name in REDACTED:
        shutil.copyfile(folder / name, folder / SHARED / name)


def find_base(config):
    """What --base names -> a model, ADAPTER_OFF, or None. InputError if it cannot be told or is not there."""
    if config.base != "auto":
        if config.base:
            find_model(config.base)
        return config.base
    if config.lora:
        return ADAPTER_OFF
    about = Path(config.model) / "rotescope.json"
    base = json.loads(about.read_text(encoding="utf-8")).get("base") if about.is_file() else None
    if not base:
        raise InputError(f"{config.model} does not say what it was fine-tuned from: name its base with --base")
    find_model(base)
    return base


def rules_of(config):
    """-> the rules. InputError for one on a rate or a percentile where the plan samples on purpose what leaks."""
    rules = parse_rules(config.fail_on)
    unfit = next((rule for rule in rules if rule.metric not in COUNTS), None) if config.plan == "ranked" else None
    if unfit:
        raise InputError(f"the rule {unfit} needs a random sample, and --plan ranked looks where prompts leak: write a rule on "
                         f"{', '.join(COUNTS[:-1])} or {COUNTS[-1]}, or take --plan uniform")
    return rules


def uniform_plan(config, prompts):
    """-> {prompt index: seeds}, and the record of the plan if there is a budget."""
    if config.budget is not None:
        return uniform_seeds(config, len(prompts))
    many = range(min(config.seeds), min(config.seeds) + config.empty_images)
    return {i: many if p.group == "empty" else config.seeds for i, p in enumerate(prompts)}, None


def sample_for_audit(config, base, prompts, policies, folder, manifest, heldout, sizes, seen=None):
    """-> {"samples": folder, and "base": folder if there is a base}; run.json says how the prompts were chosen, and what was
    tried on the model for the controls."""
    folders = {name: folder / name for name in ("samples", *(["base"] if base else []))}
    for made in folders.values():
        made.mkdir()
    pipe = open_model(config)
    if config.retrigger:
        check_searchable(pipe)
    controls = controls_before_sampling(config, pipe, prompts, manifest, heldout, seen)
    if config.plan == "ranked":
        seeds, plan = sample_ranked(config, pipe, prompts, policies, folders["samples"], manifest)
    else:
        seeds, plan = uniform_plan(config, prompts)
        sample_with(config, pipe, prompts, policies, folders["samples"], seeds)
    add_to_run(folders["samples"], prompt_sets=sizes, plan=plan, controls=controls)
    if base:
        plainly = named_policies(("none",))
        if base == ADAPTER_OFF:
            switch_adapters(pipe, False)
            sample_with(replace(config, lora=None), pipe, prompts, plainly, folders["base"], seeds)
        else:
            del pipe  # makes room
            alone = replace(config, model=base, lora=None)
            sample_with(alone, open_model(alone), prompts, plainly, folders["base"], seeds)
    return folders


def going_on(config, output_dir=None):
    """-> the options, beside the samples, with which rotescope score goes on where this audit stopped."""
    given = _shared(config, ScoreConfig) | ({"output_dir": str(output_dir)} if output_dir else {})
    default = {f.name: f.default for f in fields(ScoreConfig)}
    return [word for key, value in given.items() if value != default[key]
            for word in (f"--{key}", *(map(_word, value) if isinstance(value, list | tuple) else [_word(value)]))]


def _word(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def sought_again(config, report, manifest, heldout, folder):
    """The re-trigger check on the images that were copied most, into `folder` -> what report.json says of it: of how many images,
    and, of one or more, either the findings or why there are none, for the audit before it stands."""
    copied = Counter(p.nearest for p in report.pairs if p.is_copy)
    ids = [image_id for image_id, _ in copied.most_common(config.retrigger)]
    if not ids:
        return {"images": 0}
    try:
        targets = choose_targets(manifest, heldout or (), ids, limit=config.retrigger)
        found = retrigger.bring_back(search_options(config, report, ids, config.retrigger), manifest, heldout, targets, folder)
    except (InputError, RunError) as error:
        return {"images": len(ids), "failed": str(error)}
    return {"images": len(ids)} | {key: found[key] for key in ("conclusions", "results", "refused", "budget")}


def search_options(config, report, image_ids, limit):
    """-> RetriggerConfig: how an audit, whose report this is, seeks these images again, with at most `limit` held-out ones."""
    chosen = _shared(config, RetriggerConfig) | {"image_ids": image_ids, "max_images": limit}
    if config.copy_null == "base":  # whose pictures it does not have
        chosen |= {"copy_null": "train", "copy_threshold": report.copy_threshold}
    return RetriggerConfig(**chosen)


def add_to_run(folder, **more):
    """Into run.json, where a later score finds it too."""
    file = folder / "run.json"
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | more)


def _generate_config(config):
    return GenerateConfig(**_shared(config, GenerateConfig) | {"prompts": config.train_data})


def _shared(config, other):
    """-> the options that this config and the class `other` have alike."""
    return {f.name: getattr(config, f.name) for f in fields(other) if hasattr(config, f.name)}
