"""LivePortrait as an animator: its algebra exactly, its crops, and the chain from photo to frame on thin networks."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastface.face import Camera, Face, FaceParameters, PrecomputedLandmarks, built_in_head, rotation_vector
from fastface.models import lifted
from fastface.models.headgan.edits import express, turn
from fastface.models.live_portrait import (
    EYES,
    LIPS,
    REGIONS,
    ExpressionMap,
    FaceCrop,
    LivePortrait,
    LivePortraitConfig,
    LivePortraitDriving,
    LivePortraitMotion,
    MotionTemplate,
    eye_ratios,
    from_controls,
    from_face,
    lip_ratio,
    make_template,
    save_template,
)
from fastface.models.live_portrait.weights import BASE, RETARGETING
from fastface.models.style_mapping import WarpingNetwork
from tests.models.test_live_portrait_templates import assert_same, clip

CONFIG = LivePortraitConfig(size=256, network=128)
PHOTO = (301, 263)  # height, width


def face(yaw: float = 0.0, roll: float = 0.0, *, size: float = 6.0, place=(131.0, 140.0)) -> FaceParameters:
    """The built-in head in a photo, `size` pixels a centimetre."""
    straight = Camera(torch.tensor([size]), torch.zeros(1, 3), torch.tensor([[*place, 0.0]]))
    model = built_in_head()
    still = FaceParameters(torch.zeros(1, model.identities), torch.zeros(1, model.expressions), straight)
    return turn(still, model, yaw=yaw, roll=roll)


def points_of(parameters: FaceParameters) -> np.ndarray:
    """Its 468 landmarks in pixels."""
    model = built_in_head()
    assert model.dense is not None
    shape = model.shape(parameters.identity, parameters.expression)
    return parameters.camera.project(model.dense.of(shape))[0].numpy().astype(np.float32)


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*PHOTO, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> LivePortrait:
    return LivePortrait.from_random(width=1 / 32, config=CONFIG, landmarks=PrecomputedLandmarks(points_of(face())))


@pytest.fixture(scope="module")
def source(model):
    return model.prepare(photo())


def with_config(model: LivePortrait, networks: dict[str, nn.Module | None] | None = None, **options) -> LivePortrait:
    """The same networks, or some replaced, under other options."""
    names = ("appearance", "motion", "warping", "generator", "stitching", "retarget_lip", "retarget_eye")
    parts = {name: getattr(model, name) for name in names} | (networks or {})
    config = LivePortraitConfig(**{"size": 256, "network": 128, "stitching": False} | options)
    return LivePortrait(**parts, config=config, landmarks=PrecomputedLandmarks(points_of(face())))


@pytest.fixture(scope="module")
def plain(model) -> LivePortrait:
    """Without stitching, so that keypoints are those of the equation."""
    return with_config(model)


class Recorder(nn.Module):
    """Answers with constants, and keeps what it was asked."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer, self.asked = answer, []

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.asked.append(inputs)
        return self.answer.expand(len(inputs[0]), -1)


# Keypoints


def test_the_source_keypoints_are_the_equation(source) -> None:
    own = source.motion
    for k in range(21):
        turned = [sum(float(source.canonical[0, k, j] * own.rotation[0, j, i]) for j in range(3)) for i in range(3)]
        for i in range(3):
            wanted = float(own.scale) * (turned[i] + float(own.expression[0, k, i]))
            wanted += float(own.translation[0, i]) if i < 2 else 0
            assert float(source.keypoints[0, k, i]) == pytest.approx(wanted, abs=1e-5)


def test_no_change_keeps_the_source_keypoints(plain, source) -> None:
    for region in REGIONS:
        still = with_config(plain, region=region).driving_keypoints(source, LivePortraitMotion.of())
        assert torch.allclose(still, source.keypoints, atol=1e-6), region
    own = source.motion.with_ratios(eyes=False, lips=False)
    assert torch.allclose(plain.driving_keypoints(source, own), source.keypoints, atol=1e-6)


def test_a_still_clip_is_no_change(plain, source) -> None:
    first = clip(1, ratios=False)
    still = LivePortraitMotion.cat([first] * 3).relative_to(first)
    assert still.relative and len(still) == 3
    assert torch.allclose(still.rotation, torch.eye(3).expand(3, 3, 3), atol=1e-6)
    assert torch.equal(still.expression, torch.zeros(3, 21, 3)) and torch.equal(still.scale, torch.ones(3, 1))
    moved = plain.driving_keypoints(source, still)
    assert torch.allclose(moved, source.keypoints.expand(3, -1, -1), atol=1e-6)


def test_changes_are_those_of_the_paper(source) -> None:
    driving, own = clip(4, ratios=False), source.motion
    first = driving.frames(slice(1))
    applied = driving.relative_to(first).applied_to(own)
    for i in range(4):
        wanted = driving.rotation[i] @ first.rotation[0].T @ own.rotation[0]
        assert torch.allclose(applied.rotation[i], wanted, atol=1e-6)
    assert torch.allclose(applied.expression, own.expression + driving.expression - first.expression, atol=1e-6)
    assert torch.allclose(applied.scale, own.scale * driving.scale / first.scale)
    assert torch.allclose(applied.translation, own.translation + driving.translation - first.translation)
    assert torch.equal(source.motion.translation[:, 2], torch.zeros(1))
    # A portrait that is the first driving frame does what the driver does.
    assert_close(driving.relative_to(first).applied_to(first), driving)


