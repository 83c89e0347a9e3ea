"""The networks of the face-vid2vid family, LivePortrait's among them, against the goldens, and the papers' tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastface import ops
from fastface.checkpoints import load_checkpoint
from fastface.models import style_mapping
from fastface.models.live_portrait import KeypointMLP
from tests import goldens

BACKENDS = ["reference", "cpu"]


def golden(layout: str):
    """Module, inputs and stored outputs."""
    recipe, arrays = goldens.load(f"{layout}.npz")
    state = goldens.seeded_state_dict(layout)
    goldens.check_weights(state, recipe)
    return load_checkpoint(state, layout), goldens.make_inputs(recipe), arrays


def assert_near(result: Tensor, arrays, name: str, limit: float) -> None:
    off = goldens.difference(result, arrays, name)
    assert off < limit, f"{name}: {off:.2e}, at most {limit:.0e}"


@torch.no_grad()
def test_appearance_goldens() -> None:
    encoder, given, arrays = golden("live_portrait.appearance_feature_extractor")
    assert_near(encoder(given["image"]), arrays, "feature_3d", 1e-4)


@torch.no_grad()
def test_motion_goldens() -> None:
    extractor, given, arrays = golden("live_portrait.motion_extractor")
    motion = extractor(given["image"])
    for name in ("pitch", "yaw", "roll", "scale"):
        assert_near(getattr(motion, name), arrays, name, 5e-5)
    assert_near(motion.translation, arrays, "t", 5e-5)
    assert_near(motion.expression.flatten(1), arrays, "exp", 5e-5)
    assert_near(motion.keypoints.flatten(1), arrays, "kp", 5e-5)
    for index, name in enumerate(("pitch", "yaw", "roll")):
        assert_near(motion.angles[:, index : index + 1], arrays, f"{name}_degree", 5e-4)
    assert_near(motion.rotation, arrays, "rotation", 2e-5)
    assert_near(motion.transformed, arrays, "kp_transformed", 2e-5)


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_warping_goldens(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFACE_BACKEND", backend)
    warping, given, arrays = golden("live_portrait.warping_module")
    source = warping.prepare(given["feature_3d"])
    keypoints = given["kp_source"], given["kp_driving"]
    output = warping(source, *keypoints)
    flow = ops.motion_field(output.logits, *keypoints)
    assert_near(flow, arrays, "deformation", 1e-4)
    assert_near(output.occlusion, arrays, "occlusion_map", 5e-5)
    assert_near(output.features, arrays, "out", 3e-3)
    stored = output.features.numpy().ravel()[:: int(arrays["out.stride"])]
    assert np.quantile(np.abs(stored - arrays["out"]), 0.999) < 1.5e-3


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_spade_generator_goldens(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFACE_BACKEND", backend)
    decoder, given, arrays = golden("live_portrait.spade_generator")
    assert_near(decoder(given["feature"]), arrays, "image", 5e-5)


@torch.no_grad()
def test_stitching_and_retargeting_goldens() -> None:
    stitching, given, arrays = golden("live_portrait.stitching")
    change = stitching(given["kp_source"], given["kp_driving"])
    assert_near(change, arrays, "delta", 1e-5)
    assert_near(KeypointMLP.stitched(given["kp_driving"], change), arrays, "kp_driving_new", 1e-5)
    for part in ("lip", "eye"):
        network, given, arrays = golden(f"live_portrait.retarget_{part}")
        delta = network(given["kp_source"], given[f"{part}_close_ratio"]).unflatten(1, (-1, 3))
        assert_near(delta, arrays, "delta", 1e-5)


@torch.no_grad()
def test_keypoint_detector_goldens() -> None:
    detector, given, arrays = golden("face_vid2vid.kp_detector")
    assert_near(detector.heatmaps(given["image"]), arrays, "heatmap_logits", 3e-4)
    assert_near(detector(given["image"]), arrays, "value", 5e-5)


@torch.no_grad()
def test_pose_goldens() -> None:
    network, given, arrays = golden("face_vid2vid.he_estimator")
    pose = network(given["image"])
    for name in ("yaw", "pitch", "roll"):
        assert_near(getattr(pose, name), arrays, name, 5e-5)
    assert_near(pose.translation, arrays, "t", 5e-5)
    assert_near(pose.expression.flatten(1), arrays, "exp", 5e-5)
    for index, name in enumerate(("pitch", "yaw", "roll")):
        assert_near(pose.angles[:, index], arrays, f"{name}_degree", 1e-3)
    assert_near(pose.rotation, arrays, "rotation", 2e-5)
    assert_near(pose.apply(given["kp_canonical"]), arrays, "kp_transformed", 2e-5)


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_generator_goldens(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFACE_BACKEND", backend)
    generator, given, arrays = golden("face_vid2vid.generator")
    source = generator.prepare(given["image"])
    keypoints = given["kp_source"], given["kp_driving"]
    output = generator.warping(source, *keypoints)
    assert_near(output.logits.softmax(1), arrays, "mask", 1e-4)
    assert_near(output.occlusion, arrays, "occlusion_map", 5e-5)
    assert_near(ops.motion_field(output.logits, *keypoints), arrays, "deformation", 1e-4)
    assert_near(generator(source, *keypoints), arrays, "prediction", 3e-4)


def test_shrink_is_the_public_gaussian() -> None:
    state = goldens.seeded_state_dict("face_vid2vid.kp_detector")
    made = style_mapping.KeypointDetector().state_dict()["shrink.weight"]
    assert torch.allclose(made, state["down.weight"], atol=1e-8)
