"""Times contenders against each other, honestly: they take turns, medians are quoted, and a wrong result has no speed.

On a GPU each contender runs as a CUDA graph behind a flush of the L2 cache, between two events; where a contender
cannot be captured it runs plainly and its row says so. On a CPU each call is timed by the clock, on warm caches, as a
real-time loop would see it.
"""

from __future__ import annotations

import csv
import ctypes
import functools
import gc
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import fastface
from fastface.ops import _verify
from fastface.ops._backends import BACKENDS, registries
from fastface.ops._verify import Verdict

__all__ = ["Case", "Contenders", "Row", "append_csv", "op_contenders", "run_case", "table"]

Contenders = tuple[dict[str, Callable[[], object]], dict[str, Callable[[], Verdict]]]


@dataclass(frozen=True)
class Case:
    """One thing to time in several ways.

    `contenders` maps a provider (eager, compile, or a backend) to the call; `checks` judges a contender before it is
    timed. `bytes` and `flops` are the model's: every input read once, every output written once. `make` is called under
    `threads` threads. `kernels` has the launches of a call counted on a GPU. `rounds` is the least
    number of turns, fewer where a call takes half a minute.
    """

    op: str
    shape: str
    variant: str
    dtype: str
    layout: str
    batch: int
    device: str
    make: Callable[[], Contenders]
    bytes: int = 0
    flops: int = 0
    threads: int = field(default_factory=torch.get_num_threads)
    kernels: bool = False
    rounds: int = 7


@dataclass(frozen=True)
class Row:
    """One contender of one case, as it stands in the CSV. Times in microseconds; empty numbers were not measured."""

    utc: str
    op: str
    provider: str
    shape: str
    variant: str
    dtype: str
    layout: str
    batch: int
    threads: int
    check: str  # ok, baseline, or what is wrong
    error: float | None
    limit: float | None
    median_us: float | None
    p20_us: float | None
    p80_us: float | None
    samples: int
    timing: str
    host_us: float | None
    speedup_eager: float | None
    speedup_compile: float | None
    bytes: int
    flops: int
    gb_per_s: float | None
    share_of_copy: float | None
    share_of_peak: float | None
    peak_mib: float | None
    device: str
    clocks: str
    driver: str
    torch: str
    triton: str
    python: str
    fastface: str
    commit: str


def op_contenders(op: str, shape: object, compiled: bool, **options: Any) -> Contenders:
    """The eager reference of an op, the compiled one, and every backend that takes the call on these `_verify.inputs`,
    each judged as `_verify.verify` does.
    """
    inputs = _verify.inputs(op, shape, **options)
    truth, yardstick = inputs.truth(), inputs.reference()
    contenders: dict[str, Callable[[], object]] = {"eager": inputs.reference}
    if compiled:
        torch.compiler.reset()
        contenders["compile"] = torch.compile(inputs.reference, dynamic=False)
    args, kwargs = inputs.arguments
    call = registries[op].build(op, *args, **kwargs)
    for backend in BACKENDS[1:]:
        # The interpreter of Triton checks numbers; its speed says nothing.
        interpreted = backend == "triton" and options["device"] == "cpu"
        if not interpreted and not registries[op].implementations[backend].refuse(call):
            contenders[backend] = functools.partial(inputs.run, backend)

    def check(name: str) -> Verdict:
        verdict = inputs.judge(contenders[name](), truth, yardstick)
        # The rule is for our backends; what torch.compile rounds a few times more often is still what we compare with.
        rounding = name == "compile" and verdict.error <= 8 * verdict.limit
        return replace(verdict, ok=True) if rounding else verdict

    checks = {name: functools.partial(check, name) for name in contenders if name != "eager"}
    return contenders, checks