def assert_close(one: LivePortraitMotion, other: LivePortraitMotion, atol: float = 1e-5) -> None:
    for name, tensor in one.tensors().items():
        assert torch.allclose(tensor, other.tensors()[name], atol=atol), name


@settings(max_examples=20, deadline=None)
@given(angles=st.tuples(*[st.floats(-40, 40)] * 3), factor=st.floats(0.1, 2))
def test_turns_compose_and_scale(angles, factor) -> None:
    yaw, pitch, roll = angles
    motion = LivePortraitMotion.of(yaw=yaw, pitch=pitch, roll=roll, scale=1.2, translation=(0.1, -0.2))
    start = clip(1, ratios=False)
    half = motion.scaled(pose=0.5)
    assert_close(half.applied_to(half.applied_to(start)), motion.applied_to(start))
    part = motion.scaled(pose=factor)
    degrees = torch.linalg.vector_norm(rotation_vector(part.rotation))
    assert float(degrees) == pytest.approx(
        factor * float(torch.linalg.vector_norm(rotation_vector(motion.rotation))), abs=1e-3
    )
    assert_close(motion.scaled(pose=0), LivePortraitMotion.of(), atol=1e-5)
    assert motion.scaled() is motion


def test_which_way_the_head_turns() -> None:
    """Points as rows, z into the image: the nose is at -z."""
    nose, ear = torch.tensor([0.0, 0.0, -1.0]), torch.tensor([1.0, 0.0, 0.0])
    assert (nose @ LivePortraitMotion.of(yaw=20).rotation[0])[0] == pytest.approx(math.sin(math.radians(20)))
    assert (nose @ LivePortraitMotion.of(pitch=20).rotation[0])[1] == pytest.approx(-math.sin(math.radians(20)))
    assert (ear @ LivePortraitMotion.of(roll=20).rotation[0])[1] == pytest.approx(math.sin(math.radians(20)))


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_moves_nothing_else(source, region) -> None:
    own = source.motion
    for motion in (clip(2, ratios=False), clip(2, ratios=False).relative_to(clip(1, seed=3, ratios=False))):
        applied = motion.applied_to(own, region)
        moved = (applied.expression != own.expression).flatten(2).any(2)
        wanted = {
            "all": range(21),
            "exp": range(21),
            "pose": (),
            "lip": LIPS,
            "eyes": EYES,
        }[region]
        assert moved.tolist() == [[k in wanted for k in range(21)]] * 2
        for name in ("rotation", "scale", "translation"):
            same = torch.equal(getattr(applied, name), getattr(own, name).expand_as(getattr(applied, name)))
            assert same == (region not in ("all", "pose")), name
        assert not applied.relative


def test_a_clip_is_smoothed_without_delay() -> None:
    motions = clip(30)
    calm = motions.smoothed(2.0)
    turned = LivePortraitMotion(**{name: tensor.flip(0) for name, tensor in motions.tensors().items()})
    back = turned.smoothed(2.0)
    for name, tensor in calm.tensors().items():
        assert torch.allclose(tensor, back.tensors()[name].flip(0), atol=1e-4), name
        assert tensor.std(0).mean() < 0.6 * motions.tensors()[name].std(0).mean(), name
    assert torch.allclose(calm.rotation @ calm.rotation.mT, torch.eye(3).expand(30, 3, 3), atol=1e-5)
    still = LivePortraitMotion.cat([motions.frames(slice(1))] * 9)
    assert_close(still.smoothed(1.7), still)
    assert motions.smoothed(0) is motions
    with pytest.raises(ValueError, match="frames must be at least 0, got -1"):
        motions.smoothed(-1)


# Stitching and retargeting


def test_stitching_adds_offsets_and_a_shift(model, source) -> None:
    answer = torch.randn(65, generator=torch.Generator().manual_seed(1))
    stitching = Recorder(answer[None])
    motion = LivePortraitMotion.cat([LivePortraitMotion.of(yaw=9), LivePortraitMotion.of(lips=None, scale=1.1)])
    bare = with_config(model).driving_keypoints(source, motion)
    stitched = with_config(model, {"stitching": stitching}, stitching=None).driving_keypoints(source, motion)
    wanted = bare + answer[:63].view(21, 3)
    wanted[..., :2] += answer[63:]
    assert torch.allclose(stitched, wanted, atol=1e-6)
    asked_source, asked_driving = stitching.asked[0]
    assert torch.equal(asked_source, source.keypoints.expand(2, -1, -1)) and torch.equal(asked_driving, bare)


