"""Every trap of the list has a test of its number that also fails on a wrong implementation."""

import ast
import re
from pathlib import Path

import pytest

NUM_TRAPS = 26


def functions(source):
    return [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]


def shows_a_wrong_twin(function):
    """Whether it holds `with pytest.raises(AssertionError...)`: a check that is seen to fail."""
    for node in ast.walk(function):
        if isinstance(node, ast.With):
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and ast.unparse(call).startswith(
                    "pytest.raises(AssertionError"
                ):
                    return True
    return False


def trap_numbers(source):
    """The numbers of the traps that have a test with a wrong twin."""
    found = set()
    for function in functions(source):
        match = re.match(r"test_trap_(\d\d)_", function.name)
        if match and shows_a_wrong_twin(function):
            found.add(int(match[1]))
    return found


@pytest.fixture(scope="module")
def sources():
    return [path.read_text("utf-8") for path in sorted(Path(__file__).parent.glob("test_*.py"))]


@pytest.mark.parametrize("number", range(1, NUM_TRAPS + 1))
def test_each_trap_has_a_test_with_a_wrong_implementation_beside_it(sources, number):
    assert any(number in trap_numbers(source) for source in sources)


def test_a_trap_without_its_twin_does_not_count():
    alone = "def test_trap_05_x():\n    check(ours)\n"
    with_twin = alone + "    with pytest.raises(AssertionError):\n        check(wrong)\n"
    other = alone + "    with pytest.raises(ValueError):\n        check(wrong)\n"
    assert [trap_numbers(text) for text in (alone, with_twin, other)] == [set(), {5}, set()]
