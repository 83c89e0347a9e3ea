"""The table of default backends follows from rows: right and faster than eager everywhere, the fastest first."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.gpu_check import missed_aims
from benchmarks.measured import merge, rank


def row(provider: str, median: float | str, check: str = "ok", **other: str) -> dict[str, str]:
    case = {"device": "GPU", "op": "compose_flow", "shape": "s", "variant": "v", "dtype": "float16", "layout": "l"}
    return case | {"batch": "1", "threads": "0", "provider": provider, "median_us": str(median), "check": check} | other


def table(*rows: dict[str, str]) -> list[str]:
    return rank(rows)["GPU"]["compose_flow"]["single"]


def test_the_fastest_comes_first() -> None:
    assert table(row("eager", 9), row("triton", 4), row("cuda", 3)) == ["cuda", "triton"]
    assert table(row("eager", 9), row("triton", 3), row("cuda", 4)) == ["triton", "cuda"]


def test_wrong_slow_or_missing_in_one_case_is_out() -> None:
    good = [row("eager", 9, dtype="float32"), row("triton", 4, dtype="float32"), row("cuda", 3, dtype="float32")]
    assert table(*good, row("eager", 9), row("triton", 4), row("cuda", "", "wrong: error 1")) == ["triton"]
    assert table(*good, row("eager", 9), row("triton", 4), row("cuda", 10)) == ["triton"]
    assert table(*good, row("eager", 9), row("triton", 4)) == ["triton"]


def test_a_newer_row_of_a_case_counts() -> None:
    old = [row("eager", 9), row("triton", 4), row("cuda", "", "wrong: error 1")]
    assert table(*old, row("cuda", 3)) == ["cuda", "triton"]


def test_classes_and_devices_stay_apart() -> None:
    rows = [row("eager", 9), row("cuda", 3), row("eager", 90, batch="16"), row("triton", 30, batch="16")]
    cpu = [row("eager", 9, threads="2", device="CPU"), row("cpu", 1, threads="2", device="CPU")]
    assert rank(rows + cpu) == {"GPU": {"compose_flow": {"single": ["cuda"], "batch": ["triton"]}}}


def test_what_was_not_measured_again_is_kept() -> None:
    old = {"GPU": {"compose_flow": {"single": ["triton"], "batch": ["cuda"]}}, "Other": {"motion_field": {"any": []}}}
    new = {"GPU": {"compose_flow": {"single": []}, "pack_motions": {"single": ["cuda"]}}}
    merged = merge(old, new)
    assert merged["GPU"] == {"compose_flow": {"single": [], "batch": ["cuda"]}, "pack_motions": {"single": ["cuda"]}}
    assert merged["Other"] == old["Other"] and old["GPU"]["compose_flow"]["single"] == ["triton"]


def test_aims_on_a_gpu(tmp_path: Path) -> None:
    frame = {"op": "eg3d_frame", "shape": "512x512", "median_us": "3900", "speedup_eager": "2"}
    render = {"op": "render_planes", "shape": "eg3d_64", "median_us": "200", "speedup_eager": "5.2"}

    def missed(*changed: dict[str, str]) -> list[str]:
        rows = [{"dtype": "float16", "batch": "1", "provider": "cuda"} | row for row in changed]
        with (tmp_path / "rows.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return missed_aims([tmp_path / "rows.csv"])

    assert missed(frame, render) == []
    assert missed(frame, render, render | {"provider": "triton", "speedup_eager": "3"}) == []
    assert missed(frame | {"median_us": "4100"}, render) == ["eg3d_frame 512x512: median_us 4100.0, not at most 4000"]
    assert missed(frame, render | {"speedup_eager": "4.9"}) == [
        "render_planes eg3d_64: speedup_eager 4.9, not at least 5"
    ]
    assert missed(frame, render | {"dtype": "float32"}) == ["render_planes eg3d_64: speedup_eager None, not at least 5"]
    assert missed(frame, render | {"provider": "eager"}) == [
        "render_planes eg3d_64: speedup_eager None, not at least 5"
    ]
