"""Write docs/memory.md: what an audit asks of a card, family by family, by arithmetic from published sizes.

    python docs/build_memory.py            # writes the page
    python docs/build_memory.py --check    # exit code 1 if the page is not what the numbers say
"""
import sys
from dataclasses import dataclass
from pathlib import Path

from generated_page import write_or_check

from rotescope.mitigate.contract.families import FAMILIES

PAGE = Path(__file__).with_name("memory.md")
CAPTIONS, SEEDS, STEPS = 100, 4, 50
IMAGES = CAPTIONS * SEEDS
ROWS = 2 * IMAGES * STEPS
CARD, ROOM = 24.0, 4.0     # GB of the card, and what activations, the VAE's work and CUDA itself are given of it
BF16, NF4 = 2.0, 0.516     # bytes a number; QLoRA, section 3: 4 bits, and 0.127 for doubly quantised scales
T5, T5_BY = 4.7, "T5-XXL"  # its encoder alone: half of 11 B (Raffel et al. 2020), less what the halves share
CLIP_L, CLIP_G = 0.12, 0.69


@dataclass(frozen=True)
class ModelSize:
    """Parameters, in billions."""
    model: str
    denoiser: float
    large: float          # text encoders that --quantize nf4 cuts, too
    text: str             # which they are
    source: str
    small: float = 0.0    # CLIP's, which stay as they are
    vae: float = 0.08
    packs: bool = True    # whether the denoiser is mostly of linear layers, which nf4 packs

    @property
    def parts(self) -> tuple[float, float]:
        """GB in bf16 and with --quantize nf4."""
        kept = (self.small + self.vae) * BF16
        denoiser = self.denoiser * (NF4 if self.packs else BF16)
        return kept + (self.denoiser + self.large) * BF16, kept + denoiser + self.large * NF4

    @property
    def largest(self) -> tuple[float, float]:
        """GB of the largest part, which is what the card holds under --offload model: in bf16, and with --quantize nf4."""
        packed = self.denoiser * (NF4 if self.packs else BF16)
        return max(self.denoiser, self.large) * BF16, max(packed, self.large * NF4)

    def fits(self) -> str:
        """The first way that leaves ROOM on the card."""
        ways = (("as it is", self.parts[0]), ("`--offload model`", self.largest[0]), ("`--quantize nf4`", self.parts[1]),
                ("`--quantize nf4 --offload model`", self.largest[1]), ("`--offload group`", 0.0))
        return next(way for way, needed in ways if needed <= CARD - ROOM)


