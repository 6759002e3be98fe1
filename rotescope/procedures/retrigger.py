"""After a mitigation: do other words, or an embedding searched for, bring a training image back? Suppressing is not erasing."""
import shutil

from safetensors.torch import save_file

from rotescope.common.errors import InputError
from rotescope.common.outputs import check_apart, check_beside, check_output, check_outside, output_folder, write_json
from rotescope.common.progress import progress_bars
from rotescope.common.wording import name
from rotescope.datasets.trainers.data_options import data_options
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.inputs.output_checks import samples_kept
from rotescope.evaluate.inputs.samples import open_image, read_samples
from rotescope.evaluate.inputs.training_and_heldout import apart, take_in, twins_apart
from rotescope.evaluate.measurement.findings import exact_rule
from rotescope.evaluate.measurement.layers import make_layers
from rotescope.evaluate.nulls.calibration import check_null, warnings
from rotescope.evaluate.report.json_types import as_json
from rotescope.evaluate.statistics import retrigger_tally as judged
from rotescope.mitigate.embedding_search.search import STARTS, Budget, check_searchable, find_embeddings
from rotescope.mitigate.embedding_search.targets import choose_targets
from rotescope.mitigate.prompts.prompt import HELDOUT
from rotescope.mitigate.sampling.options import check_sampling, named_policies
from rotescope.mitigate.sampling.picture_size import fixed_size
from rotescope.mitigate.sampling.run_description import describe
from rotescope.mitigate.sampling.sampler import sample_to_folder
from rotescope.mitigate.sampling.trained_use import sampled_as_trained
from rotescope.models.pipelines import check_model, open_model
from rotescope.procedures.plots.returns import draw_returns

PLAIN = judged.PLAIN
EMBEDDINGS = "embeddings.safetensors"
SHOWN = 4  # images of a group in the picture


def check_retrigger(config):
    """Raise InputError for whatever would stop the run later."""
    check_output(config.output_dir, config.overwrite, inputs=(
        *config.model_inputs, config.train_data, config.heldout_data), texts=(config.descriptor, *config.mitigation))
    check_beside(config.index_dir, config.output_dir, "--index_dir")
    if config.index_dir:
        check_outside(config.index_dir, (config.train_data, config.heldout_data))
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
    return named_policies(dict.fromkeys((PLAIN, *config.mitigation)), config.train_data)


def budget_of(config):
    """Of a search."""
    return Budget(config.search_steps, config.search_rate, config.search_draws)


# ----- the run

def retrigger(config):
    """Search, sample and judge as `config` says -> what retrigger.json holds."""
    config = sampled_as_trained(config)
    check_retrigger(config)
    manifest, heldout, left_out = take_in(
        config.train_data, config.heldout_data, True, "retrigger.json", data_options(config))
    check_apart(config.output_dir, {e.file for e in (*manifest, *(heldout or ()))})
    targets = choose_targets(manifest, heldout or (), config.image_ids, config.groups, config.max_images)
    with (output_folder(config.output_dir, config.overwrite) as draft,
          samples_kept(draft, ["--output_dir", config.output_dir], more=("samples", EMBEDDINGS))):
        return bring_back(config, manifest, heldout, targets, draft, left_out)


