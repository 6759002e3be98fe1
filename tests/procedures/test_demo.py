"""The whole job, small; and every command that a reader can copy."""
import json
import re
import shlex

import pytest
from instruments import with_models_of_ones_own
from places import ROOT

from rotescope.common.errors import InputError
from rotescope.common.settings import parse
from rotescope.evaluate.options import ScoreConfig
from rotescope.mitigate.detectors.options import DetectConfig
from rotescope.mitigate.sampling.options import CalibrateConfig, GenerateConfig, named_policies
from rotescope.options.audit import AuditConfig
from rotescope.options.compare import CompareConfig
from rotescope.options.demo import DemoConfig
from rotescope.options.dose import DoseConfig
from rotescope.options.figures import FiguresConfig
from rotescope.procedures.demo import demo
from rotescope.train.options.finetune_options import FinetuneConfig

CONFIGS = {"demo": DemoConfig, "audit": AuditConfig, "score": ScoreConfig, "generate": GenerateConfig, "finetune": FinetuneConfig,
           "figures": FiguresConfig, "compare": CompareConfig, "detect": DetectConfig, "calibrate": CalibrateConfig,
           "dose": DoseConfig}
PAGES = ["README.md", *(str(p.relative_to(ROOT)) for pattern in (
    "docs/**/*.md", "rotescope/commands/*.py", "datasets/*.py", "train/finetune.py", "mitigate/*.py", "evaluate/*.py",
    "train/recipes/*.yaml", "rotescope/recipes/*.yaml") for p in sorted(ROOT.glob(pattern)))]


def commands():
    """(page, sub-command, arguments) of each command in the README, the docstrings and the recipes."""
    for page in PAGES:
        text = (ROOT / page).read_text().replace("\\\n", " ")
        for line in re.findall(r"^[# ]*(?:rotescope|accelerate launch .*train/finetune\.py) [^`\n]*--.*$", text, re.M):
            line = re.sub("accelerate launch .*train/finetune.py", "rotescope finetune", line).lstrip("# ")
            words = shlex.split(line, comments=True)
            name, rest = words[1], words[2:]
            if name in CONFIGS:
                yield pytest.param(name, rest, id=f"{page}: {' '.join(words)[:60]}")


@pytest.mark.parametrize(("name", "arguments"), commands())
def test_every_command_that_a_reader_can_copy_is_understood(name, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    with_models_of_ones_own(monkeypatch)
    config = parse(CONFIGS[name], arguments, prog=name, description="")
    if hasattr(config, "mitigation"):
        known = [m for m in config.mitigation if "calibration=" not in m]  # that file is the reader's own
        assert named_policies(known) or name == "compare"  # where naming none means all


@pytest.mark.slow
def test_the_demo_ends_in_a_report_of_the_promised_form(tmp_path):
    demo(DemoConfig(str(tmp_path / "demo"), max_train_steps=2, seeds=(0,), num_inference_steps=3, sweep=False))
    report = json.loads((tmp_path / "demo/report.json").read_text())
    assert set(report["methods"]) == {"none", "stp", "og-stp", "og-stp-layout", "dtp", "og-dtp"}
    for method in report["methods"].values():
        for group in ("duplicated", "control"):
            cell = method["groups"][group]
            assert cell["n"] == 24
            assert cell["copy_rate_interval"][0] <= cell["copy_rate"] <= cell["copy_rate_interval"][1]
            assert {"sim95", "alignment", "denoiser_rows"} <= set(cell)
    assert {"schema_version", "descriptor", "copy_threshold", "seeds", "hashes"} <= set(report)
    assert (tmp_path / "demo/report.html").stat().st_size > 100_000
    assert (tmp_path / "demo/checkpoint/model_index.json").exists()


@pytest.mark.parametrize(("wrong", "says"), [
    ({"mitigation": ("none", "opposite")}, "no mitigation is called"), ({"num_inference_steps": 0}, "1 or more"),
    ({"seeds": ()}, "there must be a seed"),
])
def test_wrong_input_is_named_before_the_fine_tuning(tmp_path, wrong, says):
    with pytest.raises(InputError, match=says):
        demo(DemoConfig(str(tmp_path / "out"), **wrong))
    assert not (tmp_path / "out").exists()