CARDS = "the model's card"
SIZES = {
    "sdxl": ModelSize("SDXL 1.0", 2.6, 0, "CLIP-L, OpenCLIP-G", "Podell et al. 2023, table 1", CLIP_L + CLIP_G),
    "sd3": ModelSize("SD 3.5 Large", 8.1, T5, f"{T5_BY}, CLIP-L, CLIP-G", CARDS, CLIP_L + CLIP_G),
    "sd": ModelSize("SD 1.5", 0.86, 0, "CLIP-L", CARDS, CLIP_L, packs=False),
    "pixart": ModelSize("PixArt-α, Σ", 0.6, T5, T5_BY, "Chen et al. 2023, arXiv 2310.00426"),
    "flux": ModelSize("FLUX.1-dev", 12, T5, f"{T5_BY}, CLIP-L", CARDS, CLIP_L),
    "z-image": ModelSize("Z-Image", 6, 4, "Qwen3-4B", "diffusers' page; its documentation"),
    "qwen-image": ModelSize("Qwen-Image", 20, 8.3, "Qwen2.5-VL-7B", "arXiv 2508.02324", vae=0.13),
    "flux2-klein": ModelSize("FLUX.2 klein base 4B", 4, 4, "Qwen3-4B", CARDS),
    "chroma": ModelSize("Chroma1", 8.9, T5, T5_BY, CARDS),
    "lumina2": ModelSize("Lumina-Image 2", 2.6, 2.6, "Gemma-2-2B", "arXiv 2503.21758"),
    "cogview4": ModelSize("CogView4", 6, 9.4, "GLM-4-9B", CARDS),
    "krea2": ModelSize("Krea 2 Raw", 13, 4.4, "Qwen3-VL-4B", "the hub's count of its files", vae=0.13),
    "ovis-image": ModelSize("Ovis-Image", 7, 2.6, "Ovis2.5-2B", CARDS),
    "longcat-image": ModelSize("LongCat-Image", 6, 8.3, "Qwen2.5-VL-7B", CARDS),
    "sana": ModelSize("Sana 1.6B", 1.6, 2.6, "Gemma-2-2B", "Xie et al. 2024, arXiv 2410.10629", vae=0.31),
    "hidream": ModelSize("HiDream-I1", 17, T5 + 8.0, f"{T5_BY}, Llama-3.1-8B, CLIP-L, CLIP-G", CARDS, CLIP_L + CLIP_G),
    "aura-flow": ModelSize("AuraFlow", 6.8, 1.2, "Pile-T5-XL", CARDS),
    "kolors": ModelSize("Kolors", 2.6, 6.2, "ChatGLM3-6B", CARDS),
    "hunyuan-dit": ModelSize("HunyuanDiT 1.2", 1.5, 1.6, "mT5-XL, CLIP", "Li et al. 2024, arXiv 2405.08748", 0.35),
    "prx": ModelSize("PRX", 1.3, 2.6, "T5Gemma-2B", "diffusers' page"),
    "ernie-image": ModelSize("ERNIE-Image", 8, 3.8, "Ministral-3-3B", "diffusers' page"),
    "bria": ModelSize("Bria 3.2", 4, T5, T5_BY, "diffusers' page"),
    "nucleus-moe": ModelSize("Nucleus-Image", 17, 8.8, "Qwen3-VL-8B", "arXiv 2604.12163", vae=0.13, packs=False),
}


