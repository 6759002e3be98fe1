"""Two processes train as one; the launch files load."""
import json
import shutil
from dataclasses import replace
from datetime import timedelta

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from places import ROOT
from safetensors.torch import load_file
from tiny import image_folder
from training import assert_same_state, config_of, in_processes, largest_difference, weights, with_broken_picture

from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.sources import load_source
from rotescope.train.checkpoints.output_folder import checkpoints
from rotescope.train.engine.sharding import NEEDS_WHOLE_WEIGHTS, check_sharding
from rotescope.train.engine.training import train_model
from rotescope.train.tracking.validation import accelerator_of

LAUNCH_FILES = {"one_gpu": ("NO", 1), "many_gpus": ("MULTI_GPU", 8), "many_nodes": ("MULTI_GPU", 16), "fsdp": ("FSDP", 8),
                "deepspeed_zero2": ("DEEPSPEED", 8)}


def test_two_processes_train_as_one(base, images, tmp_path):
    """Gloo on the CPU: the same global batches, so the same weights; disjoint shares of them; only one of the two writes; both
    leave out the same broken picture."""
    settings = {"max_train_steps": 5, "checkpointing_steps": 5, "use_ema": True, "gradient_accumulation_steps": 2,
                "caption_perturbation": "random_token_addition", "caption_perturbation_probability": 0.5,
                "mem_ratio": 1.0, "arr_ema_decay": 0.5}
    one = train_model(config_of(base, images, tmp_path / "one", train_batch_size=2, **settings), progress=False)
    spoilt = with_broken_picture(images, tmp_path.with_name(tmp_path.name + "-spoilt"))
    seen = in_processes(config_of(base, spoilt, tmp_path / "two", train_batch_size=1, **settings), 2, tmp_path)
    record = json.loads((tmp_path / "two/rotescope.json").read_text())
    assert (record["processes"], [q["name"] for q in record["left_out"]]) == (2, [str(spoilt / "broken.png")])
    assert largest_difference(weights(one), weights(tmp_path / "two")) < 1e-5
    counts = [[e.served for e in Manifest.load(folder / "manifest.parquet")] for folder in (one, tmp_path / "two")]
    assert counts[0] == counts[1]
    assert counts[0] == [sum(i in images for share in seen for images, _ in share) for i in range(6)]  # what the models saw
    assert len(seen[0]) == len(seen[1]) == 10                                                          # 5 steps of 2 parts
    moments = [{(i, t) for images, times in share for i, t in zip(images, times, strict=True)} for share in seen]
    assert not moments[0] & moments[1]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["one", "two"]
    assert [c.name for c in checkpoints(tmp_path / "two")] == ["checkpoint-5"]


@pytest.mark.slow
def test_two_processes_encode_each_image_once(base, tmp_path):
    """Each of the two a share; both train on the whole, and to the weights of one process. Nothing is left of the cache."""
    images = image_folder(tmp_path / "images", n=16)
    one = train_model(config_of(base, images, tmp_path / "one", train_batch_size=4), progress=False)
    in_processes(config_of(base, images, tmp_path / "two", train_batch_size=2), 2, tmp_path)
    read = [json.loads((tmp_path / f"read-{i}.json").read_text()) for i in range(2)]
    assert [len(share) for share in read] == [8, 8]
    assert sorted(read[0] + read[1]) == sorted(e.sha256 for e in load_source(images))
    assert largest_difference(weights(one), weights(tmp_path / "two")) < 1e-5
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["images", "one", "two"]


def test_processes_wait_for_the_one_that_works_alone(base, images, tmp_path):
    """Encoding, validation images and an upload take longer than the ten minutes after which NCCL gives up."""
    assert accelerator_of(config_of(base, images, tmp_path / "out")).init_handler.timeout >= timedelta(hours=12)


@pytest.mark.slow
def test_two_processes_resume_as_if_nothing_had_been(base, images, tmp_path):
    """From a checkpoint of two: two end equal to the bit; one with as large a batch of its own to 1e-5, as it sums in another
    order; one with a smaller global batch is refused."""
    config = config_of(base, images, tmp_path / "whole", max_train_steps=6, checkpointing_steps=3, train_batch_size=2,
                       use_ema=True, random_flip=True, lr_scheduler="cosine", rand_noise_lam=0.1, mem_ratio=1.0)
    seen = in_processes(config, 2, tmp_path)
    assert checkpoints(tmp_path / "whole")[0].name == "checkpoint-3"
    resumed = replace(config, output_dir=str(tmp_path / "resumed"), resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"))
    assert in_processes(resumed, 2, tmp_path) == [share[3:] for share in seen]
    assert_same_state(tmp_path / "whole/checkpoint-6", tmp_path / "resumed/checkpoint-6")
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "resumed")) == 0
    alone = train_model(replace(resumed, output_dir=str(tmp_path / "alone"), train_batch_size=4), progress=False)
    assert largest_difference(weights(tmp_path / "whole"), weights(alone)) < 1e-5
    counts = [[e.served for e in Manifest.load(folder / "manifest.parquet")] for folder in (tmp_path / "whole", alone)]
    assert counts[0] == counts[1]
    with pytest.raises(InputError, match=r"its global batch is 4, this one's 2: it is processes × train_batch_size × grad"):
        train_model(replace(resumed, output_dir=str(tmp_path / "refused")), progress=False)


