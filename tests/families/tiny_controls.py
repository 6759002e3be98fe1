"""Small pipelines with a ControlNet or a T2I-Adapter beside the denoiser: those of the families, and a small network each."""
import inspect

import diffusers
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    FluxControlNetModel,
    QwenImageControlNetModel,
    SD3ControlNetModel,
    T2IAdapter,
    ZImageControlNetModel,
)
from families.more_families import MORE_FAMILIES
from families.tiny_language_models import drawn
from tiny import TINY, seeded
from tiny_families import sd3 as two_layers  # the last one hears no ControlNet

PICTURE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(16) < 8).float().expand(1, 1, 16, 16)
ON, FROM, KEPT = {"control_image": PICTURE}, {"image": PICTURE, "strength": 0.9}, {"mask_image": MASK}
SIZED = {"height": 16, "width": 16}


def beside_unet(unet):
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))


def union(unet):
    kept = ("in_channels", "cross_attention_dim", "attention_head_dim", "block_out_channels", "down_block_types",
            "layers_per_block", "norm_num_groups", "addition_embed_type", "addition_time_embed_dim",
            "projection_class_embeddings_input_dim")
    return ControlNetUnionModel(
        **{name: unet.config[name] for name in kept}, conditioning_embedding_out_channels=(8, 16), num_control_type=2,
        num_trans_channel=16, num_trans_head=2, num_trans_layer=1, num_proj_channel=16)


def adapter(unet):
    """One feature map a block of the UNet, which is half as large as the one before."""
    return T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2)


def beside_sd3(transformer, more_channels=0):
    return SD3ControlNetModel.from_config({**transformer.config, "extra_conditioning_channels": more_channels})


def beside_sd3_inpainting(transformer):
    return beside_sd3(transformer, 1)


def beside_flux(transformer):
    return FluxControlNetModel.from_transformer(transformer, num_layers=1, num_single_layers=1, attention_head_dim=16,
                                                num_attention_heads=2)


def beside_qwen_image(transformer, more_channels=0):
    return QwenImageControlNetModel.from_transformer(transformer, num_layers=1, attention_head_dim=16, num_attention_heads=2,
                                                     extra_condition_channels=more_channels)


def beside_qwen_image_inpainting(transformer):
    return beside_qwen_image(transformer, 4)


def beside_z_image(transformer):
    """It borrows the transformer's first layers when the pipeline is made."""
    return ZImageControlNetModel(control_layers_places=[0], control_refiner_layers_places=[0], control_in_dim=4, dim=32,
                                 n_refiner_layers=1, n_heads=2, n_kv_heads=2)


CONTROLLED = {  # class -> its family, the network beside the denoiser, and what it is given beside prompts
    "StableDiffusionControlNetPipeline": ("sd", beside_unet, {"image": PICTURE}),
    "StableDiffusionControlNetImg2ImgPipeline": ("sd", beside_unet, ON | FROM),
    "StableDiffusionControlNetInpaintPipeline": ("sd", beside_unet, ON | FROM | KEPT | SIZED),
    "StableDiffusionAdapterPipeline": ("sd", adapter, {"image": PICTURE} | SIZED),
    "StableDiffusionXLControlNetPipeline": ("sdxl", beside_unet, {"image": PICTURE}),
    "StableDiffusionXLControlNetImg2ImgPipeline": ("sdxl", beside_unet, ON | FROM),
    "StableDiffusionXLControlNetInpaintPipeline": ("sdxl", beside_unet, ON | FROM | KEPT | SIZED),
    "StableDiffusionXLControlNetUnionPipeline": ("sdxl", union, ON | {"control_mode": 0}),
    "StableDiffusionXLAdapterPipeline": ("sdxl", adapter, {"image": PICTURE} | SIZED),
    "StableDiffusion3ControlNetPipeline": ("sd3", beside_sd3, ON | SIZED),
    "StableDiffusion3ControlNetInpaintingPipeline": (
        "sd3", beside_sd3_inpainting, ON | {"control_mask": MASK} | SIZED),
    "FluxControlNetPipeline": ("flux", beside_flux, ON | SIZED),
    "FluxControlNetImg2ImgPipeline": ("flux", beside_flux, ON | FROM),
    "QwenImageControlNetPipeline": ("qwen-image", beside_qwen_image, ON | SIZED),
    "QwenImageControlNetInpaintPipeline": ("qwen-image", beside_qwen_image_inpainting, ON | {"control_mask": MASK} | SIZED),
    "ZImageControlNetPipeline": ("z-image", beside_z_image, ON | SIZED),
}


def controlled(name):
    """-> the small pipeline of that class, always with the same weights; none of those beside the denoiser is zero."""
    family, beside, _ = CONTROLLED[name]
    base = {**MORE_FAMILIES, **TINY, "sd3": two_layers}[family]()
    denoiser = getattr(base, "unet", None) or base.transformer
    part = "adapter" if "Adapter" in name else "controlnet"
    kind = getattr(diffusers, name)
    taken = inspect.signature(kind.__init__).parameters

    def make():
        parts = base.components | {part: drawn(beside(denoiser)), "requires_safety_checker": False}
        return kind(**{key: value for key, value in parts.items() if key in taken})
    return seeded(make)
