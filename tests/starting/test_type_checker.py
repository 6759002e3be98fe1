"""A type checker follows `rotescope.mitigate…` in a clone: it knows the arguments of what lies there."""
import subprocess
import sys

import pytest
from places import ROOT

RIGHT = """
from rotescope.mitigate.methods.transition import TransitionGuidance
TransitionGuidance(before=-2.0, transition=650)
"""
WRONG = RIGHT + """
TransitionGuidance(befor=-2.0)
from rotescope.evaluate.report.nowhere import nothing
"""


def mypy(*arguments, cache):
    command = (sys.executable, "-m", "mypy", "--cache-dir", cache, *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_mypy_complains_of_a_wrong_call_and_of_nothing_else(tmp_path):
    for name, text in (("right.py", RIGHT), ("wrong.py", WRONG)):
        (tmp_path / name).write_text(text)
    done = mypy(tmp_path / "right.py", tmp_path / "wrong.py", cache=tmp_path / "cache")
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 2, done.stdout
    assert all("wrong.py:" in line for line in errors)
    assert 'Unexpected keyword argument "befor" for "TransitionGuidance"' in errors[0]
    assert 'module named "rotescope.evaluate.report.nowhere"' in errors[1]


@pytest.mark.slow
def test_types_hold_in_the_clone(tmp_path):
    done = mypy("-p", "rotescope", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stdout
