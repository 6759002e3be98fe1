"""Try on your own model what the tests promise of its family: six short calls, a line a check.

    rotescope selfcheck --model MODEL
    rotescope selfcheck --model MODEL --lora my_lora.safetensors --dtype bf16 --resolution 512

Exit code 1 if a promise is broken, which is a fault of ours: please tell us the lines, and your versions of diffusers and torch.
"""
import sys

from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.options.selfcheck import SelfcheckConfig

MARKS = {True: "✓", False: "✗", None: "–"}


@exit_cleanly
def main(argv=None):
    config = parse(SelfcheckConfig, argv, prog="rotescope selfcheck", description=__doc__)
    from rotescope.models.pipelines import check_model, open_model
    from rotescope.procedures.selfcheck import selfcheck
    check_model(config)
    pipe = open_model(config)
    broken = 0
    for check in selfcheck(pipe, config.num_inference_steps, config.guidance_scale, config.resolution):
        print(f"{MARKS[check.held]} {check.name}: {check.said}", flush=True)
        broken += check.held is False
    print(f"{type(pipe).__name__}: " + (f"{broken} promises are broken" if broken else "every promise that could be tried holds"))
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    main()
