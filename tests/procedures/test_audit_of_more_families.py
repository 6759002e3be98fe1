"""An audit of a folder of every family, from the command line: whatever diffusers opens, and makes pictures with, is judged."""
import json

import pytest
from families.more_families import SIDES, more_family
from tiny import image_folder

from rotescope.cli import main

QUICK = ("flux2", "qwen-image")     # one branch; two calls
SLOW = ("flux2-klein", "chroma", "sana", "lumina2", "cogview4", "krea2", "ovis-image", "longcat-image", "hunyuan-dit", "prx",
        "ernie-image", "bria", "nucleus-moe", "ideogram4", "qwen-image-21")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("audited") / "images", n=6)


def audited(name, images, folder, *more):
    more_family(name).save_pretrained(folder / "model")
    return main(["audit", "--model", str(folder / "model"), "--train_data", str(images), "--output_dir", str(folder / "out"),
                 "--num_inference_steps", "2", "--seeds", "0", "--max_prompts", "2", "--device", "cpu", "--verify", "false",
                 "--resolution", str(SIDES.get(name, 16)), "--trust_train_data", "true", *more])


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_family_is_judged_under_plain_guidance(name, images, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        audited(name, images, tmp_path)
    assert left.value.code in (1, 4), capsys.readouterr().err      # judged: random weights draw no pictures worth a pass
    report, run = (json.loads((tmp_path / "out" / name).read_text()) for name in ("report.json", "samples/run.json"))
    assert set(report["methods"]) == set(run["methods"]) == {"none"}
    assert report["methods"]["none"]["groups"]["ungrouped"]["n"] == 2
    assert (tmp_path / "out/report.html").exists()


def test_a_mitigation_on_one_branch_is_refused_before_anything_is_sampled(images, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        audited("flux2", images, tmp_path, "--mitigation", "none", "stp:transition=600")
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "Flux2Pipeline takes no mitigation" in said
    assert not (tmp_path / "out").exists()
