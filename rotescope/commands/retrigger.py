"""After a mitigation: do other words, or an embedding searched for, bring a training image back? Suppressing is not erasing.

    rotescope retrigger --model runs/demo/checkpoint --train_data runs/demo/checkpoint/manifest.parquet \\
        --heldout_data datasets/emoji/heldout.parquet --mitigation og-stp --output_dir runs/retrigger
    rotescope retrigger --model base --lora my_lora --train_data photos --image_ids 1f0c33a6e1c0ffee \\
        --heldout_data other_photos --mitigation stp:transition=600 dtp --search_steps 50 --output_dir runs/retrigger

For each image: its own captions, paraphrases by rule, and embeddings found by descent on the denoising loss of the image (DoRI,
arXiv 2507.16880), from the caption's and from the empty one; each sampled without mitigation and under every one that is named.
Whoever holds the model can do as much. But a search that may take steps enough paints any picture: --heldout_data, captioned
pictures that the model never saw, are searched for at the same budget, and only what exceeds them says anything. Leaves
retrigger.json, a picture for each method, the found embeddings and all samples.
"""
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from safetensors.torch import save_file

from rotescope.commands import plots
from rotescope.common.errors import InputError, exit_cleanly
from rotescope.common.models import check_model, open_model
from rotescope.common.outputs import check_apart, check_beside, check_output, output_folder, write_json
from rotescope.common.progress import progress_bars
from rotescope.common.settings import parse
from rotescope.common.wording import name
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.inputs.samples import open_image, read_samples
from rotescope.evaluate.inputs.training_and_heldout import apart, take_in, twins_apart
from rotescope.evaluate.nulls.calibration import check_null, warnings
from rotescope.evaluate.options import CopyRule
from rotescope.evaluate.report.findings import make_layers
from rotescope.evaluate.statistics import retrigger_tally as judged
from rotescope.mitigate.embedding_search.search import STARTS, Budget, check_searchable, find_embeddings
from rotescope.mitigate.embedding_search.targets import HELDOUT, choose_targets
from rotescope.mitigate.sampling.options import SamplingOptions, check_sampling, named_policies
from rotescope.mitigate.sampling.run_description import describe
from rotescope.mitigate.sampling.sampler import sample_to_folder

PLAIN = judged.PLAIN
SHOWN = 4  # images of a group in the picture


@dataclass(frozen=True, kw_only=True)
class RetriggerConfig(SamplingOptions, CopyRule):
    train_data: str
    """the training images with their captions; the manifest.parquet beside a fine-tuned checkpoint knows which were duplicated"""
    output_dir: str
    """retrigger.json, pictures, embeddings.safetensors and samples go here"""
    heldout_data: str | None = None
    """pictures with captions that the model never saw, searched for at the same budget: without them nothing is proved"""
    mitigation: tuple[str, ...] = ("og-stp",)
    """names as rotescope mitigations lists them, perhaps with settings; sampling without one is always beside them"""
    image_ids: tuple[str, ...] = ()
    """the images to bring back, as the manifest or an audit names them; else the first of each group"""
    groups: tuple[str, ...] = ("duplicated", "control")
    """which images of a manifest that has a duplication plan"""
    max_images: int = 8
    """of each group, and of the held-out pictures"""
    max_texts: int = 4
    """captions, and as many paraphrases, of each image"""
    search_steps: int = 50
    """of a search; the paper's, after which few ordinary images come back"""
    search_rate: float = 0.1
    """learning rate of a search"""
    search_draws: int = 8
    """timesteps and noises in each of its steps"""
    search_starts: tuple[str, ...] = STARTS
    """what its embedding is at first: that of the caption, or of the empty text"""
    search_seeds: tuple[int, ...] = (0,)
    """one search an image, a start and a seed"""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """one image a caption, paraphrase or found embedding, and a seed"""
    batch_size: int = 64
    """images at a time; a search takes search_draws of them"""
    overwrite: bool = False
    """replace output_dir"""


