"""A LoRA of which something attaches to nothing is refused, whoever made it and in whatever format."""
import pytest
import torch
from instruments import JUDGED, leave
from safetensors.torch import load_file, save_file
from training import config_of

from rotescope import cli
from rotescope.common.errors import InputError
from rotescope.models.pipelines import load_pipeline
from rotescope.train.checkpoints import export
from rotescope.train.engine.job import check_job


@pytest.fixture(scope="module")
def loras(bases, images, tmp_path_factory):
    """A family's name -> the file of a LoRA that changes its model."""
    files = {}

    def lora(name, layers=("to_q", "to_out.0")):
        if name not in files:
            folder = tmp_path_factory.mktemp(f"lora-{name}")
            job = check_job(config_of(bases(name), images, folder / "out", lora=True, rank=2, resolution=16, lora_layers=layers,
                                      train_text_encoder=True))
            for key, weight in job.predictor.named_parameters():
                if "lora_B" in key:
                    weight.data = torch.randn_like(weight)
            files[name] = export.save_lora(job, folder)
        return files[name]
    return lora


def kohya(weights):
    """A Stable Diffusion LoRA as kohya's scripts name its layers, an alpha beside each."""
    found = {}
    for key, weight in weights.items():
        part, _, layer = key.partition(".")
        layer, _, end = layer.replace(".lora_linear_layer.", ".lora_").replace("lora_A", "lora_down").replace(
            "lora_B", "lora_up").partition(".lora_")
        name = f"lora_{'te' if part == 'text_encoder' else 'unet'}_{layer.replace('.', '_')}"
        found |= {f"{name}.lora_{end}": weight, f"{name}.alpha": torch.tensor(1.0)}
    return found


def outputs_of(pipe):
    return pipe("a cat", num_inference_steps=1, height=16, width=16, output_type="pt",
                generator=torch.Generator().manual_seed(0)).images


@pytest.mark.parametrize(("name", "dtype"), [
    ("sd1", torch.float32), ("sdxl", torch.float16), ("sd3", torch.float16), ("flux", torch.float32)], ids=str)
def test_a_lora_of_which_all_is_used_is_taken(name, dtype, bases, loras):
    pipe = load_pipeline(bases(name), loras(name), dtype)
    assert any(pipe.get_list_adapters().values())


def test_the_account_changes_nothing(bases, loras):
    ours, stock = load_pipeline(bases("sd1"), loras("sd1")), load_pipeline(bases("sd1"))
    plain = outputs_of(stock)
    stock.load_lora_weights(loras("sd1").parent)
    assert torch.equal(outputs_of(ours), outputs_of(stock))
    assert not torch.equal(outputs_of(ours), plain)
    assert "lora_state_dict" not in vars(ours)


def test_another_format_is_taken_and_its_keys_are_told_by_its_own_names(bases, loras, tmp_path):
    weights = {k: w for k, w in load_file(loras("sd1")).items() if k.startswith("unet")}
    save_file(kohya(weights), tmp_path / "kohya.safetensors")
    assert any(load_pipeline(bases("sd1"), tmp_path / "kohya.safetensors").get_list_adapters().values())
    stray = {key.replace("down_blocks_0", "down_blocks_7"): w + 1 for key, w in kohya(weights).items() if "down_blocks_0" in key}
    save_file(kohya(weights) | stray, tmp_path / "stray.safetensors")
    with pytest.raises(InputError, match=r"attach to nothing .*: lora_unet_down_blocks_7_\S+\.lora_down"):
        load_pipeline(bases("sd1"), tmp_path / "stray.safetensors")


