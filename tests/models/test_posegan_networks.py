"""PoseGAN's and PGFace's networks: shapes and counts, batches, windows against the whole, exact rewrites, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastface.engine import optimize
from fastface.models.posegan import (
    PGFace,
    PGFaceConfig,
    PoseDiscriminator,
    PoseDiscriminatorConfig,
    PoseGAN,
    PoseGANConfig,
    PoseStatistics,
    Shape,
)
from tests.models.small_posegan import (
    MEAN,
    STD,
    assert_batch_is_single,
    lived_in,
    motion,
    normalized,
    small_pgface,
    small_posegan,
)

LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.Linear)


def shapes(module: nn.Module, *arguments: Tensor) -> list[list[int]]:
    """Output shape of each convolution and linear layer, in order, without the batch."""
    seen: list[list[int]] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: seen.append(list(output.shape[1:])))
        for layer in module.modules()
        if isinstance(layer, LAYERS)
    ]
    module(*arguments)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("frames", [256, 128])
def test_layers_of_posegan(frames: int) -> None:
    """The printed window of 256 frames and FACIAL's of 128, whose trunk gives 66x2 and 34x2 positions."""
    with torch.device("meta"):
        network = PoseGAN().eval()
        found = shapes(network, torch.zeros(2, frames, 29), torch.zeros(2, 6))
    half, positions = frames // 2 + 1, {256: 66, 128: 34}[frames]
    trunk = [[32, half, 13], [128, positions - 1, 5], [256, positions, 2], [256, positions, 2]]
    down = [[width, frames // 2**level] for level, width in enumerate((256, 256, 512, 512, 512), 1)]
    up = [[width, frames // 2**level] for level, width in zip(range(4, -1, -1), (512, 512, 256, 256, 256), strict=True)]
    decoder = [[256, frames], [256, frames], [6, frames]]
    assert found == trunk + down + up + decoder


def test_layers_of_pgface() -> None:
    with torch.device("meta"):
        found = shapes(PGFace().eval(), torch.zeros(3, 5, 29), torch.zeros(3, 5, 6))
    assert found == [[32, 8], [32, 4], [64, 2], [64, 1], [128], [50], [80 + 64]]


def test_layers_of_the_discriminator() -> None:
    with torch.device("meta"):
        found = shapes(PoseDiscriminator().eval(), torch.zeros(2, 256, 6))  # 511 in time with the velocities
    assert found == [[64, 256], [128, 128], [256, 64], [512, 64], [1, 64]]


def test_parameters_of_the_defaults() -> None:
    def norm(*widths: int) -> int:
        return 2 * sum(widths)

    trunk = 32 * 16 + 128 * 32 * 16 + 256 * 128 * 16 + 256 * 256 * 3 + norm(32, 128, 256, 256)
    down = 4 * (256 * 256 * 2 + 256 * 512 + 512 * 512 * 2) + norm(256, 256, 512, 512, 512)
    up = 4 * (512 * 512 + 1024 * 512 + 1024 * 256 + 512 * 256 + 512 * 256) + norm(512, 512, 256, 256, 256)
    decoder = 3 * (262 * 256 + 256 * 256 + 256 * 6) + 6 + norm(256, 256)
    face = 3 * (35 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + norm(32, 32, 64, 64) + 65 * 128 + 129 * 50 + 51 * 144
    judge = 3 * (6 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1 + norm(128, 256, 512)
    with torch.device("meta"):
        networks: list[nn.Module] = [PoseGAN(), PGFace(), PoseDiscriminator()]
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert counts == [trunk + down + up + decoder, face, judge] == [9588038, 47362, 520641]


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 3), frames=st.integers(1, 70), aligned=st.booleans(), seed=st.integers(0, 99))
@torch.no_grad()
def test_any_number_of_frames_and_batch_is_single(batch: int, frames: int, aligned: bool, seed: int) -> None:
    posegan, pgface = small_posegan(seed, aligned=aligned), small_pgface(seed, norm_last=aligned)
    posegan.statistics = PoseStatistics()  # a rounding of 620 mm is more than the 1e-6 that this is about
    features, given_poses = motion(frames, batch, seed)
    initial = normalized(given_poses[:, 0])
    poses, shape = posegan(features, initial), pgface(features, given_poses)
    assert poses.shape == (batch, frames, 6)
    assert [*map(list, (part.shape for part in shape))] == [[batch, frames, 4], [batch, frames, 5]]
    for index in range(batch):
        one = slice(index, index + 1)
        alone = posegan(features[one], initial[one])
        assert torch.allclose(alone, poses[one], rtol=1e-6, atol=1e-6)
        for part, single in zip(shape, pgface(features[one], given_poses[one]), strict=True):
            assert (part[one] - single).abs().max() < 1e-6


@torch.no_grad()
def test_batch_is_single_at_default_sizes() -> None:
    posegan, pgface = lived_in(PoseGAN()), lived_in(PGFace())
    features, poses = motion(256, 4)
    assert_batch_is_single(lambda f, p: posegan(f, p[:, 0]), features, normalized(poses))
    assert_batch_is_single(lambda f, p: torch.cat(pgface(f, p), 2), features, normalized(poses))


@torch.no_grad()
def test_frames_that_are_no_multiple_of_32_repeat_the_last() -> None:
    network, (features, poses) = small_posegan(), motion(45)
    padded = torch.cat([features, features[:, -1:].expand(-1, 19, -1)], 1)
    assert torch.equal(network(features, poses[:, 0]), network(padded, poses[:, 0])[:, :45])


@torch.no_grad()
def test_radians_and_millimetres() -> None:
    """What is inside is normalised: a network of other statistics gives the same, moved and stretched."""
    network, (features, poses) = small_posegan(), motion(40)
    plain = small_posegan()
    plain.statistics = PoseStatistics()
    expected = plain(features, normalized(poses[:, 0])) * STD + MEAN
    assert torch.allclose(network(features, poses[:, 0]), expected, rtol=1e-5, atol=1e-5)
    face, plain_face = small_pgface(), small_pgface()
    plain_face.statistics = PoseStatistics()
    for found, one in zip(face(features, poses), plain_face(features, normalized(poses)), strict=True):
        assert torch.allclose(found, one, atol=1e-5)


def test_statistics() -> None:
    poses = MEAN + STD * torch.randn(2000, 6)
    poses[:, 2] = 0.3  # never moves
    found = PoseStatistics.of(poses)
    assert torch.allclose(found.mean, poses.mean(0), atol=1e-3)
    assert torch.allclose(found.normalize(poses).std(0, correction=0), torch.tensor([1.0, 1, 0, 1, 1, 1]), atol=1e-2)
    assert torch.allclose(found.denormalize(found.normalize(poses)), poses, rtol=1e-5, atol=1e-4)
    assert set(PoseGAN(PoseGANConfig(levels=(8,) * 5), found).state_dict()) >= {"statistics.mean", "statistics.std"}


@torch.no_grad()
def test_posegan_windows_are_the_whole_where_the_receptive_field_allows() -> None:
    """Aligned, shifted by 32 frames, and as far from the ends as a gradient reaches; the published trunk stretches."""
    network = small_posegan(aligned=True).double()
    features, poses = (each.double() for each in motion(512))
    with torch.enable_grad():
        wanted = features.clone().requires_grad_()
        network(wanted, poses[:, 0])[0, 256:288].sum().backward()
    assert wanted.grad is not None
    reached = wanted.grad[0].abs().sum(1).nonzero()[:, 0]
    before, after = 256 - int(reached.min()), int(reached.max()) - 287
    assert 64 < before < 150 and 64 < after < 150
    whole = network(features, poses[:, 0])
    window = network(features[:, 96:480], poses[:, 0])
    inside = slice(96 + before, 480 - after)
    error = (normalized(whole) - normalized(torch.cat([whole[:, :96], window, whole[:, 480:]], 1))).abs().amax((0, 2))
    assert error[inside].max() < 1e-9 < error[96:480].max()
    network.trunk.aligned = False
    stretched = network(features[:, 96:480], poses[:, 0])
    assert (stretched - network(features, poses[:, 0])[:, 96:480])[:, before:-after].abs().max() > 1e-6


@settings(max_examples=10, deadline=None)
@given(start=st.integers(0, 40), length=st.integers(17, 60), norm_last=st.booleans())
@torch.no_grad()
def test_pgface_windows_are_the_whole(start: int, length: int, norm_last: bool) -> None:
    """Eight frames from a cut's start and seven from its end."""
    network, (features, poses) = small_pgface(norm_last=norm_last), motion(100, 2)
    whole, cut = network(features, poses), network(*(x[:, start : start + length] for x in (features, poses)))
    for one, other in zip(whole, cut, strict=True):
        expected = one[:, start + 8 : start + length - 7]
        assert (other[:, 8 : length - 7] - expected).abs().max() < 1e-6


@torch.no_grad()
def test_pgface_is_its_layers_on_one_window() -> None:
    """By hand: frame t sees t - 8 .. t + 7, zeros beyond the ends, four convolutions and three linear layers."""
    network, (features, poses) = small_pgface(), motion(20)
    rows = torch.cat([torch.zeros(8, 35), torch.cat([normalized(poses), features], 2)[0], torch.zeros(7, 35)])
    for frame in (0, 7, 19):
        x = rows[frame : frame + 16].T[None]
        for conv, norm, _ in network.convs:
            x = F.conv1d(x, conv.weight, stride=2, padding=1)
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            x = F.relu((x - norm.running_mean[:, None]) * scale[:, None] + norm.bias[:, None])
        x = x[:, :, 0]
        for layer in network.linears[::2]:
            x = layer(F.relu(x) if layer is not network.linears[0] else x)
        found = network(features, poses)
        assert torch.allclose(torch.cat([found.identity, found.expression], 2)[:, frame], x, atol=1e-5)


@pytest.mark.parametrize("norm_last", [False, True])
def test_order_of_norm_and_relu(norm_last: bool) -> None:
    block = small_pgface(norm_last=norm_last).convs[0]
    kinds = [nn.Conv1d, nn.ReLU, nn.BatchNorm1d] if norm_last else [nn.Conv1d, nn.BatchNorm1d, nn.ReLU]
    assert [type(part) for part in block] == kinds
    assert (block[0].bias is not None) == norm_last


@torch.no_grad()
def test_optimised_is_the_same() -> None:
    features, poses = motion(96, 2)
    for norm_last, aligned in ((False, False), (True, True)):
        posegan, pgface = small_posegan(aligned=aligned), small_pgface(norm_last=norm_last)
        fast_posegan, fast_pgface = optimize(posegan), optimize(pgface)
        norms = [part for part in fast_pgface.modules() if isinstance(part, nn.BatchNorm1d)]
        assert len(norms) == (4 if norm_last else 0), "folded where the norm is right behind the convolution"
        found, expected = fast_posegan(features, poses[:, 0]), posegan(features, poses[:, 0])
        assert (normalized(found) - normalized(expected)).abs().max() < 1e-5
        for one, other in zip(fast_pgface(features, poses), pgface(features, poses), strict=True):
            assert (one - other).abs().max() < 1e-5


def test_deterministic_given_a_seed() -> None:
    def made(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        networks = [PoseGAN(PoseGANConfig(levels=(8,) * 5)), PGFace(), PoseDiscriminator(PoseDiscriminatorConfig(4))]
        return [parameter for network in networks for parameter in network.parameters()]

    pairs = list(zip(made(3), made(3), strict=True))
    assert all(torch.equal(one, other) for one, other in pairs)
    assert any(not torch.equal(one, other) for one, other in zip(made(3), made(4), strict=True))


def test_gradients_reach_everything() -> None:
    posegan, pgface = small_posegan().train(), small_pgface().train()
    discriminator = PoseDiscriminator(PoseDiscriminatorConfig(channels=4)).train()
    features, poses = motion(64, 2)
    initial = poses[:, 0].clone().requires_grad_()
    moved = posegan(features, initial)
    shape = pgface(features, moved)
    judged = discriminator(posegan.statistics.normalize(moved))[0][-1]
    (shape.identity.square().sum() + shape.expression.square().sum() + judged.sum()).backward()
    for network in (posegan, pgface, discriminator):
        dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert dead == []
    assert initial.grad is not None and initial.grad.abs().min() > 0


def test_the_discriminator_sees_poses_and_velocities() -> None:
    network = lived_in(PoseDiscriminator(PoseDiscriminatorConfig(channels=4)))
    poses = torch.randn(2, 9, 6)
    seen: list[Tensor] = []
    network.layers[0].register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    (maps,) = network(poses)
    assert torch.equal(seen[0][:, :, :9], poses.mT) and torch.equal(seen[0][:, :, 9:], poses.mT.diff())
    assert [each.shape[1] for each in maps] == [4, 8, 16, 32, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PoseGANConfig(features=21), "features must be at least 22 and frames 2, got 21 and 256"),
        (lambda: PoseGANConfig(levels=(1, 2, 3, 4)), r"levels 5, got \(32, 128, 256, 256\) and \(1, 2, 3, 4\)"),
        (lambda: PoseGANConfig(decoder=0), "sizes and fps must be positive, got PoseGANConfig"),
        (lambda: PGFaceConfig(widths=(1, 2, 3)), r"widths must hold 4 numbers and hidden 2, got \(1, 2, 3\)"),
        (lambda: PGFaceConfig(fps=0), "sizes and fps must be positive, got PGFaceConfig"),
        (lambda: PoseDiscriminatorConfig(layers=0), "sizes must be positive, got PoseDiscriminatorConfig"),
        (lambda: PoseStatistics(torch.zeros(5)), r"mean and std must be \[6\], got \[5\] and \[6\]"),
        (lambda: PoseStatistics(std=torch.zeros(6)), r"std must be positive, got \[0.0, 0.0"),
        (lambda: small_posegan()(torch.zeros(1, 8, 28), torch.zeros(1, 6)), r"\[B, T, 29\] .* got \[1, 8, 28\]"),
        (lambda: small_posegan()(torch.zeros(1, 0, 29), torch.zeros(1, 6)), r"T at least 1, got \[1, 0, 29\]"),
        (lambda: small_posegan()(torch.zeros(2, 8, 29), torch.zeros(1, 6)), r"initial must be \[2, 6\], got \[1, 6\]"),
        (lambda: small_pgface()(torch.zeros(29), torch.zeros(1, 6)), r"features must be \[B, T, 29\] .* got \[29\]"),
        (lambda: small_pgface()(torch.zeros(1, 8, 29), torch.zeros(1, 7, 6)), r"poses must be \[1, 8, 6\], got"),
        (lambda: PoseDiscriminator()(torch.zeros(1, 1, 6)), r"\[B, T, 6\] with T at least 2, got \[1, 1, 6\]"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_shape_is_a_pair() -> None:
    identity, expression = Shape(torch.zeros(1), torch.ones(1))
    assert float(identity) == 0 and float(expression) == 1
