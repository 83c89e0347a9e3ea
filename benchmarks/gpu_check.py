"""Everything that shows whether the kernels work on the GPU of this machine, in eight minutes and without a network:

  make gpu-check OUT=dir        or        python benchmarks/gpu_check.py --out dir

Builds the extension modules into the Python it runs under, runs the GPU tests, the selftest and the benchmarks, and
holds the two fused kernels against a copy of as many bytes. In the folder: log.txt (all output), <device>.csv
(benchmark rows), targets.json (kernel against copy), measured.json (fastface/ops/_measured.json with this device's
entries), summary.json. Exits with 1 if a step failed or a target was missed; later steps run all the same while time is
left.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCH = "warp --full --device cuda --seconds 0.4"
BUDGET = 8 * 60.0
SHARE_OF_COPY = 0.6  # of the measured copy bandwidth, batch 16
COPY_RATIO, COPY_SLACK_US = 1.2, 5.0  # batch 1 in a CUDA graph, against a copy of equal bytes


@dataclass
class Step:
    name: str
    status: str  # ok, failed, out of time
    seconds: float
    note: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and logs")
    parser.add_argument("--skip-build", action="store_true", help="use the modules that are there")
    parser.add_argument("--measure-targets", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.measure_targets:
        return measure_targets(out)
    return run_all(out, not args.skip_build)


def run_all(out: Path, build: bool) -> int:
    deadline = time.monotonic() + BUDGET
    import torch

    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} in {sys.executable} sees no CUDA device", file=sys.stderr)
        return 2
    python = sys.executable
    parallel = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    fastface = [python, "-m", "fastface"]
    steps = [
        ("device", ["nvidia-smi"], 30),
        ("build", [python, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps", "-e", "."], 240),
        ("doctor", [*fastface, "doctor"], 60),
        (
            "tests",
            [python, "-m", "pytest", "-q", "-m", "gpu", "tests/kernels", "-p", "no:cacheprovider", *parallel],
            240,
        ),
        ("selftest", [*fastface, "selftest"], 90),
        ("targets", [python, str(Path(__file__).resolve()), "--out", str(out), "--measure-targets"], 90),
        ("bench", [*fastface, "bench", *BENCH.split(), "--csv", str(out)], BUDGET),
    ]
    done = []
    with (out / "log.txt").open("w") as log:
        for name, command, limit in steps:
            if name != "build" or build:
                done.append(_run(name, command, min(limit, deadline - time.monotonic()), log))
                print(f"{done[-1].name:<10}{done[-1].status:<13}{done[-1].seconds:6.1f} s  {done[-1].note}", flush=True)
    rows = sorted(out.glob("*.csv"))
    if rows:
        measured = [python, str(ROOT / "benchmarks" / "measured.py"), *map(str, rows)]
        table = subprocess.run(measured, capture_output=True, text=True)
        (out / "measured.json").write_text(table.stdout)
        done.append(Step("measured", "ok" if table.returncode == 0 else "failed", 0.0, table.stderr[-200:]))
    (out / "summary.json").write_text(json.dumps([asdict(step) for step in done], indent=2) + "\n")
    return 0 if all(step.status == "ok" for step in done) else 1


def _run(name: str, command: list[str], limit: float, log) -> Step:  # noqa: ANN001, an open text file
    log.write(f"\n==== {name}: {' '.join(command)}\n")
    log.flush()
    if limit <= 1:
        return Step(name, "out of time", 0.0)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if name == "build":
        environment["FASTFACE_CUDA"] = "1"
    start, before = time.monotonic(), log.tell()
    try:
        code = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=limit
        ).returncode
        status = "ok" if code == 0 else "failed"
    except subprocess.TimeoutExpired:
        status = "out of time"
    except OSError as error:
        log.write(f"{error}\n")
        status = "failed"
    log.flush()
    with open(log.name, errors="replace") as text:
        text.seek(before)
        lines = [line.strip() for line in text.read().splitlines() if line.strip()]
    note = lines[-1][:120] if lines else ""
    if name == "tests" and " passed" not in note:
        status = "failed"  # skipping everything is no success here
    return Step(name, status, time.monotonic() - start, note)


def measure_targets(out: Path) -> int:
    """The two fused kernels against a copy of as many bytes, both as CUDA graphs behind a flush of the L2 cache."""
    import torch

    sys.path.insert(0, str(ROOT))
    from benchmarks import harness
    from benchmarks.bench_warp import bytes_moved
    from fastface.ops import _verify
    from fastface.ops._verify.warp import WarpShape

    def median(graphs: dict) -> dict[str, float]:
        samples: dict[str, list[float]] = {name: [] for name in graphs}
        for _ in range(200):
            for name, graph in graphs.items():
                samples[name].append(harness.time_cuda(graph))
        return {name: statistics.median(times) for name, times in samples.items()}

    results, missed = [], 0
    bandwidth = harness.copy_bandwidth("cuda", 1)
    print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s")
    for op in ("pack_motions", "compose_flow"):
        for dtype in (torch.float32, torch.float16):
            for layout in ("contiguous", "channels_last"):
                for batch in (1, 16):
                    shape = WarpShape(batch, 4, 32, 21, (16, 64, 64))
                    case = _verify.inputs(op, shape, dtype=dtype, device="cuda", layout=layout)
                    size = bytes_moved(op, shape, dtype)
                    half = torch.empty(size // 2, dtype=torch.uint8, device="cuda").random_()
                    other = torch.empty_like(half)
                    graphs = {"copy": harness.captured(lambda: other.copy_(half))}  # noqa: B023, captured at once
                    for backend in ("triton", "cuda"):
                        try:
                            verdict = _verify.verify(case, backend)
                            if verdict.ok:
                                graphs[backend] = harness.captured(lambda b=backend: case.run(b))  # noqa: B023, as above
                            else:
                                print(f"{op} {backend} is wrong: {verdict}")
                        except Exception as error:  # the other cases still deserve their turn
                            print(f"{op} {backend}: {error}")
                    times = median(graphs)
                    for backend in ("triton", "cuda"):
                        if backend not in times:
                            missed += 1
                            continue
                        share = size / (times[backend] * 1e-6) / bandwidth
                        limit = COPY_RATIO * times["copy"] + COPY_SLACK_US
                        ok = share >= SHARE_OF_COPY if batch > 1 else times[backend] <= limit
                        results.append(
                            {
                                "op": op,
                                "backend": backend,
                                "dtype": str(dtype)[6:],
                                "layout": layout,
                                "batch": batch,
                                "microseconds": times[backend],
                                "copy_microseconds": times["copy"],
                                "share_of_copy_bandwidth": share,
                                "ok": ok,
                            }
                        )
                        print(
                            f"{op:<13}{backend:<8}{str(dtype)[6:]:<9}{layout:<15}batch {batch:<3}"
                            f"{times[backend]:9.1f} us  copy {times['copy']:8.1f} us  {share:5.0%}  "
                            f"{'ok' if ok else 'missed'}",
                            flush=True,
                        )
    (out / "targets.json").write_text(json.dumps(results, indent=2) + "\n")
    # The target is the op's, so one backend that meets it in the layout of the published models is enough.
    for op in ("pack_motions", "compose_flow"):
        for batch in (1, 16):
            cases = [r for r in results if (r["op"], r["batch"], r["layout"]) == (op, batch, "contiguous")]
            for dtype in ("float32", "float16"):
                if not any(r["ok"] for r in cases if r["dtype"] == dtype):
                    print(f"target missed: {op} {dtype} batch {batch}")
                    missed += 1
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
