"""What some pipelines do to the guided prediction: set its length by that of the conditional one. Pure, on torch's tensors."""
import math


def rescaled_to_norm(guided, cond, epsilon=0.0, low=0.0, high=math.inf):
    """G · ‖c‖ / ‖G‖ along the last axis, the ratio kept between `low` and `high`. (n, …), (n, …) -> (n, …)

    As Lumina2's, Qwen-Image's, NucleusMoE's and LongCat-Image's pipelines have it.
    """
    ratio = cond.norm(dim=-1, keepdim=True) / (guided.norm(dim=-1, keepdim=True) + epsilon)
    return guided * ratio.clamp(min=low, max=high)


def clipped_to_norm(guided, cond, limit):
    """Each image's G, at most `limit` times as long as its c, as Z-Image's pipeline has it. (n, …), (n, …) -> (n, …); as it is
    where there is no limit."""
    if not limit or float(limit) <= 0:
        return guided
    own, other = (x.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1)) for x in (guided, cond))
    return guided * (float(limit) * other / own).clamp(max=1)
