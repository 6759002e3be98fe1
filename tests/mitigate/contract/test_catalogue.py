"""Names, settings and training sets, before and after a class is loaded."""
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from places import ROOT
from tiny import image_folder

from rotescope.common.errors import InputError
from rotescope.common.settings import plain
from rotescope.datasets.readers.sources import load_source
from rotescope.mitigate import list_mitigations as command
from rotescope.mitigate.contract.catalogue import name_of
from rotescope.mitigate.contract.mitigation import settings_of
from rotescope.mitigate.methods.registry import ENTRIES, get_mitigation, list_mitigations, with_training
from rotescope.mitigate.methods.training_images import different_images, identity_of
from rotescope.mitigate.methods.transition import TransitionGuidance
from rotescope.mitigate.sampling.options import GenerateConfig, check_names, named_policies
from rotescope.mitigate.sampling.run_description import files_of

NASTY = "a, b: c=d"
HEAVY = ("torch", "diffusers", "transformers", "numpy", "pyarrow")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Training images in a folder whose name holds a comma, a colon and an equals sign."""
    return image_folder(tmp_path_factory.mktemp("data") / NASTY)


# ----- texts

@pytest.mark.parametrize(("text", "expected"), [
    ("og-stp", TransitionGuidance(-2.0, 650)),
    ("og-stp:before=-3,transition=700", TransitionGuidance(-3.0, 700)),
    ("stp:transition=dynamic, before=1", TransitionGuidance(1.0, "dynamic")),
])
def test_a_text_says_what_an_object_does(text, expected):
    assert get_mitigation(text) == expected
    assert get_mitigation(expected) is expected


@pytest.mark.parametrize(("text", "said"), [
    ("og-stpp", "did you mean 'og-stp'"), ("og-stp:befor=1", "did you mean 'before'"),
    ("og-stp:before=1,before=2", "given twice"), ("tcfg:x=1", "take the name alone"),
    ("stp:before=inf", "no finite number"), ("pad-change:zero_end=maybe", "not a bool"),
])
def test_a_wrong_text_is_told(text, said):
    with pytest.raises(InputError, match=said):
        get_mitigation(text)


@pytest.mark.parametrize("text", ["og-stpp", "og-stp:befor=1", "og-stp:before=1,before=2"])
def test_names_and_keys_are_told_before_anything_is_loaded(text):
    with pytest.raises(InputError):
        check_names(["none", text])
    with pytest.raises(InputError, match="named twice"):
        check_names(["none", "none"])
    check_names(["stp:before=1", "stp:before=2", f"og-recall:training=/{NASTY}"])


def test_objects_have_names_too():
    mitigations = ["none", TransitionGuidance(-2.0, 650), TransitionGuidance(-3.0),
                   TransitionGuidance(-4.0, "dynamic")]
    assert list(named_policies(mitigations)) == ["none", "og-stp", "TransitionGuidance_before=-3.0",
                                                 "TransitionGuidance_before=-4.0_transition=dynamic"]

    @dataclass(frozen=True)
    class Own(TransitionGuidance):
        pass
    assert name_of(Own(), ENTRIES) == "Own"


# ----- training images

def test_a_training_set_is_a_value(photos):
    """As a folder, as a path, and as a manifest: the same images."""
    manifest = load_source(photos)
    for training in (str(photos), photos, manifest):
        found = with_training("og-recall:before=-4", training)
        assert (found.training, found.before) == (training, -4.0)
        assert {e.sha256 for e in different_images(identity_of(found.training))} == {e.sha256 for e in manifest}
    with pytest.raises(InputError, match="holds no images"):
        with_training("amg", photos / "nothing")


def test_a_training_set_that_was_named_stays_and_the_rest_needs_none(photos):
    assert with_training(f"amg:training={photos.parent}", "elsewhere").training == str(photos.parent)
    assert with_training("og-stp", "elsewhere") == get_mitigation("og-stp")
    own = with_training("amg", photos)
    assert with_training(own, "elsewhere") is own
    assert with_training(type(own)(despecification=1.0), photos) == type(own)(photos, 1.0)


def test_the_command_line_takes_any_path(photos):
    """A comma parts settings only where a key follows."""
    assert get_mitigation(f"amg:training={photos},threshold=0.4").training == str(photos)
    assert get_mitigation(f"amg:threshold=0.4,training={photos}").threshold == 0.4


def test_a_run_says_where_its_training_set_came_from(photos):
    manifest = load_source(photos)
    policies = named_policies(["none", "og-recall"], photos)
    assert list(policies) == ["none", "og-recall"]
    assert json.loads(json.dumps(settings_of(policies["og-recall"])))["training"] == str(photos)
    assert settings_of(with_training("amg", manifest))["training"] == f"a manifest of 6 images, {manifest.hash}"
    manifest.save(photos.parent / "m.parquet")
    found = files_of({"amg": with_training("amg", photos.parent / "m.parquet")})
    assert list(found) == [f"file {photos.parent / 'm.parquet'}"]


def test_a_config_that_holds_objects_can_be_kept(photos):
    manifest = load_source(photos)
    chosen = ("none", TransitionGuidance(-3.0), with_training("amg", photos), with_training("amg", manifest))
    config = GenerateConfig("prompts.txt", "out", mitigation=chosen)
    kept = json.loads(json.dumps(plain(config)))["mitigation"]
    assert kept[0] == "none"
    assert kept[1].startswith("TransitionGuidance(before=-3.0, transition=500")
    assert repr(str(photos)) in kept[2]
    assert manifest.hash in kept[3]
    assert len(kept[3]) < 300


# ----- the list

def test_the_list_fits_a_terminal_and_cuts_no_name(capsys):
    command.main([])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[2:] if line[0] != " "] == list(ENTRIES)
    text = " ".join(" ".join(lines).split())
    assert all(f"{entry.name} {entry.cost}" in text and entry.paper in text for entry in list_mitigations())


def test_the_list_as_json(capsys):
    command.main(["--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(ENTRIES)
    assert rows["amg"]["needs"] == ["gradients", "training images"]
    assert rows["og-stp"]["settings"] == settings_of(TransitionGuidance(-2.0, 650))
    ready = [name for name in ("og-stp", "amg", "nemo", "dtp-calibrated") if rows[name]["ready"]]
    assert ready == ["og-stp", "nemo"]


@pytest.mark.parametrize("code", [
    "import rotescope.mitigate.methods.registry, rotescope.mitigate.detectors.registry",
    "import rotescope.mitigate.sampling.options as o; o.check_names(['og-stp:before=1'])",
    "import rotescope.cli as c; c.main(['mitigations'])",
    "import rotescope.mitigate.generate, rotescope.mitigate.calibrate",
])
def test_nothing_heavy_is_loaded_for_a_name(code):
    said = f"{code}; import sys; sys.exit(' '.join(m for m in {HEAVY} if m in sys.modules) or None)"
    done = subprocess.run([sys.executable, "-c", said], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("wrong", [  # tests/front/test_light.py asks every command, in one process
    ["--mitigation", "og-stpp"], ["--seeds", "1", "1"],
    *(pytest.param(wrong, marks=pytest.mark.slow) for wrong in (["--guidance_scale", "0.5"], ["--nothing"]))])
def test_a_wrong_option_is_told_before_anything_heavy_is_loaded(wrong, tmp_path):
    argv = ["generate", "--prompts", "p", "--output_dir", str(tmp_path / "o"), *wrong]
    code = (f"import sys, rotescope.cli\ntry:\n    rotescope.cli.main({argv})\nexcept SystemExit as left:\n"
            "    sys.exit(3 if 'torch' in sys.modules else left.code)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path(tmp_path / "o").exists()
