"""Sound of any length: windows, and the live forms against the pass over the whole."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastface.engine import CudaGraph
from fastface.models.posegan import FaceStream, MotionStream, PGFace, PoseGAN, PoseStream, long_poses, smooth
from tests.models.small_posegan import MEAN, lived_in, motion, normalized, small_pgface, small_posegan

CUTS = st.lists(st.integers(0, 200), max_size=5)


def pieces(frames: int, cuts: list[int]) -> list[slice]:
    edges = [0, *sorted(cut % (frames + 1) for cut in cuts), frames]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


# Windows


@torch.inference_mode()
def test_windows_start_where_the_last_one_ended() -> None:
    network = small_posegan(frames=64)
    features, given_poses = motion(2 * 63 + 1 + 20, 2)
    initial = given_poses[:, 0]
    first = network(features[:, :64], initial)
    second = network(features[:, 63:127], first[:, 63])
    ramp = ((1 + torch.cos(torch.pi * torch.arange(1, 13) / 12)) / 2)[:, None]  # from 12 frames on 0
    second[:, 1:13] += ramp * (first[:, 63:] - second[:, :1])
    last = network(features[:, 83:], second[:, 20])  # right-aligned, from the pose of its first frame
    last[:, 44:56] += ramp * (second[:, 63:] - last[:, 43:44])
    expected = torch.cat([first, second[:, 1:], last[:, 44:]], 1)
    assert torch.allclose(long_poses(network, features, initial), expected, atol=1e-5)
    assert torch.equal(long_poses(network, features[:, :50], initial), network(features[:, :50], initial))
    assert torch.equal(long_poses(network, features, initial, frames=147), network(features, initial))
    assert torch.equal(long_poses(network, features), long_poses(network, features, MEAN.expand(2, 6)))
    smoothed = long_poses(network, features, initial, smoothed=True)
    assert torch.equal(smoothed, smooth(long_poses(network, features, initial)))


@settings(max_examples=12, deadline=None)
@given(frames=st.integers(1, 90), window=st.integers(2, 40))
def test_every_frame_gets_a_pose(frames: int, window: int) -> None:
    network, (features, _) = small_posegan(), motion(frames)
    poses = long_poses(network, features, frames=window)
    assert poses.shape == (1, frames, 6) and poses.isfinite().all()


class _Missing(PoseGAN):
    """Still, and not where it should start: one further."""

    def forward(self, features: Tensor, initial: Tensor) -> Tensor:
        return initial[:, None].expand(-1, features.shape[1], -1) + 1


def test_nothing_jumps_where_windows_meet() -> None:
    network = _Missing(small_posegan(frames=64).config).eval()
    poses = long_poses(network, torch.zeros(2, 64 + 63 + 63, 29))
    assert torch.allclose(poses[:, [0, 63, 63 + 12, 126, 126 + 12, 189]].mT, torch.tensor([1.0, 1, 2, 2, 3, 3]))
    assert 0 < poses.diff(dim=1).max() < 0.14 and poses.diff(dim=1).min() == 0  # π / 2 / 12 is the steepest


def test_windows_leave_a_network_in_training_alone() -> None:
    network = small_posegan().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="must be in evaluation mode, got one in training mode"):
        long_poses(network, motion(70)[0])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_smoothing_is_a_mean_of_five() -> None:
    poses = torch.randn(2, 9, 6)
    ends = torch.cat([poses[:, :1], poses[:, :1], poses, poses[:, -1:], poses[:, -1:]], 1)
    expected = torch.stack([ends[:, frame : frame + 5].mean(1) for frame in range(9)], 1)
    assert torch.allclose(smooth(poses), expected, atol=1e-6)


# PGFace live


@settings(max_examples=25, deadline=None)
@given(frames=st.integers(0, 40), cuts=CUTS, norm_last=st.booleans(), seed=st.integers(0, 99))
def test_face_stream_is_the_pass_over_the_whole(frames: int, cuts: list[int], norm_last: bool, seed: int) -> None:
    network, (features, poses) = small_pgface(seed, norm_last=norm_last), motion(frames, seed=seed)
    stream = FaceStream(network)
    assert stream.latency == 7
    found, pushed, came = [], 0, 0
    for piece in pieces(frames, cuts):
        found.append(stream.push(features[0, piece], poses[0, piece]))
        pushed, came = pushed + piece.stop - piece.start, came + len(found[-1].identity)
        assert came == max(0, pushed - stream.latency)
    found.append(stream.finish())
    identity, expression = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert identity.shape == (frames, 4) and expression.shape == (frames, 5)
    assert len(stream.finish().identity) == 0
    if frames:
        expected = network(features, poses)
        assert (identity - expected.identity[0]).abs().max() < 1e-6
        assert (expression - expected.expression[0]).abs().max() < 1e-6


def test_face_stream_of_the_default_sizes() -> None:
    torch.manual_seed(0)
    network, (features, poses) = lived_in(PGFace()), motion(30)
    stream = FaceStream(network)
    found = torch.cat([stream.push(features[0], poses[0]).expression, stream.finish().expression])
    assert (found - network(features, poses).expression[0]).abs().max() < 1e-6


def test_streams_do_not_touch_the_network() -> None:
    posegan, pgface = small_posegan(), small_pgface()
    before = [tensor.clone() for network in (posegan, pgface) for tensor in network.state_dict().values()]
    stream = MotionStream(posegan, pgface, frames=32, hop=4)
    stream.push(motion(40)[0][0])
    after = [tensor for network in (posegan, pgface) for tensor in network.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(parameter.requires_grad for parameter in posegan.parameters())


# PoseGAN live


@torch.inference_mode()
def slid(network: PoseGAN, features: Tensor, start: Tensor, hop: int, frames: int) -> Tensor:
    """What `PoseStream` says it gives, from the whole sound: window by window, foreseen and faded."""
    ahead = 2 * hop
    padded = torch.cat([features.new_zeros(frames - ahead, 29), features])
    poses = start.repeat(frames - ahead, 1)
    foreseen = start.repeat(hop, 1)
    while (done := len(poses) - frames + ahead) < len(features):
        window = padded[done : done + frames]
        new = network(window[None], poses[done][None])[0, frames - ahead :]
        last = len(window) < frames
        for index, old in enumerate(foreseen[: len(new)]):
            share = (index + 1) / hop
            new[index] = (1 - share) * old + share * new[index]
        poses = torch.cat([poses, new if last else new[:hop]])
        foreseen = new[hop:]
    return poses[frames - ahead :]


@settings(max_examples=20, deadline=None)
@given(
    frames=st.integers(0, 70),
    cuts=CUTS,
    hop=st.integers(1, 9),
    window=st.integers(19, 64),
    started=st.booleans(),
    aligned=st.booleans(),
)
def test_pose_stream(frames: int, cuts: list[int], hop: int, window: int, started: bool, aligned: bool) -> None:
    network, (features, poses) = small_posegan(aligned=aligned), motion(frames + 1)
    initial = poses[0, -1] if started else None
    stream = PoseStream(network, initial, hop=hop, frames=window)
    assert stream.latency == 2 * hop - 1
    found, pushed, came = [], 0, 0
    for piece in pieces(frames, cuts):
        found.append(stream.push(features[0, piece]))
        pushed, came = pushed + piece.stop - piece.start, came + len(found[-1])
        assert pushed - stream.latency <= came <= pushed
    found.append(stream.finish())
    whole = torch.cat(found)
    assert whole.shape == (frames, 6) and len(stream.finish()) == 0
    expected = slid(network, features[0, :frames], MEAN if initial is None else initial, hop, window)
    assert torch.allclose(normalized(whole), normalized(expected), atol=1e-5)


def test_pose_stream_has_no_seams() -> None:
    """Where windows meet nothing jumps: a step there is no larger than elsewhere, and the start is the initial pose."""
    network, (features, poses) = small_posegan(), motion(400)
    initial = poses[0, 0] + 3 * (poses[0, 1] - MEAN)
    found = normalized(PoseStream(network, initial, hop=8).push(features[0]))
    steps = found.diff(dim=0).abs().sum(1)[16:]
    at_seams = (torch.arange(16, 16 + len(steps)) + 1) % 8 == 0
    assert steps[at_seams].mean() < 1.2 * steps[~at_seams].mean()
    assert (found[0] - normalized(initial)).abs().max() < 0.25 * normalized(initial).abs().max()


# Both


@settings(max_examples=10, deadline=None)
@given(frames=st.integers(0, 60), cuts=CUTS, hop=st.integers(1, 6))
def test_motion_stream_is_both_behind_each_other(frames: int, cuts: list[int], hop: int) -> None:
    posegan, pgface, (features, _) = small_posegan(), small_pgface(), motion(frames)
    stream = MotionStream(posegan, pgface, hop=hop, frames=32)
    found, pushed, came = [], 0, 0
    for piece in pieces(frames, cuts):
        found.append(stream.push(features[0, piece]))
        pushed, came = pushed + piece.stop - piece.start, came + len(found[-1].poses)
        assert came >= pushed - stream.latency
    found += [stream.finish(), stream.finish()]  # nothing is left for the second
    poses, identity, expression = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert len(poses) == len(identity) == len(expression) == frames
    if frames:
        alone = PoseStream(posegan, hop=hop, frames=32)
        expected = torch.cat([alone.push(features[0]), alone.finish()])
        assert torch.equal(poses, expected)
        shape = pgface(features, expected[None])
        assert (identity - shape.identity[0]).abs().max() < 1e-6
        assert (expression - shape.expression[0]).abs().max() < 1e-6


def ended(stream: Any) -> Any:
    stream.finish()
    return stream


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: long_poses(small_posegan(), motion(9)[0], frames=1), "frames must be at least 2, got 1"),
        (lambda: PoseStream(small_posegan(), hop=32), "hop must be at least 1 and under half of 64 frames, got 32"),
        (lambda: PoseStream(small_posegan(), hop=0), "hop must be at least 1 and under half of 64 frames, got 0"),
        (lambda: PoseStream(small_posegan(), torch.zeros(1, 6)), r"initial must be \[6\], got \[1, 6\]"),
        (lambda: PoseStream(small_posegan()).push(torch.zeros(1, 3, 29)), r"must be \[n, 29\], got \[1, 3, 29\]"),
        (lambda: ended(PoseStream(small_posegan())).push(torch.zeros(3, 29)), "got 3 frames after finish"),
        (lambda: PoseStream(small_posegan()).push(torch.full((3, 29), math.nan)), "finite, got 3 of 3 frames"),
        (lambda: FaceStream(small_pgface()).push(torch.zeros(3, 28), torch.zeros(3, 6)), r"got \[3, 28\]"),
        (lambda: FaceStream(small_pgface()).push(torch.zeros(3, 29), torch.zeros(2, 6)), r"\[3, 6\], got \[2, 6\]"),
        (lambda: ended(FaceStream(small_pgface())).push(torch.zeros(1, 29), torch.zeros(1, 6)), "got 1 frames after"),
        (
            lambda: MotionStream(small_posegan(fps=25), small_pgface()),
            r"speech \(29, 25, 'deepspeech'\) like posegan, got \(29, 30.0, 'deepspeech'\)",
        ),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_refused_features_leave_a_stream_as_it_was() -> None:
    features = motion(60)[0][0]
    stream, other = (MotionStream(small_posegan(), small_pgface(), hop=4) for _ in range(2))
    spoilt = features[:20].clone()
    spoilt[7, 3] = math.inf
    with pytest.raises(ValueError, match="finite, got 1 of 20 frames"):
        stream.push(spoilt)
    for mine, theirs in zip(stream.push(features), other.push(features), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.gpu
def test_on_a_gpu_the_step_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    posegan, pgface, (features, poses) = small_posegan(), lived_in(PGFace()), motion(40)
    expected = pgface(features, poses).expression[0]
    stream = FaceStream(pgface.cuda())
    assert isinstance(stream._step, CudaGraph)
    steps = [stream.push(features[0, i : i + 1], poses[0, i : i + 1]) for i in range(40)]
    found = torch.cat([step.expression for step in (*steps, stream.finish())])
    assert found.is_cuda and (found.cpu() - expected).abs().max() < 1e-5
    both = MotionStream(posegan.cuda(), small_pgface().cuda())
    assert len(both.push(features[0]).poses) + len(both.finish().poses) == 40
