"""Nothing heavy is imported before the arguments are right."""
import json
import subprocess
import sys

from places import ROOT

from rotescope import cli

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "matplotlib", "scipy", "datasets", "open_clip",
         "torchmetrics")
CODE = """
import contextlib, io, json, sys
from rotescope import cli
found = {}
for argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = cli.main(argv)
        except SystemExit as left:
            code = left.code
    found[" ".join(argv)] = code or 0, [m for m in json.loads(sys.argv[2]) if m in sys.modules]
print(json.dumps(found))
"""


def answers(*argvs):
    """-> {arguments: (exit code, the heavy modules that were loaded by then)}, all in one process."""
    command = [sys.executable, "-c", CODE, json.dumps(argvs), json.dumps(HEAVY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {key: tuple(value) for key, value in json.loads(done.stdout).items()}


def test_help_lists_and_wrong_options_load_nothing_heavy():
    helps = [[name, "--help"] for name in cli.COMMANDS]
    wrong = [[name, "--no_such_option", "1"] for name in cli.COMMANDS]
    found = answers(["--help"], ["--version"], ["no_such_command"], *helps, *wrong, ["mitigations"], ["mitigations", "--json"])
    assert {key: loaded for key, (_, loaded) in found.items() if loaded} == {}
    codes = {key: code for key, (code, _) in found.items()}
    assert {key: code for key, code in codes.items() if "no_such" in key} == {
        key: 2 for key in codes if "no_such" in key}
    assert {code for key, code in codes.items() if "no_such" not in key} == {0}


WRONG = (  # each needs a value that is wrong whatever the data and the model
    "audit --model nowhere", "audit --fail_on foo>1", "audit --dtype fp64", "audit --detector edgess", "audit --plan luck",
    "audit --max_prompts 0", "audit --seeds -1", "audit --mitigation", "generate --max_prompts 0",
    "audit --mitigation og-stpp", "audit --lora nowhere", "audit --guidance_scale 0.5", "score --descriptor foo",
    "score --exact md5",
    "score --fail_on copies", "score --copy_quantile 1.5", "detect --detector edgess", "retrigger --mitigation foo",
    "dose --mitigation foo", "compare --mitigation foo", "compare --checkpoint nowhere", "figures --seeds",
    "generate --mitigation og-stp:befor=1", "generate --mitigation og-stp:before=zzz",
    "audit --mitigation dtp:latest=nan", "generate --batch_size 0", "calibrate --num_inference_steps 0",
    "finetune --lr_scheduler foo", "finetune --rank 0", "finetune --weighting_scheme foo", "demo --mitigation foo",
    "index --descriptor foo")


def test_a_wrong_value_is_answered_before_anything_heavy_loads():
    found = answers(*(given.split() + needed(given) for given in WRONG))
    assert {key: value for key, value in found.items() if value != (2, [])} == {}


def needed(given):
    """-> the other options that the command must have."""
    command = given.split()[0]
    wanted = {"audit": {"--model": "train/base", "--train_data": "x", "--output_dir": "runs/x"},
              "score": {"--generated": "x", "--train_data": "x", "--output_dir": "runs/x"},
              "detect": {"--prompts": "x", "--output_dir": "runs/x"},
              "retrigger": {"--train_data": "x", "--output_dir": "runs/x"},
              "compare": {"--checkpoint": "train/base", "--output_dir": "runs/x"},
              "figures": {"--checkpoint": "train/base", "--output_dir": "runs/x"},
              "generate": {"--prompts": "x", "--output_dir": "runs/x"}, "calibrate": {"--prompts": "x", "--output_file": "x"},
              "index": {"--index_dir": "x"}}
    return [word for pair in wanted.get(command, {}).items() if pair[0] not in given.split() for word in pair]
