"""Leaving rows of a denoiser's batch out: which of its arguments have one entry a row."""
import torch

BATCHED = frozenset((  # denoiser arguments with one entry a row, themselves or all that they hold
    "sample", "hidden_states", "timestep", "encoder_hidden_states", "pooled_projections", "guidance", "attention_mask",
    "encoder_attention_mask", "added_cond_kwargs", "class_labels", "timestep_cond", "down_block_additional_residuals",
    "mid_block_additional_residual", "down_intrablock_additional_residuals", "block_controlnet_hidden_states",
    "controlnet_block_samples", "controlnet_single_block_samples", "ip_adapter_image_embeds", "ip_hidden_states", "gligen",
    "row_labels",  # from attention.py
    "x", "t", "cap_feats",                                                  # Z-Image
    "encoder_hidden_states_mask",                                           # Qwen-Image
    "text_embedding_mask", "encoder_hidden_states_t5", "text_embedding_mask_t5", "image_meta_size", "style",  # HunyuanDiT
    "timesteps", "pooled_embeds",                                           # HiDream
    "original_size", "target_size", "crop_coords"))                         # CogView4
LISTS = frozenset(("x", "cap_feats"))   # of these a list has one entry a row
UNBATCHED = frozenset(("img_ids", "txt_ids", "image_rotary_emb", "ip_adapter_masks"))


def take_rows(value, rows, name="", batched=False):
    """Keep `rows` (bool) of every tensor that has one entry a row, which its name tells: lengths may coincide."""
    batched = batched or name in BATCHED
    if rows.all():
        return value
    if isinstance(value, dict):
        return {k: take_rows(v, rows, k, batched) for k, v in value.items()}
    if isinstance(value, list) and name in LISTS:
        return [v for v, kept in zip(value, rows.tolist(), strict=True) if kept]
    if isinstance(value, list | tuple):
        return type(value)(take_rows(v, rows, name, batched) for v in value)
    taken = isinstance(value, torch.Tensor) and batched and value.dim() and len(value) == len(rows)
    return value[rows.to(value.device)] if taken else value


def own_lists(arguments):
    """Lists of the call's own. Z-Image's pipeline writes its chat template into the prompts that it is handed, and a UNet takes a
    T2I-Adapter's features off their list."""
    return {name: list(value) if isinstance(value, list) else value for name, value in arguments.items()}


def splittable(value, name=""):
    """Is it known of every tensor whether it has one entry a row? Where it is not, all rows are computed."""
    if name in BATCHED or name in UNBATCHED:
        return True
    if isinstance(value, dict):
        return all(splittable(v, k) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(splittable(v, name) for v in value)
    return not isinstance(value, torch.Tensor) or value.dim() == 0