@pytest.mark.slow
def test_processes_that_read_other_images_or_checkpoints_do_not_start(base, images, tmp_path):
    """As where a file is there on one node and not on the other: every process says so, and none waits for ever."""
    fewer = shutil.copytree(images, tmp_path / "fewer")
    (fewer / "5.png").write_bytes(b"")
    in_processes([config_of(base, data, tmp_path / "out") for data in (images, fewer)], 2, tmp_path, code=2)
    assert not (tmp_path / "out").exists()
    train_model(config_of(base, images, tmp_path / "here", train_batch_size=8, checkpointing_steps=2), progress=False)
    shutil.copytree(tmp_path / "here/checkpoint-4", tmp_path / "node/checkpoint-4")
    (tmp_path / "other").mkdir()
    nodes = [config_of(base, images, tmp_path / name, resume_from_checkpoint="latest") for name in ("node", "other")]
    in_processes(nodes, 2, tmp_path, code=2)
    assert [p.name for p in (tmp_path / "node").iterdir()] == ["checkpoint-4"]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-5), ("bf16", 2e-3)])
@pytest.mark.parametrize("lora", [False, True])
def test_weights_in_shards_end_as_whole_ones(base, images, tmp_path, lora, precision, tolerance):
    """FSDP as the launch file has it, but for the size from which it wraps and a broadcast that needs a GPU, on two processes."""
    settings = {"lora": lora, "learning_rate": 1e-2}
    launch = load_config_from_file(str(ROOT / "train/accelerate/fsdp.yaml")).fsdp_config | {
        "fsdp_min_num_params": 1000, "fsdp_sync_module_states": False}
    environment = {key.upper(): str(value) for key, value in launch.items()} | {
        "ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": precision}
    in_processes(config_of(base, images, tmp_path / "two", train_batch_size=2, **settings), 2, tmp_path, environment=environment)
    file = "pytorch_lora_weights.safetensors" if lora else "unet/diffusion_pytorch_model.safetensors"
    one = train_model(config_of(base, images, tmp_path / "one", train_batch_size=4, **settings), progress=False)
    assert json.loads((tmp_path / "two/rotescope.json").read_text())["processes"] == 2
    trained = load_file(tmp_path / "two" / file)
    assert largest_difference(load_file(one / file), trained) < tolerance
    up = [w.abs().max() for name, w in trained.items() if "lora_B" in name or ".up." in name]  # from 0
    assert (max(up) if lora else largest_difference(weights(base), trained)) > 4 * tolerance


@pytest.mark.parametrize("name", LAUNCH_FILES)
def test_accelerate_takes_the_launch_files(name):
    file = ROOT / f"train/accelerate/{name}.yaml"
    launch = load_config_from_file(str(file))
    assert (str(launch.distributed_type).split(".")[-1], launch.num_processes) == LAUNCH_FILES[name]
    assert file.read_text().startswith(f"# accelerate launch --config_file train/accelerate/{name}.yaml ")
    assert name != "fsdp" or launch.fsdp_config["fsdp_use_orig_params"]
    assert name != "deepspeed_zero2" or launch.deepspeed_config["zero_stage"] == 2


def test_every_launch_file_is_known():
    assert sorted(p.stem for p in (ROOT / "train/accelerate").glob("*.yaml")) == sorted(LAUNCH_FILES)


class Sharded:
    """What check_sharding asks of an Accelerator."""
    def __init__(self, kind):
        self.distributed_type = kind


@pytest.mark.parametrize("option", NEEDS_WHOLE_WEIGHTS)
@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_what_needs_whole_weights_is_refused_in_shards(base, images, tmp_path, kind, option):
    value = {"checkpointing_steps": 1, "use_ema": True, "validation_prompts": ("a cat",), "resume_from_checkpoint": "latest",
             "monitor_steps": 1}
    config = config_of(base, images, tmp_path / "out", **{option: value[option]})
    with pytest.raises(InputError, match=f"--{option} does not go with {kind.value}"):
        check_sharding(Sharded(kind), config)
    check_sharding(Sharded(DistributedType.MULTI_CPU), config)
