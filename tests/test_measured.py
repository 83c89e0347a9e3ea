"""The table of default backends follows from rows: right and faster than eager everywhere, the fastest first."""

from __future__ import annotations

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
