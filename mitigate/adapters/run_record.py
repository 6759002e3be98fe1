"""What a pipeline did under mitigations, image by image."""
import torch


class MitigatedRun:
    """Per image, in the order in which the pipeline made them, over all calls inside the `with`."""

    def __init__(self, mitigations=()):
        self.mitigations = tuple(mitigations)  # with their settings, in the order in which they were named
        self.calls = []

    @property
    def transition_timesteps(self):
        """The timestep at which each image's transition came; None where there was none."""
        return [t for c in self.calls for t in c.transitions]

    @property
    def active(self):
        """Whether the mitigations changed anything of each image: a prediction of a step, the prompt, its embedding, the noise,
        or the network. Where they did not, the image is the one that the pipeline makes without them."""
        return [one for c in self.calls for one in c.active.tolist()]

    @property
    def prediction_gaps(self):
        """‖eps_cond − eps_uncond‖₂ at each distinct timestep of each image, in ε; NaN where one branch was not computed."""
        return [row for c in self.calls for row in torch.stack(c.gaps, 1).tolist()]

    @property
    def timesteps(self):
        """The distinct timesteps of the last call."""
        return list(self.calls[-1].timesteps) if self.calls else []

    @property
    def denoiser_calls(self):
        """Denoiser calls in which each image took part."""
        return [k for c in self.calls for k in c.calls.tolist()]

    @property
    def denoiser_rows(self):
        """Rows of the denoiser's batch that each image cost, all told; plain guidance costs two a call."""
        return [r for c in self.calls for r in (c.rows + c.call.extra_rows).tolist()]
