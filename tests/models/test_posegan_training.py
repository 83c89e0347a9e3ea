"""PoseGAN's and PGFace's losses and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fastface.engine import optimize
from fastface.models.posegan import (
    PGFace,
    PoseDiscriminator,
    PoseDiscriminatorConfig,
    PoseGAN,
    Shape,
    load,
    losses,
    save,
)
from tests.models.small_posegan import MEAN, STD, motion, small_pgface, small_posegan

# Losses


def test_pose_loss_by_hand() -> None:
    poses, target = torch.randn(2, 7, 6), torch.randn(2, 7, 6)
    judged = [[torch.randn(2, 3, 4), torch.randn(2, 1, 4)]]
    found = losses.pose_loss(poses, target, judged)
    gap = poses - target
    assert torch.isclose(found["initial"], 10 * gap[:, 0].square().mean())
    assert torch.isclose(found["pose"], gap.square().mean())
    assert torch.isclose(found["velocity"], 10 * (gap[:, 1:] - gap[:, :-1]).square().mean(), rtol=1e-4)
    assert torch.isclose(found["adversarial"], 0.1 * (judged[0][-1] - 1).square().mean())
    weights = losses.PoseLossWeights(initial=0, pose=2, velocity=0, adversarial=0)
    assert torch.isclose(sum(losses.pose_loss(poses, target, judged, weights).values()), 2 * found["pose"])
    assert "adversarial" not in losses.pose_loss(poses, target)
    assert not any(losses.pose_loss(poses, poses).values())


def test_face_loss_by_hand() -> None:
    shape = Shape(torch.randn(2, 5, 4), torch.randn(2, 5, 3))
    target = Shape(torch.randn(2, 1, 4), torch.randn(2, 5, 3))
    found = losses.face_loss(shape, target)
    gap = shape.expression - target.expression
    assert torch.isclose(found["expression"], 20 * gap.square().mean())
    assert torch.isclose(found["velocity"], 200 * gap.diff(dim=1).square().mean(), rtol=1e-4)
    assert torch.isclose(found["identity"], (shape.identity - target.identity).square().mean())
    assert torch.isclose(losses.face_loss(shape, target, losses.FaceLossWeights(identity=3))["identity"],
                         3 * found["identity"])  # fmt: skip


def test_discriminator_loss_by_hand() -> None:
    real, fake = [[torch.randn(2, 1, 4)]], [[torch.randn(2, 1, 4)]]
    expected = ((real[0][0] - 1).square().mean() + fake[0][0].square().mean()) / 2
    assert torch.isclose(losses.discriminator_loss(real, fake), expected)
    assert losses.discriminator_loss([[torch.ones(1, 1, 2)]], [[torch.zeros(1, 1, 2)]]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.pose_loss(torch.zeros(2, 1, 6), torch.zeros(2, 1, 6)), r"poses must be \[B, T, N\] with T at"),
        (lambda: losses.pose_loss(torch.zeros(2, 3, 6), torch.zeros(2, 4, 6)), r"got \[2, 3, 6\] and \[2, 4, 6\]"),
        (
            lambda: losses.face_loss(
                Shape(torch.zeros(1, 3, 2), torch.zeros(1, 3, 5)), Shape(torch.zeros(1, 1, 2), torch.zeros(1, 3, 4))
            ),
            r"expression must be .* got \[1, 3, 5\] and \[1, 3, 4\]",
        ),
    ],
)
def test_losses_refuse(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_both_learn() -> None:
    """A few steps on one window: the pose's objective with its discriminator, and the face's, fall."""
    torch.manual_seed(0)
    posegan, pgface = small_posegan().train(), small_pgface().train()
    discriminator = PoseDiscriminator(PoseDiscriminatorConfig(channels=4)).train()
    features, poses = motion(64, 2)
    target = posegan.statistics.normalize(poses)
    wanted = Shape(torch.randn(2, 1, 4), torch.randn(2, 64, 5))
    optimizers = [torch.optim.Adam(n.parameters(), 5e-3) for n in (posegan, pgface, discriminator)]
    totals = []
    for _ in range(25):
        moved = posegan.statistics.normalize(posegan(features, poses[:, 0]))
        judged = losses.discriminator_loss(discriminator(target), discriminator(moved.detach()))
        optimizers[2].zero_grad()
        judged.backward()
        optimizers[2].step()
        terms = losses.pose_loss(moved, target, discriminator(moved))
        face = losses.face_loss(pgface(features, poses), wanted)
        for optimizer in optimizers[:2]:
            optimizer.zero_grad()
        both = [torch.stack(list(each.values())).sum() for each in (terms, face)]
        torch.stack(both).sum().backward()
        for optimizer in optimizers[:2]:
            optimizer.step()
        totals.append([each.item() for each in both])
    for first, last in zip(totals[0], totals[-1], strict=True):
        assert last < 0.9 * first


# Files


@pytest.mark.parametrize(
    "network", [small_posegan(aligned=True, face="hash"), small_pgface(norm_last=True, speech="mel")]
)
def test_a_file_carries_everything(network: PoseGAN | PGFace, tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.safetensors"
    save(network, path)
    found = load(path, type(network))
    assert type(found) is type(network) and found.config == network.config and not found.training
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(found.statistics.mean, MEAN) and torch.equal(found.statistics.std, STD)
    features, poses = motion(20)
    second = poses[:, 0] if isinstance(network, PoseGAN) else poses
    one, other = (result if isinstance(result, tuple) else (result,) for result in
                  (network(features, second), found(features, second)))  # fmt: skip
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    assert [each.name for each in path.parent.iterdir()] == ["weights.safetensors"]
    written = path.read_bytes()
    save(network, path)
    assert path.read_bytes() == written


def rewritten(path: Path, **changes: Any) -> Path:
    """A file of PGFace with other metadata."""
    save(small_pgface(), path)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["fastface.posegan"])
    save_file(load_file(path), path, {"fastface.posegan": json.dumps({**about, **changes})})
    return path


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"

    def refused(kind: type[PoseGAN] | type[PGFace], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load(path, kind)

    refused(PGFace, "no such checkpoint file")
    save(small_pgface(), path)
    refused(PoseGAN, "weights.safetensors must hold a PoseGAN of fastface, got PGFace")
    save_file({"weight": torch.zeros(2)}, path)
    refused(PGFace, "must hold a PGFace of fastface, got something else")
    save_file({"weight": torch.zeros(2)}, path, {"fastface.posegan": "{"})
    refused(PGFace, "the configuration in .* cannot be read")
    rewritten(path, version=2)
    refused(PGFace, "must be of version 1, got 2")
    rewritten(path, config={"depth": 3})
    refused(PGFace, "does not fit layout PGFace: .*unexpected keyword argument 'depth'")
    rewritten(path, config={})
    refused(PGFace, r"of another shape \(convs.0.0.weight \[6, 35, 3\] instead of \[32, 35, 3\]")
    path.write_bytes(path.read_bytes()[:-40])
    refused(PGFace, "cannot be read")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="weights.pth must hold a PGFace of fastface, got something else"):
        load(tmp_path / "weights.pth", PGFace)


def test_what_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(TypeError, match="network must be a PoseGAN or a PGFace, got Linear"):
        save(nn.Linear(1, 1), path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the output must end in .safetensors, got .*weights.pth"):
        save(small_pgface(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="network must be as it was before optimize"):
        save(optimize(small_pgface()), path)
    assert list(tmp_path.iterdir()) == []
