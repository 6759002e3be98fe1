"""Adapter files in every format, made by hand: the keys of a layer, and the ΔW that they stand for, written out as sums."""
import itertools

import torch

RANK = 2


def numbers(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.7


def outer_sum(columns, rows):
    """Σ_r columns[:, r] ⊗ rows[r]: the product of two factors, one rank after the other."""
    return sum(columns[:, r, None] * rows[None, r] for r in range(rows.shape[0]))


def with_core(core, rows, columns):
    """Σ_ij core[i, j] · (rows[i] ⊗ columns[j]), for each place of the kernel."""
    return sum(core[i, j] * (rows[i][:, None] * columns[j][None])[:, :, None, None]
               for i, j in itertools.product(range(core.shape[0]), range(core.shape[1])))


def blocks(first, second):
    """W₁ ⊗ W₂, block by block."""
    return torch.cat([torch.cat([first[i, j] * second for j in range(first.shape[1])], 1) for i in range(first.shape[0])], 0)


def lora(shape, seed, alpha=None, names=("lora_down.weight", "lora_up.weight")):
    out, width, *kernel = shape
    down, up = numbers(RANK, width, *kernel, seed=seed), numbers(out, RANK, *[1] * len(kernel), seed=seed + 1)
    keys = dict(zip(names, (down, up), strict=True)) | ({} if alpha is None else {"alpha": torch.tensor(float(alpha))})
    return keys, outer_sum(up.flatten(1), down.flatten(1)).reshape(shape) * (1 if alpha is None else alpha / RANK)


def lora_with_core(shape, seed):
    out, width, *kernel = shape
    if not kernel or kernel[0] == 1:
        return lora(shape, seed, 1)
    core, down, up = (numbers(RANK, RANK, *kernel, seed=seed), numbers(RANK, width, 1, 1, seed=seed + 1),
                      numbers(out, RANK, 1, 1, seed=seed + 2))
    keys = {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": core, "alpha": torch.tensor(1.0)}
    return keys, with_core(core, up.flatten(1).T, down.flatten(1)) / RANK


def loha(shape, seed, core=False):
    out, width, *kernel = shape
    if core and kernel and kernel[0] > 1:
        cores = [numbers(RANK, RANK, *kernel, seed=seed + n) for n in (4, 5)]
        rows = [numbers(RANK, out, seed=seed + n) for n in (0, 1)]
        columns = [numbers(RANK, width, seed=seed + n) for n in (2, 3)]
        first, second = (with_core(*factors) for factors in zip(cores, rows, columns, strict=True))
        extra = {"hada_t1": cores[0], "hada_t2": cores[1]}
    else:
        flat = width * torch.Size(kernel).numel()
        rows = [numbers(out, RANK, seed=seed + n) for n in (0, 1)]
        columns = [numbers(RANK, flat, seed=seed + n) for n in (2, 3)]
        first, second = (outer_sum(*factors).reshape(shape) for factors in zip(rows, columns, strict=True))
        extra = {}
    keys = {"hada_w1_a": rows[0], "hada_w1_b": columns[0], "hada_w2_a": rows[1], "hada_w2_b": columns[1],
            "alpha": torch.tensor(1.0)} | extra
    return keys, first * second / RANK


def lokr(shape, seed, first="full", second="full"):
    """Each of the two may be full or factored; the second also with a core."""
    out, width, *kernel = shape
    if not kernel or kernel[0] == 1:
        second = "factored" if second == "core" else second
    keys, rows, columns = {"alpha": torch.tensor(1.0)}, out // 4, width // 4
    if first == "full":
        one = keys["lokr_w1"] = numbers(4, 4, seed=seed)
    else:
        keys |= {"lokr_w1_a": numbers(4, RANK, seed=seed), "lokr_w1_b": numbers(RANK, 4, seed=seed + 1)}
        one = outer_sum(keys["lokr_w1_a"], keys["lokr_w1_b"])
    if second == "full":
        two = keys["lokr_w2"] = numbers(rows, columns, *kernel, seed=seed + 2)
    elif second == "core":
        keys |= {"lokr_t2": numbers(RANK, RANK, *kernel, seed=seed + 2), "lokr_w2_a": numbers(RANK, rows, seed=seed + 3),
                 "lokr_w2_b": numbers(RANK, columns, seed=seed + 4)}
        two = with_core(keys["lokr_t2"], keys["lokr_w2_a"], keys["lokr_w2_b"])
    else:
        keys |= {"lokr_w2_a": numbers(rows, RANK, seed=seed + 2), "lokr_w2_b": numbers(RANK, columns, *kernel, seed=seed + 3)}
        two = outer_sum(keys["lokr_w2_a"], keys["lokr_w2_b"].flatten(1)).reshape(rows, columns, *kernel)
    scale = 1 if first == second == "full" else 1 / RANK
    return keys, blocks(one, two) * scale


def whole(shape, seed):
    found = numbers(*shape, seed=seed)
    return {"diff": found}, found


PARTS = {  # format -> (shape, seed) to keys and ΔW
    "no alpha": lora,
    "alpha": lambda shape, seed: lora(shape, seed, 1),
    "core": lora_with_core,
    "PEFT": lambda shape, seed: lora(shape, seed, None, ("lora_A.weight", "lora_B.weight")),
    "PEFT, named": lambda shape, seed: lora(shape, seed, None, ("lora_A.default.weight", "lora_B.default.weight")),
    "older": lambda shape, seed: lora(shape, seed, None, ("lora.down.weight", "lora.up.weight")),
    "LoHa": loha,
    "LoHa with cores": lambda shape, seed: loha(shape, seed, core=True),
    "LoKr": lokr,
    "LoKr, second factored": lambda shape, seed: lokr(shape, seed, "full", "factored"),
    "LoKr, first factored": lambda shape, seed: lokr(shape, seed, "factored", "full"),
    "LoKr, both factored": lambda shape, seed: lokr(shape, seed, "factored", "factored"),
    "LoKr with a core": lambda shape, seed: lokr(shape, seed, "full", "core"),
    "full": whole,
}


def with_magnitude(keys, weight, delta, by):
    """DoRA's m for rows, columns, or as PEFT has it -> the keys with it, and W' row by row or column by column."""
    changed, axis = weight + delta, 1 if by == "columns" else 0
    sizes = numbers(weight.shape[axis], seed=99).abs() + 0.5
    slices = [changed.select(axis, n) for n in range(len(sizes))]
    found = torch.stack([size * part / (part ** 2).sum() ** 0.5 for size, part in zip(sizes, slices, strict=True)], axis)
    if by == "PEFT":
        shape = (1, -1, 1, 1) if weight.dim() == 4 else (-1,)
        return keys | {"lora_magnitude_vector": sizes.reshape(shape)}, found
    shape = [1] * weight.dim()
    shape[axis] = -1
    return keys | {"dora_scale": sizes.reshape(shape)}, found
