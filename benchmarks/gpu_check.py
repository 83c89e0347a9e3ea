"""Everything that shows whether the kernels work on the GPU of this machine, in eight minutes and without a network:

  make gpu-check OUT=dir        or        python benchmarks/gpu_check.py --out dir

Builds the extension modules into the Python it runs under, runs the GPU tests, the selftest and the benchmarks, and
holds the kernels that memory binds against a copy of as many bytes, rendering against a limit in time. In the folder:
log.txt (all output), <device>.csv (benchmark rows), targets.json (kernel against copy or limit), measured.json
(fastface/ops/_measured.json with this device's entries), summary.json. Exits with 1 if a step failed or a target was
missed; later steps run all the same while time is left.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCH = "warp spade raster triplane --full --device cuda --seconds 0.4"
MODELS = "live_portrait pir --full --device cuda --seconds 0.4"
BUDGET = 8 * 60.0
SHARE_OF_COPY = 0.6  # of the measured copy bandwidth, in a batch
COPY_RATIO, COPY_SLACK_US = 1.2, 5.0  # one image in a CUDA graph, against a copy of equal bytes
RENDER_US = {"eg3d_64": 300.0, "eg3d_128": 1000.0}  # one image of float16 planes, 48 and 48 samples, on an H200
# Of an H200, in the rows: operation, shape, column, the most (or for a speedup the least) of the best provider.
AIMS = (("eg3d_frame", "512x512", "median_us", 4000.0), ("render_planes", "eg3d_64", "speedup_eager", 5.0))
BACKENDS = ("triton", "cuda")


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
        ("models", [*fastface, "bench", *MODELS.split(), "--csv", str(out)], 150),
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
        missed = missed_aims(rows)
        done.append(Step("aims", "failed" if missed else "ok", 0.0, "; ".join(missed)))
    (out / "summary.json").write_text(json.dumps([asdict(step) for step in done], indent=2) + "\n")
    return 0 if all(step.status == "ok" for step in done) else 1


def missed_aims(paths: list[Path]) -> list[str]:
    """What the rows of float16 on a GPU miss of `AIMS`, in words; a row that is not there is missed."""
    rows = []
    for path in paths:
        with path.open(newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["dtype"] == "float16" and row["batch"] == "1"]
    missed = []
    for op, shape, column, bound in AIMS:
        found = [
            float(row[column])
            for row in rows
            if (row["op"], row["shape"]) == (op, shape) and row["provider"] != "eager" and row[column]
        ]
        faster = column.startswith("speedup")
        best = (max if faster else min)(found, default=None)
        if best is None or (best < bound if faster else best > bound):
            missed.append(f"{op} {shape}: {column} {best}, not {'at least' if faster else 'at most'} {bound:g}")
    return missed


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


@dataclass(frozen=True)
class Target:
    """A call that is to run about as fast as a copy of `bytes`, every tensor counted once, or within `most_us`."""

    op: str
    shape: str
    dtype: str
    layout: str
    batch: int
    bytes: int
    make: Callable[[], Any] = field(repr=False)  # the `_verify.Inputs`
    most_us: float | None = None

    def met(self, microseconds: float, copy_microseconds: float, bandwidth: float) -> bool:
        if self.most_us is not None:
            return microseconds <= self.most_us
        if self.batch > 1:
            return self.bytes / (microseconds * 1e-6) >= SHARE_OF_COPY * bandwidth
        return microseconds <= COPY_RATIO * copy_microseconds + COPY_SLACK_US


def targets() -> Iterator[Target]:
    import torch

    sys.path.insert(0, str(ROOT))
    from benchmarks import bench_spade, bench_triplane, bench_warp
    from fastface.ops import _verify
    from fastface.ops._verify import spade, triplane, warp

    kinds = [(op, "live_portrait", batch) for op in ("pack_motions", "compose_flow") for batch in (1, 16)]
    kinds += [("modulated_norm", shape, batch) for shape in ("headgan_64", "live_portrait_128") for batch in (1, 16)]
    kinds += [("modulated_norm", "headgan_256", 1)]
    for op, name, batch in kinds:
        shapes = spade.SHAPES if op == "modulated_norm" else warp.SHAPES
        shape = replace(shapes[name], batch=batch)
        for dtype in (torch.float32, torch.float16):
            for layout in ("contiguous", "channels_last"):
                options = {"dtype": dtype, "device": "cuda", "layout": layout}
                if op == "modulated_norm":  # as with statistics that are given: `x` once
                    size = bench_spade.bytes_moved(op, shape, dtype, "maps", True)
                else:
                    size = bench_warp.bytes_moved(op, shape, dtype)

                def make(op: str = op, shape: Any = shape, options: dict[str, Any] = options) -> Any:
                    return _verify.inputs(op, shape, **options)

                yield Target(op, name, str(dtype)[6:], layout, batch, size, make)
    for name, most in RENDER_US.items():
        size = bench_triplane.bytes_moved("render_planes", triplane.SHAPES[name], torch.float16)

        def render(name: str = name) -> Any:
            return _verify.inputs("render_planes", name, dtype=torch.float16, device="cuda", random=False)

        yield Target("render_planes", name, "float16", "channels_last", 1, size, render, most)


def measure_targets(out: Path) -> int:
    """Each target against a copy of as many bytes, both as CUDA graphs behind a flush of the L2 cache."""
    all_targets = list(targets())  # makes the benchmarks importable
    from benchmarks import harness

    bandwidth = harness.copy_bandwidth("cuda", 1)
    print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s")
    results = [row for target in all_targets for row in measure_target(target, bandwidth)]
    (out / "targets.json").write_text(json.dumps(results, indent=2) + "\n")
    # The target is the op's, so one backend that meets it in the layout of the published models is enough.
    met: dict[tuple[str, ...], bool] = {}
    for row in results:
        if row["layout"] == "contiguous" or row["most_us"] is not None:
            case = row["op"], row["shape"], row["dtype"], f"batch {row['batch']}"
            met[case] = met.get(case, False) or row["ok"]
    for case in (case for case, ok in met.items() if not ok):
        print("target missed:", *case)
    complete = all(row["microseconds"] is not None for row in results)
    return 0 if complete and all(met.values()) else 1


def measure_target(target: Target, bandwidth: float) -> Iterator[dict[str, Any]]:
    """One row per backend; no microseconds where it is wrong or cannot run."""
    import torch

    from benchmarks import harness
    from fastface.ops import _verify

    case = target.make()
    half = torch.empty(target.bytes // 2, dtype=torch.uint8, device="cuda").random_()
    other = torch.empty_like(half)
    graphs = {"copy": harness.captured(lambda: other.copy_(half))}
    for backend in BACKENDS:
        try:
            verdict = _verify.verify(case, backend)
            if verdict.ok:
                graphs[backend] = harness.captured(lambda b=backend: case.run(b))
            else:
                print(f"{target.op} {backend} is wrong: {verdict}")
        except Exception as error:  # the other cases still deserve their turn
            print(f"{target.op} {backend}: {error}")
    times = medians(graphs)
    for backend in BACKENDS:
        row: dict[str, Any] = {name: value for name, value in vars(target).items() if name != "make"}
        row |= {"backend": backend, "microseconds": times.get(backend), "copy_microseconds": times["copy"], "ok": False}
        if backend in times:
            share = target.bytes / (times[backend] * 1e-6) / bandwidth
            ok = target.met(times[backend], times["copy"], bandwidth)
            row |= {"share_of_copy_bandwidth": share, "ok": ok}
            print(
                f"{target.op:<15}{target.shape:<18}{backend:<8}{target.dtype:<9}{target.layout:<15}"
                f"batch {target.batch:<3}{times[backend]:9.1f} us  copy {times['copy']:8.1f} us  {share:5.0%}  "
                f"{'ok' if ok else 'missed'}",
                flush=True,
            )
        yield row


def medians(graphs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Microseconds of calls that take turns."""
    from benchmarks import harness

    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(100):
        for name, graph in graphs.items():
            samples[name].append(harness.time_cuda(graph))
    return {name: statistics.median(times) for name, times in samples.items()}


if __name__ == "__main__":
    raise SystemExit(main())
