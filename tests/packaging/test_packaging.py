"""What people install: sdist, wheel, with and without a compiler, editable and from a checkout; and what the binaries
depend on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from fastface.ops import _native

ROOT = Path(__file__).parents[2]
IMPORT_AND_RUN = """
import torch, fastface
from fastface import ops
print(fastface.__file__)
feature, kp = torch.randn(1, 2, 3, 4, 5), torch.zeros(1, 2, 3)
print(tuple(ops.pack_motions(feature, kp, kp).shape))
from fastface.ops._native import reason_missing
print(reason_missing("cpu"))
"""


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**env, **environment}, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", str(out), str(ROOT)], out)
    return next(out.glob("*.tar.gz"))


def install(sdist: Path, folder: Path, **environment: str) -> tuple[Path, str]:
    """Unpack the sdist, install it from there into ``folder/site``; returns that and what the build said."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    source = next(folder.glob("fastface_kernels-*"))
    command = [sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps", "--no-index"]
    done = run([*command, "--target", str(folder / "site"), str(source)], folder, **environment)
    return folder / "site", done.stdout + done.stderr


def try_import(folder: Path) -> list[str]:
    """Import and run what lies in `folder`: where it came from, a shape, why the CPU module cannot be used or None.

    -S leaves out this environment's own editable install; torch is then found by its folder.
    """
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    code = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(Path(spec.origin).parents[1])!r}]\n{IMPORT_AND_RUN}"
    return run([sys.executable, "-S", "-c", code], folder).stdout.splitlines()


def test_sdist_holds_the_sources_and_nothing_else(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    for wanted in (
        "CMakeLists.txt",
        "csrc/tensor.h",
        "csrc/bind_cpu.cpp",
        "kernels/warp/warp_cpu.cpp",
        "benchmarks/bench_warp.py",
    ):
        assert wanted in names
    assert not [name for name in names if re.match(r"(tests|docs|\.ci|demo|build)/|.*\.(so|pyc|mp4|png|csv)$", name)]


def test_installs_without_a_compiler(sdist: Path, tmp_path: Path) -> None:
    """Pure Python then, and a line that says so."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "cmake").symlink_to(shutil.which("cmake") or pytest.fail("cmake is a build dependency"))
    # CMake is found, compilers are not.
    site, said = install(sdist, tmp_path, PATH=str(tools), CXX="/nonexistent/c++")
    assert re.search(r"fastface: no native module is built: the native build failed", said)
    where, shape, reason = try_import(site)
    assert where.startswith(str(site)) and shape == "(1, 9, 3, 4, 5)"
    assert reason.startswith("the cpu extension was not built: the native build failed")


def test_installs_natively_from_an_sdist(sdist: Path, tmp_path: Path) -> None:
    site, said = install(sdist, tmp_path, FASTFACE_CPU="1", FASTFACE_CUDA="0")
    assert "cuda module left out: switched off with FASTFACE_CUDA=0" in said
    assert try_import(site)[1:] == ["(1, 9, 3, 4, 5)", "None"]
    stamp = json.loads((site / "fastface" / "_build_stamp.json").read_text())
    assert stamp["cpu"]["compiler"] and stamp["cuda"] == {"skipped": "switched off with FASTFACE_CUDA=0"}


def test_a_wheel_holds_the_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    run(command, tmp_path, FASTFACE_CPU="0")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    for wanted in (
        "fastface/__init__.py",
        "fastface/py.typed",
        "fastface/_build_stamp.json",
        "fastface/ops/_measured.json",
        "fastface/kernels/warp/warp_reference.py",
        "fastface/kernels/warp/warp_triton.py",
        "fastface/_benchmarks/bench_warp.py",
    ):
        assert wanted in names
    assert {name.split("/")[0] for name in names} == {
        "fastface",
        next(n for n in names if n.endswith("METADATA")).split("/")[0],
    }
    assert not [name for name in names if re.search(r"tests?/|\.(cpp|cu|h|npz|mp4)$", name)]


def test_a_wrong_switch_is_refused(sdist: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="FASTFACE_CUDA must be unset, 0 or 1, got 'yes'"):
        install(sdist, tmp_path, FASTFACE_CUDA="yes")


def test_cuda_on_demand_fails_without_nvcc(sdist: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cmake", "ninja", "c++", "g++", "cc", "gcc", "as", "ld"):
        found = shutil.which(name)
        if found:
            (tools / name).symlink_to(found)
    with pytest.raises(AssertionError, match="FASTFACE_CUDA=1 asks for the CUDA module, but no working nvcc was found"):
        install(
            sdist,
            tmp_path,
            FASTFACE_CUDA="1",
            PATH=str(tools),
            CUDACXX="",
            CUDA_PATH="/nonexistent",
            CUDA_HOME="/nonexistent",
        )


def test_imports_from_an_uninstalled_checkout(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build_stamp.json")
    for folder in ("fastface", "kernels", "benchmarks"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=ignore)
    where, shape, reason = try_import(checkout)
    assert where == str(checkout / "fastface" / "__init__.py")
    assert shape == "(1, 9, 3, 4, 5)" and reason == "the cpu extension was not built"


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_native_modules_know_nothing_of_torch(name: str) -> None:
    """Undefined symbols and needed libraries of the binary, so that one binary serves every torch release."""
    files = list((ROOT / "fastface").glob(f"_{name}.*.so"))
    if not files:
        pytest.skip(
            f"the {name} module is not built here: {_native.build_stamp().get(name, {}).get('skipped', 'unknown')}"
        )
    undefined = run(["nm", "-D", "--undefined-only", "-C", str(files[0])], ROOT).stdout
    assert "PyObject" in undefined or "PyModule" in undefined
    assert not re.search(r"\b(c10|at|torch|caffe2)::|aoti_torch|THP", undefined)
    needed = re.findall(r"NEEDED\s+(\S+)", run(["objdump", "-p", str(files[0])], ROOT).stdout)
    assert not [library for library in needed if re.search(r"torch|c10|cudart|libcuda|libpython", library)], needed
