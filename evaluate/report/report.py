"""The report: what was found when generated images were compared with training images."""
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rotescope.common.outputs import output_folder
from rotescope.evaluate.inputs.training_and_heldout import LeftOut
from rotescope.evaluate.nulls.calibration import Background
from rotescope.evaluate.quality.fidelity_figures import Fidelity
from rotescope.evaluate.report.json_types import as_json, schema_of
from rotescope.evaluate.report.report_types import (
    ExactRule,
    GapCurve,
    Histogram,
    MethodFindings,
    Pair,
    Pairing,
    PromptFindings,
    PValueBasis,
    ReportPictures,
    SweepPoint,
    TrainingImages,
    Verification,
)
from rotescope.evaluate.statistics.base_comparison import BaseComparison
from rotescope.evaluate.statistics.published_tables import Conventions
from rotescope.evaluate.statistics.replication import GroupFindings
from rotescope.evaluate.verdict.verdict import Verdict

SCHEMA_VERSION = "3.0"
SCHEMA = Path(__file__).with_name("report.schema.json")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found, with everything that the figures rest on.

    ``report.verdict`` is the outcome, ``report["none"]["duplicated"]`` holds the figures of one method and
    one group of prompts, ``report.save(folder)`` writes the files. In a notebook a report shows itself.
    """
    schema_version: str = SCHEMA_VERSION
    title: str
    created: str                                 # date and time, UTC
    verdict: Verdict
    notes: tuple[str, ...]                       # what a reader must know before trusting the figures
    left_out: tuple[LeftOut, ...]                # pictures that could not be read, or that count nowhere
    # what similarity is measured by: weights, preprocessing, number type
    descriptor: str
    descriptor_choice: str                       # why that one
    search: str                                  # exact, or faiss
    copy_threshold: float                        # similarity from which on an image is a copy
    threshold_rule: str                          # where it comes from
    background: Background
    exact: ExactRule | None
    shuffled_pairing: dict[str, Pairing]         # by method
    p_values: PValueBasis
    training_images: TrainingImages
    seeds: tuple[int, ...]
    prompt_sets: dict[str, Any]                  # as run.json has it
    plan: dict[str, Any] | None                  # how prompts were chosen, as run.json has it
    guidance_scale: float | None
    num_inference_steps: int | None
    alignment_metric: str | None
    fidelity_metric: str | None
    fidelity_floor: Fidelity | None              # of real training pictures
    methods: dict[str, MethodFindings]
    prompts: tuple[PromptFindings, ...]
    verification: Verification | None            # None where no match was sought
    conventions: Conventions
    base: BaseComparison | None
    retrigger: dict[str, Any] | None = None      # as retrigger.json has it
    sweep: tuple[SweepPoint, ...]
    hashes: dict[str, str]
    versions: dict[str, str]
    config: dict[str, dict[str, Any]]            # of sampling, and of scoring
    prediction_gaps: dict[str, dict[str, GapCurve]]
    histogram: Histogram
    pairs: tuple[Pair, ...]                      # every generated image: copies, copies of a part, the closest
    pictures: ReportPictures = field(repr=False, compare=False, metadata={"json": False})

    def __getitem__(self, method: str) -> MethodFindings:
        if method not in self.methods:
            raise KeyError(f"no method {method!r} in this report: take one of {', '.join(self.methods)}")
        return self.methods[method]

    @property
    def labels(self) -> dict[str, str]:
        """{method: its name for people}."""
        return {method: found.label for method, found in self.methods.items()}

    def each_group(self) -> Iterator[tuple[str, str, GroupFindings]]:
        """Yields method, group and figures, in the order of the report."""
        for method, found in self.methods.items():
            for group, figures in found.groups.items():
                yield method, group, figures

    def as_json(self) -> dict[str, Any]:
        """What report.json holds: dicts, lists, numbers of six digits, text.
        report.schema.json describes it."""
        return as_json(self)

    def to_json(self) -> str:
        """The text of report.json."""
        return json.dumps(self.as_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, folder: str | Path, *, redact: bool = False, junit_xml: str | Path | None = None,
             overwrite: bool = False) -> Path:
        """Write report.html, report.json, pairs.parquet, model_card.md and badge.svg.

        Parameters
        ----------
        folder : str or Path
            A new folder; it appears whole or not at all.
        redact : bool
            Leave training images, and generated ones that copy them, out of the page.
        junit_xml : str or Path, optional
            Also write one test case a prompt into this file. A name without a folder goes into `folder`.
        overwrite : bool
            Replace the folder if it is there.

        Returns
        -------
        Path
            Of report.html.

        Raises
        ------
        InputError
            If the folder is there and `overwrite` is False, or cannot be written.
        """
        from rotescope.evaluate.report.exports import junit
        from rotescope.evaluate.report.html import write_files
        with output_folder(folder, overwrite) as draft:
            write_files(self, draft, redact)
            if junit_xml:
                beside = len(Path(junit_xml).parts) == 1
                (draft / junit_xml if beside else Path(junit_xml)).write_bytes(junit(self))
        return Path(folder) / "report.html"

    def _repr_html_(self) -> str:
        """A summary for a notebook."""
        from rotescope.evaluate.report.html import notebook_summary
        return notebook_summary(self)

    def __repr__(self) -> str:
        told = f"{self.verdict.outcome} by {self.verdict.rule}; {len(self.pairs):,} images"
        return f"<Report: {told}, {', '.join(self.methods)}>"


def report_schema() -> dict[str, Any]:
    """The JSON Schema of report.json; report.schema.json beside this file holds it."""
    return schema_of(Report, title=f"Rotescope report {SCHEMA_VERSION}")


if __name__ == "__main__":  # python -m rotescope.evaluate.report.report writes the schema anew
    SCHEMA.write_text(json.dumps(report_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
