"""A trained LoRA under kohya's names, as ComfyUI, A1111 and kohya's own scripts read it: Stable Diffusion 1, 2 and XL."""
import json
from collections.abc import Mapping
from typing import Any

import torch

from rotescope.models.adapters.original_names import unet_names

ENDS = {".lora_A.weight": "lora_down.weight", ".lora_B.weight": "lora_up.weight"}  # PEFT's -> kohya's


def kohya_tensors(pipe: Any, layers: Mapping[str, Mapping[str, torch.Tensor]],
                  alphas: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """PEFT's tensors of each component -> one file's, with an alpha for each layer.

    Parameters
    ----------
    pipe : DiffusionPipeline
        Whose UNet is named: SDXL's layers have their original names in such files, SD's have diffusers'.
    layers : dict of str to dict
        Component -> {PEFT's key: tensor}; factors are (rank, in) and (out, rank).
    alphas : dict of str to float
        Component -> α.
    """
    is_xl = getattr(pipe, "text_encoder_2", None) is not None
    originals: dict[str, str] = {}
    if is_xl:
        names = {name for name, _ in pipe.unet.named_modules()}
        own = {name.replace(".base_layer", "") for name in names}
        originals = {ours[0]: name for name, ours in unet_names(own, pipe.unet.config.layers_per_block)}
    found = {}
    for component, tensors in layers.items():
        start = {"unet": "lora_unet", "text_encoder": "lora_te1" if is_xl else "lora_te", "text_encoder_2": "lora_te2"}[component]
        for key, tensor in tensors.items():
            end = next(end for end in ENDS if key.endswith(end))
            name = key.removesuffix(end)
            if component != "unet":
                name = f"text_model.{name.removeprefix('text_model.')}"
            layer = f"{start}_{originals.get(name, name).replace('.', '_')}"
            found[f"{layer}.{ENDS[end]}"] = tensor.detach().cpu().contiguous()
            found[f"{layer}.alpha"] = torch.tensor(float(alphas[component]))
    return found


def kohya_metadata(family: str, rank: int, alpha: float, resolution: int, shown: Mapping[int, int],
                   buckets: Mapping[tuple[int, int], int]) -> dict[str, str]:
    """What such a file's header says of its training, as far as other programs ask for it.

    shown: how often an epoch shows a picture -> how many pictures it shows so often; each stands for a folder, whose name is not
    handed on. Nothing where copies are no whole numbers, which this header cannot say. buckets: width and height -> how many
    showings; nothing where pictures were cropped to squares.
    """
    info = {"buckets": {str(i): {"resolution": shape, "count": n} for i, (shape, n) in enumerate(sorted(buckets.items()))}}
    folders = {f"{repeats}_": {"n_repeats": repeats, "img_count": n} for repeats, n in sorted(shown.items())}
    bases = {"sdxl": "sdxl_base_v1-0", "sd2": "sd_v2", "sd1": "sd_v1"}
    return {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": f"{alpha:g}",
            "ss_base_model_version": bases[family], "ss_v2": str(family == "sd2"),
            "ss_resolution": f"({resolution}, {resolution})"} | ({"ss_dataset_dirs": json.dumps(folders)} if folders else {}) | (
                {"ss_enable_bucket": "True", "ss_bucket_info": json.dumps(info)} if buckets else {})
