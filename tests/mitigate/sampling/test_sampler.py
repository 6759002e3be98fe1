"""The sampler at scale: what is killed goes on, what is shared out comes together, always the same bytes."""
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from places import ROOT
from tiny import tiny_pipeline

from rotescope.common.errors import InputError
from rotescope.evaluate.inputs.samples import read_samples
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.mitigate.prompts.prompt import EmbeddedPrompt, Prompt
from rotescope.mitigate.sampling import jobs, sampler
from rotescope.mitigate.sampling.generation import check_generation, generate_to_folder
from rotescope.mitigate.sampling.options import GenerateConfig, named_policies
from rotescope.mitigate.sampling.sampler import sample_to_folder

TEXTS = ("a cat on a blue background", "a bus", "a frog and a pig on a pink background")


@pytest.fixture(scope="module")
def model(base):
    return str(base)


@pytest.fixture
def config(model, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    return GenerateConfig(str(tmp_path / "prompts.txt"), str(tmp_path / "out"), model=model, mitigation=("none", "og-stp"),
                          seeds=(0, 1), num_inference_steps=3, batch_size=2, device="cpu")


def contents(folder):
    """Every file's bytes, run.json apart."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "run.json"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


class Stop(BaseException):
    pass


@pytest.fixture
def stop_after(monkeypatch):
    """The run stops as it would start the batch after the n-th."""
    original = sampler.sample_batch

    def after(n):
        done = []

        def stopping(*args, **kwargs):
            done.append(0)
            if n is not None and len(done) > n:
                raise Stop
            return original(*args, **kwargs)
        monkeypatch.setattr(sampler, "sample_batch", stopping)
        return done
    return after


def test_a_stopped_run_goes_on_where_it_stopped(config, tmp_path, stop_after):
    whole = contents(generate_to_folder(replace(config, output_dir=str(tmp_path / "whole"))))
    stop_after(4)
    with pytest.raises(Stop):
        generate_to_folder(config)
    assert not Path(config.output_dir).exists()
    with pytest.raises(InputError, match="--resume"):
        generate_to_folder(config)
    done = stop_after(None)
    assert contents(generate_to_folder(replace(config, resume=True))) == whole
    assert len(done) == 2  # of 6 batches
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "prompts.txt", "whole"]
    assert len(whole) == 12 + 1
    assert generate_to_folder(replace(config, resume=True)) == Path(config.output_dir)  # nothing is left to do
    assert len(done) == 2


def test_a_run_goes_on_under_its_own_settings_alone(config, tmp_path, stop_after):
    stop_after(1)
    with pytest.raises(Stop):
        generate_to_folder(config)
    (tmp_path / "other.txt").write_text("a pig")
    other = {"batch_size": 3, "seeds": (0, 2), "mitigation": ("none",), "guidance_scale": 3.0,
             "prompts": str(tmp_path / "other.txt")}
    for key, value in other.items():
        with pytest.raises(InputError, match=key):
            generate_to_folder(replace(config, resume=True, **{key: value}))
    done = stop_after(None)
    generate_to_folder(replace(config, overwrite=True))  # anew
    assert len(done) == 6


def test_a_run_that_fails_at_once_leaves_nothing(config, tmp_path, stop_after):
    stop_after(0)
    with pytest.raises(Stop):
        generate_to_folder(config)
    assert [p.name for p in tmp_path.iterdir()] == ["prompts.txt"]


def test_records_say_what_each_image_is_and_cost(config):
    out = generate_to_folder(config)
    rows = pq.read_table(out / "records.parquet").to_pylist()
    assert [(r["method"], r["prompt_index"], r["seed"]) for r in rows] == [
        (m, i, s) for m in ("none", "og-stp") for i in range(3) for s in (0, 1)]
    assert all((out / r["image"]).is_file() and r["prompt"] == TEXTS[r["prompt_index"]] for r in rows)
    assert {(r["denoiser_calls"], r["denoiser_rows"]) for r in rows} == {(3, 6)}
    run = json.loads((out / "run.json").read_text())
    assert list(run["methods"]) == ["none", "og-stp"]
    assert (run["batch_size"], run["seeds"]) == (2, [0, 1])


def test_timesteps_that_are_not_whole_are_kept_and_older_records_read(tmp_path):
    """Karras' spacing has such; records used to hold int32, in finished runs and in unfinished ones."""
    pipe, policies, out = tiny_pipeline(), {"og-stp": get_mitigation("og-stp")}, make(tmp_path / "out")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    sample_to_folder(pipe, [Prompt(TEXTS[0])], policies, (0,), out, num_inference_steps=5)
    (record,), seen = read_samples(out).records, pipe.scheduler.timesteps.tolist()
    assert list(record.timesteps) == seen
    assert record.transition_timestep == next(t for t in seen if t <= 650)
    assert sum(isinstance(t, int) for t in record.timesteps) == sum(t == int(t) for t in seen) < 5

    table = pq.read_table(out / "records.parquet")
    for name, kind in (("timesteps", pa.list_(pa.int32())), ("transition_timestep", pa.int32())):
        at = table.column_names.index(name)
        table = table.set_column(at, name, pc.cast(table[name], kind, safe=False))
    (out / "records.parquet").unlink()
    sampler._write_table(table, out / "older.parquet")
    sampler.merge_shards(out, [out / "older.parquet"])
    assert pq.read_schema(out / "records.parquet").equals(sampler.RECORD_SCHEMA)
    sampler._write_table(table, out / "records.parquet")
    older = read_samples(out).records[0]
    assert json.dumps(older.timesteps) == json.dumps([int(t) for t in seen])
    assert older.transition_timestep == int(record.transition_timestep)


class Place:
    """One of several processes that need not wait: they run one after the other."""
    def __init__(self, index, n):
        self.process_index, self.num_processes, self.is_main_process = index, n, index == 0

    def wait_for_everyone(self):
        pass


def test_any_split_gives_the_same_bytes(tmp_path):
    pipe, prompts = tiny_pipeline(), [Prompt(t) for t in TEXTS]
    policies = {name: get_mitigation(name) for name in ("none", "dtp")}
    settings = {"num_inference_steps": 3, "batch_size": 2, "seeds": (0, 1)}
    sample_to_folder(pipe, prompts, policies, out=make(tmp_path / "one"), **settings)
    for n in (2, 7):
        out = make(tmp_path / str(n))
        for index in reversed(range(n)):  # the main process last, for it merges
            sample_to_folder(pipe, prompts, policies, out=out, state=Place(index, n), **settings)
        assert contents(out) == contents(tmp_path / "one")


def test_each_draw_of_a_prompt_is_an_image_of_its_own(tmp_path):
    """As S1 draws its captions, with replacement. The first is what it always was; splits and batches change none."""
    pipe, prompts = tiny_pipeline(), [Prompt(t) for t in (TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0])]
    policies, settings = {"none": get_mitigation("none")}, {"num_inference_steps": 2, "seeds": (0, 1)}
    sample_to_folder(pipe, prompts, policies, out=make(tmp_path / "all"), batch_size=3, **settings)
    rows = pq.read_table(tmp_path / "all/records.parquet").to_pylist()
    assert len({r["noise_seed"] for r in rows}) == len(rows) == 8
    assert [r["noise_seed"] for r in rows[:4]] == [jobs.noise_seed(t, s) for t in TEXTS[:2] for s in (0, 1)]
    pictures = {(tmp_path / "all" / r["image"]).read_bytes() for r in rows}
    assert len(pictures) == 8
    split = make(tmp_path / "split")
    for index in (1, 0):
        sample_to_folder(pipe, prompts, policies, out=split, batch_size=3, state=Place(index, 2), **settings)
    assert contents(split) == contents(tmp_path / "all")
    assert [s for batch in jobs.batches(prompts, (0, 1), 1) for _, _, s in batch] == [r["noise_seed"] for r in rows]