def run_case(case: Case, seconds: float = 3.0) -> list[Row]:
    """Check and time every contender of a case; about `seconds` of measuring each."""
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        contenders, checks = case.make()
        verdicts = {name: check() for name, check in checks.items()}
        good = {name: call for name, call in contenders.items() if name not in verdicts or verdicts[name].ok}
        peaks = {name: _peak_mib(call, case.device) for name, call in good.items()}
        samples, timing, host = _measure(good, case.device, seconds, case.rounds)
        if case.kernels and case.device == "cuda":
            timing |= {name: f"{timing[name]}, {_kernels(call)} kernels" for name, call in good.items()}
        return [
            _row(case, name, verdicts.get(name), samples, timing.get(name, ""), host.get(name), peaks.get(name))
            for name in contenders
        ]
    finally:
        torch.set_num_threads(before)


def _measure(
    contenders: dict[str, Callable[[], object]], device: str, seconds: float, rounds: int
) -> tuple[dict[str, list[float]], dict[str, str], dict[str, float]]:
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    timing = dict.fromkeys(contenders, "clock")
    host: dict[str, float] = {}
    calls = dict(contenders)
    for call in calls.values():
        for _ in range(rounds // 2):
            call()
    if device == "cuda":
        for name, call in contenders.items():
            host[name] = _host_us(call)
            try:
                calls[name], timing[name] = captured(call), "graph"
            except Exception as error:  # not every contender can be captured; it still deserves a time
                timing[name] = f"events (no graph: {type(error).__name__})"
    once = time_cuda if device == "cuda" else _time_clock
    deadline = time.perf_counter() + seconds * len(calls)
    gc.collect()
    gc.disable()
    try:
        # Everyone gets a turn in every round, so that a slow spell of the machine falls on all alike.
        while len(next(iter(samples.values()), [])) < rounds or time.perf_counter() < deadline:
            for name, call in calls.items():
                samples[name].append(once(call))
            if len(next(iter(samples.values()), [])) >= 2000 or not samples:
                break
    finally:
        gc.enable()
    return samples, timing, host


def _time_clock(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


@functools.cache
def _flush_buffer() -> torch.Tensor:
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.empty(max(2 * l2, 1 << 26), dtype=torch.uint8, device="cuda")


def time_cuda(call: Callable[[], object]) -> float:
    """Microseconds of one call on the current stream, behind a flush of the L2 cache."""
    _flush_buffer().zero_()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def _host_us(call: Callable[[], object]) -> float:
    """What one call costs the host, without waiting for the device."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        call()
    spent = (time.perf_counter() - start) / 20 * 1e6
    torch.cuda.synchronize()
    return spent


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph. Raises what capturing it raises."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    finally:
        torch.cuda.synchronize()
    return graph.replay


def _kernels(call: Callable[[], object]) -> int:
    """How many kernels a call launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiled.events())


def _peak_mib(call: Callable[[], object], device: str) -> float | None:
    """The most memory that a call holds beyond what was held before it, its result included."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    call()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later would hide what the call needs
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of resident memory
        before = _status_kib("VmRSS")
        call()
        return max(0, _status_kib("VmHWM") - before) / 1024
    except (OSError, AttributeError):  # not Linux, or not glibc
        return None


def _status_kib(name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match.group(1)) if match else 0


@functools.cache
def copy_bandwidth(device: str, threads: int) -> float:
    """Measured bytes per second of a large copy, counting reads and writes: the ceiling of memory-bound code here."""
    source = torch.empty((1 << 28 if device == "cpu" else 1 << 30) // 4, device=device).fill_(1.0)
    target = torch.empty_like(source).copy_(source)
    once = time_cuda if device == "cuda" else _time_clock
    spent = statistics.median(once(lambda: target.copy_(source)) for _ in range(15))
    return 2 * source.nbytes / (spent * 1e-6)


@functools.cache
def _device(device: str) -> tuple[str, str, str, float | None]:
    """Name, clocks, driver and peak bytes per second of the device that the rows speak of."""
    if device == "cpu":
        name = platform.processor() or platform.machine()
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        except (OSError, StopIteration):
            pass
        tier = os.environ.get("FASTFACE_CPU_TIER", "")
        return f"{name} x{os.cpu_count()}" + (f" {tier}" if tier else ""), "", platform.release(), None
    name = torch.cuda.get_device_name()
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        driver = pynvml.nvmlSystemGetDriverVersion()
        memory = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM)
        graphics = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
        # Two transfers a clock, on every wire of the bus.
        peak = memory * 1e6 * 2 * pynvml.nvmlDeviceGetMemoryBusWidth(handle) / 8
        return name, f"sm {graphics} MHz, memory {memory} MHz (max)", driver, peak
    except Exception as error:  # the numbers of a benchmark must not hang on a management library
        return name, f"unknown ({type(error).__name__})", "", None


@functools.cache
def _commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip()


def _row(
    case: Case,
    name: str,
    verdict: Verdict | None,
    samples: dict[str, list[float]],
    timing: str,
    host: float | None,
    peak_mib: float | None,
) -> Row:
    def median(provider: str) -> float | None:
        return statistics.median(samples[provider]) if samples.get(provider) else None

    def ratio(provider: str) -> float | None:
        other, mine = median(provider), median(name)
        return other / mine if other and mine else None

    spent = median(name)
    deciles = statistics.quantiles(samples[name], n=10) if spent else None
    rate = case.bytes / (spent * 1e-6) if spent and case.bytes else None
    device, clocks, driver, peak = _device(case.device)
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = ""
    return Row(
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
        op=case.op,
        provider=name,
        shape=case.shape,
        variant=case.variant,
        dtype=case.dtype,
        layout=case.layout,
        batch=case.batch,
        threads=case.threads if case.device == "cpu" else 0,
        check="baseline" if verdict is None else "ok" if verdict.ok else f"wrong: {verdict}",
        error=verdict.error if verdict else None,
        limit=verdict.limit if verdict else None,
        median_us=spent,
        p20_us=deciles[1] if deciles else None,
        p80_us=deciles[7] if deciles else None,
        samples=len(samples.get(name, [])),
        timing=timing,
        host_us=host,
        speedup_eager=ratio("eager"),
        speedup_compile=ratio("compile"),
        bytes=case.bytes,
        flops=case.flops,
        gb_per_s=rate / 1e9 if rate else None,
        share_of_copy=rate / copy_bandwidth(case.device, case.threads) if rate else None,
        share_of_peak=rate / peak if rate and peak else None,
        peak_mib=peak_mib,
        device=device,
        clocks=clocks,
        driver=driver,
        torch=torch.__version__,
        triton=triton_version,
        python=platform.python_version(),
        fastface=fastface.__version__,
        commit=_commit(),
    )


def append_csv(rows: Iterable[Row], folder: Path) -> Path:
    """Append rows to ``<folder>/<device>.csv``, with a header where the file is new."""
    rows = list(rows)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^A-Za-z0-9]+", "_", rows[0].device).strip("_").lower() + ".csv")
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()})
    return path


def table(rows: Iterable[Row]) -> str:
    """The rows as aligned text."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    header = ["case", "provider", "median", "p20-p80", "x eager", "x compile", "GB/s", "of copy", "peak MiB", "check"]
    lines = [header]
    last = ""
    for row in rows:
        parts = [row.op, row.shape, row.variant, row.dtype, row.layout if row.layout != "contiguous" else ""]
        parts += [f"batch {row.batch}", f"{row.threads} threads" if row.threads else ""]
        name = " ".join(part for part in parts if part)
        scale, unit = (1e3, "ms") if row.median_us and row.median_us >= 1000 else (1, "us")
        lines.append(
            [
                name if name != last else "",
                row.provider,
                "" if row.median_us is None else f"{row.median_us / scale:.3g} {unit}",
                ""
                if row.p20_us is None or row.p80_us is None
                else f"{row.p20_us / scale:.3g}-{row.p80_us / scale:.3g}",
                number(row.speedup_eager, ".2f"),
                number(row.speedup_compile, ".2f"),
                number(row.gb_per_s, ".1f"),
                number(row.share_of_copy, ".0%"),
                number(row.peak_mib, ".1f"),
                row.check + ("" if row.error is None or row.check != "ok" else f" ({row.error:.1e})"),
            ]
        )
        last = name
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
