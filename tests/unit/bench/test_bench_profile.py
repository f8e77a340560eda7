"""A profile of kernels: what two runs differ in, a step."""

from __future__ import annotations

import pytest
from bench.kernel_times import print_lines, to_lines


def test_a_step_is_what_more_tokens_took_more(capsys: pytest.CaptureFixture[str]) -> None:
    few = {"_gemv": (800.0, 80), "prompt": (5000.0, 3), "once": (7.0, 1)}
    many = {"_gemv": (4000.0, 400), "prompt": (5000.0, 3), "once": (6.5, 1), "rare": (3.2, 1)}
    lines = to_lines(many, few, 32)
    assert [(line.name, line.microseconds, line.calls) for line in lines] == [
        ("_gemv", 100.0, 10.0),
        ("rare", 0.1, 1 / 32),
    ]
    print_lines("a step", lines)
    shown = capsys.readouterr().out
    assert "a step: 0.100 ms of kernels" in shown and "99.9%" in shown and "10.0  _gemv" in shown