def test_embeddings_under_one_text_keep_their_noise():
    embedded = [EmbeddedPrompt(TEXTS[0], embedding=torch.zeros(1)), EmbeddedPrompt(TEXTS[0], embedding=torch.ones(1))]
    assert list(jobs.occurrences(embedded)) == [0, 0]


def make(folder):
    folder.mkdir()
    return folder


def test_wrong_settings_are_refused_and_names_are_no_paths(config):
    with pytest.raises(InputError, match="seed is named twice"):
        check_generation(replace(config, seeds=(1, 1)))
    with pytest.raises(InputError, match="named twice"):
        named_policies(("stp", "stp"))
    assert all("/" not in name for name in named_policies(("stp:transition=600", "stp:transition=700")))


def arguments(config):
    given = {k: " ".join(map(str, v)) if isinstance(v, tuple) else str(v).lower() if isinstance(v, bool) else str(v)
             for k, v in vars(config).items() if v is not None}
    return [word for k, v in given.items() if v for word in (f"--{k}", *v.split())]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1"}


@pytest.fixture
def one_thread():
    """Sums in another order would differ in their last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_two_processes_sample_as_one(config, tmp_path, one_thread):
    """Gloo on the CPU."""
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    script = [str(ROOT / "mitigate/generate.py"), *arguments(config)]
    done = subprocess.run([sys.executable, *launch, *script], capture_output=True, text=True, timeout=1200, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"samples"') == 1
    assert contents(Path(config.output_dir)) == contents(generate_to_folder(replace(config, output_dir=str(tmp_path / "one"))))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "out", "prompts.txt"]


@pytest.mark.slow
def test_a_run_that_is_killed_outright_loses_and_repeats_nothing(config, tmp_path, one_thread):
    long = replace(config, seeds=tuple(range(40)), batch_size=1)
    process = subprocess.Popen([sys.executable, str(ROOT / "mitigate/generate.py"), *arguments(long)], env=environment(),
                               stderr=subprocess.DEVNULL)
    shards = tmp_path / ".out.unfinished/unfinished"
    deadline = time.time() + 1200
    while len(list(shards.glob("[!.]*.parquet"))) < 5 and process.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {p: p.stat().st_mtime_ns for p in shards.glob("[!.]*.parquet")}
    assert 5 <= len(kept) < 240
    images = {r["image"]: (tmp_path / ".out.unfinished" / r["image"]).stat().st_mtime_ns
              for p in kept for r in pq.read_table(p).to_pylist()}
    out = generate_to_folder(replace(long, resume=True))
    assert {name: (out / name).stat().st_mtime_ns for name in images} == images  # not made again
    assert contents(out) == contents(generate_to_folder(replace(long, output_dir=str(tmp_path / "whole"))))
