"""Draws the README's picture of speeds and writes its table, from the rows in benchmarks/data.

python -m benchmarks.report            newest row of every case; rewrites docs/speed.png and the table in README.md
python -m benchmarks.report --check    exits with 1 if README.md holds another table than the rows give
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "benchmarks" / "data"
BEGIN, END = "<!-- speeds: made by python -m benchmarks.report -->", "<!-- /speeds -->"
CASE = ("device", "op", "shape", "variant", "dtype", "layout", "batch", "threads")
BASELINES = ("eager", "compile")

Row = dict[str, str]


def newest(folder: Path = DATA) -> list[Row]:
    """The newest row of every contender of every case, in the order in which cases first appeared."""
    rows: dict[tuple[str, ...], Row] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                rows[(*(row[name] for name in CASE), row["provider"])] = row
    return list(rows.values())


def case_name(row: Row) -> str:
    """What tells a case from others of its device, in words."""
    parts = [row["op"], row["variant"], row["shape"] if row["shape"] != "live_portrait" else "", row["dtype"]]
    parts += [
        row["layout"] if row["layout"] != "contiguous" else "",
        f"batch {row['batch']}" if row["batch"] != "1" else "",
    ]
    parts += [f"{row['threads']} thread{'s' * (row['threads'] != '1')}" if row["threads"] not in ("", "0") else ""]
    return ", ".join(part for part in parts if part)


def milliseconds(row: Row | None) -> str:
    return "" if row is None or not row["median_us"] else f"{float(row['median_us']) / 1e3:.3g}"


def markdown(rows: list[Row]) -> str:
    """One table per device: medians, ratios, memory and error of each kernel backend."""
    parts = []
    for device in dict.fromkeys(row["device"] for row in rows):
        mine = [row for row in rows if row["device"] == device]
        versions = f"torch {mine[-1]['torch']}, Python {mine[-1]['python']}"
        parts += [f"\n{device}, {versions}; milliseconds are medians, contenders took turns in one process.\n"]
        parts += [
            "| case | backend | ms | eager ms | compile ms | x eager | x compile | peak MiB | error |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        groups: dict[tuple[str, ...], dict[str, Row]] = {}
        for row in mine:
            groups.setdefault(tuple(row[name] for name in CASE), {})[row["provider"]] = row
        for group in groups.values():
            eager, compiled = group.get("eager"), group.get("compile")
            for provider, row in group.items():
                if provider in BASELINES:
                    continue
                wrong = row["check"].startswith("wrong")
                cells = [
                    case_name(row),
                    provider,
                    "wrong" if wrong else milliseconds(row),
                    milliseconds(eager),
                    milliseconds(compiled),
                ]
                cells += [
                    f"{float(row[name]):.1f}" if row[name] else ""
                    for name in ("speedup_eager", "speedup_compile", "peak_mib")
                ]
                cells.append(f"{float(row['error']):.0e}" if row["error"] else "")
                parts.append("| " + " | ".join(cells) + " |")
    return "\n".join(parts).strip() + "\n"


def draw(rows: list[Row], path: Path) -> None:
    """Bars: how many times faster than eager PyTorch each backend is, with torch.compile beside it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wanted = [
        row for row in rows if row["shape"] == "live_portrait" and row["batch"] == "1" and row["layout"] == "contiguous"
    ]
    device = next((row["device"] for row in wanted), "")
    wanted = [row for row in wanted if row["device"] == device and row["dtype"] == "float32" and row["speedup_eager"]]
    threads = max((int(row["threads"] or 0) for row in wanted), default=0)
    wanted = [row for row in wanted if int(row["threads"] or 0) == threads]
    names = list(dict.fromkeys(f"{row['op']}\n{row['variant']}" for row in wanted))
    providers = [p for p in ("compile", "cpu", "triton", "cuda") if any(row["provider"] == p for row in wanted)]
    figure, axes = plt.subplots(figsize=(10, 3.4), dpi=120)
    colours = {"compile": "#b8c0cc", "cpu": "#2a6fdb", "triton": "#e08e2b", "cuda": "#4c9a4c"}
    for offset, provider in enumerate(providers):
        heights = {
            f"{row['op']}\n{row['variant']}": float(row["speedup_eager"])
            for row in wanted
            if row["provider"] == provider
        }
        places = [i + (offset - (len(providers) - 1) / 2) * 0.38 for i in range(len(names))]
        values = [heights.get(name, 0.0) for name in names]
        bars = axes.bar(
            places,
            values,
            0.36,
            color=colours[provider],
            label="torch.compile" if provider == "compile" else f"fastface {provider}",
        )
        axes.bar_label(bars, [f"{value:.1f}x" if value else "" for value in values], fontsize=8)
    axes.axhline(1, color="#555", linewidth=0.8)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_ylabel("times faster than\neager PyTorch")
    axes.set_title(f"{device}, {threads} threads, float32, LivePortrait shapes", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if the README's table is not of these rows"
    )
    args = parser.parse_args()
    rows = newest()
    if not rows:
        print(f"no rows in {DATA}: run python -m fastface bench --csv benchmarks/data", file=sys.stderr)
        return 2
    readme = ROOT / "README.md"
    before, found, rest = readme.read_text().partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        print(f"README.md has no lines {BEGIN!r} and {END!r} to put the table between", file=sys.stderr)
        return 2
    text = f"{before}{BEGIN}\n\n{markdown(rows)}\n{END}{after}"
    if args.check:
        return 0 if text == readme.read_text() else 1
    readme.write_text(text)
    draw(rows, ROOT / "docs" / "speed.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
