"""Audit a checkpoint against its training images: sample its captions, look for copies, report, pass or fail.

    rotescope audit --model runs/demo/checkpoint --train_data runs/demo/checkpoint/manifest.parquet --output_dir runs/audit
    rotescope audit --model base --lora my_lora --train_data photos --mitigation og-stp --fail_on "copies>0" --output_dir runs/a
    rotescope audit --model m --train_data photos --heldout_data others --prompt_sets captions heldout empty --output_dir runs/b
    rotescope audit --model m --train_data photos --plan ranked --budget 2000 --output_dir runs/c
    rotescope audit --model m --train_data photos --heldout_data others --mitigation og-stp --retrigger 8 --output_dir runs/d

Exit code 0: passed; 1: failed, a rule is broken (leaked_prompts>0 unless --fail_on gives others); 4: undecided, since too little
was looked at or a control did not pass; 2: wrong input; 3: the run failed. Where the data have a duplication plan, its duplicated
and control captions are sampled; else every training image's first caption. --prompts adds your own. Under --plan ranked the
images go first to the prompts that --detector points at, then to those whose images agree: it finds the most leaking prompts, and
its rates say nothing of the prompts that were not sampled.
"""
from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.options.audit import AuditConfig


@exit_cleanly
def main(argv=None):
    config = parse(AuditConfig, argv, prog="rotescope audit", description=__doc__)
    from rotescope.evaluate.report.terminal import show_and_judge
    from rotescope.procedures.audit import run_audit
    show_and_judge(run_audit(config), config.output_dir)


if __name__ == "__main__":
    main()
