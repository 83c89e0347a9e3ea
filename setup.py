"""Builds fastface: pure Python always, the native modules where a compiler is found. torch is neither imported nor
needed.

Environment variables:
- FASTFACE_CUDA: unset builds the CUDA module if nvcc is found and says so if not; 1 fails without it; 0 leaves it out.
- FASTFACE_CPU: unset builds the CPU module if a C++ compiler is found and says so if not; 1 fails without it; 0 leaves
  it out.
- FASTFACE_CUDA_ARCHITECTURES: a CMake list in place of the default, for example "90-real" for a quick local build.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.dist import Distribution

ROOT = Path(__file__).resolve().parent
STAMP = "_build_stamp.json"


def tri_state(name: str) -> str:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{name} must be unset, 0 or 1, got {value!r}")
    return {"": "AUTO", "0": "OFF", "1": "ON"}[value]


def say(text: str) -> None:
    print(f"fastface: {text}", file=sys.stderr, flush=True)


def git_hash() -> str:
    if not (ROOT / ".git").exists():
        return ""  # an unpacked sdist may lie inside somebody else's repository
    run = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else ""


class NativeBuild(build_ext):
    """Runs CMake once for all native modules; without a compiler it leaves them out and says so."""

    def run(self) -> None:
        package = (
            ROOT / "fastface" if self.inplace or self.editable_mode else Path(self.build_lib).resolve() / "fastface"
        )
        package.mkdir(parents=True, exist_ok=True)
        cpu, cuda = tri_state("FASTFACE_CPU"), tri_state("FASTFACE_CUDA")
        if cpu == "OFF":
            if cuda == "ON":
                raise SystemExit("FASTFACE_CUDA=1 needs the native build, but FASTFACE_CPU=0 switches it off")
            stamp = self.pure_python("switched off with FASTFACE_CPU=0")
        else:
            try:
                stamp = self.cmake(package, cuda)
            except (OSError, subprocess.CalledProcessError) as error:
                if cpu == "ON" or cuda == "ON":
                    raise SystemExit(f"fastface: the native build failed: {error}") from error
                stamp = self.pure_python(f"the native build failed ({error})")
        stamp["git"] = git_hash()
        (package / STAMP).write_text(json.dumps(stamp, indent=1) + "\n")

    def pure_python(self, reason: str) -> dict:
        say(f"no native module is built: {reason}. The package is pure Python; its reference backend is slower.")
        return {"cpu": {"skipped": reason}, "cuda": {"skipped": reason}}

    def cmake(self, package: Path, cuda: str) -> dict:
        if shutil.which("cmake") is None:
            raise OSError("cmake is not found")
        build = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}",
            f"-DFASTFACE_OUTPUT_DIR={package}", f"-DFASTFACE_CUDA={cuda}",
        ]  # fmt: skip
        # A cache that an isolated build left behind names tools that are gone.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        if os.environ.get("FASTFACE_CUDA_ARCHITECTURES"):
            configure.append("-DFASTFACE_CUDA_ARCHITECTURES=" + os.environ["FASTFACE_CUDA_ARCHITECTURES"])
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--config", "Release", "--parallel"], check=True)
        stamp = json.loads((build / "stamp.json").read_text())
        for name in ("cpu", "cuda"):
            told = stamp[name].get("skipped")
            details = ", ".join(f"{key} {value}" for key, value in stamp[name].items())
            say(f"{name} module left out: {told}" if told else f"{name} module: {details}")
        return stamp

    # The modules come from CMake, under names of its choosing, so setuptools has nothing to copy or to look for.
    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "fastface"
        return [
            str(path) for path in (*package.glob("_c*.so"), *package.glob("_c*.pyd"), package / STAMP) if path.exists()
        ]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class PlatformDistribution(Distribution):
    """The wheel belongs to one Python and platform even where no compiler was found: it may hold native modules."""

    def has_ext_modules(self) -> bool:
        return True


slugs = sorted(path.parent.name for path in (ROOT / "kernels").glob("*/__init__.py"))
packages = sorted(
    ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "fastface").rglob("__init__.py")
) + [f"fastface.kernels.{slug}" for slug in slugs] + ["fastface._benchmarks"]  # fmt: skip

setup(
    packages=packages,
    package_dir={
        "fastface": "fastface",
        "fastface._benchmarks": "benchmarks",
        **{f"fastface.kernels.{slug}": f"kernels/{slug}" for slug in slugs},
    },
    package_data={
        "fastface": ["py.typed"],
        "fastface.face": ["data/*"],
        "fastface.models.posegan": ["data/*"],
        "fastface.ops": ["*.json"],
    },
    include_package_data=False,
    ext_modules=[Extension("fastface._cpu", sources=[])],
    cmdclass={"build_ext": NativeBuild},
    distclass=PlatformDistribution,
)
