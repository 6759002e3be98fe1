"""The whole job on what ships: fine-tune the embedded model on duplicated images, sample, retrieve, report.

    rotescope demo --output_dir runs/demo
    rotescope demo --output_dir runs/quick --max_train_steps 50 --seeds 0 --sweep false     # to see it run, not to conclude

Leaves checkpoint/, samples/, sweep/, report.html and report.json in the output folder. The same steps, one by one, are the
commands finetune, generate and score. The transition timesteps are the embedded model's own, by the sweep that
`rotescope demo` repeats and draws: the published 500 and 650 belong to Stable Diffusion 2.1.
"""
from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.options.demo import DemoConfig


@exit_cleanly
def main(argv=None):
    config = parse(DemoConfig, argv, prog="rotescope demo", description=__doc__)
    from rotescope.procedures.demo import demo
    demo(config)


if __name__ == "__main__":
    main()
