"""Turns benchmark rows of a GPU into entries of fastface/ops/_measured.json, the table that chooses default backends.

  python benchmarks/measured.py rows/*.csv            prints the merged table
  python benchmarks/measured.py rows/*.csv --write    writes it

A backend is listed for an op and a shape class ("single" image or "batch") only if in every case of that class its
result was right and its median beat the eager reference's; fastest first, by the geometric mean of its times. A device
keeps its old entry for a class that the rows do not cover.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "fastface" / "ops" / "_measured.json"
BACKENDS = ("triton", "cuda")
CASE = ("shape", "variant", "dtype", "layout", "batch")

Table = dict[str, dict[str, dict[str, list[str]]]]


def rank(rows: Iterable[Mapping[str, str]]) -> Table:
    """{device: {op: {class: backends, fastest first}}} from rows as `fastface bench` writes them; GPU rows only."""
    # (device, op, class) -> case -> provider -> row; a later row of the same case replaces an earlier one.
    groups: dict[tuple[str, str, str], dict[tuple[str, ...], dict[str, Mapping[str, str]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in rows:
        if int(row["threads"]) == 0:  # a CPU row names its threads
            group = (row["device"], row["op"], "single" if row["batch"] == "1" else "batch")
            groups[group][tuple(row[name] for name in CASE)][row["provider"]] = row
    table: Table = {}
    for (device, op, shape_class), cases in groups.items():
        order = sorted((backend for backend in BACKENDS if _wins(backend, cases.values())), key=_mean_time(cases))
        table.setdefault(device, {}).setdefault(op, {})[shape_class] = order
    return table


def _wins(backend: str, cases: Iterable[Mapping[str, Mapping[str, str]]]) -> bool:
    for case in cases:
        mine, eager = case.get(backend), case.get("eager")
        if mine is None or eager is None or mine["check"] != "ok":
            return False
        if not float(mine["median_us"]) < float(eager["median_us"]):
            return False
    return True


def _mean_time(cases: Mapping[tuple[str, ...], Mapping[str, Mapping[str, str]]]):  # noqa: ANN202, a sort key
    return lambda backend: statistics.geometric_mean(float(case[backend]["median_us"]) for case in cases.values())


def merge(old: Table, new: Table) -> Table:
    """`old` with the classes that `new` covers replaced."""
    merged = json.loads(json.dumps(old))
    for device, ops in new.items():
        for op, classes in ops.items():
            merged.setdefault(device, {}).setdefault(op, {}).update(classes)
    return merged


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=Path, help="CSV files of `fastface bench --csv`")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name} instead of printing it")
    args = parser.parse_args()
    rows: list[dict[str, str]] = []
    for path in args.rows:
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    text = json.dumps(merge(json.loads(TABLE.read_text()), rank(rows)), indent=2, sort_keys=True) + "\n"
    if args.write:
        TABLE.write_text(text)
        print(f"wrote {TABLE}", file=sys.stderr)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
