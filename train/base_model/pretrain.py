"""Make the embedded base model from freshly composed scenes, in three stages, as Stable Diffusion was made.

    python -m rotescope.train.base_model.pretrain contrastive --out work/base     # text and image towers; the alignment metric
    python -m rotescope.train.base_model.pretrain judge       --out work/base     # the image tower again, on softened scenes
    python -m rotescope.train.base_model.pretrain vae         --out work/base     # AutoencoderKL, 64 px -> 16 × 8 × 8
    python -m rotescope.train.base_model.pretrain unet        --out work/base     # UNet2DConditionModel, EMA, caption dropout
    python -m rotescope.train.base_model.pretrain pack        --out work/base     # fp16, Stable Diffusion's layout, SHA256SUMS

The first two are independent of each other; run them with OMP_NUM_THREADS=1 beside each other. Hours, seeds and results
are in train/base/README.md. Needed once: the result ships.
"""
import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from rotescope.common.outputs import sha256
from rotescope.models.model_options import BASE
from rotescope.models.pipelines import portable_text_encoder
from rotescope.train.base_model.pretrain_towers import train_contrastive, train_judge
from rotescope.train.base_model.pretrain_unet import SCHEDULE, train_unet
from rotescope.train.base_model.pretrain_vae import train_vae
from rotescope.train.base_model.towers import EMBED_DIM, VISION

STAGES = {"contrastive": train_contrastive, "judge": train_judge, "vae": train_vae, "unet": train_unet}


def pack_judge(out, folder):
    towers = {k: v.half() if v.is_floating_point() else v for k, v in load_file(out / "judge.safetensors").items()
              if k.startswith("visual.") or k in ("text_projection", "logit_scale")}
    folder.mkdir(exist_ok=True)
    save_file(towers, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"embed_dim": EMBED_DIM, "vision": VISION}, indent=2) + "\n")


def pack(out, base):
    """Everything in fp16, in Stable Diffusion's layout, with the image tower beside it -> the folder `base`."""
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE, prediction_type="epsilon")
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(out / "vae"), text_encoder=CLIPTextModel.from_pretrained(out / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(out / "tokenizer"), unet=UNet2DConditionModel.from_pretrained(out / "unet"),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(base)
    portable_text_encoder(base / "text_encoder")
    for part in ("vae", "unet"):  # where it was made is nobody's business
        config = json.loads((base / part / "config.json").read_text())
        config.pop("_name_or_path", None)
        (base / part / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in ("vocab.json", "merges.txt"):  # for readers of CLIP's older layout
        (base / "tokenizer" / name).write_bytes((out / "tokenizer" / name).read_bytes())
    if (out / "judge.safetensors").exists():  # else the one that ships stays: the denoiser alone went on
        pack_judge(out, base / "alignment")
    files = sorted(p for p in base.rglob("*") if p.is_file() and p.suffix in (".safetensors", ".json", ".txt"))
    (base / "SHA256SUMS").write_text("".join(f"{sha256(p)}  {p.relative_to(base).as_posix()}\n" for p in files))
    print(f"{sum(p.stat().st_size for p in files) / 1e6:.1f} MB in {base}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "pack"))
    parser.add_argument("--out", type=Path, default=Path("work/base"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--weights", help="vae, unet: go on from those in this folder, such as train/base/unet")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    more = {"start": args.weights} if args.weights else {}
    if args.stage == "pack":
        pack(args.out, BASE)
    else:
        STAGES[args.stage](args.out, args.steps, **more)


if __name__ == "__main__":
    main()
