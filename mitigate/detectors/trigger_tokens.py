"""Which words of a prompt trigger: how strongly the prediction gap depends on each token (Wen et al., ICLR 2024)."""
import torch

from rotescope.mitigate.contract.prediction import prediction_gap
from rotescope.mitigate.denoiser.probe import Probe
from rotescope.mitigate.detectors.whitebox import end_tokens
from rotescope.mitigate.sampling.jobs import batches


@torch.no_grad()
def attribute_tokens(pipe, prompts, *, n=4, steps=1, num_inference_steps=50, guidance_scale=7.5, seed=1000, batch_size=64,
                     on_image=None):
    """Yields for each Prompt its tokens as [(token, significance)], start, end and padding left out.

    significance = mean over n seeds and the first `steps` timesteps of ‖∂‖Δ_t‖₂ / ∂e_i‖₂, e_i the text encoder's output at token
    i; the authors take 50 steps. Four denoiser rows an image and step, two of them with a gradient.
    """
    kept, waiting = [], iter(prompts)
    for batch in batches(prompts, range(seed, seed + n), batch_size):
        texts = [prompts[i].text for i, _, _ in batch]
        probe = Probe(pipe, texts, [s for _, _, s in batch], num_inference_steps, guidance_scale)
        kept += torch.stack([_gradient(probe, look) for look in probe.walk(steps)]).mean(0)
        for _ in batch if on_image else ():
            on_image()
        while len(kept) >= n:
            yield _named(pipe, next(waiting).text, torch.stack(kept[:n]).mean(0))
            del kept[:n]


def _gradient(probe, look):
    """-> (n, tokens)."""
    uncond, cond = probe.arguments["encoder_hidden_states"].chunk(2)
    with torch.enable_grad():
        embeddings = cond.detach().requires_grad_()
        eps = probe.eps(look.x, look.timestep, encoder_hidden_states=torch.cat([uncond, embeddings]))
        (gradient,) = torch.autograd.grad(prediction_gap(*eps).sum(), embeddings)
    return gradient.float().norm(dim=-1)


def _named(pipe, text, significance):
    end = end_tokens(pipe, [text])[0].item()
    ids = pipe.tokenizer(text, truncation=True, max_length=pipe.tokenizer.model_max_length).input_ids
    return [(pipe.tokenizer.decode([ids[i]]).strip(), significance[i].item()) for i in range(1, end)]
