"""The dose-response curve: how often an image is copied that was shown 1, 2, 4, … times an epoch, with and without mitigations.

    rotescope dose --output_dir runs/dose
    rotescope dose --mitigation none og-stp --train_mitigation mem_ratio random_token_addition=0.4 deduplication
    rotescope dose --pretrained_model_name_or_path MODEL --train_data IMAGES --recipe mine.yaml --doses 1 8 64 --images 8

Fine-tunes once for each training seed, and again for each training mitigation, on a plan with canaries at every dose beside as
many controls of like captions; samples the captions of both; scores the copies. Writes dose.json, dose.png and dose.md beside
the checkpoints and samples. A run that was stopped stays beside output_dir and goes on under --resume: what is finished stays.
"""
from pathlib import Path

from rotescope.common.console import answer, say
from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.options.dose import DoseConfig


@exit_cleanly
def main(argv=None):
    config = parse(DoseConfig, argv, prog="rotescope dose", description=__doc__)
    from rotescope.evaluate.statistics.dose_response import dose_table
    from rotescope.procedures.dose import dose
    found = dose(config)
    say(dose_table(found))
    answer(dose=str(Path(config.output_dir) / "dose.json"), table=str(Path(config.output_dir) / "dose.md"))


if __name__ == "__main__":
    main()
