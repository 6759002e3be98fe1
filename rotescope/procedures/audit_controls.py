"""What an audit tries on the model before it samples: whether the LoRA has a part in it, whether it knows the training set."""
import math
from dataclasses import asdict

import numpy as np
import torch
from scipy.stats import mannwhitneyu

from rotescope.common.errors import InputError, RunError
from rotescope.datasets.images.sampling import evenly_spread
from rotescope.evaluate.inputs.own_manifest import header_counts, manifest_beside, overlap
from rotescope.evaluate.inputs.training_and_heldout import apart
from rotescope.evaluate.verdict.controls import OWN_SET, AdapterEffect, SetEvidence
from rotescope.mitigate.contract.families import guidance_arguments
from rotescope.mitigate.denoiser.branch_loss import why_no_loss
from rotescope.mitigate.detectors.training_image_recall import Recall, recall_scores
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.sampling.picture_size import fixed_size
from rotescope.models.adapters.attachment import without_adapters
from rotescope.models.model_files import find_lora, lora_names

STEPS = 2        # of the output that is compared: the first ones tell
ASKED = 24       # training pictures, and held-out ones, whose recall is compared, at most
LEAST = 8        # of each
RECALL = Recall(n=2)
BATCH = 16       # so that it is about a dozen denoiser calls


def controls_before_sampling(config, pipe, prompts, manifest, heldout, seen=None):
    """-> what run.json holds for the report's controls; seen: SetEvidence, if it is known. InputError if the LoRA changes
    nothing."""
    effect = adapter_effect(pipe, prompts[0].text, config) if config.lora else None
    return {"adapter": effect and asdict(effect), "training_set": asdict(seen or set_evidence(config, pipe, manifest, heldout))}


# ----- the LoRA

def adapter_effect(pipe, text, config):
    """One prompt and noise with the LoRA and without -> AdapterEffect. The pipeline is left as it was.

    InputError if both are equal to the bit, RunError if they hold no numbers.
    """
    adapted = _latents(pipe, text, config)
    with without_adapters(pipe):
        plain = _latents(pipe, text, config)
    change = float((adapted - plain).norm() / plain.norm().clamp(min=1e-12))
    if not math.isfinite(change):
        raise RunError(f"the latents of {config.model} hold no numbers (NaN): pass --dtype fp32")
    if torch.equal(adapted, plain):
        raise InputError(f"{' and '.join(lora_names(config.lora))} changes nothing: on one prompt and noise the output is that "
                         f"of {config.model} to the bit, so its weights or its strength are 0; name a trained one, or audit the "
                         "model without it")
    return AdapterEffect(change)


def _latents(pipe, text, config):
    pipe.set_progress_bar_config(disable=True)
    width, height = fixed_size(config.resolution)
    found = pipe(prompt=[text], **guidance_arguments(pipe, 1, config.guidance_scale), num_inference_steps=STEPS,
                 height=height, width=width, output_type="latent",
                 generator=[torch.Generator().manual_seed(0)]).images
    return found.detach().float().cpu()


# ----- the training set

def set_evidence(config, pipe, manifest, heldout):
    """What shows that the model was trained on the manifest -> SetEvidence: the user's word, the model's own manifest, or else
    its memory, tried on training pictures against held-out ones. A LoRA's header that counts other pictures comes before memory,
    for pictures that are not looked at may leak."""
    if config.trust_train_data:
        return SetEvidence("trusted")
    own = manifest_beside(config.model, config.lora)
    listed = SetEvidence("manifest", *overlap(manifest, own)) if own else None
    if listed and listed.known >= OWN_SET * listed.of:
        return listed
    header = counted(config.lora, manifest)
    if header and header.contradicts:
        return header
    tried = membership(pipe, manifest, apart(heldout, manifest)[0], config.batch_size)
    return tried or listed or header or SetEvidence("nothing")


def counted(lora, manifest):
    """What the headers of the LoRAs count beside the training set, files as trainers count them -> SetEvidence of the first that
    contradicts, else of the first that counts; None where none does."""
    counts = [found for name in lora_names(lora) if (found := header_counts(find_lora(name)))]
    told = [SetEvidence("header", pictures, len(manifest), said=shown, shown=float(sum(e.copies for e in manifest)))
            for pictures, shown in counts]
    return next((one for one in told if one.contradicts), told[0] if told else None)


def membership(pipe, manifest, heldout, batch_size=BATCH):
    """How well noised training pictures come back under their captions, against held-out ones -> SetEvidence by the rank-sum test
    of Mann and Whitney (1947); None where it cannot be asked."""
    groups = [_asked(sorted(data or (), key=lambda e: -e.copies)) for data in (manifest, heldout)]
    if why_no_loss(pipe) or min(map(len, groups)) < LEAST:
        return None
    prompts = [Prompt(e.captions[0], image_id=e.image_id) for examples in groups for e in examples]
    try:
        scores = np.array(recall_scores(pipe, prompts, {e.image_id: e for examples in groups for e in examples}, RECALL,
                                        batch_size=min(BATCH, batch_size)), np.float64)
    except InputError:
        return None
    trained, others = scores[:len(groups[0])], scores[len(groups[0]):]
    test = mannwhitneyu(trained, others, alternative="greater")
    return SetEvidence("recall", len(trained), len(others), float(test.statistic) / (len(trained) * len(others)),
                       float(test.pvalue))


def _asked(examples):
    """Those that an epoch shows most often, as they are remembered best; evenly spread where all are shown alike."""
    known = [e for e in examples if e.captions]
    often = [e for e in known if e.copies == known[0].copies]
    if 0 < len(often) < len(known) and len(often) >= LEAST:
        known = often
    return [known[i] for i in evenly_spread(len(known), ASKED)]