def check(config):
    """Raise InputError for whatever would stop the run later."""
    check_output(config.output_dir, config.overwrite, inputs=(
        config.model, config.lora, config.train_data, config.heldout_data, config.descriptor, *config.mitigation))
    check_beside(config.index_dir, config.output_dir, "--index_dir")
    check_model(config)
    check_sampling(config)
    get_descriptor(config.descriptor, trust_sha256=config.trust_sha256)
    if config.copy_threshold is None:
        check_null(config.copy_null, {"train"} | ({"heldout"} if config.heldout_data else set()))
    if config.max_images < 1 or config.max_texts < 1:
        raise InputError("max_images and max_texts must be 1 or more")
    for key in ("search_seeds", "search_starts"):
        given = getattr(config, key)
        if not given or len(set(given)) < len(given):
            raise InputError(f"--{key} {' '.join(map(str, given))}: name at least one, and each once")
    if not set(config.search_starts) <= set(STARTS):
        raise InputError(f"no search starts from {' '.join(config.search_starts)}: take {' or '.join(STARTS)}")
    policies_of(config)
    budget_of(config)


def policies_of(config):
    """-> {name: policy}, plain guidance first."""
    return named_policies(dict.fromkeys((PLAIN, *config.mitigation)))


def budget_of(config):
    """Of a search."""
    return Budget(config.search_steps, config.search_rate, config.search_draws)


# ----- the run

def retrigger(config):
    """Search, sample and judge as `config` says -> what retrigger.json holds."""
    check(config)
    manifest, heldout, left_out = take_in(config.train_data, config.heldout_data, True, "retrigger.json")
    check_apart(config.output_dir, {e.file for e in (*manifest, *(heldout or ()))})
    targets = choose_targets(manifest, heldout or (), config.image_ids, config.groups, config.max_images)
    with output_folder(config.output_dir, config.overwrite) as draft:
        return bring_back(config, manifest, heldout, targets, draft, left_out)


def bring_back(config, manifest, heldout, targets, folder, left_out=()):
    """Search, sample and judge `targets` into `folder` -> what retrigger.json, which it writes, holds. The config is checked.

    left_out: what could not be read of the data, as take_in gives it.
    """
    policies, budget = policies_of(config), budget_of(config)
    prompts = {"caption": [p for t in targets for p in t.captions(config.max_texts)],
               "paraphrase": [p for t in targets for p in t.paraphrases(config.max_texts)]}
    pipe = open_model(config)
    check_searchable(pipe)
    with progress_bars(_totals(config, targets, prompts, policies)) as advance:
        prompts["embedding"] = find_embeddings(
            pipe, targets, budget, starts=config.search_starts, seeds=config.search_seeds, batch_size=config.batch_size,
            on_found=lambda: advance("search"))
        folders, refused = sample_all(config, pipe, prompts, policies, folder / "samples", advance)
    targets, shots, measured = judge(config, manifest, heldout, targets, folders)
    found = {**told(shots, targets, prompts["embedding"], budget), "refused": refused, **measured, "left_out": list(left_out),
             **describe(config, sum(prompts.values(), []), policies)}
    save_file({f"{i:05d}": p.embedding.cpu().contiguous() for i, p in enumerate(prompts["embedding"])},
              folder / "embeddings.safetensors")
    for method in policies:
        rows, titles = pictured(method, shots, targets, folder / "samples")
        plots.draw_returns(rows, titles, folder / f"retrigger-{method}.png")
    write_json(folder / "retrigger.json", found)
    return found


def _totals(config, targets, prompts, policies):
    searches = len(targets) * len(config.search_starts) * len(config.search_seeds)
    sizes = {"search": searches, "embedding": searches} | {route: len(texts) for route, texts in prompts.items()}
    return {what: n if what == "search" else n * len(config.seeds) * len(policies) for what, n in sizes.items()}


