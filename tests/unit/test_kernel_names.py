"""A line of a profile says a kernel's name alone: no two files may have one of the same name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "worker" / "minisgl" / "kernel"


def test_a_kernel_name_is_in_one_file() -> None:
    files: dict[str, list[str]] = defaultdict(list)
    for path in KERNELS.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(decorator).startswith(("triton.jit", "gluon.jit")) for decorator in node.decorator_list
            ):
                files[node.name].append(path.name)
    assert len(files) > 60, "they are found"
    assert not {name: found for name, found in files.items() if len(found) > 1}
