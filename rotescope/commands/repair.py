"""Repair a LoRA that gives training images back, then prove it: audit, change the weights, audit again on other seeds.

    rotescope repair --model base --lora mine.safetensors --train_data photos --heldout_data others --output_dir runs/repaired
    rotescope repair --model base --lora mine.safetensors --train_data photos --ways strength unlearn --all --output_dir runs/r
    rotescope repair --model base --lora mine.safetensors --train_data photos --heldout_data others --retrigger 8 --output_dir r
    rotescope repair --model base --lora mine.safetensors --output_dir runs/filtered

Ways, from the cheapest on: strength (the whole LoRA weaker), base-anchored (channels that align weakly with the base are taken
out; no data), leak-directed (channels that serve the leaking pictures most are), unlearn (a short fine-tune). Each is tried from
its mildest dose on, and the first that breaks no rule of the audit is kept: mine-repaired.safetensors, in the format of the
input, beside repair.html, repair.json, model_card.md and the audits before and after. --retrigger shows whether the pictures
are gone or only hidden: it seeks them by other words and by found embeddings. Without --train_data nothing can be judged: files
of the ways that need no data are written.

Exit code, of the repaired LoRA, or of the audit before where that breaks no rule: 0: passed; 1: failed, or no way passed; 4:
undecided; 2: wrong input; 3: the run failed.
"""
from pathlib import Path

from rotescope.common.console import answer, say
from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.options.repair import RepairConfig


@exit_cleanly
def main(argv=None):
    config = parse(RepairConfig, argv, prog="rotescope repair", description=__doc__)
    from rotescope.evaluate.report.terminal import EXIT_CODES, print_table
    from rotescope.procedures.repair.page import headline
    from rotescope.procedures.repair.repairing import run_repair
    found = run_repair(config)
    if found.report and found.after:
        print_table(found.report)
    for note in (*found.notes, *((found.proof.counted, found.proof.sentence) if found.proof else ())):
        say(note)
    out = Path(config.output_dir)
    is_written = found.before is None or bool(found.trials) or found.outcome == "failed"
    if is_written:
        say(headline(found))
    answer(outcome=found.outcome, repaired=str(out / found.file) if found.file else None,
           report=str(out / "repair.html") if is_written else None)
    if EXIT_CODES[found.outcome]:
        raise SystemExit(EXIT_CODES[found.outcome])


if __name__ == "__main__":
    main()
