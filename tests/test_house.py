"""The rules of the house that a reader relies on: every piece of a hot path at its place, imports downwards, a light
import.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLUGS = sorted(path.parent.name for path in ROOT.glob("kernels/*/__init__.py"))
# Lower floors first; a module may import its own floor and those below.
FLOORS = {
    **dict.fromkeys(("_files", "_unpickling", "_version", "kernels"), 0),
    "ops": 1,
    **dict.fromkeys(("nn", "face", "audio", "checkpoints", "engine"), 2),
    **dict.fromkeys(("models", "media"), 3),
    "apps": 4,
}


def test_there_are_hot_paths() -> None:
    assert "warp" in SLUGS


@pytest.mark.parametrize("slug", SLUGS)
def test_a_hot_path_is_complete(slug: str) -> None:
    pieces = [
        *(f"kernels/{slug}/{slug}{tail}" for tail in ("_reference.py", "_cpu.cpp", "_triton.py", ".h")),
        f"kernels/{slug}/README.md",
        f"fastface/ops/{slug}.py",
        f"fastface/nn/{slug}.py",
        f"tests/kernels/test_{slug}.py",
        f"benchmarks/bench_{slug}.py",
    ]
    assert [piece for piece in pieces if not (ROOT / piece).is_file()] == []


def test_kernels_is_not_a_package_of_its_own() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


def imported(path: Path) -> set[str]:
    """The rooms of fastface that a file imports."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "fastface" else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("fastface.")}
    return rooms & set(FLOORS)


def test_imports_run_downwards() -> None:
    upwards = []
    for path in [*ROOT.glob("fastface/**/*.py"), *ROOT.glob("kernels/**/*.py")]:
        parts = path.relative_to(ROOT).parts
        room = "kernels" if parts[0] == "kernels" else parts[1].removesuffix(".py")
        if room in FLOORS:
            upwards += [(str(path), other) for other in imported(path) if FLOORS[other] > FLOORS[room]]
    # The kernels of Triton name the call's type, for the type checker alone.
    upwards = [(path, room) for path, room in upwards if not (path.endswith("_triton.py") and room == "ops")]
    assert upwards == []


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_no_triton_and_no_native_module() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import fastface
heavy = ("triton", "cv2", "mediapipe", "av", "transformers", "safetensors")
new = set(sys.modules) - before
print([name for name in new if name.split(".")[0] in heavy or name in ("fastface._cpu", "fastface._cuda")])
"""
    assert run_python(code).strip() == "[]"


def test_import_is_light() -> None:
    """Under 1.3 times `import torch`: CPU time, the best of three, since the machine is shared."""

    def spent(module: str) -> float:
        code = f"import time; start = time.process_time(); import {module}; print(time.process_time() - start)"
        return min(float(run_python(code)) for _ in range(3))

    assert spent("fastface") < 1.3 * spent("torch")


def test_setup_does_not_import_torch() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.split(".")[0] == "torch" for name in names)


def test_every_environment_variable_is_in_the_doctor() -> None:
    import re

    from fastface.apps.doctor import ENVIRONMENT

    read = set()
    for pattern in ("fastface/**/*.py", "kernels/**/*.py", "csrc/*.cpp"):
        for path in ROOT.glob(pattern):
            read |= set(re.findall(r'(?:environ(?:\.get)?[\[(]|getenv\()\s*"(FASTFACE_\w+)"', path.read_text()))
    assert read <= set(ENVIRONMENT)
    assert {name for name in ENVIRONMENT if name.startswith("FASTFACE_")} == read