def test_retargeting_asks_for_ratios_and_leaves_the_expression(model, source) -> None:
    eye, lip = (Recorder(torch.full((1, 63), value)) for value in (0.25, 0.5))
    animator = with_config(model, {"retarget_eye": eye, "retarget_lip": lip})
    driving = clip(2).relative_to(clip(1, seed=5))
    assert driving.eyes is not None and driving.lips is not None
    found = animator.driving_keypoints(source, driving)
    kept = driving.expression.clone()
    kept[:, [*EYES, *LIPS]] = 0
    parts = driving.tensors() | {"expression": kept}
    still = LivePortraitMotion(**parts, relative=True).with_ratios(eyes=False, lips=False)
    assert torch.allclose(found, animator.driving_keypoints(source, still) + 0.75, atol=1e-6)
    keypoints, ratios = eye.asked[0]
    assert torch.equal(keypoints, source.keypoints.expand(2, -1, -1))
    assert torch.equal(ratios[:, :2], source.motion.eyes.expand(2, -1))
    assert torch.equal(ratios[:, 2], driving.eyes.mean(1))
    assert torch.equal(lip.asked[0][1], torch.cat([source.motion.lips.expand(2, -1), driving.lips], 1))
    # A region keeps what is not its own: the pose takes neither, the eyes take theirs.
    count = len(eye.asked), len(lip.asked)
    with_config(model, {"retarget_eye": eye, "retarget_lip": lip}, region="pose").driving_keypoints(source, driving)
    assert (len(eye.asked), len(lip.asked)) == count
    with_config(model, {"retarget_eye": eye, "retarget_lip": lip}, region="eyes").driving_keypoints(source, driving)
    assert (len(eye.asked), len(lip.asked)) == (count[0] + 1, count[1])
    with pytest.raises(ValueError, match="ratios for retarget_eye, a network that is not there"):
        with_config(model, {"retarget_eye": None}).driving_keypoints(source, driving)


def test_an_open_mouth_is_closed(model) -> None:
    lip = Recorder(torch.full((1, 63), 0.5))
    animator = with_config(model, {"retarget_lip": lip}, close_mouth=True)
    shut, parted = (express(face(), built_in_head(), {"jaw_open": amount}) for amount in (0.0, 0.5))
    assert lip_ratio(points_of(shut)) < 0.03 < lip_ratio(points_of(parted))
    still = LivePortraitMotion.of()
    source = animator.prepare(photo(), face=Face(points_of(shut)))
    assert source.closing is None and not lip.asked
    source = animator.prepare(photo(), face=Face(points_of(parted)))
    assert torch.allclose(animator.driving_keypoints(source, still), source.keypoints + 0.5, atol=1e-6)
    assert torch.equal(lip.asked[0][1], torch.tensor([[lip_ratio(points_of(parted)), 0.0]]))
    own = source.motion.with_ratios(eyes=False, lips=False)  # absolute: the driver's mouth, not the portrait's
    assert torch.allclose(animator.driving_keypoints(source, own), source.keypoints, atol=1e-6)


def test_openings_follow_the_face() -> None:
    head = built_in_head()
    jaws = [lip_ratio(points_of(express(face(), head, {"jaw_open": amount}))) for amount in (0, 0.3, 0.6)]
    assert jaws[0] < jaws[1] < jaws[2]
    left, right = (eye_ratios(points_of(express(face(), head, {name: 0.9}))) for name in ("blink_left", "blink_right"))
    open_eyes = eye_ratios(points_of(face()))
    # The person's right eye is the image's left one, which comes first.
    assert right[0] < 0.5 * open_eyes[0] and right[1] == pytest.approx(open_eyes[1], rel=0.05)
    assert left[1] < 0.5 * open_eyes[1] and left[0] == pytest.approx(open_eyes[0], rel=0.05)


# Crops


@settings(max_examples=20, deadline=None)
@given(
    roll=st.floats(-170, 170),
    size=st.floats(2, 40),
    x=st.floats(0, 500),
    y=st.floats(0, 500),
    side=st.integers(64, 600),
)
def test_a_crop_does_not_depend_on_where_the_face_is(roll, size, x, y, side) -> None:
    """Whatever similarity the face went through, its points come to the same place of the crop."""
    points = points_of(face())
    wanted = FaceCrop.around(points, (900, 900), side)
    angle = math.radians(roll)
    turned = points * (size / 6)
    turned[:, :2] = turned[:, :2] @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned[:, :2] += (x, y)
    crop = FaceCrop.around(turned.astype(np.float32), (900, 900), side)
    assert np.abs(crop.points(turned) - wanted.points(points)).max() < 2e-3 * side
    centre = crop.points(turned)[:, :2].mean(0)
    assert (np.abs(centre - side / 2) < 0.2 * side).all()


def test_a_face_from_the_side_is_level_by_its_mouth() -> None:
    points = points_of(face(yaw=88))
    eyes = np.linalg.norm(points[33, :2] - points[263, :2])
    assert eyes < 0.5 * np.linalg.norm(points[[33, 263], :2].mean(0) - points[[61, 291], :2].mean(0))
    matrix = FaceCrop.around(points, PHOTO).matrix
    assert matrix[1, 1] > 0.9 * np.linalg.norm(matrix[:, 1])  # down stays down


