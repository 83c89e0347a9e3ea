"""How well a mouth follows speech, and how much a head's motion is like that of people: measures on clips held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastface.face.loaders import built_in_head
from fastface.models.posegan.corpus import mouth_opening
from fastface.models.posegan.dataset import Example
from fastface.models.posegan.networks import PGFace, PoseGAN
from fastface.models.posegan.streams import PoseStream
from fastface.models.posegan.windows import long_poses

__all__ = [
    "CLOSED", "FaceMeasures", "PoseMeasures", "StreamMeasures", "measure_face", "measure_pose", "measure_stream",
]  # fmt: skip

CLOSED = 0.1  # opening under which lips count as closed: 1.2 mm between them, where a clear "ah" has 12

_LAG = 5  # frames either way

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class FaceMeasures:
    """Of PGFace. The opening is the height between the inner lips of the built-in head's geometry (`mouth_opening`), of
    what the network gives and of the truth. nan is what cannot be known: all of it for other face models, `closed`
    without closures, `open` of mouths that never open, `pose_dependence` of a single clip.

    Attributes:
        correlation: Pearson's, of both openings over the frames of all clips.
        clip_correlation: its median over clips.
        closed: the share of closures (runs of `Example.closed`: p, b, m) in whose middle frame the opening is under
            `CLOSED`.
        closures: their number.
        open: of the frames whose true opening is at least twice `CLOSED`, the share that is not under `CLOSED`: a mouth
            that never opens has all closures and none of these.
        lag: frames by which the mouth comes late, at most 5: where the correlation is highest.
        pose_dependence: RMS of what another clip's poses change of the opening, over its standard deviation.
        error: RMS of expressions, in the face model's units: 1 is a full expression.
    """

    correlation: float
    clip_correlation: float
    closed: float
    closures: int
    open: float
    lag: int
    pose_dependence: float
    error: float

    def row(self) -> dict[str, float]:
        """By name; the score, the lower the better, is the error, and where lips are known also what they miss."""
        known = [1 - value for value in (self.correlation, self.closed, self.open) if not math.isnan(value)]
        return asdict(self) | {"score": self.error + sum(known)}

    def __str__(self) -> str:
        closed = f"{self.closed:.1%} of {self.closures}"
        lines = {
            f"mouth opening against the target: r {self.correlation:.3f} over all frames, {self.clip_correlation:.3f} "
            f"in the median clip, {self.lag} frames late": self.correlation,
            f'p, b, m closed (lips under {CLOSED:g} of a clear "ah"): {closed}': self.closed,
            f"open where the target is: {self.open:.1%}": self.open,
            f"moved by the head's pose: {self.pose_dependence:.1%} of the opening's deviation": self.pose_dependence,
            f"expression: RMS error {self.error:.4f}, 1 being a full one": self.error,
        }
        return "\n".join(line for line, value in lines.items() if not math.isnan(value))


@dataclass(frozen=True)
class PoseMeasures:
    """Of PoseGAN, whose poses start from the true first one.

    Attributes:
        error: RMS of poses in standard deviations of the data.
        initial: the same of the first frame alone.
        diversity: standard deviation within a clip, over the data's: below 1 the head is stiffer.
        speed: that of differences from frame to frame, over the data's.
        jitter: that of second differences, over the data's: above 1 the motion is rougher.
        nods: correlation of the pitch's speed with the true one's, over the frames of all clips: what the sound says
            of nods.
    """

    error: float
    initial: float
    diversity: float
    speed: float
    jitter: float
    nods: float

    def row(self) -> dict[str, float]:
        """By name; the score, the lower the better, is the error, what nods miss, and what diversity, speed and jitter
        are off: the error alone is lowest for heads that are too still.
        """
        off = sum(abs(1 - ratio) for ratio in (self.diversity, self.speed, self.jitter))
        return asdict(self) | {"score": self.error + 1 - self.nods + off}

    def __str__(self) -> str:
        return (
            f"pose: RMS error {self.error:.3f} standard deviations, {self.initial:.3f} in the first frame\n"
            f"against the data: diversity {self.diversity:.2f}, speed {self.speed:.2f}, jitter {self.jitter:.2f}\n"
            f"speed of nods against the data: r {self.nods:.3f}"
        )


@dataclass(frozen=True)
class StreamMeasures:
    """Of PoseGAN as it is used: through `PoseStream`, from the mean pose. All that moves comes from the sound.

    Attributes:
        hop: of the stream.
        diversity, speed, jitter, nods: as of `PoseMeasures`.
    """

    hop: int
    diversity: float
    speed: float
    jitter: float
    nods: float

    def __str__(self) -> str:
        return (
            f"live from the mean pose, hop {self.hop}: diversity {self.diversity:.2f}, speed {self.speed:.2f}, "
            f"jitter {self.jitter:.2f}, nods r {self.nods:.3f}"
        )


@torch.inference_mode()
def measure_face(network: PGFace, examples: Sequence[Example]) -> FaceMeasures:
    """The measures on examples, of their clean sound and their true poses; the network is left in evaluation mode.

    Raises:
        ValueError: no examples, or expressions of another number than the network's.
    """
    _check(examples)
    network.eval()
    device, expressions = network.statistics.mean.device, network.config.expressions
    found, turned, truth = [], [], []
    for example, other in zip(examples, [*examples[1:], examples[0]], strict=True):
        if example.expression.shape[1] != expressions:
            raise ValueError(f"{example.name} must have {expressions} expressions, got {example.expression.shape[1]}")
        poses = torch.stack([example.pose, other.pose[torch.arange(len(example)) % len(other)]])
        shape = network(example.features[:1].expand(2, -1, -1).to(device), poses.to(device))
        own, others = shape.expression.double().cpu().numpy()
        found.append(own)
        turned.append(others)
        truth.append(example.expression.double().numpy())
    error = _rms(np.concatenate(found) - np.concatenate(truth))
    head = built_in_head()
    if expressions != head.expressions or network.config.face not in (None, head.content_hash):
        # What opens the mouth of another face model is not known.
        nan = float("nan")
        return FaceMeasures(nan, nan, nan, 0, nan, 0, nan, error)
    opening, turned_opening, target = ([mouth_opening(clip) for clip in each] for each in (found, turned, truth))
    closures = [
        clip[middle] < CLOSED
        for clip, example in zip(opening, examples, strict=True)
        for middle in _middles(example.closed)
    ]
    correlations = {
        lag: _correlation([_later(clip, lag) for clip in opening], target) for lag in range(-_LAG, _LAG + 1)
    }
    every, goal = np.concatenate(opening), np.concatenate(target)
    # The other clip of a single one is itself.
    moved = _rms(np.concatenate(turned_opening) - every) if len(examples) > 1 else float("nan")
    return FaceMeasures(
        correlation=correlations[0],
        clip_correlation=float(np.median([_correlation([a], [b]) for a, b in zip(opening, target, strict=True)])),
        closed=_mean(closures),
        closures=len(closures),
        open=_mean(every[goal >= 2 * CLOSED] >= CLOSED),
        lag=max(correlations, key=lambda lag: correlations[lag]),
        pose_dependence=float(moved / max(every.std(), 1e-9)),
        error=error,
    )


@torch.inference_mode()
def measure_pose(network: PoseGAN, examples: Sequence[Example]) -> PoseMeasures:
    """The measures on examples, of their clean sound; the network is left in evaluation mode.

    Raises:
        ValueError: no examples.
    """
    _check(examples)
    network.eval()
    statistics = network.statistics
    found, truth = [], []
    for example in examples:
        target = example.pose.to(statistics.mean)
        poses = long_poses(network, example.features[:1].to(target), target[:1])[0]
        found.append(statistics.normalize(poses).double().cpu().numpy())
        truth.append(statistics.normalize(target).double().cpu().numpy())
    gap = [a - b for a, b in zip(found, truth, strict=True)]
    return PoseMeasures(
        error=_rms(np.concatenate(gap)), initial=_rms(np.stack([clip[0] for clip in gap])), **_motion(found, truth)
    )


def measure_stream(network: PoseGAN, examples: Sequence[Example], *, hop: int) -> StreamMeasures:
    """The measures on examples, of their clean sound, as `PoseStream` gives poses.

    Raises:
        ValueError: no examples, or a hop that `PoseStream` refuses.
    """
    _check(examples)
    normalize = network.statistics.normalize
    found, truth = [], []
    for example in examples:
        stream = PoseStream(network, hop=hop)
        poses = torch.cat([stream.push(example.features[0]), stream.finish()])
        found.append(normalize(poses).double().cpu().numpy())
        truth.append(normalize(example.pose.to(poses)).double().cpu().numpy())
    return StreamMeasures(hop, **_motion(found, truth))


def _motion(found: Sequence[_Array], truth: Sequence[_Array]) -> dict[str, float]:
    """Diversity, speed, jitter and nods, of normalised poses."""
    names = ("diversity", "speed", "jitter")
    nods, true_nods = ([np.abs(np.diff(clip[:, 0])) for clip in clips] for clips in (found, truth))
    ratios = {name: _ratio(found, truth, order) for order, name in enumerate(names)}
    return ratios | {"nods": _correlation(nods, true_nods)}


def _check(examples: Sequence[Example]) -> None:
    if not examples:
        raise ValueError("clips that are held out are needed to measure on, got none")


def _ratio(found: Sequence[_Array], truth: Sequence[_Array], order: int) -> float:
    """The deviation of n-th differences within clips, found over true, of all columns together."""

    def deviation(clips: Sequence[_Array]) -> float:
        changes = [np.diff(clip, order, axis=0) for clip in clips if len(clip) > order]
        return _rms(np.concatenate([change - change.mean(0) for change in changes]))

    return deviation(found) / max(deviation(truth), 1e-9)


def _correlation(found: Sequence[_Array], truth: Sequence[_Array]) -> float:
    """Pearson's, 0 where either does not change."""
    values = np.stack([np.concatenate(found), np.concatenate(truth)])
    values -= values.mean(1, keepdims=True)
    scale = np.sqrt(np.square(values).sum(1).prod())
    return float(values.prod(0).sum() / scale) if scale > 0 else 0.0


def _later(clip: _Array, lag: int) -> _Array:
    """What comes so many frames later in the clip, its ends held."""
    return clip[(np.arange(len(clip)) + lag).clip(0, len(clip) - 1)]


def _middles(closed: Tensor | None) -> list[int]:
    """The middle frame of each run."""
    if closed is None:
        return []
    edges = np.flatnonzero(np.diff(closed.numpy().astype(np.int8), prepend=0, append=0))
    return [int(start + end - 1) // 2 for start, end in edges.reshape(-1, 2)]


def _mean(values: Sequence[bool] | NDArray[np.bool_]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _rms(values: _Array) -> float:
    return float(np.sqrt(np.square(values).mean()))
