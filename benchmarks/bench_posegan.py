"""PoseGAN and PGFace: windows, clips of five minutes, the live steps, and all of `Speaker` but the rendering.

"default" are the paper's sizes, "shipped" those of the networks that come with the package. "eager" is the modules as
the paper writes them, live ones by `PlainMotion`; "optimized" those after `engine.optimize`, "stream" our live forms,
whose step is one CUDA graph on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fastface import engine
from fastface.audio.sound import SAMPLE_RATE
from fastface.face import FaceParameters, built_in_head
from fastface.models.posegan import (
    FaceStream,
    MotionStream,
    PGFace,
    PGFaceConfig,
    PoseGAN,
    PoseGANConfig,
    Shape,
    long_poses,
)
from fastface.models.posegan.default import load_default, small_pgface, small_posegan
from fastface.models.posegan.networks import BEFORE, POSE, WINDOW
from fastface.models.posegan.speaker import Speaker
from fastface.ops._verify import Verdict

from .harness import Case, Contenders

SLUG = "posegan"
OPS = ("pgface_step", "pgface_clip", "posegan", "long_poses", "motion_step", "speaker")
CLIP = 9000  # frames, five minutes at 30 a second
HOP = 8  # frames between the windows of `MotionStream`
SIZES: dict[str, tuple[PoseGANConfig, PGFaceConfig]] = {
    "default": (PoseGANConfig(), PGFaceConfig()),
    "shipped": (small_posegan(), small_pgface()),
}


def cases(device: str, quick: bool, compiled: bool) -> Iterator[Case]:
    """Batch 1, float32, random weights: the time does not depend on them. With --full shipped clips too."""
    for size, (posegan, _) in SIZES.items():
        yield _case(OPS[0], "1 frame", size, device, partial(_step, size, device, compiled))
        yield _case(OPS[2], f"{posegan.frames} frames", size, device, partial(_window, size, device, compiled))
        yield _case(OPS[4], f"{HOP} frames", size, device, partial(_motion, size, device))
        if size == "default" or not quick:
            yield _case(OPS[1], f"{CLIP} frames", size, device, partial(_clip, size, device))
            yield _case(OPS[3], f"{CLIP} frames", size, device, partial(_long, size, device))
    if device == "cpu":  # where it runs
        yield _case(OPS[5], "25 frames", "shipped", device, _speaker)


def _case(op: str, shape: str, size: str, device: str, make: Callable[[], Contenders]) -> Case:
    return Case(
        op=op,
        shape=shape,
        variant=size,
        dtype="float32",
        layout="contiguous",
        batch=1,
        device=device,
        make=make,
        kernels=device == "cuda",
    )


def _networks(size: str, device: str) -> tuple[PoseGAN, PGFace]:
    torch.manual_seed(0)
    posegan, pgface = SIZES[size]
    with torch.device(device):
        return (
            PoseGAN(posegan).eval().requires_grad_(False),
            PGFace(pgface).eval().requires_grad_(False),
        )


class PlainStep(nn.Module):
    """PGFace on a window that moves by a frame."""

    window: Tensor

    def __init__(self, network: PGFace) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("window", torch.zeros(1, network.config.features + POSE, WINDOW))

    def forward(self, features: Tensor, poses: Tensor) -> Tensor:
        frame = self.network.pack(features[None], poses[None])
        self.window.copy_(torch.cat([self.window[:, :, 1:], frame], 2))
        return self.network.shapes(self.window).expression


class PlainMotion:
    """The numbers of `MotionStream`, by the plain modules: every hop PoseGAN sees its last window, whose last poses are
    faded in over those foreseen, and PGFace the frames that they complete.
    """

    def __init__(self, posegan: PoseGAN, pgface: PGFace) -> None:
        self.posegan, self.pgface, self.frames = posegan, pgface, posegan.config.frames
        mean = posegan.statistics.mean
        self.features = mean.new_zeros(self.frames - 2 * HOP, posegan.config.features)
        self.poses, self.foreseen = mean.repeat(self.frames - 2 * HOP, 1), mean.repeat(HOP, 1)
        self.ramp = torch.arange(1, HOP + 1, device=mean.device)[:, None] / HOP

    @torch.inference_mode()
    def push(self, features: Tensor) -> Shape | None:
        """The shapes of eight frames, once there is a window."""
        self.features = torch.cat([self.features, features])
        if len(self.features) < self.frames:
            return None
        found = self.posegan(self.features[None], self.poses[:1])[0, -2 * HOP :]
        self.poses = torch.cat([self.poses, torch.lerp(self.foreseen, found[:HOP], self.ramp)])
        self.foreseen = found[HOP:]
        known = len(self.poses)
        seen = slice(known - HOP - WINDOW + 1, known)
        shape = self.pgface(self.features[None, seen], self.poses[None, seen])
        self.features, self.poses = self.features[HOP:], self.poses[HOP:]
        return Shape(*(each[0, BEFORE : BEFORE + HOP] for each in shape))


def _step(size: str, device: str, compiled: bool) -> Contenders:
    _, network = _networks(size, device)
    features = torch.randn(WINDOW, network.config.features, device=device)
    poses = torch.zeros(WINDOW, POSE, device=device)
    plain = PlainStep(network).to(device)
    stream = FaceStream(network)
    steps: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "eager": plain,
        "stream": lambda features, poses: stream.push(features, poses).expression,
    }
    if compiled:
        torch.compiler.reset()
        steps["compile"] = torch.compile(PlainStep(network).to(device), dynamic=False, fullgraph=True)

    def warm(step: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        with torch.inference_mode():
            for frame in range(WINDOW):
                result = step(features[frame : frame + 1], poses[frame : frame + 1])
        return result

    truth = warm(plain)
    calls: dict[str, Callable[[], object]] = {
        name: partial(_run, step, (features[:1], poses[:1])) for name, step in steps.items()
    }
    return calls, {name: partial(_judge, truth, partial(warm, steps[name])) for name in calls if name != "eager"}


def _window(size: str, device: str, compiled: bool) -> Contenders:
    network, _ = _networks(size, device)
    given = torch.randn(1, network.config.frames, network.config.features, device=device), network.statistics.mean[None]
    models: dict[str, Callable[..., Tensor]] = {"eager": network, "optimized": engine.optimize(network)}
    if compiled:
        torch.compiler.reset()
        models["compile"] = torch.compile(network, dynamic=False, fullgraph=True)
    return _contenders(models, given)


def _clip(size: str, device: str) -> Contenders:
    _, network = _networks(size, device)
    given = torch.randn(1, CLIP, network.config.features, device=device), torch.zeros(1, CLIP, POSE, device=device)

    def expression(model: nn.Module, *given: Tensor) -> Tensor:
        return model(*given).expression

    models = {"eager": network, "optimized": engine.optimize(network)}
    return _contenders({name: partial(expression, model) for name, model in models.items()}, given)


def _long(size: str, device: str) -> Contenders:
    network, _ = _networks(size, device)
    given = (torch.randn(1, CLIP, network.config.features, device=device),)
    models = {"eager": network, "optimized": engine.optimize(network)}
    return _contenders({name: partial(long_poses, model) for name, model in models.items()}, given)


def _motion(size: str, device: str) -> Contenders:
    """Eight frames, which run PoseGAN once and PGFace eight times."""
    posegan, pgface = _networks(size, device)
    plain, stream = PlainMotion(posegan, pgface), MotionStream(posegan, pgface, hop=HOP)
    pieces = torch.randn(posegan.config.frames // HOP + 4, HOP, posegan.config.features, device=device)
    for piece in pieces:
        truth, found = plain.push(piece), stream.push(piece)
    assert truth is not None
    calls: dict[str, Callable[[], object]] = {
        "eager": partial(plain.push, pieces[0]),
        "stream": partial(stream.push, pieces[0]),
    }
    return calls, {"stream": partial(_judge, truth.expression, lambda: found.expression)}


def _speaker() -> Contenders:
    """A second of sound to 25 faces, by the trained networks: features, both networks, blinks and cameras."""
    head = built_in_head()
    camera = torch.tensor([[12.0, 0.0, 0.0, 0.0, 128.0, 128.0, 0.0]])
    own = FaceParameters.of_vector(
        torch.cat([torch.zeros(1, head.expressions), camera], 1), torch.zeros(1, head.identities)
    )
    speaker = Speaker(*load_default(), own, level=-20.0)
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone = 0.2 * np.sin(2 * np.pi * 130 * time) * (1 + np.sin(2 * np.pi * 4 * time))
    for _ in range(8):  # until every second gives 25 frames
        speaker.push(tone)
    return {"stream": partial(speaker.push, tone)}, {}


def _contenders(models: dict[str, Callable[..., Tensor]], given: tuple[Tensor, ...]) -> Contenders:
    calls: dict[str, Callable[[], Tensor]] = {name: partial(_run, model, given) for name, model in models.items()}
    truth = calls["eager"]()
    return dict(calls), {name: partial(_judge, truth, call) for name, call in calls.items() if name != "eager"}


def _run(model: Callable[..., Tensor], given: tuple[Tensor, ...]) -> Tensor:
    with torch.inference_mode():
        return model(*given)


def _judge(truth: Tensor, call: Callable[[], Tensor]) -> Verdict:
    """Held to 1e-4 of the range of the values."""
    error = float((truth - call()).abs().max() / (truth.max() - truth.min()))
    return Verdict(error, 1e-4, error <= 1e-4)
