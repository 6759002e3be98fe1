"""Was this set used in training? Many weak signals of its pictures and of held-out ones, and one p-value for the set.

    rotescope membership --model M --lora my.safetensors --train_data photos --heldout_data others --output_dir runs/membership

Noises each picture at five levels and measures how well the model puts it back, with the caption and without; a picture's ten
numbers say little, those of a set may be certain (after CDI, arXiv 2411.12858). p <= .05: the set was used, provided that the
held-out pictures are of the same kind (same source, size, format and captioner) and were never used. Else nothing shows that it
was, which proves no absence. Leaves membership.json and signals.parquet, a row a picture. Exit code 0 whatever the answer.
"""
from pathlib import Path

from rotescope.common.console import answer, say
from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.options.membership import MembershipConfig


@exit_cleanly
def main(argv=None):
    config = parse(MembershipConfig, argv, prog="rotescope membership", description=__doc__)
    from rotescope.procedures.membership.set_membership import FILE, run_membership
    found = run_membership(config)
    for line in found["conclusions"]:
        say(line)
    answer(membership=str(Path(config.output_dir) / FILE), **{key: found[key] for key in ("outcome", "p", "auc")})


if __name__ == "__main__":
    main()
