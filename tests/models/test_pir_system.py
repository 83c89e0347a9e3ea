"""PIR as a system: masks, the inpainting generator, the 3D face's camera, and frames painted into a video."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastface.engine import optimize
from fastface.face import Camera, FaceTracker, PrecomputedLandmarks, built_in_head
from fastface.models.pir import (
    PIR,
    AudioToExpression,
    DecoderConfig,
    ExpressionDecoder,
    GeneratorConfig,
    InpaintingConfig,
    InpaintingGenerator,
    PIRMotion,
    Rendering,
    SynthesisConfig,
    face_camera,
    face_mask,
)

MODEL = built_in_head()
CAMERA = Camera(torch.tensor([9.0]), torch.tensor([[0.1, -0.2, 0.05]]), torch.tensor([[170.0, 130.0, 0.0]]))
SMALL = GeneratorConfig(
    synthesis=SynthesisConfig(outputs=96, size=16, style=16, base=128, most=16), hidden=8, image=0,
    rendering=Rendering(coarse=8, fine=8),
)  # fmt: skip


def landmarks_at(camera: Camera) -> PrecomputedLandmarks:
    """The built-in head's own landmarks, seen by a camera."""
    return PrecomputedLandmarks(camera.project(MODEL.dense.of(MODEL.mean)[None])[0].float().numpy())


