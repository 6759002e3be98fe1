"""The oracle: one image at a time, both predictions at every step, each rule in its plainest form. No code of ours."""
import inspect

import numpy as np
import torch
from tiny import TOKENS


class Transition:
    """Scale `before` until the timestep or the first local minimum (or `latest`), then `scale`, for one image."""

    def __init__(self, policy, scale=7.5):
        self.policy, self.scale, self.timestep = policy, scale, None

    def __call__(self, t, d, c, u):
        if self.policy.transition == "dynamic":
            low = d[-2] * (1 + self.policy.min_drop) if len(d) > 2 else None
            turned = len(d) > 2 and d[-3] > low < d[-1] and t <= self.policy.earliest or t <= self.policy.latest
        else:
            turned = t <= self.policy.transition
        self.timestep = t if turned and self.timestep is None else self.timestep
        if self.timestep is None and self.policy.colour is not None:
            mean = np.mean((c - u).numpy(), axis=(2, 3) if c.dim() == 4 else 1, keepdims=True)
            return u + self.policy.colour * mean + self.policy.before * (c - u - mean)
        return u + (self.policy.before if self.timestep is None else self.scale) * (c - u)


@torch.no_grad()
def plain_loop(pipe, kind, prompts, new_rule, steps, dtype=torch.float64):
    """new_rule() -> rule(t, gaps so far, cond, uncond) -> guided, one for each image -> latents, rules, gaps (images, steps)."""
    finished, rules, gaps = [], [], []
    for i, prompt in enumerate(prompts):
        noise, rule, d, last = torch.Generator().manual_seed(i), new_rule(), [], None
        predict, grid = PREDICTORS[kind](pipe, prompt), timesteps(pipe, kind, steps)
        x = torch.randn(1, 4, 8, 8, generator=noise, dtype=dtype) * getattr(pipe.scheduler, "init_noise_sigma", 1)
        if kind == "flux":  # 2 × 2 places in a token
            x = x.view(1, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 16, 16)
        for t in grid:
            c, u = predict(x if kind in ("sd3", "flux") else pipe.scheduler.scale_model_input(x, t), t)
            if t != last:
                d.append(float((c - u)[:, :x.shape[1]].norm() * to_eps(pipe, t)))
            guided = rule(float(t), d, c, u)[:, :x.shape[1]]
            noisy = {"generator": noise} if "generator" in inspect.signature(pipe.scheduler.step).parameters else {}
            x, last = pipe.scheduler.step(guided, t, x, **noisy).prev_sample, t
        finished, rules, gaps = [*finished, x], [*rules, rule], [*gaps, d]
    return torch.cat(finished), rules, np.array(gaps)


def timesteps(pipe, kind, steps):
    how = {"sigmas": np.linspace(1, 1 / steps, steps)} if kind == "flux" else {"num_inference_steps": steps}
    pipe.scheduler.set_timesteps(**how)
    return pipe.scheduler.timesteps


def to_eps(pipe, t):
    if not hasattr(pipe.scheduler, "alphas_cumprod"):
        return 1 - t / 1000
    v = pipe.scheduler.config.prediction_type == "v_prediction"
    return pipe.scheduler.alphas_cumprod[int(t)] ** 0.5 if v else 1.0


def predict_sd(pipe, prompt):
    ids = pipe.tokenizer([prompt, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    texts = pipe.text_encoder(ids)[0].split(1)
    return lambda x, t: [pipe.unet(x, t, text).sample for text in texts]


def predict_sdxl(pipe, prompt):
    cond, uncond, pooled, no_pooled = pipe.encode_prompt(prompt)
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]], dtype=torch.float64)
    return lambda x, t: [pipe.unet(x, t, text, added_cond_kwargs={"text_embeds": whole, "time_ids": sizes}).sample
                         for text, whole in ((cond, pooled), (uncond, no_pooled))]


def predict_sd3(pipe, prompt):
    cond, uncond, pooled, no_pooled = pipe.encode_prompt(prompt, None, None, max_sequence_length=TOKENS)
    return lambda x, t: [pipe.transformer(x, text, whole, t[None]).sample
                         for text, whole in ((cond, pooled), (uncond, no_pooled))]


def predict_pixart(pipe, prompt):
    cond, mask, uncond, no_mask = pipe.encode_prompt(prompt)
    nothing = {"resolution": None, "aspect_ratio": None}
    return lambda x, t: [pipe.transformer(x, text, t[None], nothing, encoder_attention_mask=m).sample
                         for text, m in ((cond, mask), (uncond, no_mask))]


def predict_flux(pipe, prompt):
    texts = [pipe.encode_prompt(text, max_sequence_length=TOKENS) for text in (prompt, "")]
    places = torch.stack([torch.zeros(16), torch.arange(16) // 4, torch.arange(16) % 4], 1).double()
    return lambda x, t: [pipe.transformer(x, text, whole, t.double()[None] / 1000, places, ids).sample
                         for text, whole, ids in texts]


PREDICTORS = {"sd": predict_sd, "sdxl": predict_sdxl, "sd3": predict_sd3, "pixart": predict_pixart, "flux": predict_flux}
