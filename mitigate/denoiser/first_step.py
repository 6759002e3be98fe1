"""The denoiser at the first timestep, before a pipeline runs: what several mitigations look at and change something by."""
from contextlib import contextmanager

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps

from rotescope.models.prediction import eps_at, slope_at


@contextmanager
def gradients():
    """Gradients, although the caller may have turned them off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


class FirstStep:
    """Stable Diffusion at x_T. `difference` counts its rows in call.extra_rows.

    noise: (n, C, h, w) of unit variance; cond, uncond: text embeddings (n, tokens, width); all free of gradients.
    """

    def __init__(self, call):
        with torch.no_grad():
            self.cond, self.uncond = (e.detach().clone() for e in call.encode_text())
            self.noise = call.draw_noise().detach().clone()
        self.call, self.unet = call, call.pipe.unet
        self.scheduler = type(call.pipe.scheduler).from_config(call.pipe.scheduler.config)
        steps, _ = retrieve_timesteps(self.scheduler, call.get("num_inference_steps"), call.device, call.get("timesteps"),
                                      call.get("sigmas"))
        self.timestep = steps[0]
        self.slope = slope_at(call.pipe.scheduler, self.timestep.item())

    def outputs(self, noise, text):
        """noise (k, C, h, w), text (k, tokens, width) -> denoiser output (k, C, h, w), at least fp32."""
        x = self.scheduler.scale_model_input(noise * self.scheduler.init_noise_sigma, self.timestep).to(self.unet.dtype)
        return at_least_float(self.unet(x, self.timestep, encoder_hidden_states=text.to(self.unet.dtype)).sample)

    def eps(self, noise, text):
        """The same in ε."""
        x = self.scheduler.scale_model_input(noise * self.scheduler.init_noise_sigma, self.timestep)
        return eps_at(self.call.pipe.scheduler, self.outputs(noise, text), x, self.timestep.item())

    def difference(self, noise, images, cond=None):
        """Δ = ε(x_T, text) − ε(x_T, ∅) (k, C, h, w) in ε, of the images (k,) at a noise (k, C, h, w) and perhaps another text."""
        self.call.extra_rows = self.call.extra_rows + 2 * torch.bincount(images.cpu(), minlength=self.call.n)
        text = torch.cat([self.cond[images] if cond is None else cond, self.uncond[images]])
        cond, uncond = self.outputs(noise.repeat(2, 1, 1, 1), text).chunk(2)
        return self.slope * (cond - uncond)


def descend(start, loss, target, optimizer, iterations):
    """From `start` (n, …) down a loss, each image until its own is at most `target`, or for `iterations` steps.

    loss(x (k, …), images (k,)) -> (k,); optimizer([x]) as in torch.optim, whose updates are elementwise, so that no image feels
    another. -> the end (n, …), and the lowest loss that was seen on the way (n,).
    """
    x, end = start.clone().requires_grad_(), start.clone()
    lowest, descent = start.new_full((len(start),), torch.inf), optimizer([x])
    images = torch.arange(len(start), device=start.device)
    for _ in range(iterations):
        losses = loss(x[images], images)
        lowest[images] = torch.minimum(lowest[images], losses.detach())
        going = losses.detach() > target
        end[images[~going]] = x.detach()[images[~going]]
        images = images[going]
        if not len(images):
            return end, lowest
        (x.grad,) = torch.autograd.grad(losses[going].sum(), x)
        descent.step()
    end[images] = x.detach()[images]
    return end, lowest


def norms(x):
    """‖x‖₂ of each image: (k, …) -> (k,)."""
    return x.flatten(1).norm(dim=1)


def at_least_float(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))