@pytest.mark.parametrize("name", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow), "sd3", "flux"])
def test_keys_that_attach_to_nothing_are_named(name, bases, loras, tmp_path, capsys):
    weights = load_file(loras(name))
    lost = [key for key in weights if not key.startswith("text_encoder")][:4]
    renamed = {f"other.{key}" if key in lost else key: w for key, w in weights.items()}
    save_file(renamed, tmp_path / "part.safetensors")
    named = ", ".join(sorted(f"other.{key}" for key in lost)[:3])
    told = (f"4 of the {len(weights)} weights of {tmp_path}/part.safetensors attach to nothing in {bases(name)}: {named} "
            "and 1 more")
    with pytest.raises(InputError) as refused:
        load_pipeline(bases(name), tmp_path / "part.safetensors")
    assert str(refused.value) == f"{told}; name a LoRA of this model, or pass --allow_unused_keys to go on with the others"
    pipe = load_pipeline(bases(name), tmp_path / "part.safetensors", allow_unused_keys=True)
    assert any(pipe.get_list_adapters().values())
    assert capsys.readouterr().err.splitlines()[-1] == f"warning: {told}"


def test_layers_that_only_another_model_has_are_named(bases, loras, tmp_path):
    weights = load_file(loras("sd1"))
    deeper = {key.replace("down_blocks.0", "down_blocks.9"): w + 1 for key, w in weights.items() if "down_blocks.0" in key}
    save_file(weights | deeper, tmp_path / "deeper.safetensors")
    with pytest.raises(InputError, match=rf"{len(deeper)} of the {len(weights) + len(deeper)} weights .*down_blocks\.9"):
        load_pipeline(bases("sd1"), tmp_path / "deeper.safetensors")


def test_nothing_that_attaches_is_refused_even_where_unused_keys_are_allowed(bases, loras, tmp_path):
    save_file({f"other.{key}": w for key, w in load_file(loras("sd1")).items()}, tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=f"no weight of .*none.safetensors belongs to {bases('sd1')}"):
        load_pipeline(bases("sd1"), tmp_path / "none.safetensors", allow_unused_keys=True)


@pytest.mark.parametrize(("model", "of"), [("sd1", "sdxl"), ("sdxl", "sd1"), ("sd3", "flux"), ("flux", "sd3"), ("sd1", "sd3")])
def test_a_lora_of_another_model_is_called_one(model, of, bases, loras, capsys):
    with pytest.raises(InputError, match=r"LoRA of another model|a LoRA of this model") as refused:
        load_pipeline(bases(model), loras(of))
    assert "\n" not in str(refused.value)
    assert "copy it again" not in str(refused.value)
    assert "size mismatch" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_half_of_a_layer_is_refused(name, bases, loras, tmp_path):
    weights = load_file(loras(name))
    weights.pop(next(key for key in weights if "lora_B" in key))
    save_file(weights, tmp_path / "half.safetensors")
    for allowed in (False, True):
        with pytest.raises(InputError, match="copy it again"):
            load_pipeline(bases(name), tmp_path / "half.safetensors", allow_unused_keys=allowed)


def test_a_file_that_is_no_lora_is_one_line(bases, tmp_path):
    (tmp_path / "torn.safetensors").write_bytes(b"\0" * 99)
    with pytest.raises(InputError, match=r"torn.safetensors is no safetensors file: copy it again"):
        load_pipeline(bases("sd1"), tmp_path / "torn.safetensors")


@pytest.mark.parametrize("command", ["audit", "generate"])
def test_commands_refuse_it_before_they_sample(command, bases, loras, images, tmp_path, capsys):
    weights = load_file(loras("sd1"))
    save_file({f"x.{k}" if n < 2 else k: w for n, (k, w) in enumerate(weights.items())}, tmp_path / "part.safetensors")
    (tmp_path / "prompts.txt").write_text("a cat")
    given = ["--prompts", tmp_path / "prompts.txt"] + ["--train_data", images, "--verify", "false"] * (command == "audit")
    argv = [command, "--model", bases("sd1"), "--lora", tmp_path / "part.safetensors", *given, "--output_dir", tmp_path / "out",
            "--device", "cpu", "--num_inference_steps", "1", "--seeds", "0"]
    assert leave(cli.main, argv) == 2
    assert "2 of the" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("*out*"))
    assert leave(cli.main, [*argv, "--allow_unused_keys"]) in (JUDGED if command == "audit" else (0,))
