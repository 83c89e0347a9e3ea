"""Runs every backend that can run here against the reference in float64, on fresh random inputs: odd sizes, 16-bit
types, sliced and channels_last tensors. Exits with 1 if any result is wrong.

  fastface selftest                     everything
  fastface selftest --op compose_flow --backend cuda
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from fastface.ops import _verify
from fastface.ops._backends import BACKENDS, registries


@dataclass(frozen=True)
class Row:
    """One case on one backend: `status` is ok, wrong, failed (it raised), or unusable here."""

    op: str
    backend: str
    case: str
    status: str
    note: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", choices=sorted(registries), action="append", help="only this op (may be repeated)")
    parser.add_argument("--backend", choices=BACKENDS[1:], action="append", help="only this backend (may be repeated)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random inputs (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a case, one per line")
    parser.add_argument("--verbose", action="store_true", help="print every case, not only the wrong ones")


def run(args: argparse.Namespace) -> int:
    ops, backends = args.op or sorted(registries), args.backend or list(BACKENDS[1:])
    jobs = [
        (op, backend, device, *rest) for op, backend, device in _targets(ops, backends) for rest in _verify.selftest(op)
    ]
    rows = []
    for op, backend, device, shape, options in tqdm(
        jobs, desc="selftest", unit="case", disable=not sys.stderr.isatty()
    ):
        rows.append(_check(op, backend, device, shape, options, args.seed))
        if args.json:
            print(json.dumps(vars(rows[-1])))
    if not args.json:
        _print(rows, args.verbose)
    bad = [row for row in rows if row.status in ("wrong", "failed")]
    if not any(row.status == "ok" for row in rows):
        print("no kernel backend could run here: `fastface doctor` says why", file=sys.stderr)
        return 1
    return 1 if bad else 0


def _targets(ops: list[str], backends: list[str]) -> Iterator[tuple[str, str, str]]:
    """Every op and backend, on the device that the backend runs on."""
    for op, backend in itertools.product(ops, backends):
        on_gpu = backend == "cuda" or (backend == "triton" and torch.cuda.is_available())
        yield op, backend, "cuda" if on_gpu and torch.cuda.is_available() else "cpu"


def _check(op: str, backend: str, device: str, shape: str, options: dict, seed: int) -> Row:
    name = " ".join([shape, *(f"{key}={str(value).removeprefix('torch.')}" for key, value in options.items())])
    if backend == "triton" and device == "cpu" and shape not in ("odd", "tiny"):
        return Row(op, backend, name, "unusable", "too large for Triton's interpreter")
    case = _verify.inputs(op, shape, device=device, seed=seed, **options)
    args, kwargs = case.arguments
    reason = registries[op].implementations[backend].refuse(registries[op].build(op, *args, **kwargs))
    if reason:
        return Row(op, backend, name, "unusable", reason)
    try:
        verdict = _verify.verify(case, backend)
    except Exception as error:  # a backend that raises is a finding, not the end of the test
        return Row(op, backend, name, "failed", f"{type(error).__name__}: {error}")
    return Row(op, backend, name, "ok" if verdict.ok else "wrong", str(verdict))


def _print(rows: list[Row], verbose: bool) -> None:
    for (op, backend), group_rows in itertools.groupby(rows, key=lambda row: (row.op, row.backend)):
        group = list(group_rows)
        counts = {
            status: sum(row.status == status for row in group) for status in ("ok", "wrong", "failed", "unusable")
        }
        if counts["unusable"] == len(group):
            print(f"{op:<16}{backend:<11}not usable here: {group[0].note}")
            continue
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        print(f"{op:<16}{backend:<11}{told}")
        for row in group:
            if verbose or row.status in ("wrong", "failed"):
                print(f"    {row.status:<9}{row.case}: {row.note}")
