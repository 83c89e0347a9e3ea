"""The commands as a user calls them: in a process of their own, by exit status and by what they print."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastface.apps.cli import COMMANDS
from fastface.ops._backends import registries


def fastface(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastface", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_teaches(command: str) -> None:
    done = fastface(command, "--help")
    assert done.returncode == 0
    assert f"fastface {command}" in done.stdout and "options:" in done.stdout
    assert len(done.stdout.splitlines()) > 8


def test_no_command_and_unknown_commands_are_refused() -> None:
    for arguments in ([], ["dance"]):
        done = fastface(*arguments)
        assert done.returncode == 2 and "usage: fastface" in done.stderr and "Traceback" not in done.stderr


def test_doctor_reports_in_text_and_in_json() -> None:
    done = fastface("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("packages", "native modules", "GPUs", "backends", "FASTFACE_BACKEND", "no problems found"):
        assert part in done.stdout
    report = json.loads(fastface("doctor", "--json").stdout)
    assert set(report["native"]) == {"cpu", "cuda"} and report["problems"] == []
    assert set(report["backends"]) == set(registries)


def test_doctor_shows_the_environment() -> None:
    report = json.loads(fastface("doctor", "--json", FASTFACE_BACKEND="reference").stdout)
    assert report["environment"]["FASTFACE_BACKEND"] == "reference"
    assert all(devices["cpu"]["runs"] == "reference" for devices in report["backends"].values())


def test_selftest_passes_here() -> None:
    done = fastface("selftest", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, [row for row in rows if row["status"] not in ("ok", "unusable")]
    assert sum(row["status"] == "ok" and row["backend"] == "cpu" for row in rows) >= 4 * 25


def test_selftest_fails_where_a_kernel_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check itself is checked: a backend that is off by a thousandth must be found."""
    from dataclasses import replace

    from fastface.apps import cli
    from fastface.ops import _backends
    from fastface.ops.warp import registry

    def run_wrong(call) -> None:
        registry.implementations["reference"].run(call)
        call.out.mul_(1.001)

    wrong = replace(registry.implementations["reference"], run=run_wrong)
    broken = replace(registry, implementations={**registry.implementations, "cpu": wrong})
    monkeypatch.setattr("fastface.ops.warp.registry", broken)
    monkeypatch.setitem(_backends.registries, "compose_flow", broken)
    assert cli.main(["selftest", "--op", "compose_flow", "--backend", "cpu"]) == 1
    assert "wrong" in capsys.readouterr().out


def test_bench_prints_a_table_and_appends_rows(tmp_path: Path) -> None:
    for _ in range(2):
        done = fastface(
            "bench", "motion_field", "--no-compile", "--seconds", "0.05", "--device", "cpu", "--csv", str(tmp_path)
        )
        assert done.returncode == 0, done.stderr
    assert "motion_field live_portrait translation float32" in done.stdout and "eager" in done.stdout
    (path,) = tmp_path.glob("*.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    # Two runs of two cases, eager and the CPU kernel in each; the second run is appended.
    assert [row["provider"] for row in rows] == ["eager", "cpu"] * 4
    for row in rows:
        assert float(row["median_us"]) > 0 and int(row["samples"]) >= 7
        assert row["check"] == ("baseline" if row["provider"] == "eager" else "ok")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["bench", "wrap"], "nothing to time is called 'wrap'; known: "),
        (["bench", "--seconds", "0"], "--seconds must be positive, got 0.0"),
        (["selftest", "--op", "wrap"], "invalid choice: 'wrap'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    done = fastface(*arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
