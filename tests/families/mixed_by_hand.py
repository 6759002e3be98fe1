"""What a pipeline makes where its two branches are mixed by hand: the reference of the tests, which knows nothing of a hook."""
from contextlib import contextmanager
from functools import wraps

import torch

from rotescope.mitigate.contract.families import FAMILIES, denoiser_of, family

NEGATED = {"z-image", "lumina2", "hidream", "nucleus-moe"}
NORM = {"qwen-image": torch.inf, "lumina2": torch.inf, "nucleus-moe": torch.inf, "longcat-image": 1.0}
# the guided prediction is set to the length of the conditional one, along the last axis: by how much it may be lengthened


@contextmanager
def mixed_by_hand(pipe, name, scales):
    """The pipeline's scheduler gets u + s (c − u) of what the denoiser said, with the s of `scales` of each step."""
    row, heard, step, done = FAMILIES[family(pipe)], [], pipe.scheduler.step, []

    def listen(module, args, output):
        first = output[0]
        heard.append(torch.stack(first).clone() if isinstance(first, list) else first.clone())

    @wraps(step)
    def other(prediction, *args, **kwargs):
        said = list(heard[0].chunk(2)) if row.calls == "doubled" else list(heard)
        heard.clear()
        c, u = said if row.cond_first else said[::-1]
        own = u + scales[len(done) % len(scales)] * (c - u)
        done.append(True)
        if name in NORM:
            own = own * (c.norm(dim=-1, keepdim=True) / own.norm(dim=-1, keepdim=True)).clamp(max=NORM[name])
        own = -own if name in NEGATED else own
        return step(own[:, :prediction.shape[1]].reshape(prediction.shape).to(prediction.dtype), *args, **kwargs)

    handle = denoiser_of(pipe).register_forward_hook(listen)
    pipe.scheduler.step = other
    try:
        yield
    finally:
        handle.remove()
        del pipe.scheduler.step