BEGINNING = f"""# Memory: models that are larger than the card

<!-- Written by docs/build_memory.py; change it there. -->

Every command that opens a model takes these options. The same seed starts from the same noise under each of
them: it is drawn from the image's own generator, wherever the weights lie.

| option | what it does | the images |
|---|---|---|
| `--dtype bf16` | two bytes a number instead of four | others, by rounding |
| `--offload model` | each part goes to the GPU for its turn: the card holds the largest | the same, to the bit |
| `--offload group` | each block of the denoiser does, at every step; each layer of other parts | the same, to the bit |
| `--quantize nf4` | denoiser and large text encoders in 4 bits | others: what it leaks may differ |
| `--model FILE.gguf --model_config FOLDER` | a denoiser that was packed into few bits | others, likewise |
| `--vae_slicing true` | a batch is decoded image by image | the same but for rounding |
| `--vae_tiling true` | an image is decoded in tiles | seams, above the tile's side |
| `--attention_slicing true` | a UNet's attention in slices | the same but for rounding |
| `--batch_size 1` | fewer images at a time | the same but for rounding |

4 bits need a GPU and bitsandbytes (`pip install 'rotescope[gpu]'`), GGUF files the package gguf (`pip install
'rotescope[gguf]'`). Slices of attention save nothing where PyTorch's own attention is at work, the default.

Text encoders need no room while images are sampled under `--offload model`: each text is encoded once for
all mitigations and seeds, and the encoders then leave the card. Without it they stay there.

`rotescope finetune --lora true --quantize nf4` trains a LoRA on a denoiser in 4 bits (QLoRA); the LoRA and
its file are what they are without. Audit the LoRA on the weights that people will run it on.

**What was run.** No trained weights of these models and no GPU were at hand: the table below is arithmetic,
and activations, fragments and speed were measured nowhere. Small pipelines of diffusers' real classes ran in
the tests on a CPU, offloaded both ways, with fused projections, in 4 bits and from a GGUF file. diffusers
refuses 4 bits without a GPU, so the tests take that refusal away and run bitsandbytes' own kernels for CPUs.

## What an audit of {CAPTIONS} captions × {SEEDS} seeds costs

{CAPTIONS} × {SEEDS} = {IMAGES} images, at the default of {STEPS} steps, with guidance: two rows a step, so
{IMAGES} × {STEPS} × 2 = {ROWS:,} rows of the denoiser on every family. A family that computes both in one
call makes half as many calls, of twice the width; a batch of b images makes b times fewer. As much again
goes to each further mitigation (less where it leaves a branch out) and to `--base`. The controls before
sampling take about a dozen calls, the comparison of images none.

GB (10⁹ bytes) are of weights alone: billions of numbers × {BF16:g} bytes in bf16; × {NF4} in nf4, for denoiser and
text encoders other than CLIP's. *Its largest part* is what the card holds under `--offload model`. The last
column is the first way that leaves {ROOM:g} GB of {CARD:g} for everything else; take a small batch where it is close.

"""
END = """
What nf4 packs are linear layers. The UNet of Stable Diffusion 1 is mostly convolutions, and the experts of
Nucleus are no linear layers: the table counts both whole. Elsewhere it says the least that nf4 can need: the
convolutions of SDXL's UNet stay as they are, and so do a text encoder's tables of words (0.1 to 1 billion
numbers, 0.2 to 2 GB). A GGUF file's own size takes the place of the denoiser's.

## What does not go with what

| | under | instead |
|---|---|---|
| `--offload model` | a CPU | |
| `--quantize nf4` | a CPU, a single file, a model that is quantised already | a folder |
| | `--offload group`, a full fine-tune, FSDP, DeepSpeed | `--offload model`, `--lora true` |
| LoHa, LoKr, DoRA, whole differences, norms | weights in few bits: they are added to them | plain LoRAs |
| `nemo` | an offloaded UNet, fused projections | `--offload none`, `pipe.unfuse_qkv_projections()` |
| `prompt-optimisation`, `prompt-reanchoring`, `noise-optimisation` | `--offload group` | `--offload model` |
| `sharpness-aware-noise`, `amg`, `detect --tokens`, `retrigger` | `--offload group` | `--offload model` |
| the detector `sail` | weights in few bits | another detector |
| `--offload group` | HunyuanDiT | `--offload model` |
| `--attention_slicing` | a transformer | |

Each is one line before anything is sampled. `torch.compile`, `fuse_qkv_projections`, accelerate's offloading
and subclasses of a pipeline's class serve from Python: `mitigated(pipe, …)` gives what it gives without them.
A subclass may hand its arguments on by `**kwargs`; one that writes a denoising loop of its own is taken for
its base, so try `selfcheck` of `rotescope.procedures.selfcheck` on it.

## Whose numbers

The denoisers of SD 3.5, PixArt, FLUX.1, Z-Image, Qwen-Image, FLUX.2 klein, CogView4, Krea 2, Ovis-Image,
HiDream, PRX, ERNIE-Image, Bria and Nucleus were looked up for this table, some in secondary pages. The other
sizes, and those of text encoders, are the ones that are commonly given for what is named here, and were not
opened again: correct the table where a card says otherwise.

"""


def page() -> str:
    """The whole page."""
    sources = "| model | text encoders | whose numbers |\n|---|---|---|\n" + "".join(
        f"| {size.model} | {size.text} | {size.source} |\n" for size in SIZES.values())
    head = ("| family | model | denoiser, B | text encoders, B | bf16, GB | its largest part | nf4, GB | its largest part | "
            f"calls, one image each | on {CARD:g} GB |\n|---|---|---|---|---|---|---|---|---|---|\n")
    return BEGINNING + head + "".join(map(_row, FAMILIES)) + END + sources


def _row(name):
    size = SIZES[name]
    calls = IMAGES * STEPS * (2 if FAMILIES[name].calls == "two" else 1)
    (whole, packed), (largest, packed_largest) = size.parts, size.largest
    return (f"| `{name}` | {size.model} | {size.denoiser:g} | {size.large + size.small:.3g} | "
            f"{whole:.1f} | {largest:.1f} | {packed:.1f} | {packed_largest:.1f} | {calls:,} | "
            f"{size.fits()} |\n")


def main(argv=None):
    return write_or_check(PAGE, page(), __file__, "the numbers say", argv)


if __name__ == "__main__":
    sys.exit(main())
