"""Reports the environment, how the native modules were built, and for each op which backend would run, and why not the
others.

Attach its output to a bug report. Exits with 1 if something that is installed does not work.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from typing import Any

import torch

from fastface._version import __version__
from fastface.ops import _native, _verify
from fastface.ops._backends import BACKENDS, BackendUnavailable, preference, registries, requested

ENVIRONMENT = {
    "FASTFACE_BACKEND": "the backend of every op: reference, cpu, triton or cuda; raises where it cannot run",
    "FASTFACE_STRICT": "1: raise instead of falling back to the reference",
    "FASTFACE_CPU_TIER": "the instruction set of the CPU kernels: baseline, avx2 or avx512",
    "TRITON_INTERPRET": "1: Triton kernels run interpreted, on CPU tensors, for tests",
}
# Distribution, and what it is for where it is optional.
PACKAGES = {
    "torch": "",
    "triton": "GPU kernels",
    "numpy": "",
    "opencv-python": "",
    "pillow": "",
    "nvidia-ml-py": "GPU names and clocks",
    "mediapipe": "finding faces: pip install 'fastface-kernels[face]'",
    "av": "reading and writing video: pip install 'fastface-kernels[video]'",
    "scikit-image": "the portrait of the demo: pip install 'fastface-kernels[demo]'",
    "safetensors": "",
    "transformers": "hearing characters: pip install 'fastface-kernels[audio]'",
    "scipy": "files of BFM 2009 and LSFM: pip install 'fastface-kernels[face-models]'",
    "h5py": "files of BFM 2017 and 2019: pip install 'fastface-kernels[face-models]'",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    report = collect()
    print(json.dumps(report, indent=1) if args.json else render(report))
    return 1 if report["problems"] else 0


def collect() -> dict[str, Any]:
    """Everything that doctor knows, as plain data."""
    stamp = _native.build_stamp()
    native: dict[str, Any] = {}
    for name in ("cpu", "cuda"):
        reason = _native.reason_missing(name)
        native[name] = {"usable": reason is None, "reason": reason, "build": stamp.get(name, {})}
    if native["cpu"]["usable"]:
        module = _native.load("cpu")
        native["cpu"] |= {"tier": module.tier(), "tiers": list(module.tiers())}
    devices = [_gpu(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    problems = [
        f"{name}: {entry['reason']}"
        for name, entry in native.items()
        if not entry["usable"] and not entry["build"].get("skipped") and entry["build"]
    ]
    try:
        requested(None)
    except ValueError as error:
        problems.append(str(error))
    return {
        "fastface": __version__,
        "git": stamp.get("git", ""),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES},
        "gpus": devices,
        "native": native,
        "backends": {op: _backends(op) for op in sorted(registries)},
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "problems": problems,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} logical cores"


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    built = ""
    if _native.reason_missing("cuda") is None:
        built = ", ".join(str(arch) for arch in _native.load("cuda").architectures())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda_module_architectures": built,
    }


def _backends(op: str) -> dict[str, Any]:
    """Per device: each backend's reason not to run a small float32 call, and the one that would run."""
    result = {}
    for device in ["cpu"] + (["cuda:0"] if torch.cuda.is_available() else []):
        registry = registries[op]
        args, kwargs = _verify.inputs(op, "tiny", device=device).arguments
        call = registry.build(op, *args, **kwargs)
        try:
            chosen = registry.choose(call)[0]
        except (BackendUnavailable, ValueError) as error:
            chosen = f"raises: {error}"
        result[device] = {
            "runs": chosen,
            "order": list(preference(op, torch.device(device), "single")[0]),
            "unusable": {name: reason for name in BACKENDS if (reason := registry.implementations[name].refuse(call))},
        }
    return result


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"fastface {report['fastface']}" + (f" ({report['git']})" if report["git"] else "")]
    lines.append(f"python {report['python']} on {report['platform']}")
    lines.append(f"processor {report['processor']}; torch uses {report['threads']} threads")
    lines.append("\npackages")
    for name, use in PACKAGES.items():
        version = report["packages"][name]
        lines.append(f"  {name:<14}{version or 'missing' + (f'; {use}' if use else '')}")
    lines.append("\nnative modules")
    for name, entry in report["native"].items():
        build = ", ".join(f"{key} {value}" for key, value in entry["build"].items() if key != "skipped")
        state = f"loads ({build})" if entry["usable"] else f"missing: {entry['reason']}"
        lines.append(f"  {name:<6}{state}")
        if "tier" in entry:
            lines.append(
                f"        runs the {entry['tier']} kernels; this processor could run {', '.join(entry['tiers'])}"
            )
    lines.append("\nGPUs")
    for gpu in report["gpus"]:
        built = gpu["cuda_module_architectures"]
        lines.append(
            f"  {gpu['name']}, capability {gpu['capability']}, {gpu['memory_gib']} GiB"
            + (f"; built for {built}" if built else "")
        )
    if not report["gpus"]:
        lines.append("  none that torch can use")
    lines.append("\nbackends (float32, batch 1)")
    for op, devices in report["backends"].items():
        for device, entry in devices.items():
            lines.append(f"  {op} on {device}: {entry['runs']}")
            lines += [f"      not {name}: {reason}" for name, reason in entry["unusable"].items()]
    lines.append("\nenvironment")
    for name, use in ENVIRONMENT.items():
        value = report["environment"][name]
        lines.append(f"  {name:<18}{'unset' if value is None else repr(value):<8} {use}")
    lines += [f"\nPROBLEM  {problem}" for problem in report["problems"]] or ["\nno problems found"]
    return "\n".join(lines)
