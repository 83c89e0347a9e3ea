"""Draws the picture of speeds and writes the tables, from the newest rows in benchmarks/data: docs/speed.png, the main
cases in README.md, all of them in docs/speed.md.

python -m benchmarks.report            rewrites them
python -m benchmarks.report --check    exits with 1 if a table is another than the rows give
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
KERNELS = ("cpu", "triton", "cuda")
BASELINES = ("eager", "compile", "addcmul")
_LAYOUTS = {"render_planes": "channels_last", "sample_planes": "channels_last"}  # where not contiguous
HEAD = """# Measured speeds

Every case of `python -m fastface bench --full --csv benchmarks/data`, the newest row of each; `python -m
benchmarks.report` writes this page. "eager" is the reference in plain PyTorch, "compile" that under `torch.compile`,
and "of copy" the share of the measured copy bandwidth that the bytes of the model come to: every input read once (x of
a norm twice), every output written once. In a model's rows "plain" is its modules on the kernels, "optimized" those
after `fastface.engine.optimize`, "stream" their live form, "bfloat16" these with their convolutions in 16 bits.
"""

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


def main_cases(rows: list[Row]) -> list[Row]:
    """Batch 1 with all threads, in the layout of each op and the type of each device that are mostly used."""
    most = {row["device"]: max(int(r["threads"] or 0) for r in rows if r["device"] == row["device"]) for row in rows}
    return [
        row
        for row in rows
        if (row["batch"], row["layout"]) == ("1", _LAYOUTS.get(row["op"], "contiguous"))
        and row["shape"] != "face_vid2vid"
        and row["dtype"] == ("float16" if "NVIDIA" in row["device"] else "float32")
        and int(row["threads"] or 0) == most[row["device"]]
    ]


def markdown(rows: list[Row]) -> str:
    """One table per device: medians, ratios, share of the copy bandwidth, memory and error of each kernel backend."""
    parts = []
    for device in dict.fromkeys(row["device"] for row in rows):
        mine = [row for row in rows if row["device"] == device]
        versions = f"torch {mine[-1]['torch']}, Python {mine[-1]['python']}"
        parts += [f"\n{device}, {versions}; milliseconds are medians, contenders took turns in one process.\n"]
        parts += [
            "| case | backend | ms | eager ms | compile ms | x eager | x compile | of copy | peak MiB | error |",
            "|---|---|---|---|---|---|---|---|---|---|",
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
                    f"{float(row[name]):.1f}" if row[name] else "" for name in ("speedup_eager", "speedup_compile")
                ]
                cells.append(f"{float(row['share_of_copy']):.0%}" if row["share_of_copy"] else "")
                cells.append(f"{float(row['peak_mib']):.1f}" if row["peak_mib"] else "")
                cells.append(f"{float(row['error']):.0e}" if row["error"] else "")
                parts.append("| " + " | ".join(cells) + " |")
    return "\n".join(parts).strip() + "\n"


def pages(rows: list[Row]) -> dict[Path, str]:
    """The texts of README.md and docs/speed.md with the tables of these rows. Raises ValueError without the marks."""
    readme = ROOT / "README.md"
    before, found, rest = readme.read_text().partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"README.md has no lines {BEGIN!r} and {END!r} to put the table between")
    return {
        readme: f"{before}{BEGIN}\n\n{markdown(main_cases(rows))}\n{END}{after}",
        ROOT / "docs" / "speed.md": f"{HEAD}\n{markdown(rows)}",
    }


def label(row: Row) -> str:
    return f"{row['op']}\n{row['variant'] if row['op'] != 'modulated_norm' else row['shape']}"


def draw(rows: list[Row], path: Path) -> None:
    """Bars: how many times faster than eager PyTorch each backend is, with torch.compile beside it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wanted = [row for row in main_cases(rows) if row["speedup_eager"] and row["provider"] in (*KERNELS, "compile")]
    device = next((row["device"] for row in wanted), "")
    ops = {row["op"] for row in wanted if row["provider"] in KERNELS}  # models are in the tables
    wanted = [row for row in wanted if row["device"] == device and row["op"] in ops - {"lifted_render"}]
    names = list(dict.fromkeys(label(row) for row in wanted))
    providers = [p for p in ("compile", *KERNELS) if any(row["provider"] == p for row in wanted)]
    figure, axes = plt.subplots(figsize=(10, 3.4), dpi=120)
    colours = {"compile": "#b8c0cc", "cpu": "#2a6fdb", "triton": "#e08e2b", "cuda": "#4c9a4c"}
    for offset, provider in enumerate(providers):
        heights = {label(row): float(row["speedup_eager"]) for row in wanted if row["provider"] == provider}
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
    axes.set_yscale("log")
    axes.set_title(f"{device}, {wanted[0]['threads']} threads, {wanted[0]['dtype']}" if wanted else "", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a table is not of these rows"
    )
    args = parser.parse_args()
    rows = newest()
    if not rows:
        print(f"no rows in {DATA}: run python -m fastface bench --csv benchmarks/data", file=sys.stderr)
        return 2
    try:
        texts = pages(rows)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if args.check:
        return 0 if all(path.exists() and path.read_text() == text for path, text in texts.items()) else 1
    for path, text in texts.items():
        path.write_text(text)
    draw(rows, ROOT / "docs" / "speed.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
