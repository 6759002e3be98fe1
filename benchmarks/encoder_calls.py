"""How often a run asks its text encoders and its denoiser, counted at the modules themselves.

    python benchmarks/encoder_calls.py --output_file runs/encoder_calls.json
    python benchmarks/encoder_calls.py --model stabilityai/stable-diffusion-2-1-base --small

Each model makes images of every prompt under every mitigation with every seed: once as the sampler does it, which encodes each
text once a run, and once with every batch encoded anew. An encoder is asked once for each prompt, and once more for the empty
negative one where the model encodes that (XL does not): 4 or 5 calls for 4 prompts. Nothing of it depends on the machine.
"""
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from output_file import keep_rows
from rich.console import Console
from rich.table import Table

from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.mitigate.contract.families import denoiser_of
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.sampling.encoded_texts import EncodedTexts
from rotescope.mitigate.sampling.sampler import sample
from rotescope.models.model_options import BASE
from rotescope.models.pipelines import load_pipeline

PROMPTS = ("a cat on a blue background", "a bus on a red background", "a frog and a pig on a pink background", "a rocket")
TESTS = Path(__file__).resolve().parents[1] / "tests"    # where the small pipelines are


@dataclass(frozen=True)
class EncoderCallsConfig:
    model: tuple[str, ...] = (str(BASE),)
    """model folders in diffusers' layout, or names on the hub"""
    small: tuple[str, ...] = ("sdxl", "qwen-image")
    """small pipelines of these families, with random weights, beside them"""
    mitigation: tuple[str, ...] = ("none", "og-stp", "stp")
    """under which each prompt is sampled"""
    seeds: int = 4
    """of each prompt"""
    num_inference_steps: int = 4
    """of the pipeline's own scheduler"""
    batch_size: int = 4
    """images at a time"""
    output_file: str | None = None
    """where the figures go, as JSON"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """where the models run"""


@contextmanager
def calls_of_modules(modules):
    """{name: module} -> {name: calls}, counted while inside."""
    counted = dict.fromkeys(modules, 0)

    def watch(name):
        def count(module, args, output):
            counted[name] += 1
        return count
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(watch(name)).remove)
        yield counted


class NothingKept(EncodedTexts):
    """Every batch is encoded anew, as without."""

    @contextmanager
    def serving(self, pipe):
        yield


def count(pipe, config, kept):
    """-> calls of each encoder and of the denoiser, and rows of the denoiser's batch, for all prompts, mitigations and seeds."""
    modules = {name: part for name, part in pipe.components.items() if name.startswith("text_encoder") and part is not None}
    images = []
    with calls_of_modules(modules | {"denoiser": denoiser_of(pipe)}) as counted:
        for name in config.mitigation:
            images += sample(pipe, [Prompt(text) for text in PROMPTS], get_mitigation(name), range(config.seeds), kept=kept,
                             num_inference_steps=config.num_inference_steps, batch_size=config.batch_size)
    return {"images": len(images), "denoiser_calls": counted.pop("denoiser"), "encoder_calls": counted,
            "denoiser_rows_an_image": sum(image.denoiser_rows for image in images) / len(images)}


def pipelines(config):
    """Yields each name and pipeline."""
    for name in config.model:
        yield Path(name).name, load_pipeline(name).to(config.device)
    if config.small:
        sys.path.insert(0, str(TESTS))
        from families.more_families import small_family
        for name in config.small:
            yield f"{name}, small", small_family(name).to(config.device)


def measure(config):
    """-> one dict a model and way."""
    rows = []
    for name, pipe in pipelines(config):
        for way, kept in (("each batch", NothingKept()), ("once a run", EncodedTexts())):
            rows.append({"model": name, "texts_encoded": way, "prompts": len(PROMPTS), **count(pipe, config, kept)})
    return rows


def table(found):
    shown = Table("model", "texts are encoded", "images", "calls of an encoder", "a prompt",
                  "denoiser calls an image", "denoiser rows an image")
    for row in found:
        calls = max(row["encoder_calls"].values())
        shown.add_row(row["model"], row["texts_encoded"], str(row["images"]), str(calls), f"{calls / row['prompts']:.2f}",
                      f"{row['denoiser_calls'] / row['images']:.2f}", f"{row['denoiser_rows_an_image']:.2f}")
    return shown


@exit_cleanly
def main(argv=None):
    config = parse(EncoderCallsConfig, sys.argv[1:] if argv is None else argv, prog="encoder_calls.py", description=__doc__)
    found = measure(config)
    Console(stderr=True, width=130).print(table(found))
    keep_rows(config, found)


if __name__ == "__main__":
    main()
