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
