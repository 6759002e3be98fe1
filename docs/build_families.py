"""Write docs/families.md from the code: what serves which family of models, and how its two branches meet.

    python docs/build_families.py            # writes the page
    python docs/build_families.py --check    # exit code 1 if the page is not what the code says
"""
import sys
from pathlib import Path

from generated_page import write_or_check

from rotescope.mitigate.contract.families import CLASSIC, FAMILIES
from rotescope.mitigate.contract.text_inputs import TEXT_INPUTS
from rotescope.mitigate.detectors.registry import DETECTORS
from rotescope.mitigate.methods.registry import ENTRIES as MITIGATIONS
from rotescope.train.objective.families import FAMILIES as TRAINED

PAGE = Path(__file__).with_name("families.md")
NAMES = {  # family -> what people call it
    "sdxl": "Stable Diffusion XL and its children", "sd3": "Stable Diffusion 3, 3.5", "sd": "Stable Diffusion 1, 2",
    "pixart": "PixArt-α, Σ", "flux": "FLUX.1", "z-image": "Z-Image", "qwen-image": "Qwen-Image",
    "flux2-klein": "FLUX.2 klein, base", "chroma": "Chroma", "lumina2": "Lumina-Image 2", "cogview4": "CogView4",
    "krea2": "Krea 2", "ovis-image": "Ovis-Image", "longcat-image": "LongCat-Image", "sana": "Sana", "hidream": "HiDream-I1",
    "aura-flow": "AuraFlow", "kolors": "Kolors", "hunyuan-dit": "HunyuanDiT", "prx": "PRX", "ernie-image": "ERNIE-Image",
    "bria": "Bria 3.2", "nucleus-moe": "NucleusMoE-Image"}
TRAINED_AS = {"sd": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline", "sd3": "StableDiffusion3Pipeline",
              "flux": "FluxPipeline", "flux2-klein": "Flux2KleinPipeline", "z-image": "ZImagePipeline",
              "qwen-image": "QwenImagePipeline", "sana": "SanaPipeline", "chroma": "ChromaPipeline"}
CLOCKS = {"timestep": "t", "share": "t / T", "remains": "1 − t / T"}
ONE = (   # models of which one branch is computed, or two that meet in a way of their own -> why
    ("FLUX.1-dev as it comes", "its guidance is a number that the model is told; with `--guidance_scale` above 1 the pipeline's "
     "true guidance is on, which has two branches, and mitigations work"),
    ("FLUX.2 dev, FLUX.2 klein distilled, Sana Sprint", "distilled: one branch"),
    ("Qwen-Image 2.1, HunyuanImage 2.1, Ideogram 4", "a cache of the text, a guider of its own, two networks"),
    ("PAG pipelines", "a third branch"))
