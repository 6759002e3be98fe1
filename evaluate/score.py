"""Compare generated images with training images: which are copies, how often, and at what price a mitigation removes them.

    rotescope score --generated runs/samples --train_data runs/demo/checkpoint/manifest.parquet --output_dir runs/report
    rotescope score --generated pictures --train_data photos --heldout_data other_photos --output_dir runs/report

Exit code 0: passed; 1: failed; 4: undecided; 2: wrong input; 3: the run failed.
"""
from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.evaluate.options import ScoreConfig
from rotescope.evaluate.verdict.rules import parse_rules


@exit_cleanly
def main(argv=None):
    config = parse(ScoreConfig, argv, prog="rotescope score", description=__doc__)
    parse_rules(config.fail_on)
    from rotescope.evaluate.measurement.evaluation import score_folder  # after parse, since torch loads slowly
    from rotescope.evaluate.report.terminal import show_and_judge
    show_and_judge(score_folder(config), config.output_dir)


if __name__ == "__main__":
    main()
