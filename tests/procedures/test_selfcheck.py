"""rotescope selfcheck: what it says of a sound pipeline, of one branch, and of one that breaks a promise."""
import pytest
import torch
from families.more_families import more_family
from tiny import tiny_pipeline

from rotescope.cli import main
from rotescope.procedures.selfcheck import selfcheck


def held(pipe, resolution=16):
    return {check.name: check.held for check in selfcheck(pipe, resolution=(resolution, resolution))}


@pytest.mark.parametrize("make", [tiny_pipeline, lambda: more_family("qwen-image"), lambda: more_family("krea2")])
def test_a_sound_pipeline_keeps_every_promise(make):
    found = held(make())
    assert len(found) == 8
    acts = found.pop("opposite guidance changes the image")    # random weights hardly listen to a text
    assert acts in (True, False)
    assert all(found.values())


def test_of_one_branch_there_is_nothing_to_mitigate():
    found = held(more_family("flux2"))
    assert list(found.values()) == [True, True, True, None]


def test_a_pipeline_that_remembers_breaks_promises():
    """Its denoiser answers otherwise at every call."""
    pipe, calls = tiny_pipeline(), []

    def drift(module, args, output):
        calls.append(1)
        return (output[0] + 0.1 * len(calls),)
    pipe.unet.register_forward_hook(drift)
    found = held(pipe)
    assert found["the same seed gives the same image"] is False
    assert found["afterwards the pipeline is as it was"] is False


def test_a_model_without_numbers_is_told():
    pipe = tiny_pipeline()
    pipe.vae.decoder.conv_out.weight.data.fill_(torch.nan)
    first = next(iter(selfcheck(pipe, resolution=(16, 16))))
    assert first.held is False
    assert "--dtype fp32" in first.said


def test_the_command_prints_a_line_a_check(tmp_path, capsys):
    more_family("flux2").save_pretrained(tmp_path / "model")
    asked = ["selfcheck", "--model", str(tmp_path / "model"), "--resolution", "16", "--device", "cpu"]
    with pytest.raises(SystemExit) as left:
        main([*asked, "--num_inference_steps", "3"])
    assert left.value.code == 2
    main(asked)
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line[0] for line in lines[:-1]] == ["✓", "✓", "✓", "–"]
    assert lines[-1] == "Flux2Pipeline: every promise that could be tried holds"