POINTS = landmarks_at(CAMERA)(np.zeros((8, 8, 3), np.uint8))[0].points
FRAME = np.random.default_rng(0).integers(0, 256, (260, 340, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def system() -> PIR:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install 'fastface-kernels[face]'")
    torch.manual_seed(0)
    return PIR.untrained(SMALL, model=MODEL, landmarks=landmarks_at(CAMERA), size=64)


def test_masks() -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install 'fastface-kernels[face]'")
    whole, lower = (face_mask(POINTS, (260, 340), region)[0] for region in ("face", "lower"))
    x, y = np.round(POINTS[:468, :2]).astype(int).T
    assert whole[y, x].all()
    mouth, eyes = [13, 14, 61, 291, 152], [33, 133, 362, 263, 10]
    assert lower[y[mouth], x[mouth]].all() and not lower[y[eyes], x[eyes]].any()
    assert ((whole - lower) >= 0).all() and 0.3 < lower.sum() / whole.sum() < 0.7
    assert face_mask(POINTS, (260, 340), "face", margin=0.2).sum() > whole.sum()
    # Turned by half a turn the mouth is above, and so is the lower face.
    turned = face_mask(np.array([339, 259]) - POINTS[:, :2], (260, 340), "lower")[0]
    assert (turned != lower.flip(0, 1)).float().mean() < 0.01


def test_the_3d_faces_camera_sees_what_its_own_does() -> None:
    """Near the pivot a perspective and an orthographic camera agree: the focal length is the zoom."""
    pose, intrinsics = face_camera(CAMERA, 256, scale=9.0)
    assert torch.allclose(pose[:, :3, :3] @ pose[:, :3, :3].mT, torch.eye(3), atol=1e-6)
    assert torch.allclose(pose[0, :3, 3].norm(), torch.tensor(2.7))
    unit = 4.2647 * 256 / (2.7 * 9.0)  # of the model in one of the world
    point = torch.tensor([0.4, -0.3, 0.2])  # in the model, small against 2.7 of the world
    inside = pose[0, :3, :3].T @ (point / unit - pose[0, :3, 3])
    seen = intrinsics[0] @ inside
    expected = CAMERA.project(point[None, None])[0, 0, :2]
    assert torch.allclose(256 * seen[:2] / seen[2] - 0.5, expected, atol=0.05)
    nearer = replace(CAMERA, scale=2 * CAMERA.scale)
    assert torch.allclose(face_camera(nearer, 256, 9.0)[1][0, 0, 0], torch.tensor(2 * 4.2647))


def test_inpainting() -> None:
    torch.manual_seed(0)
    model = InpaintingGenerator(InpaintingConfig(features=5, channels=8)).eval()
    masked, features = torch.rand(2, 3, 72, 88) * 2 - 1, torch.randn(2, 5, 9, 11)
    with torch.inference_mode():
        image = model(masked, features)
        assert image.shape == masked.shape and image.abs().max() <= 1
        assert not torch.allclose(image, model(masked, features + 1))
        assert torch.allclose(optimize(model)(masked, features), image, atol=1e-4)
    for shape in ((1, 3, 72, 84), (1, 3, 56, 72), (1, 4, 72, 88)):
        with pytest.raises(ValueError, match="multiples of 8 from 64"):
            model(torch.zeros(shape), features[:1])
    with pytest.raises(ValueError, match=r"features must be \[2, 5, 9, 11\]"):
        model(masked, features[:, :, 1:])


def test_the_papers_inpainting_generator() -> None:
    """Supplement, section 3: 4 residual blocks at the size of the features, 3 behind the sum."""
    with torch.device("meta"):
        model = InpaintingGenerator()
        sizes = {}
        for name, part in model.named_modules():
            if name.startswith(("coarse_blocks.", "fine_blocks.")) and name.count(".") == 1:
                part.register_forward_hook(
                    lambda part, given, result, name=name: sizes.update({name: result.shape[1:]})
                )
        image = model(torch.zeros(1, 3, 512, 512), torch.zeros(1, 32, 64, 64))
    assert image.shape == (1, 3, 512, 512)
    assert [tuple(sizes[f"coarse_blocks.{i}"]) for i in range(6)] == [(288, 64, 64)] * 4 + [
        (128, 128, 128), (64, 256, 256)
    ]  # fmt: skip
    assert [tuple(sizes[f"fine_blocks.{i}"]) for i in range(5)] == [(64, 256, 256)] * 3 + [
        (32, 512, 512), (3, 512, 512)
    ]  # fmt: skip


def test_a_video_is_painted(system: PIR) -> None:
    source = system.prepare(FRAME)
    assert source.identity.shape == (1, MODEL.identities)
    x, y, side = source.box
    assert x >= 0 and x + side <= 340 and y >= 0 and y + side <= 260
    expressions = torch.zeros(3, MODEL.expressions)
    expressions[1] = 1
    frames = list(system.dub(source, [FRAME] * 3, expressions))
    assert [frame.shape for frame in frames] == [FRAME.shape] * 3
    changed = (frames[0] != FRAME).any(-1)
    mask = face_mask(POINTS, (260, 340), "lower")[None]
    outside = (F.max_pool2d(mask, 13, 1, 6)[0, 0] == 0).numpy()  # a pixel of the crop is four of the frame's
    assert changed.any() and not changed[outside].any()
    assert np.array_equal(frames[0], frames[2]) and not np.array_equal(frames[0], frames[1])


def test_render_keeps_what_is_not_painted(system: PIR) -> None:
    source = system.prepare(FRAME)
    face = system.landmarks(FRAME)[0]
    camera = FaceTracker(MODEL, system.landmarks, identity=source.identity).follow(face).camera
    motion = system.motion(source, FRAME, torch.zeros(MODEL.expressions), face, camera)
    assert abs(float(motion.intrinsics[0, 0, 0]) - 4.2647) < 0.05  # the frame it was prepared with is not zoomed
    frame = system.render(source, motion)
    outside = motion.mask.expand_as(frame) == 0
    assert torch.equal(frame[outside], motion.frame[outside])
    assert not torch.equal(frame, motion.frame) and frame.min() >= 0 and frame.max() <= 1
    nothing = replace(motion, mask=torch.zeros_like(motion.mask))
    assert torch.equal(system.render(source, nothing), motion.frame)


def test_a_frame_without_a_face_stays(system: PIR) -> None:
    source = system.prepare(FRAME)
    blind = PIR(system.generator, system.inpainter, model=MODEL, landmarks=PrecomputedLandmarks(), size=64)
    (frame,) = blind.dub(source, [FRAME], torch.zeros(1, MODEL.expressions))
    assert frame is FRAME
    with pytest.raises(ValueError, match="no face found"):
        blind.prepare(FRAME)


def test_sound_becomes_expressions(system: PIR) -> None:
    class Encoder(nn.Module):
        def check(self, samples: torch.Tensor) -> None:
            assert samples.dim() == 2

        def forward(self, samples: torch.Tensor, frames: int) -> torch.Tensor:
            return samples[:, :1, None].expand(-1, frames, 6)

    decoder = ExpressionDecoder(DecoderConfig(MODEL.expressions, 16, 6, MODEL.identities, 16)).eval()
    hears = AudioToExpression(Encoder(), decoder)  # type: ignore[arg-type]
    full = PIR(system.generator, system.inpainter, hears, model=MODEL, landmarks=system.landmarks, size=64)
    source = full.prepare(FRAME)
    assert full.expressions(source, np.ones(800, np.float32), 7).shape == (7, MODEL.expressions)
    with pytest.raises(ValueError, match="no part that hears"):
        system.expressions(source, np.ones(800, np.float32), 7)


def test_errors(system: PIR) -> None:
    source = system.prepare(FRAME)
    parts = (system.generator, system.inpainter)
    wrong = AudioToExpression(None, ExpressionDecoder(DecoderConfig(5, 16, 6, 3, 16)))
    motion = PIRMotion(
        torch.zeros(1, 3), torch.eye(4)[None], torch.eye(3)[None], torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    )
    for call, message in (
        (lambda: PIR(*parts, model=MODEL, landmarks=system.landmarks, size=60), "multiple of 8 from 64 on, got 60"),
        (lambda: PIR(*parts, wrong, model=MODEL, landmarks=system.landmarks), "audio must make 28 numbers of 46"),
        (lambda: system.prepare(FRAME, face=1), "face must be from 0 to 0, got 1"),
        (lambda: system.paint(source, motion), r"expression must be \[B, 28\], got \[1, 3\]"),
        (lambda: list(system.dub(source, [FRAME], torch.zeros(0, 28))), "one for each frame, got 0"),
        (lambda: replace(motion, mask=torch.zeros(1, 1, 8, 8)), r"mask must be \[1, 1, 64, 64\], got"),
        (lambda: replace(motion, frame=torch.zeros(3, 64, 64)), r"frame must be \[B, 3, S, S\]"),
        (lambda: face_mask(POINTS[:68], (8, 8)), r"N >= 468, got \[68, 3\]"),
        (lambda: face_mask(POINTS, (8, 8), "upper"), "'lower' or 'face', got 'upper'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
