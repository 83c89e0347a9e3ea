"""Times every backend against eager PyTorch and torch.compile of the reference, prints a table and writes a CSV row per
contender.

Contenders take turns, medians are quoted, and a backend whose result is wrong gets no time.

  fastface bench                        the published shapes of every op, on the GPU where there is one
  fastface bench warp --full            also 16-bit types, layouts, batch and threads
  fastface bench compose_flow --no-compile --csv rows/
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import torch
from tqdm import tqdm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="*", help="hot paths, ops or models, for example warp or compose_flow (default: all)"
    )
    parser.add_argument("--full", action="store_true", help="every case, not only the published shapes")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one, else cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time per contender (default 2)")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes long to compile"
    )
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="append the rows to FOLDER/<device>.csv")
    parser.add_argument("--json", action="store_true", help="print one JSON object a row instead of the table")


def run(args: argparse.Namespace) -> int:
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch sees no GPU here; `fastface doctor` tells more", file=sys.stderr)
        return 2
    if not args.seconds > 0:
        print(f"--seconds must be positive, got {args.seconds}", file=sys.stderr)
        return 2
    modules = {module.SLUG: module for module in _modules()}
    known = sorted(modules) + sorted(op for module in modules.values() for op in module.OPS)
    unknown = [word for word in args.what if word not in known]
    if unknown:
        print(f"nothing to time is called {unknown[0]!r}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    cases = [
        case
        for slug, module in modules.items()
        for case in module.cases(device, not args.full, not args.no_compile)
        if not args.what or slug in args.what or case.op in args.what
    ]
    harness = importlib.import_module(_package() + ".harness")
    rows = []
    for case in tqdm(cases, desc="bench", unit="case", disable=not sys.stderr.isatty()):
        new = harness.run_case(case, args.seconds)
        rows += new
        if args.csv:
            harness.append_csv(new, args.csv)
        if args.json:
            for row in new:
                print(json.dumps(dataclasses.asdict(row)), flush=True)
    if not args.json:
        print(harness.table(rows))
    return 1 if any(row.check.startswith("wrong") and row.provider != "compile" for row in rows) else 0


def _package() -> str:
    """The benchmarks are `fastface._benchmarks` where installed, and the folder `benchmarks` in a checkout."""
    if importlib.util.find_spec("fastface._benchmarks"):
        return "fastface._benchmarks"
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:
        sys.path.append(root)
    return "benchmarks"


def _modules() -> list[ModuleType]:
    package = importlib.import_module(_package())
    names = sorted(path.stem for folder in package.__path__ for path in Path(folder).glob("bench_*.py"))
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]