@pytest.mark.parametrize("size", [100, 256, 700])
def test_a_crop_shows_the_photo(size) -> None:
    """A smooth picture, so that reading it anywhere is exact enough; sizes that reduce and enlarge."""
    height, width = 400, 360
    ramp = np.stack(np.meshgrid(np.arange(width) * 0.6, np.arange(height) * 0.6), -1)
    picture = np.concatenate([ramp, ramp[..., :1] * 0], -1).round().astype(np.uint8)
    crop = FaceCrop.around(points_of(face(roll=20, size=9, place=(180, 200))), picture.shape, size)
    cut = crop.cut(picture)
    where = np.array([[size // 2, size // 2, 1], [size // 3, size // 2, 1], [size // 2, size // 3, 1]])
    for column, row, _ in where:
        x, y = crop.inverse @ (column, row, 1)
        assert np.abs(cut[row, column, :2] - 0.6 * np.array([x, y])).max() < 1.5
    assert np.allclose(
        crop.points(np.array([[*(crop.inverse @ (3, 5, 1)), 0]], dtype=np.float32))[0, :2], (3, 5), atol=1e-3
    )


@pytest.mark.parametrize("size", [96, 256, 600])
def test_a_frame_is_pasted_back(size) -> None:
    picture = photo()
    crop = FaceCrop.around(points_of(face(roll=15, size=4)), picture.shape, size)
    frame = np.full((size, size, 3), 255, dtype=np.uint8)
    pasted = crop.paste(frame, picture)
    ys, xs = np.mgrid[: PHOTO[0], : PHOTO[1]]
    there = np.stack([xs.ravel(), ys.ravel(), np.ones(xs.size)])
    at = ((crop.matrix @ there + 0.5) / size).reshape(2, *PHOTO)  # 0 and 1 are the square's borders
    beyond = ((at < -0.02) | (at > 1.02)).any(0)
    inside = ((at > 0.12) & (at < 0.88)).all(0)
    assert beyond.sum() > 1000 and inside.sum() > 1000
    assert np.array_equal(pasted[beyond], picture[beyond])
    assert (pasted[inside] == 255).all()
    # The feather goes up towards the middle.
    black = crop.paste(frame, np.zeros_like(picture))[..., 0]
    levels = []
    for share in (0.01, 0.03, 0.05, 0.07, 0.12):
        x, y = (crop.inverse @ (share * size, size / 2, 1)).round().astype(int)
        levels.append(int(black[y, x]))
    assert levels == sorted(levels) and levels[0] < 40 and levels[-1] == 255


def test_the_own_crop_pasted_back_is_the_photo() -> None:
    smooth = np.stack([np.add.outer(np.arange(PHOTO[0]), np.arange(PHOTO[1])) // 3] * 3, -1).astype(np.uint8)
    crop = FaceCrop.around(points_of(face(roll=-30)), smooth.shape, 512)
    assert np.abs(crop.paste(crop.cut(smooth), smooth).astype(int) - smooth).max() <= 1


def test_a_crop_beyond_the_photo() -> None:
    picture = photo()
    half = FaceCrop.around(points_of(face(place=(5.0, 10.0))), picture.shape, 128)
    assert half.cut(picture).shape == (128, 128, 3)
    white = half.paste(np.full((128, 128, 3), 255, dtype=np.uint8), picture)
    assert np.array_equal(white[-60:, -60:], picture[-60:, -60:]) and (white[:20, :20] == 255).all()
    away = FaceCrop.around(points_of(face(place=(5000.0, 10.0))), picture.shape, 128)
    assert np.array_equal(away.paste(np.zeros((128, 128, 3), dtype=np.uint8), picture), picture)
    with pytest.raises(ValueError, match=r"frame must be \[128, 128, 3\] uint8, got \[64, 64, 3\] uint8"):
        half.paste(np.zeros((64, 64, 3), dtype=np.uint8), picture)
    with pytest.raises(ValueError, match=r"photo must be \[301, 263, 3\] uint8, got \[263, 301, 3\] uint8"):
        half.cut(picture.transpose(1, 0, 2))


# The whole chain


def test_render(model, source) -> None:
    motions = [LivePortraitMotion.of(), LivePortraitMotion.of(yaw=15, lips=0.3)]
    single = [model.render(source, motion.with_ratios(eyes=False, lips=False)) for motion in motions]
    batch = model.render(source, LivePortraitMotion.cat(motions))
    assert batch.shape == (2, 3, 256, 256) and batch.min() >= 0 and batch.max() <= 1
    for one, both in zip(single, batch, strict=True):
        assert (one[0] - both).abs().max() < 1e-4
    assert (batch[0] - batch[1]).abs().max() > 1e-3
    eight = model.render_uint8(source, motions[0])
    assert eight.dtype == torch.uint8 and eight.shape == (1, 256, 256, 3)
    assert (eight[0].permute(2, 0, 1) / 255 - single[0][0]).abs().max() < 0.51 / 255
    full = model.render_full(source, batch)
    assert full.shape == (2, *PHOTO, 3) and torch.equal(full[1], torch.from_numpy(source.paste(full_frame(batch, 1))))
    assert torch.equal(model.prepare(torch.from_numpy(photo())).image, source.image)


def full_frame(frames: torch.Tensor, index: int) -> np.ndarray:
    return (frames[index] * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def test_the_reference_backend_gives_the_same(model, source) -> None:
    motion = LivePortraitMotion.of(yaw=15)
    other = LivePortrait.from_random(
        width=1 / 32, config=CONFIG, landmarks=PrecomputedLandmarks(points_of(face())), backend="reference"
    )
    assert (other.render(other.prepare(photo()), motion) - model.render(source, motion)).abs().max() < 1e-3


def test_the_backend_is_that_of_all_ops(model) -> None:
    other = LivePortrait.from_random(width=1 / 32, config=CONFIG, backend="reference")
    for animator in (other, other.optimized()):
        networks = animator.warping, animator.warping.dense_motion, *animator.generator.modules()
        assert {part.backend for part in networks if hasattr(part, "backend")} == {"reference"}


def test_random_weights_say_so_and_repeat(model) -> None:
    assert not model.trained
    state = torch.random.get_rng_state()
    same, other = (LivePortrait.from_random(seed, width=1 / 32, config=CONFIG) for seed in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [each.generator.fc.weight for each in (model, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_which_face(model) -> None:
    small, large = points_of(face(size=4, place=(60, 70))), points_of(face(size=6, place=(170, 180)))
    crowd = LivePortrait.from_random(width=1 / 32, config=CONFIG, landmarks=PrecomputedLandmarks(small, large))
    assert [each.area for each in crowd.detect(photo())] == sorted((Face(small).area, Face(large).area), reverse=True)
    by_default, second = crowd.prepare(photo()), crowd.prepare(photo(), face=1)
    assert np.allclose(by_default.crop.matrix, crowd.prepare(photo(), face=0).crop.matrix)
    assert np.allclose(second.crop.matrix, crowd.prepare(photo(), face=Face(small)).crop.matrix)
    with pytest.raises(ValueError, match="face must be from 0 to 1, got 2"):
        crowd.prepare(photo(), face=2)


def test_bad_portraits(model) -> None:
    nobody = with_config(model)
    nobody._landmarks = PrecomputedLandmarks()
    with pytest.raises(ValueError, match="no face found in the portrait of 263x301 pixels, expected one"):
        nobody.prepare(photo())
    with pytest.raises(ValueError, match="face must be at least 24 pixels wide, got "):
        model.prepare(photo(), face=Face(points_of(face(size=1))))
    with pytest.raises(ValueError, match=r"landmarks must be at least 468 .* got 68"):
        model.prepare(photo(), face=Face(points_of(face())[:68]))
    with pytest.raises(ValueError, match=r"portrait must be \[3, H, W\] .* got \[301, 263\]"):
        model.prepare(photo()[..., 0])


def test_bad_arguments(model, source) -> None:
    with pytest.raises(TypeError, match="motion must be a LivePortraitMotion, got Motion"):
        model.render(source, lifted.Motion.of())
    with pytest.raises(ValueError, match="region must be one of all, exp, pose, lip, eyes, got 'nose'"):
        LivePortraitConfig(region="nose")
    with pytest.raises(ValueError, match="network must be a multiple of 128, got 200"):
        LivePortraitConfig(network=200)
    with pytest.raises(ValueError, match="stitching needs the stitching network"):
        with_config(model, {"stitching": None}, stitching=True)
    with pytest.raises(ValueError, match="close_mouth needs the network retarget_lip"):
        with_config(model, {"retarget_lip": None}, close_mouth=True)
    with pytest.raises(ValueError, match=r"rotation must be \[1, 3, 3\], got \[2, 3, 3\]"):
        LivePortraitMotion(torch.zeros(2, 3, 3), torch.zeros(1, 21, 3), torch.ones(1, 1), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"motion must have the source's 21 keypoints, got 15"):
        model.render(source, LivePortraitMotion.of(keypoints=15))
    with pytest.raises(ValueError, match="eyes and lips are known among 21 keypoints, got 15"):
        clip(1, keypoints=15, ratios=False).applied_to(clip(1, keypoints=15), "lip")
    with pytest.raises(ValueError, match="only a relative motion has a strength"):
        source.motion.scaled(pose=0.5)
    with pytest.raises(ValueError, match="both motions must be absolute"):
        LivePortraitMotion.of().relative_to(source.motion)
    with pytest.raises(ValueError, match="all relative or all absolute, got both"):
        LivePortraitMotion.cat([LivePortraitMotion.of(), source.motion])
    with pytest.raises(ValueError, match=r"frames must be of the crop's size 512, got \[1, 3, 256, 256\]"):
        big = with_config(model, size=512)
        big.render(big.prepare(photo()), LivePortraitMotion.of())


# Public weights

_PUBLIC = {  # from our names to those of the public checkpoints; the first that matches
    "appearance": [(r"blocks\.(\d)\.(.*)", r"resblocks_3d.3dr\1.\2")],
    "motion": [
        (r"((?:pitch|yaw|roll|scale)\..*)", r"detector.fc_\1"),
        (r"keypoints\.(.*)", r"detector.fc_kp.\1"),
        (r"translation\.(.*)", r"detector.fc_t.\1"),
        (r"expression\.(.*)", r"detector.fc_exp.\1"),
        (r"(.*)", r"detector.\1"),
    ],
    "warping": [
        (r"dense_motion\.hourglass\.encoder\.(.*)", r"dense_motion_network.hourglass.encoder.down_blocks.\1"),
        (r"dense_motion\.hourglass\.decoder\.(.*)", r"dense_motion_network.hourglass.decoder.up_blocks.\1"),
        (r"dense_motion\.hourglass\.(.*)", r"dense_motion_network.hourglass.decoder.\1"),
        (r"dense_motion\.compress_norm\.(.*)", r"dense_motion_network.norm.\1"),
        (r"dense_motion\.(.*)", r"dense_motion_network.\1"),
    ],
    "generator": [
        (r"to_image\.(.*)", r"conv_img.0.\1"),
        (r"middle\.(\d)\.(norm_.)\.shared\.(.*)", r"G_middle_\1.\2.mlp_shared.0.\3"),
        (r"middle\.(\d)\.(norm_.)\.(.*)", r"G_middle_\1.\2.mlp_\3"),
        (r"middle\.(\d)\.(.*)", r"G_middle_\1.\2"),
        (r"(up_.)\.(norm_.)\.shared\.(.*)", r"\1.\2.mlp_shared.0.\3"),
        (r"(up_.)\.(norm_.)\.(.*)", r"\1.\2.mlp_\3"),
    ],
}


def public_state(name: str, network: nn.Module) -> dict[str, torch.Tensor]:
    """The network's tensors under the names of the public checkpoints."""

    def renamed(key: str) -> str:
        matches = ((re.fullmatch(pattern, key), replacement) for pattern, replacement in _PUBLIC[name])
        return next((match.expand(replacement) for match, replacement in matches if match), key)

    return {renamed(key): tensor for key, tensor in network.state_dict().items()}


def write_weights(model: LivePortrait, base: Path, retargeting: Path, ending: str) -> None:
    from safetensors.torch import save_file

    networks = (model.appearance, model.motion, model.warping, model.generator)
    base.mkdir(parents=True)
    for name, file, network in zip(_PUBLIC, BASE, networks, strict=True):
        state = public_state(name, network)
        path = base / f"{file}{ending}"
        save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    parts = {
        name: {
            re.sub(r"layers\.(\d)", lambda m: f"module.mlp.{2 * int(m[1])}", key): value for key, value in mlp.items()
        }
        for name, mlp in (
            ("retarget_shoulder", model.stitching.state_dict()),
            ("retarget_mouth", model.retarget_lip.state_dict()),
            ("retarget_eye", model.retarget_eye.state_dict()),
        )
    }
    retargeting.mkdir(parents=True, exist_ok=True)
    path = retargeting / f"{RETARGETING}{ending}"
    if ending == ".safetensors":
        flat = {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}
        save_file(flat, path, metadata={"fastface.parts": ",".join(parts)})
    else:
        torch.save(parts, path)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_public_weights(tmp_path, model, source, ending) -> None:
    human = tmp_path / "liveportrait"
    write_weights(model, human / "base_models", human / "retargeting_models", ending)
    motion = LivePortraitMotion.of(yaw=10, lips=0.2, eyes=0.1)
    wanted = model.render(source, motion)
    landmarks = PrecomputedLandmarks(points_of(face()))
    for folder in (tmp_path, human):
        loaded = LivePortrait.from_checkpoints(folder, config=CONFIG, landmarks=landmarks)
        assert loaded.trained
        assert (loaded.render(loaded.prepare(photo()), motion) - wanted).abs().max() < 1e-5
    paths = {name: human / "base_models" / f"{name}{ending}" for name in BASE}
    bare = LivePortrait.from_checkpoints(paths, config=CONFIG, landmarks=landmarks)
    assert bare.stitching is None and bare.retarget_eye is None
    # The weights for animals, with the human retargeting beside them.
    animals = tmp_path / "liveportrait_animals"
    write_weights(LivePortrait.from_random(1, width=1 / 32), animals / "base_models_v1.1", tmp_path / "unused", ending)
    for folder in (tmp_path, animals):
        other = LivePortrait.from_checkpoints(folder, animals=True, config=CONFIG)
        assert not torch.equal(other.generator.fc.weight, model.generator.fc.weight)
        assert torch.equal(other.stitching.layers[0].weight, model.stitching.layers[0].weight)


def test_missing_weights(tmp_path, model) -> None:
    with pytest.raises(ValueError, match="no such folder of weights"):
        LivePortrait.from_checkpoints(tmp_path / "none")
    write_weights(model, tmp_path / "base_models", tmp_path / "retargeting_models", ".pth")
    (tmp_path / "base_models" / "warping_module.pth").unlink()
    (tmp_path / "base_models" / "motion_extractor.pth").unlink()
    with pytest.raises(ValueError, match=r"2 of 4 weight files are missing in .*: motion_extractor, warping_module"):
        LivePortrait.from_checkpoints(tmp_path)
    with pytest.raises(ValueError, match="3 of 4 weight files are missing: appearance_feature_extractor, motion"):
        LivePortrait.from_checkpoints({"spade_generator": "g.pth"})
    with pytest.raises(ValueError, match="parts must be among .*, got decoder"):
        LivePortrait.from_checkpoints({"decoder": "g.pth"})
    torch.save({"retarget_eye": {"module.mlp.0.weight": torch.zeros(1)}}, tmp_path / "r.pth")
    base = LivePortrait.from_random(width=1 / 32)
    write_weights(base, tmp_path / "all", tmp_path / "all", ".pth")
    paths = {name: tmp_path / "all" / f"{name}.pth" for name in BASE} | {RETARGETING: tmp_path / "r.pth"}
    with pytest.raises(ValueError, match="must hold .*; retarget_shoulder, retarget_mouth missing"):
        LivePortrait.from_checkpoints(paths)
    (tmp_path / "r.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"r\.pth is truncated, or no file"):
        LivePortrait.from_checkpoints(paths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": 15}, "keypoints: motion_extractor 21, warping_module 15, stitching 21"),
        ({"depth": 8}, r"feature volumes \(channels, depth\): appearance_feature_extractor \(32, 16\)"),
        ({"features": 12}, "warped features: warping_module 12, spade_generator 8"),
    ],
)
def test_weights_of_two_variants(tmp_path, change: dict[str, int], message: str) -> None:
    mixed = LivePortrait.from_random(width=1 / 32)
    mixed.warping = WarpingNetwork(replace(mixed.warping.config, **change))
    write_weights(mixed, tmp_path / "base_models", tmp_path / "retargeting_models", ".pth")
    with pytest.raises(ValueError, match=f"the weights mix variants of different {message}"):
        LivePortrait.from_checkpoints(tmp_path)


# Driving


class Seen:
    """Landmarks of one call after another; None is a frame without a face."""

    def __init__(self, *faces: FaceParameters | None) -> None:
        self._faces = list(faces)

    def __call__(self, image: np.ndarray) -> list[Face]:
        found = self._faces.pop(0)
        return [] if found is None else [Face(points_of(found))]


def test_a_still_driver_moves_nothing(model) -> None:
    driver = LivePortraitDriving(model, landmarks=Seen(None, *[face()] * 3))
    for index in range(4):
        motion = driver(photo(), index / 25)
        assert motion.relative
        assert_close(motion, LivePortraitMotion.of())
    assert (driver.frames, driver.missed) == (4, 1)


def test_a_driver_gives_the_changes_and_holds(model) -> None:
    """The crop of the first face stays, so a head that moves moves in it."""
    images, faces = [photo(index) for index in range(3)], [face(), face(yaw=20), None]
    driver = LivePortraitDriving(model, smoothing=0, landmarks=Seen(*faces), retarget=("lips",))
    motions = [driver(image, index / 25) for index, image in enumerate(images)]
    crop = FaceCrop.around(points_of(face()), images[0].shape, 128, scale=2.2, shift=-0.1, level=False)
    first, second = (model.motion_of(crop.cut(image)) for image in images[:2])
    assert_close(motions[1].with_ratios(eyes=False, lips=False), second.relative_to(first))
    assert motions[1].eyes is None
    assert float(motions[1].lips) == pytest.approx(lip_ratio(points_of(face(yaw=20))))
    assert motions[2] is motions[1] and driver.missed == 1
    absolute = LivePortraitDriving(model, smoothing=0, relative=False, landmarks=Seen(face()))
    assert_close(absolute(images[0], 0.0), first)


def test_a_driver_is_calmed(model) -> None:
    images = [photo(index) for index in range(6)]

    def drive(smoothing: float) -> LivePortraitMotion:
        driver = LivePortraitDriving(
            model, smoothing=smoothing, landmarks=Seen(*[face()] * 6), retarget=("eyes", "lips")
        )
        return LivePortraitMotion.cat([driver(image, index / 25) for index, image in enumerate(images)])

    rough, calm, calmer = drive(0), drive(1), drive(5)
    steps = [motions.expression.diff(dim=0).abs().mean() for motions in (rough, calm, calmer)]
    assert steps[0] > steps[1] > steps[2]
    assert torch.allclose(calm.rotation @ calm.rotation.mT, torch.eye(3).expand(6, 3, 3), atol=1e-5)


def test_bad_drivers(model) -> None:
    with pytest.raises(ValueError, match="smoothing must be at least 0, got -1"):
        LivePortraitDriving(model, smoothing=-1, landmarks=Seen())
    with pytest.raises(ValueError, match="retarget must be among eyes, lips, got nose"):
        LivePortraitDriving(model, retarget=("nose",), landmarks=Seen())
    whole = LivePortraitDriving(model, crop=False, landmarks=Seen(face(), face()))
    with pytest.raises(ValueError, match=r"image must be \[S, S, 3\] uint8, got \[301, 263, 3\] uint8"):
        whole(photo(), 0.0)
    assert whole(photo()[:256, :256], 0.1).relative


def test_a_template_of_a_clip(model, source) -> None:
    images = [photo(index) for index in range(4)]
    template = make_template(
        model, zip(images, range(4), strict=True), 25, landmarks=Seen(None, face(), face(yaw=10), None)
    )
    assert len(template) == 4 and template.motions.eyes is not None
    for held, shown in ((0, 1), (3, 2)):
        assert_same(template.motions.frames(slice(held, held + 1)), template.motions.frames(slice(shown, shown + 1)))
    assert model.render(source, template.at(0.08)).shape == (1, 3, 256, 256)
    with pytest.raises(ValueError, match="no face found in any of the 2 frames, expected one"):
        make_template(model, [(images[0], 0.0)] * 2, 25, landmarks=Seen(None, None))


# Without the motion network


@settings(max_examples=15, deadline=None)
@given(yaw=st.floats(-30, 30), roll=st.floats(-30, 30), size=st.floats(4, 9))
def test_the_pose_of_a_face_carries_over(source, yaw, roll, size) -> None:
    reference = face()
    motion = from_face(face(yaw, roll, size=size), reference, source)
    assert motion.relative
    assert torch.allclose(motion.rotation, LivePortraitMotion.of(yaw=yaw, roll=roll).rotation, atol=1e-4)
    assert float(motion.scale) == pytest.approx(size / 6, rel=1e-4)


def test_a_face_at_rest_moves_nothing_and_its_mouth_and_lids_carry_over(model, source) -> None:
    head, reference = built_in_head(), face(yaw=10)
    still = from_face(reference, reference, source)
    assert_close(still.with_ratios(eyes=False, lips=False), LivePortraitMotion.of())
    assert torch.allclose(still.eyes, source.motion.eyes) and torch.allclose(still.lips, source.motion.lips)
    talking = from_face(express(reference, head, {"jaw_open": 0.4, "blink_right": 0.9}), reference, source)
    assert float(talking.lips) > float(source.motion.lips) + 0.05
    assert float(talking.eyes[0, 0]) < 0.5 * float(source.motion.eyes[0, 0])
    assert float(talking.eyes[0, 1]) == pytest.approx(float(source.motion.eyes[0, 1]), rel=0.1)
    assert model.render(source, talking).shape == (1, 3, 256, 256)
    # A face that goes a fifth of the crop's side to the right takes the keypoints 0.4 to the right.
    side = 256 / float(np.linalg.norm(source.crop.matrix[:, 0]))
    aside = from_face(face(place=(131.0 + side / 5, 140.0)), face(), source)
    assert torch.allclose(aside.translation, torch.tensor([[0.4, 0.0, 0.0]]), atol=0.01)


def test_an_expression_map_is_learnt(source) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = 0.05 * torch.randn(28, 21, 3, generator=generator)
    faces = torch.rand(200, 28, generator=generator)
    motions = clip(200, ratios=False)
    parts = motions.tensors() | {"expression": torch.einsum("te,ekc->tkc", faces, weights) + 0.3}
    found = ExpressionMap.fit(faces, LivePortraitMotion(**parts), noise=1e-4)
    assert torch.allclose(found.weights, weights, atol=1e-4)
    head, reference = built_in_head(), face()
    smiling = express(reference, head, {"smile_left": 0.7})
    motion = from_face(smiling, reference, source, expressions=found)
    assert motion.eyes is None and motion.lips is None
    wanted = 0.7 * weights[head.expression_names.index("smile_left")]
    assert torch.allclose(motion.expression[0], wanted, atol=1e-3)
    with pytest.raises(ValueError, match=r"faces must be \[T, E\] for T = 200 motions, at least 2, got \[3, 28\]"):
        ExpressionMap.fit(faces[:3], motions)
    with pytest.raises(ValueError, match=r"change must be \[B, 28\], got \[1, 5\]"):
        found(torch.zeros(1, 5))


def test_the_motions_of_lifted(model, source) -> None:
    """Its turns are seen in the image, whatever the portrait's own pose is."""
    for motion_at in lifted.PRESETS.values():
        assert model.driving_keypoints(source, from_controls(motion_at(0.7), source)).isfinite().all()
    still = from_controls(lifted.Motion.of(), source)
    assert_close(still.with_ratios(eyes=False, lips=False), LivePortraitMotion.of())
    assert torch.equal(still.eyes, source.motion.eyes) and torch.equal(still.lips, source.motion.lips)
    wanted = lifted.Motion.of(yaw=12, pitch=-5, roll=8, jaw_open=0.5, blink=1.0, translation=(0.1, 0, 0), scale=1.1)
    motion = from_controls(wanted, source)
    turned = motion.applied_to(source.motion).rotation[0]
    assert torch.allclose(turned.T, lifted.rotation_matrix(wanted.rotation)[0] @ source.motion.rotation[0].T, atol=1e-5)
    assert torch.allclose(motion.eyes, torch.zeros(1, 2))
    assert float(motion.lips) == pytest.approx(float(source.motion.lips) + 0.275)
    assert float(motion.scale) == pytest.approx(1.1) and float(motion.translation[0, 0]) > 0.05


# The command's share


def test_what_the_command_opens(model, source, tmp_path, monkeypatch, capsys) -> None:
    from fastface.apps import _live_portrait as command
    from fastface.apps._common import UserError

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)

    def parsed(*arguments: str) -> argparse.Namespace:
        return argparse.Namespace(**vars(parser.parse_args(arguments)), backend=None, smoothing=0.0)

    def parsed_driving(path: str | None, *arguments: str) -> argparse.Namespace:
        return argparse.Namespace(**vars(parsed(*arguments)), driving=path)

    with pytest.raises(UserError, match="needs --weights DIR; --untrained tries it"):
        command.open_model(parsed())
    with pytest.raises(UserError, match="exclude one another"):
        command.open_model(parsed("--untrained", "--weights", "x"))
    with pytest.raises(ValueError, match="4 of 4 weight files are missing"):
        command.open_model(parsed("--weights", str(tmp_path)))
    monkeypatch.setattr(
        LivePortrait, "from_random", lambda **options: with_config(model, region=options["config"].region)
    )
    monkeypatch.setattr(LivePortrait, "optimized", lambda self: self)
    opened = command.open_model(parsed("--untrained", "--region", "exp"))
    assert opened.config.region == "exp" and "what comes out is noise" in capsys.readouterr().err
    assert command.preset("talk", source)(0.5).relative
    template = tmp_path / "a.safetensors"
    save_template(MotionTemplate(clip(2), 25), template)
    opened = command.open_template(parsed_driving(str(template)))
    assert len(opened) == 2 and opened.at(0).eyes is None and opened.at(0).lips is None
    opened = command.open_template(parsed_driving(str(template), "--retarget", "eyes"))
    assert opened.at(0).eyes is not None and opened.at(0).lips is None
    with pytest.raises(UserError, match="--absolute is for a driving video"):
        command.open_template(parsed_driving(str(template), "--absolute"))
    assert command.open_template(parsed_driving("clip.mp4")) is None
    assert command.open_template(parsed_driving(None)) is None
