"""Short trainings of tiny models for tests: their configs, their weights, and processes of their own that can be killed."""
import inspect
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path

import safetensors.torch
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from rotescope.common.errors import exit_cleanly
from rotescope.procedures.finetune import run_finetune
from rotescope.train.checkpoints import resume
from rotescope.train.checkpoints.output_folder import RECORD
from rotescope.train.encodings.encode import Preprocessing
from rotescope.train.engine.steps import DenoisingLoss
from rotescope.train.options.finetune_options import FinetuneConfig

SAVING = ("resume.py", "place.py", "checkpoint.py")
NOT_SAVING = ("check", "find", "component", "flattened", "unflattened", "restore", "_restore", "identity", "_state")


def config_of(base, images, out, **changes):
    """Two of six images, three times an epoch; five steps of four. The epsilon keeps AdamW from blowing up rounding errors."""
    return FinetuneConfig(**{"pretrained_model_name_or_path": str(base), "train_data": str(images), "output_dir": str(out),
                             "duplicated": 2, "copies": 3, "controls": 2, "partial_plan": True,
                             "max_train_steps": 5, "train_batch_size": 4, "learning_rate": 1e-2, "adam_epsilon": 1e-2, **changes})


def with_broken_picture(images, folder):
    """A copy of the image folder with one picture more, captioned and cut off -> the folder."""
    shutil.copytree(images, folder)
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:99])
    (folder / "broken.txt").write_text("a cat on a torn background")
    return folder


def arguments(config):
    given = {k: v for k, v in vars(config).items() if v not in (None, ()) and k != "lora_layers"}
    return [f"--{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in given.items()]


def weights(folder):
    return load_file(Path(folder) / "unet/diffusion_pytorch_model.safetensors")


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max((one[k] - other[k]).abs().max().item() for k in one)


def assert_same_state(one, other):
    """Two checkpoints agree in every tensor and number, to the bit."""
    assert json.loads((one / RECORD).read_text()) == json.loads((other / RECORD).read_text())
    names = sorted(p.relative_to(one) for p in one.rglob("*.safetensors"))
    assert names == sorted(p.relative_to(other) for p in other.rglob("*.safetensors"))
    for name in names:
        ours, theirs = load_file(one / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours), name


# ----- processes of their own: a server imports everything once and forks, so that each starts in a moment

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["rotescope.train.finetune", "rotescope.procedures.monitor"])


def in_process(config, environment=None, die=None, seen=None):
    """A started process that trains as `config` says, kills itself by SIGKILL as `die` says, and writes its samples to
    `seen` and the hashes of the images that it encoded beside it."""
    process = SERVER.Process(target=_train, args=(config, environment or {}, die, seen))
    process.start()
    return process


def in_processes(config, n, folder, code=0, environment=None):
    """Train in n processes that work together over gloo -> the samples that each of them saw, a list a part of a batch.

    config: of all, or a list with one for each; code: how every process should end; environment: as a launch file sets it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"ACCELERATE_USE_CPU": "1", "WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
              **(environment or {})}
    configs = config if isinstance(config, list) else [config] * n
    processes = [in_process(configs[i], common | {"RANK": str(i), "LOCAL_RANK": str(i)}, seen=folder / f"seen-{i}.json")
                 for i in range(n)]
    for process in processes:
        process.join(240)
    assert [p.exitcode for p in processes] == [code] * n
    return [json.loads((folder / f"seen-{i}.json").read_text()) for i in range(n) if not code]


def _train(config, environment, die, seen):
    """die: ("step", k, seconds) so long after its k-th step, ("line", n) at the n-th line run in the files that save, or
    ("file", k, name) after its k-th step, once half of the bytes of a safetensors file of that name are on the disk."""
    os.environ.update(environment)
    if "ACCELERATE_USE_FSDP" in environment:  # which Accelerate gives to GPUs only, and torch to CPUs, too
        PartialState(cpu=True)
        PartialState._shared_state |= {"distributed_type": DistributedType.MULTI_GPU, "device": torch.device("cpu")}
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.seed()  # a process that is not forked begins anywhere, too
    if die and die[0] == "line":
        _die_at_line(die[1])
    steps = []

    def on_step(result):
        steps.append(result.step)
        if die and die[0] == "step" and len(steps) == die[1]:
            threading.Timer(die[2], _die).start()
        if die and die[0] == "file" and len(steps) == die[1]:
            _die_within(die[2])
    samples, loss = [], DenoisingLoss.__call__

    def noted(self, denoiser, batch):
        samples.append([batch.images.tolist(), batch.levels.tolist()])
        return loss(self, denoiser, batch)
    DenoisingLoss.__call__ = noted
    read, prepare = [], Preprocessing.__call__
    Preprocessing.__call__ = lambda self, example: read.append(example.sha256) or prepare(self, example)
    exit_cleanly(run_finetune)(config, progress=False, on_step=on_step)
    if seen:
        seen.write_text(json.dumps(samples))
        seen.with_name(seen.name.replace("seen", "read")).write_text(json.dumps(read))


def _die_at_line(n):
    lines = iter(range(1, n + 1))

    def trace(frame, event, _):
        if Path(frame.f_code.co_filename).name not in SAVING or frame.f_code.co_name.startswith(NOT_SAVING):
            return None
        if event == "line" and next(lines, n) == n:
            _die()
        return trace
    sys.settrace(trace)


def _die_within(name):
    """The library's own bytes, written by hand, since its writing cannot be stopped half-way at will."""
    save_file = safetensors.torch.save_file

    def save(tensors, file, metadata=None):
        if Path(file).name != name:
            save_file(tensors, file, metadata)
            return
        content = safetensors.torch.save(tensors, metadata)
        with open(file, "wb") as stream:
            stream.write(content[:len(content) // 2])
            stream.flush()
            os.fsync(stream.fileno())
            _die()
    safetensors.torch.save_file = resume.save_file = save


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def arguments_of(module, call):
    """What the first call of a module is given while call() runs, by name."""
    seen = []

    def note(module, args, kwargs):
        seen.append(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    call()
    handle.remove()
    return seen[0]
