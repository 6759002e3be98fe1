"""Every mitigation on one fine-tuned model, side by side: what it removes, and at what price.

    rotescope compare --checkpoint runs/demo/checkpoint --output_dir runs/compare
    rotescope compare --checkpoint runs/demo/checkpoint --mitigation none stp:transition=600 og-stp --output_dir runs/three

The checkpoint needs the manifest.parquet that a fine-tune with duplicated and control images leaves beside it. Writes the
samples, compare.json, table.md and pareto.png. Seconds are medians of ratios: plain guidance and the method on the same prompts,
one after the other, several times.
"""
from rotescope.common.console import answer, say
from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.options.compare import CompareConfig


@exit_cleanly
def main(argv=None):
    config = parse(CompareConfig, argv, prog="rotescope compare", description=__doc__)
    from rotescope.procedures.compare import comparison_table, run_comparison
    rows, report = run_comparison(config)
    say(comparison_table(rows, report))
    answer(comparison=config.output_dir, front=[name for name, row in rows.items() if row["front"]])


if __name__ == "__main__":
    main()