def sample_all(config, pipe, prompts, policies, folder, advance):
    """Each route under each policy -> [(route, folder)], and {method: why it takes no embedding}."""
    made, refused = [], {}
    for route, method in ((r, m) for r in judged.ROUTES if prompts[r] for m in policies):
        place = folder / f"{route}-{method}"
        place.mkdir(parents=True)
        try:
            sample_to_folder(pipe, prompts[route], {method: policies[method]}, config.seeds, place, batch_size=config.batch_size,
                             on_sample=lambda _, route=route: advance(route), **config.sampling)
            made.append((route, place))
        except InputError as error:
            if route != "embedding":
                raise
            shutil.rmtree(place)  # it took the texts before: it is the embedding that it cannot take
            refused[method] = str(error)
    return made, refused


def judge(config, manifest, heldout, targets, folders):
    """-> the targets without held-out ones that are training images in other bytes, Shots, and what they were measured by."""
    fresh = apart(heldout, manifest)[0]
    layers = make_layers(read_samples(folders[0][1]).side, manifest, fresh, None, config)
    layer, exact = layers["descriptor"], layers.get("exact")
    known, examples = layer.twins.heldout, {t.example.image_id: t.example for t in targets}
    targets = [t for t in targets if t.group != HELDOUT or t.example.sha256 not in known]
    left = {(t.group, t.example.image_id) for t in targets}
    shots = [shot for route, folder in folders for shot in judged.judge_samples(route, read_samples(folder), layers, examples)
             if (shot.record.group, shot.record.image_id) in left]
    return targets, shots, {
        "descriptor": layer.index.descriptor.name, "copy_threshold": layer.threshold, "threshold_rule": layer.rule,
        "background": layer.as_json(), "notes": [*(q.reason for q in twins_apart(fresh, layer.twins)[1]), *warnings(layer)],
        "exact": {"descriptor": exact.index.descriptor.name, "threshold": exact.threshold, "rule": exact.rule} if exact else None}


def told(shots, targets, embeddings, budget):
    """-> figures for each method and group, the conclusions, and every image with what it cost."""
    tally, images = judged.tally(shots), []
    for target in targets:
        own = [s for s in shots if s.record.image_id == target.example.image_id]
        searches = [{"embedding": f"{i:05d}", "start": f.start, "seed": f.seed, "loss": f.loss}
                    for i, f in enumerate(embeddings) if f.image_id == target.example.image_id]
        images.append({
            **vars(target.prompt), "copies": target.example.copies, "searches": searches, "routes": judged.image_figures(own),
            "denoiser_rows": {"search": budget.rows * len(searches), "sampling": sum(s.record.denoiser_rows for s in own)}})
    conclusions = [judged.conclusion(method, group, cells, groups.get(HELDOUT))
                   for method, groups in tally.items() for group, cells in groups.items() if group != HELDOUT]
    return {"conclusions": conclusions, "results": tally, "images": images,
            "budget": vars(budget) | {"denoiser_rows": budget.rows}}


def pictured(method, shots, targets, folder):
    """-> rows (label, [(picture, text, is a copy) or None]) and the titles of their columns, for plots.draw_returns."""
    columns = [*((method, route) for route in judged.ROUTES), *([(PLAIN, "embedding")] if method != PLAIN else [])]
    found, rows = judged.by_image(shots), []

    def cell(routes, route):
        if route not in routes:
            return None
        top = judged.best(routes[route])
        return open_image(folder / top.folder / top.record.image), f"{top.similarity:.2f}", top.copied

    for group in dict.fromkeys(t.group for t in targets):
        for target in [t for t in targets if t.group == group][:SHOWN]:
            cells = [cell(found[m][target.example.image_id], route) for m, route in columns]
            rows.append((group, [(target.example.open(), "", False), *cells]))
    return rows, ["target", *(f"{judged.ROUTES[route]}\n{name(m)}" for m, route in columns)]


# ----- the command

@exit_cleanly
def main(argv=None):
    config = parse(RetriggerConfig, sys.argv[1:] if argv is None else argv, prog="rotescope retrigger", description=__doc__)
    found, console = retrigger(config), Console(stderr=True)
    console.print(judged.table_of(found["results"]))
    for line in found["conclusions"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    print(json.dumps({"retrigger": str(Path(config.output_dir) / "retrigger.json"), "conclusions": found["conclusions"]}))


if __name__ == "__main__":
    main()