BEGINNING = """# Models: what works on which

<!-- Written by docs/build_families.py from the code; change it there. -->

`rotescope audit`, `generate` and `score` take **whatever diffusers' `DiffusionPipeline` opens and makes
pictures of prompts with**, and judge it under plain guidance. Where a pipeline computes two branches and
the table knows how they meet, mitigations of the guidance work, too. `rotescope mitigations --model MODEL`
says what serves yours, and `rotescope selfcheck --model MODEL` tries in six short calls, on your own
weights, what the tests promise of its family.

**What was run.** Each family runs in the tests as a small pipeline of diffusers 0.42's real classes
with random weights: plain guidance is the stock pipeline's image bit for bit, delayed and opposite guidance
are what a plain loop makes of the same two predictions (to 1e-5), and an image is the same whatever is
sampled beside it. Kolors, which wants the package `sentencepiece`, ran under plain and opposite guidance
alone. No family but Stable Diffusion's classes was run on trained weights: no model hub and no
GPU were at hand. The image-to-image classes of Z-Image, Qwen-Image and Chroma and the inpainting classes of
Z-Image, Qwen-Image and FLUX.2 klein ran under opposite guidance in the same way. diffusers'
`ChromaInpaintPipeline` fails by itself in 0.42.

**ControlNet and T2I-Adapter.** In Python, `mitigated` serves their classes as those of their family. These
ran under plain and opposite guidance in the same way: those of Stable Diffusion 1 and XL with a
ControlNet, from a prompt, a picture or a masked one, with a T2I-Adapter, and XL's with a union ControlNet
from a prompt; Stable Diffusion 3's two; `FluxControlNetPipeline`, `QwenImageControlNetPipeline`, its
inpainting class and `ZImageControlNetPipeline`. Stable Diffusion 3's two and Qwen-Image's inpainting class
draw the picture's latents from the generator of all, so that an image depends on its batch and on the global
seed, mitigated or not. `FluxControlNetImg2ImgPipeline` and `FluxControlNetInpaintPipeline` compute one
branch, and a mitigation is refused; so is, beside a control, one that asks the denoiser before sampling,
such as `sharpness-step`, for it would know nothing of the picture. ControlNet-XS and PAG classes take none.
Other variants, such as Sana's and HunyuanDiT's ControlNet, XL's other union classes and
`KolorsImg2ImgPipeline`, are known by their names and were not run.

"""
MEETING = """
## How the two branches meet

c and u are the conditional and the unconditional prediction. The commands take the scale in one convention,
in which 1 is off, and translate it.

| family | calls a step | off at | default scale | the denoiser is told | output | afterwards |
|---|---|---|---|---|---|---|
"""
END = """
On these the audit works, and a mitigation is refused before sampling, with the reason. SDXL Turbo,
Lightning and LCM models have two branches in their classes; a note says that they were distilled to do
without.

## Detectors

`magnitude`, `layout` and `drop` see the two predictions while the pipeline samples, and serve every family
of the table. Their gap is in ε, as in the papers; on flow-matching models it is in velocity, for at their
first step the two predictions of ε are one. The gap in velocity is there that in x₀. `cliques` and `edges`
look at images, `edges` at those of one step, which PixArt does not take. `recall` asks the denoiser for a
noised training picture, on every family whose training loss is known, and so do `rotescope membership` and
the audit's question whether the training set is the right one; how well it tells training pictures from
others is measured on the embedded model only. What reads cross-attention or CLIP's end token
stays with Stable Diffusion 1, 2 and XL: a transformer with joint attention, such as Stable Diffusion 3's or
FLUX's, has no such token among T5's, so the papers' scores would mean something else.

## Re-trigger search

`rotescope retrigger` and `audit --retrigger` search for a text embedding down the loss that a family is
trained by: of ε where the denoiser predicts ε or v, of the velocity under flow matching. The pipeline
itself is stopped at its first denoiser call, so masks, places, sizes and the number that FLUX.1-dev is told
for guidance are its own. What is learned stands in the place of `prompt_embeds`; pooled text, masks and
HunyuanDiT's second text stay those of the text that the search starts from. `embeddings.safetensors` holds
them beside each embedding, under the names of the arguments, so a stock pipeline draws the same image from
`prompt_embeds=…, pooled_prompt_embeds=…` and the like. The tests try each of these families as a small
pipeline with random weights; for FLUX.2 klein, Z-Image, Qwen-Image, Sana and Chroma the loss is that of
diffusers' example scripts (to 1e-4). HiDream, which is given layers of two encoders, LongCat-Image, whose
pipeline in diffusers 0.42 fails without a prompt, CogView4, which is told another time than that of its
noise, and Kolors are refused by name, and so are classes that want a picture beside the prompt.

## Texts

A run encodes each text once, whatever mitigations and seeds, on every family of the table, and keeps up to
4 GiB of embeddings in main memory (`benchmarks/encoder_calls.py` counts). A text is encoded alone, so an
image may differ from one of a larger batch by rounding. On other pipelines each batch is encoded anew.

## Left to the pipeline

Texts are cut where the pipeline cuts them. A pipeline that rewrites prompts by a language model
(LongCat-Image, ERNIE-Image) is told not to. CogView4 fills texts up to the longest of a call without a
mask, so a call holds one prompt; PRX makes one image a call. Pipelines that want a picture, a video or a
sound beside the prompt, or make one, are refused by name; so are those with neither a `unet` nor a
`transformer`, such as Stable Cascade.
"""


def page() -> str:
    """The whole page."""
    guidance = sum(len(entry.families) == len(FAMILIES) for entry in MITIGATIONS.values())
    serving = (f"## What serves\n\nOf {len(MITIGATIONS)} mitigations, {guidance} work on the two predictions alone, and so on "
               f"every family;\nthe others look inside Stable Diffusion. There are {len(DETECTORS)} detectors.\n\n"
               "| model | family | mitigations | detectors | LoRA and full training | re-trigger search |\n"
               "|---|---|---|---|---|---|\n")
    one = "\n## One branch, or others\n\n| model | why |\n|---|---|\n" + "".join(f"| {what} | {why} |\n" for what, why in ONE)
    return (BEGINNING + serving + "".join(map(_served, FAMILIES)) + MEETING + "".join(map(_branches, FAMILIES.values()))
            + one + END)


def _served(name):
    mitigations, detectors = (sum(name in entry.families for entry in table.values()) for table in (MITIGATIONS, DETECTORS))
    trained = "yes" if TRAINED_AS.get(name) in TRAINED else "no"
    return f"| {NAMES[name]} | `{name}` | {mitigations} | {detectors} | {trained} | {'yes' if name in TEXT_INPUTS else 'no'} |\n"


def _branches(row):
    first, second = ("c", "u") if row.cond_first else ("u", "c")
    calls = f"one, [{first}; {second}]" if row.calls == "doubled" else f"two: {first}, {second}"
    default = "7.5" if row.name in CLASSIC else "the pipeline's"
    needed = ", with a negative prompt" if row.negative == "needed" else ""
    return (f"| `{row.name}` | {calls} | `{row.scale}` = {row.off:g}{needed} | {default} | {CLOCKS[row.clock]} | "
            f"{'negated' if row.sign < 0 else 'as it is'} | {'set to the length of c' if row.after else '–'} |\n")


def main(argv=None):
    return write_or_check(PAGE, page(), __file__, "the code says", argv)


if __name__ == "__main__":
    sys.exit(main())