def bring_back(config, manifest, heldout, targets, folder, left_out=()):
    """Search, sample and judge `targets` into `folder` -> what retrigger.json, which it writes, holds. The config is checked.

    left_out: what could not be read of the data, as take_in gives it.
    """
    policies, budget = policies_of(config), budget_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    prompts = {"caption": [p for t in targets for p in t.captions(config.max_texts)],
               "paraphrase": [p for t in targets for p in t.paraphrases(config.max_texts)]}
    pipe, (width, height) = open_model(config), fixed_size(config.resolution)
    side = width if width == height else None   # training cuts squares
    check_searchable(pipe)
    with progress_bars(_totals(config, targets, prompts, policies)) as advance:
        prompts["embedding"] = find_embeddings(
            pipe, targets, budget, starts=config.search_starts, seeds=config.search_seeds, batch_size=config.batch_size,
            side=side, on_found=lambda: advance("search"))
        save_file({name: tensor.cpu().contiguous() for i, p in enumerate(prompts["embedding"])
                   for name, tensor in p.tensors(f"{i:05d}").items()}, folder / EMBEDDINGS)
        folders, refused = sample_routes(config, pipe, prompts, policies, folder / "samples", advance)
    targets, shots, measured = count_returns(config, manifest, heldout, targets, folders)
    found = {**told(shots, targets, prompts["embedding"], budget), "refused": refused, **measured, "left_out": as_json(left_out),
             **describe(config, sum(prompts.values(), []), policies)}
    for method in policies:
        rows, titles = pictured(method, shots, targets, folder / "samples")
        draw_returns(rows, titles, folder / f"retrigger-{method}.png")
    write_json(folder / "retrigger.json", found)
    return found


def _totals(config, targets, prompts, policies):
    searches = len(targets) * len(config.search_starts) * len(config.search_seeds)
    sizes = {"search": searches, "embedding": searches} | {route: len(texts) for route, texts in prompts.items()}
    return {what: n if what == "search" else n * len(config.seeds) * len(policies) for what, n in sizes.items()}


def sample_routes(config, pipe, prompts, policies, folder, advance):
    """Each route under each policy -> [(route, folder)], and {method: why it takes no embedding}."""
    made, refused = [], {}
    for route, method in ((r, m) for r in judged.ROUTES if prompts[r] for m in policies):
        place = folder / f"{route}-{method}"
        place.mkdir(parents=True)
        try:
            sample_to_folder(pipe, prompts[route], {method: policies[method]}, config.seeds, place, batch_size=config.batch_size,
                             on_sample=lambda _, route=route: advance(route), tell=route == next(iter(judged.ROUTES)),
                             **config.sampling)
            made.append((route, place))
        except InputError as error:
            if route != "embedding":
                raise
            shutil.rmtree(place)  # it took the texts before: it is the embedding that it cannot take
            refused[method] = str(error)
    return made, refused


def count_returns(config, manifest, heldout, targets, folders):
    """-> the targets without held-out ones that are training images in other bytes, Shots, and what they were measured by."""
    fresh = apart(heldout, manifest)[0]
    layers = make_layers(read_samples(folders[0][1]).side, manifest, fresh, None, config)
    layer, exact = layers["descriptor"], layers.get("exact")
    known, examples = layer.twins.heldout, {t.example.image_id: t.example for t in targets}
    targets = [t for t in targets if t.group != HELDOUT or t.example.sha256 not in known]
    left = {(t.group, t.example.image_id) for t in targets}
    shots = [shot for route, folder in folders for shot in judged.shots_of(route, read_samples(folder), layers, examples)
             if (shot.record.group, shot.record.image_id) in left]
    return targets, shots, {
        "descriptor": layer.index.descriptor.name, "copy_threshold": layer.threshold, "threshold_rule": layer.rule,
        "background": as_json(layer.background, digits=None),
        "notes": [*(q.reason for q in twins_apart(fresh, layer.twins)[1]), *warnings(layer)],
        "exact": as_json(exact and exact_rule(exact), digits=None)}


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
    """-> rows (label, [(picture, text, is a copy) or None]) and the titles of their columns, for draw_returns."""
    columns = [*((method, route) for route in judged.ROUTES), *([(PLAIN, "embedding")] if method != PLAIN else [])]
    found, rows = judged.by_image(shots), []

    def cell(routes, route):
        if route not in routes:
            return None
        top = judged.closest_shot(routes[route])
        return open_image(folder / top.folder / top.record.image), f"{top.similarity:.2f}", top.copied

    for group in dict.fromkeys(t.group for t in targets):
        for target in [t for t in targets if t.group == group][:SHOWN]:
            cells = [cell(found[m][target.example.image_id], route) for m, route in columns]
            rows.append((group, [(target.example.open(), "", False), *cells]))
    return rows, ["target", *(f"{judged.ROUTES[route]}\n{name(m)}" for m, route in columns)]
