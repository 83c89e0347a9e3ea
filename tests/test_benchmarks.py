"""The benchmark harness: a wrong result has no speed; the report reads what the harness wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import bench_posegan, harness, lips, report
from fastface.models.posegan.sync import LipSync
from fastface.ops import _verify


def case(wrong: bool) -> harness.Case:
    inputs = _verify.inputs("motion_field", "tiny")
    truth, yardstick = inputs.truth(), inputs.reference()

    def contender() -> torch.Tensor:
        return inputs.reference() + (0.1 if wrong else 0.0)

    return harness.Case(
        op="motion_field",
        shape="tiny",
        variant="translation",
        dtype="float32",
        layout="contiguous",
        batch=1,
        device="cpu",
        make=lambda: (
            {"eager": inputs.reference, "cpu": contender},
            {"cpu": lambda: _verify.compare(contender(), truth, yardstick)},
        ),
        bytes=1000,
        threads=1,
    )


def test_a_wrong_result_has_no_speed() -> None:
    eager, contender = harness.run_case(case(wrong=True), seconds=0.01)
    assert eager.check == "baseline" and eager.median_us
    assert contender.check.startswith("wrong: error 1.0") and contender.median_us is None and contender.gb_per_s is None


def test_rows_and_report_agree(tmp_path: Path) -> None:
    rows = harness.run_case(case(wrong=False), seconds=0.01)
    for _ in range(2):
        path = harness.append_csv(rows, tmp_path)
    assert path.read_text().count("motion_field") == 4
    newest = report.newest(tmp_path)
    assert [row["provider"] for row in newest] == ["eager", "cpu"]
    text = report.markdown(newest)
    assert "| motion_field, translation, tiny, float32, 1 thread | cpu |" in text
    eager, mine = (float(row["median_us"]) for row in newest)
    assert f"{eager / mine:.1f}" in text


def test_the_harness_restores_the_threads() -> None:
    before = torch.get_num_threads()
    harness.run_case(case(wrong=False), seconds=0.01)
    assert torch.get_num_threads() == before


def test_peak_memory_is_seen() -> None:
    peak = harness._peak_mib(lambda: torch.ones(64 << 20, dtype=torch.uint8), "cpu")
    if peak is None:
        pytest.skip("this system does not tell the peak of resident memory (/proc/self/clear_refs)")
    assert 60 < peak < 80


@pytest.mark.parametrize("op", ["pgface_step", "motion_step", "speaker"])
def test_live_motion_is_what_plain_modules_give(op) -> None:
    for each in bench_posegan.cases("cpu", quick=True, compiled=False):
        if (each.op, each.variant) == (op, "shipped"):
            first, *others = harness.run_case(replace(each, threads=1), seconds=0.001)
            assert first.check == "baseline" and all(row.check == "ok" and row.error < 1e-4 for row in others)


def test_a_line_of_lips() -> None:
    found = [LipSync(0.5, -0.01, 8.0), LipSync(0.7, 0.03, 9.0)]
    assert lips.line("me", found) == "| me | 2 | 0.60 | 10 | 0.50 to 0.70 | -10 to 30 |"


def test_the_tables_are_of_the_committed_rows() -> None:
    for path, text in report.pages(report.newest()).items():
        assert path.read_text() == text, f"{path.name}: run python -m benchmarks.report"
