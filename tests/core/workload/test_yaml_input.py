"""YAML of users: numbers of YAML 1.2, and immediate rejection of input that would take minutes."""

from __future__ import annotations

from typing import Any

import pytest

from ado_actuators.sfttrainer.core.workload import yaml_input

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"a{level}: &a{level} [" + ", ".join([f"*a{level - 1}"] * 9) + "]" for level in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e1", 10.0),
        ("2.5e-3", 0.0025),
        ("1.5", 1.5),
        ("10", 10),
        ("'010'", "010"),
        ("0", 0),
        ("0x10", 16),
        ("1e", "1e"),
        ("tiny-llama-5m", "tiny-llama-5m"),
        ("{a: &one [1], b: *one}", {"a": [1], "b": [1]}),
        ("[q_proj, v_proj]", ["q_proj", "v_proj"]),
    ],
)
def test_values_are_read_as_people_write_them(text: str, value: Any) -> None:
    """Exponents do not need a decimal point, as in YAML 1.2."""
    assert yaml_input.load(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_steps: 010", "010 begins with 0"),
        ("max_steps: 1:30", "1:30 has a colon, which YAML 1.1 reads as base 60"),
        ("stop_after_seconds: 1:30.5", "1:30.5 has a colon"),
        ("a: 1\na: 2", "a is given twice in the mapping that begins in line 1"),
        ("a: [", "not valid YAML at line"),
        ("2026-02-31", "not valid YAML"),
        ("[" * 30 + "]" * 30, "more than 20 levels at line 1"),
        ("{a: " * 10_000, "more than 20 levels"),
        (BOMB, "more than 20 aliases at line 4"),
        ("x" * 2_000_000, "has 2000000 characters; expected at most 262144"),
    ],
)
def test_what_cannot_be_used_gets_one_message(text: str, message: str) -> None:
    """Deep, aliased and large input is rejected without using much time or memory."""
    with pytest.raises(yaml_input.InvalidYAML, match=message):
        yaml_input.load(text)


def test_many_keys_are_checked_in_linear_time() -> None:
    """Thousands of keys are checked in linear time; the time limit is that of the test suite."""
    assert len(yaml_input.load("\n".join(f"key{number}: 1" for number in range(5_000)))) == 5_000
