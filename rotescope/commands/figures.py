"""Draw what the figures of Jain et al. (CVPR 2025) claim, from a fine-tuned model of one's own, and say which claims held.

    rotescope figures --checkpoint runs/demo/checkpoint --output_dir runs/figures
    rotescope figures --checkpoint runs/mine --output_dir runs/figures --seeds 0 1 --num_inference_steps 50

The checkpoint needs the manifest.parquet that a fine-tune with duplicated and control images leaves beside it. Writes seven
pictures, claims.json and the samples behind them; the last picture, of alignment, only where a text-image metric is at home.
"""
from rotescope.common.console import answer, say
from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.options.figures import FiguresConfig


@exit_cleanly
def main(argv=None):
    config = parse(FiguresConfig, argv, prog="rotescope figures", description=__doc__)
    from rotescope.procedures.figures import run_figures
    from rotescope.procedures.plots.figures import outcome_in_words
    found = run_figures(config)
    for c in found:
        say(f"{c.number}. {c.says}: {outcome_in_words(c)}. {c.evidence}")
    answer(figures=config.output_dir, held={c.number: c.held for c in found})


if __name__ == "__main__":
    main()
