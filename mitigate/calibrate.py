"""Measure the prediction gaps of prompts that are known to be ordinary, for the mitigation dtp-calibrated.

    rotescope calibrate --model runs/model --prompts ordinary.txt --output_file c.json
    rotescope generate --model runs/model --prompts new.txt --output_dir s --mitigation none dtp-calibrated:calibration=c.json

Ordinary are prompts of which you know that the model does not replicate an image: captions of your own that are in no training
set, or held-out ones. A hundred images or more; only the first `watch` steps of each are sampled. The file holds for the model,
guidance_scale and number of steps that it was made with.
"""
from rotescope.common.console import answer
from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.mitigate.sampling.options import CalibrateConfig, check_sampling


@exit_cleanly
def main(argv=None):
    config = parse(CalibrateConfig, argv, prog="rotescope calibrate", description=__doc__)
    check_sampling(config)
    from rotescope.mitigate.sampling.calibration import calibrate
    answer(calibration=str(calibrate(config)))


if __name__ == "__main__":
    main()
