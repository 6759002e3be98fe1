"""Every public name has type hints and a docstring that says what goes in and what comes out."""
import inspect

import pytest

import rotescope

PUBLIC = [name for name in rotescope.__all__ if name != "__version__"]


def functions_of(name):
    """(name, function) of a public function, or of a public class's own methods."""
    found = getattr(rotescope, name)
    if inspect.isclass(found):
        return [(f"{name}.{key}", f) for key, f in vars(found).items()
                if inspect.isfunction(f) and (key == "__init__" or not key.startswith("_"))]
    return [(name, found)]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_parameter_and_every_result_has_a_type(name):
    for called, function in functions_of(name):
        signature = inspect.signature(function)
        untold = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
        assert not untold, called
        assert called.endswith("__init__") or signature.return_annotation is not signature.empty, called


@pytest.mark.parametrize("name", PUBLIC)
def test_every_docstring_has_the_sections_that_it_needs(name):
    found = getattr(rotescope, name)
    assert inspect.getdoc(found)
    if inspect.isfunction(found) and set(inspect.signature(found).parameters):
        told = inspect.getdoc(found)
        assert "Parameters\n-------" in told
        assert "Returns\n-------" in told or "Yields\n------" in told
        for parameter in inspect.signature(found).parameters:
            assert parameter in told, parameter
