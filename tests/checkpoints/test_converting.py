"""Public checkpoints to .safetensors: recognised, checked, read back the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastface.apps.cli import main
from fastface.checkpoints import convert, layouts, load_checkpoint, read_parts, recognise
from tests import goldens

SMALL = ("live_portrait.stitching", "live_portrait.retarget_lip", "live_portrait.retarget_eye")
PARTS = {"retarget_shoulder": SMALL[0], "retarget_mouth": SMALL[1], "retarget_eye": SMALL[2]}


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, Tensor]]:
    names = [*SMALL, "live_portrait.appearance_feature_extractor", "headgan.discriminator"]
    return {name: goldens.seeded_state_dict(name) for name in names}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_every_layout_is_recognised_by_its_names() -> None:
    for layout in layouts():
        state = goldens.seeded_state_dict(layout) if layout in SMALL else _shapes(layout)
        # Both discriminators of HeadGAN have the same names, and the same module.
        assert recognise(state) in (layout, layout.replace("mouth_discriminator", "discriminator"))


def _shapes(layout: str) -> dict[str, Tensor]:
    """Entries of a layout without memory behind them, spectral norm as if folded."""
    described = json.loads((goldens.FOLDER / f"{layout}.json").read_text())
    kept = [entry for entry in described["entries"] if not entry[0].endswith(("weight_u", "weight_v"))]
    return {name.replace("weight_orig", "weight"): torch.zeros(()).expand(shape) for name, shape, _ in kept}


@pytest.mark.parametrize("name", ["live_portrait.appearance_feature_extractor", "headgan.discriminator"])
def test_a_converted_file_is_the_same_model(name: str, states, tmp_path: Path) -> None:
    torch.save(states[name], tmp_path / "in.pth")
    (done,) = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert done.layout == name and done.entries == len(states[name])
    assert done.folded == sum(entry.endswith("weight_orig") for entry in states[name])
    assert same(load_checkpoint(tmp_path / "out.safetensors", name), load_checkpoint(states[name], name))


def test_a_file_of_several(states, tmp_path: Path) -> None:
    parts = {part: {f"module.{k}": v for k, v in states[name].items()} for part, name in PARTS.items()}
    torch.save(parts, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert {each.part: each.layout for each in done} == PARTS
    assert list(read_parts(tmp_path / "out.safetensors")) == list(PARTS)
    for name in SMALL:
        for file in ("in.pth", "out.safetensors"):
            assert same(load_checkpoint(tmp_path / file, name), load_checkpoint(states[name], name))
    torch.save({**parts, "discriminator": {"conv.weight": torch.zeros(2, 3)}, "epoch": 7}, tmp_path / "more.pth")
    done = convert(tmp_path / "more.pth", tmp_path / "less.safetensors")
    assert [each.layout for each in done] == [*PARTS.values(), None]
    assert list(read_parts(tmp_path / "less.safetensors")) == list(PARTS)
    (one,) = convert(tmp_path / "in.pth", tmp_path / "lip.safetensors", SMALL[1])
    assert one.layout == SMALL[1]
    assert same(load_checkpoint(tmp_path / "lip.safetensors", SMALL[1]), load_checkpoint(states[SMALL[1]], SMALL[1]))


def test_what_cannot_be_converted(states, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a.weight": torch.zeros(3), "b.weight": torch.zeros(2)}, tmp_path / "strange.pth")
    torch.save({part: states[name] for part, name in PARTS.items()}, tmp_path / "parts.pth")
    wrong = dict(states[SMALL[1]])
    del wrong["mlp.2.bias"]
    torch.save(wrong, tmp_path / "hole.pth")
    cases = [
        (["strange.pth", "out.safetensors"], "no known layout"),
        (["hole.pth", "out.safetensors"], "missing"),
        (["hole.pth", "out.pth"], "must end in .safetensors"),
        (["parts.pth", "out.safetensors", "--layout", "headgan.generator"], "none of which"),
        (
            ["parts.pth", "out.safetensors", "--layout", "live_portrait.warping"],
            "did you mean live_portrait.warping_module",
        ),
        (["none.pth", "out.safetensors"], "no such checkpoint file"),
    ]
    for (source, target, *rest), message in cases:
        assert main(["convert", str(tmp_path / source), str(tmp_path / target), *rest]) == 2, message
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hole.pth", "parts.pth", "strange.pth"]


def test_command(states, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(states[SMALL[0]], tmp_path / "in.pth")
    assert main(["convert", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]) == 0
    told = capsys.readouterr().out
    assert SMALL[0] in told and "8 entries" in told
    assert main(["convert", str(tmp_path / "in.pth"), str(tmp_path / "new" / "out.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"][0]["layout"] == SMALL[0]


def test_networks_of_one_kind_are_not_taken_for_each_other(states) -> None:
    for given in SMALL:
        for asked in SMALL:
            if given != asked:
                with pytest.raises(ValueError, match="of K keypoints it takes"):
                    load_checkpoint(states[given], asked)
