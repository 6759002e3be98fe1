"""What training itself can do against memorization, on the same plan for comparison: disturbed embeddings, skipped samples."""
from dataclasses import dataclass

import torch

TO_EPSILON = {  # what a difference of two predictions is worth as a difference of two epsilon
    "epsilon": lambda alpha, sigma: torch.ones_like(alpha),
    "v_prediction": lambda alpha, sigma: alpha,          # epsilon = alpha v + sigma x_t
    "sample": lambda alpha, sigma: alpha / sigma,        # epsilon = (x_t - alpha x_0) / sigma
    "flow": lambda alpha, sigma: alpha,                  # epsilon = x_t + (1 - sigma) v
}


@dataclass(frozen=True)
class TrainingMitigation:
    """Named as in the authors' scripts; nothing by default."""
    rand_noise_lam: float = 0.0           # e + lambda N(0, I) for each text embedding e  (Somepalli et al. 2023b, section 6)
    mixup_noise_lam: float | None = None  # s e + (1 - s) e', s from Beta(m, 1), e' of another sample of the batch  (there)
    hard_threshold: float | None = None   # skip samples whose prediction gap reaches it  (Wen et al. 2024, section 4.3)

    def draw(self, captions, shape, generator):
        """captions: (B,), shape: (L, D) of an embedding -> the fields of a Batch that the disturbance needs."""
        fields = {}
        if self.mixup_noise_lam is not None:
            order = torch.randperm(len(captions), generator=generator)
            share = torch.rand((), generator=generator) ** (1 / self.mixup_noise_lam)  # Beta(m, 1) has the distribution s^m
            fields |= {"partners": captions[order], "shares": share.expand(len(captions))}
        if self.rand_noise_lam:
            fields["text_noise"] = torch.randn(len(captions), *shape, generator=generator)
        return fields

    def disturbed(self, condition, batch, texts):
        """A condition, and the tables of embeddings that it came from -> the condition that the denoiser is to be trained on."""
        condition = dict(condition)
        for name in texts if batch.partners is not None else ():
            own, other = condition[name], texts[name][batch.partners]
            share = batch.shares.view(-1, *[1] * (own.dim() - 1))
            condition[name] = share * own + (1 - share) * other
        if batch.text_noise is not None:
            condition["text"] = condition["text"] + self.rand_noise_lam * batch.text_noise
        return condition

    def kept(self, conditional, unconditional, kind, alpha, sigma):
        """Predictions (B, C, h, w) -> (B,), 1 where || eps_cond - eps_uncond ||_2 is below the threshold, else 0."""
        worth = TO_EPSILON[kind](alpha, sigma).to(conditional.device)
        gaps = (worth * (conditional - unconditional).float()).flatten(1).norm(dim=1)
        return (gaps < self.hard_threshold).float()
