"""Was this set used in training? Signals of its pictures and of held-out ones (mitigate/detectors/loss_profile.py), and what
evaluate/statistics/set_inference.py makes of them: measured as `rotescope membership` is told, into a folder."""
import pyarrow as pa

from rotescope.common.errors import InputError
from rotescope.common.outputs import check_apart, check_output, output_folder, versions, write_json
from rotescope.common.parquet import write_table
from rotescope.common.progress import progress_bars
from rotescope.common.settings import plain
from rotescope.common.wording import printable
from rotescope.datasets.images.sampling import evenly_spread
from rotescope.datasets.trainers.data_options import data_options
from rotescope.evaluate.inputs.training_and_heldout import LeftOut, apart, left_out_named, take_in
from rotescope.evaluate.report.json_types import as_json
from rotescope.evaluate.statistics.set_inference import FEWEST
from rotescope.mitigate.detectors.loss_profile import check_profiled_family, loss_profiles, profile_timesteps, signal_names
from rotescope.mitigate.list_mitigations import family_of_model
from rotescope.mitigate.prompts.prompt import HELDOUT, Prompt
from rotescope.mitigate.sampling.run_description import hashes_of
from rotescope.models.model_files import is_single_file
from rotescope.models.pipelines import check_model, open_model
from rotescope.procedures.membership.conclusions import told_of_set

FILE, SIGNALS, SET = "membership.json", "signals.parquet", "training"


def check_membership(config):
    """Raise InputError for whatever would stop the run later, as far as options and the model's index tell it."""
    config.check()
    check_output(config.output_dir, config.overwrite, inputs=(*config.model_inputs, config.train_data, config.heldout_data))
    if not is_single_file(config.model):   # a file says little of its pipeline: it is asked once it is open
        check_profiled_family(*family_of_model(config.model))
    check_model(config)


def run_membership(config):
    """Measure as `config` says -> what membership.json holds: outcome, p, auc, conclusions and so on."""
    check_membership(config)
    examples, left_out = pictures_of_both(config)
    check_apart(config.output_dir, {e.file for group in examples.values() for e in group})
    pipe = open_model(config)
    everyone, timesteps = [e for group in examples.values() for e in group], profile_timesteps(pipe)
    with output_folder(config.output_dir, config.overwrite) as draft, progress_bars({"pictures": len(everyone)}) as advance:
        signals = loss_profiles(pipe, everyone, n=config.noises, seed=config.seed, batch_size=config.batch_size,
                                on_picture=lambda: advance("pictures"))
        n = len(examples[SET])
        found = {**told_of_set(signals[:n], signals[n:], config.seed), **_described(config, examples, timesteps, left_out)}
        write_table(pa.Table.from_pylist(_rows(examples, signals, timesteps)), draft / SIGNALS, kind="signals")
        write_json(draft / FILE, found)
    return found


def pictures_of_both(config):
    """-> {"training": Examples, "heldout": Examples}, at most config.max_images of each, and what is left out. InputError where
    fewer are left than can tell."""
    manifest, heldout, left_out = take_in(config.train_data, config.heldout_data, True, FILE, data_options(config))
    fresh, known = apart(heldout, manifest)
    uncaptioned = [LeftOut("held-out", e.name, f"{e.name} has no caption") for e in fresh or () if not e.captions]
    examples = {SET: _once(manifest), HELDOUT: _once(e for e in fresh or () if e.captions)}
    for group, option in ((SET, "--train_data"), (HELDOUT, "--heldout_data")):
        if len(examples[group]) < FEWEST:
            aside = f" ({len(known)} are in the set too, {len(uncaptioned)} have no caption)" if group == HELDOUT else ""
            raise InputError(f"undecided: {getattr(config, option[2:])} gives {len(examples[group])} different pictures{aside}, "
                             f"and {FEWEST} of each are the fewest that can tell: name more by {option}")
    spread = {group: [some[i] for i in evenly_spread(len(some), config.max_images)] for group, some in examples.items()}
    return spread, [*left_out, *left_out_named("held-out", known), *uncaptioned]


def _once(examples):
    """Without further pictures of the same bytes: one that is there twice would stand in both halves."""
    first = {}
    for e in examples:
        first.setdefault(e.sha256, e)
    return list(first.values())


def _rows(examples, signals, timesteps):
    """Of signals.parquet."""
    named = [{"group": group, "image_id": e.image_id, "picture": printable(e.name), "caption": e.captions[0]}
             for group, some in examples.items() for e in some]
    return [row | dict(zip(signal_names(timesteps), numbers, strict=True))
            for row, numbers in zip(named, signals.tolist(), strict=True)]


def _described(config, examples, timesteps, left_out):
    """What else membership.json says."""
    prompts = [Prompt(e.captions[0], group, e.image_id) for group, some in examples.items() for e in some]
    return {"timesteps": timesteps, "noises": config.noises, "denoiser_rows": 2 * len(timesteps) * config.noises * len(prompts),
            "paper": "CDI, arXiv 2411.12858", "config": plain(config), "model": str(config.model), "versions": versions(),
            "hashes": hashes_of(config, prompts), "left_out": as_json(left_out)}
