"""Which methods no other one beats; what compare and figures refuse."""
import pytest

from rotescope.common.errors import InputError
from rotescope.options.compare import CompareConfig
from rotescope.options.figures import FiguresConfig
from rotescope.procedures.compare import pareto, run_comparison
from rotescope.procedures.figures import run_figures


@pytest.mark.parametrize(("points", "front"), [
    ([(0.9, 0.9), (0.5, 0.9), (0.1, 0.5)], [False, True, True]),   # the first is beaten by the second
    ([(0.5, 0.5), (0.5, 0.5)], [True, True]),                       # equals do not beat each other
    ([(0.0, 1.0), (0.1, 0.9), (0.0, 0.9)], [True, False, False]),
])
def test_the_front(points, front):
    assert pareto(points) == front


@pytest.mark.parametrize(("command", "wrong", "says"), [
    (run_comparison, {"repeats": 0}, "once or more"), (run_comparison, {"num_inference_steps": 0}, "1 or more"),
    (run_comparison, {"seeds": (1, 1)}, "named twice"), (run_figures, {"num_inference_steps": 0}, "1 or more"),
    (run_figures, {"guidance_scale": 1.0}, "scale above 1"), (run_figures, {"seeds": (0,)}, "two or more"),
    (run_figures, {"transitions": (500, 900)}, "high to low"), (run_comparison, {}, "no model at"),
    (run_figures, {}, "no model at"),
])
def test_wrong_input_is_named_before_anything_is_sampled(tmp_path, command, wrong, says):
    config = {run_comparison: CompareConfig, run_figures: FiguresConfig}[command]
    with pytest.raises(InputError, match=says):
        command(config(str(tmp_path / "gone"), str(tmp_path / "out"), **wrong))
    assert not (tmp_path / "out").exists()
