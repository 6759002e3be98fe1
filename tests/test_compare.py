"""Which methods no other one beats."""
import pytest

from rotescope.compare import pareto


@pytest.mark.parametrize(("points", "front"), [
    ([(0.9, 0.9), (0.5, 0.9), (0.1, 0.5)], [False, True, True]),   # the first is beaten by the second
    ([(0.5, 0.5), (0.5, 0.5)], [True, True]),                       # equals do not beat each other
    ([(0.0, 1.0), (0.1, 0.9), (0.0, 0.9)], [True, False, False]),
])
def test_the_front(points, front):
    assert pareto(points) == front
