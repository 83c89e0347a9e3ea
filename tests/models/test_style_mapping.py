"""The networks of Style Mapping and LivePortrait: goldens of their public forms, and the paper's tables row by row."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastface import engine, ops
from fastface.checkpoints import load_checkpoint
from fastface.models import style_mapping
from fastface.models.live_portrait import KeypointMLP
from tests import goldens

BACKENDS = ["reference", "cpu"]


@functools.lru_cache(maxsize=1)
def loaded(layout: str, optimized: bool) -> nn.Module:
    state = goldens.seeded_state_dict(layout)
    goldens.check_weights(state, goldens.load(f"{layout}.npz")[0])
    module = load_checkpoint(state, layout)
    return engine.optimize(module) if optimized else module


@pytest.fixture(params=["plain", "optimized"])
def golden(request: pytest.FixtureRequest):
    """Module, inputs and stored outputs of a layout; the module as it is and rewritten."""

    def load(layout: str):
        recipe, arrays = goldens.load(f"{layout}.npz")
        return loaded(layout, request.param == "optimized"), goldens.make_inputs(recipe), arrays

    return load


def assert_near(result: Tensor, arrays, name: str, limit: float) -> None:
    off = goldens.difference(result, arrays, name)
    assert off < limit, f"{name}: {off:.2e}, at most {limit:.0e}"


@torch.no_grad()
def test_appearance_goldens(golden) -> None:
    encoder, given, arrays = golden("live_portrait.appearance_feature_extractor")
    assert_near(encoder(given["image"]), arrays, "feature_3d", 1e-4)


@torch.no_grad()
def test_motion_goldens(golden) -> None:
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
def test_warping_goldens(golden, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_spade_generator_goldens(golden, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFACE_BACKEND", backend)
    decoder, given, arrays = golden("live_portrait.spade_generator")
    assert_near(decoder(given["feature"]), arrays, "image", 5e-5)


@torch.no_grad()
def test_stitching_and_retargeting_goldens(golden) -> None:
    stitching, given, arrays = golden("live_portrait.stitching")
    change = stitching(given["kp_source"], given["kp_driving"])
    assert_near(change, arrays, "delta", 1e-5)
    assert_near(KeypointMLP.stitched(given["kp_driving"], change), arrays, "kp_driving_new", 1e-5)
    for part in ("lip", "eye"):
        network, given, arrays = golden(f"live_portrait.retarget_{part}")
        delta = network(given["kp_source"], given[f"{part}_close_ratio"]).unflatten(1, (-1, 3))
        assert_near(delta, arrays, "delta", 1e-5)


@torch.no_grad()
def test_keypoint_detector_goldens(golden) -> None:
    detector, given, arrays = golden("face_vid2vid.kp_detector")
    assert_near(detector.heatmaps(given["image"]), arrays, "heatmap_logits", 3e-4)
    assert_near(detector(given["image"]), arrays, "value", 5e-5)


@torch.no_grad()
def test_pose_goldens(golden) -> None:
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
def test_generator_goldens(golden, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


# Tables of the paper, at its sizes: layer, kernel, output. Nothing is computed, the shapes alone are.


@contextmanager
def outputs(module: nn.Module) -> Iterator[dict[str, list[int]]]:
    """The shape of what every part of a module returns while the context is open, by name."""
    seen: dict[str, list[int]] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda part, given, result: seen.update({name: list(getattr(result, "shape", ()))})

    hooks = [part.register_forward_hook(keep(name)) for name, part in module.named_modules()]
    yield seen
    for hook in hooks:
        hook.remove()


def assert_rows(
    module: nn.Module, seen: dict[str, list[int]], rows: list[tuple[str, list[int] | None, list[int]]]
) -> None:
    for name, kernel, output in rows:
        assert seen[name] == output, name
        if kernel is not None:
            weight = module.get_submodule(name).weight
            # The tables print inputs before outputs, PyTorch has them the other way about.
            printed = [weight.shape[1], weight.shape[0], *weight.shape[2:]] if weight.dim() > 1 else list(weight.shape)
            assert printed == kernel, name


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@torch.no_grad()
def test_table_1_keypoint_extractor() -> None:
    with torch.device("meta"):
        detector = style_mapping.KeypointDetector().eval()
    with outputs(detector) as seen:
        assert list(detector(meta(1, 3, 256, 256)).shape) == [1, 15, 3]
    assert list(detector.heatmaps(meta(1, 3, 256, 256)).shape) == [1, 15, 16, 64, 64]
    assert len(detector.encoder) == len(detector.decoder) == 5
    rows = [
        ("shrink", None, [1, 3, 64, 64]),
        ("encoder.4", None, [1, 1024, 2, 2]),
        ("lift", [1024, 16384, 1, 1], [1, 16384, 2, 2]),
        ("decoder.4", None, [1, 32, 16, 64, 64]),
        ("to_heatmaps", [32, 15, 3, 3, 3], [1, 15, 16, 64, 64]),
    ]
    assert_rows(detector, seen, rows)


@torch.no_grad()
def test_table_2_pose_expression_network() -> None:
    with torch.device("meta"):
        network = style_mapping.PoseExpressionNetwork().eval()
    with outputs(network) as seen:
        pose = network(meta(1, 3, 256, 256))
    assert [len(stage) for stage in network.stages] == [3, 1 + 3, 1 + 5, 1 + 2]
    rows = [
        ("stem", [3, 64, 7, 7], [1, 64, 128, 128]),
        ("stem_norm", [64], [1, 64, 128, 128]),
        ("widen.0", [64, 256, 1, 1], [1, 256, 64, 64]),
        ("widen_norm.0", [256], [1, 256, 64, 64]),
        ("stages.0.2", None, [1, 256, 64, 64]),
        ("widen.1", [256, 512, 1, 1], [1, 512, 64, 64]),
        ("widen_norm.1", [512], [1, 512, 64, 64]),
        ("stages.1.0", None, [1, 512, 32, 32]),
        ("stages.1.3", None, [1, 512, 32, 32]),
        ("widen.2", [512, 1024, 1, 1], [1, 1024, 32, 32]),
        ("widen_norm.2", [1024], [1, 1024, 32, 32]),
        ("stages.2.0", None, [1, 1024, 16, 16]),
        ("stages.2.5", None, [1, 1024, 16, 16]),
        ("widen.3", [1024, 2048, 1, 1], [1, 2048, 16, 16]),
        ("widen_norm.3", [2048], [1, 2048, 16, 16]),
        ("stages.3.0", None, [1, 2048, 8, 8]),
        ("stages.3.2", None, [1, 2048, 8, 8]),
        ("yaw", [2048, 66], [1, 66]),
        ("pitch", [2048, 66], [1, 66]),
        ("roll", [2048, 66], [1, 66]),
        ("translation", [2048, 3], [1, 3]),
        ("expression", [2048, 45], [1, 45]),
    ]
    assert_rows(network, seen, rows)
    assert list(pose.expression.shape) == [1, 15, 3]
    assert list(pose.rotation.shape) == [1, 3, 3]


@torch.no_grad()
def test_tables_3_and_4_warping_network_and_intermediate_generator() -> None:
    with torch.device("meta"):
        generator = style_mapping.IntermediateGenerator(
            style_mapping.AppearanceEncoder(), style_mapping.WarpingNetwork(), style_mapping.SPADEDecoder()
        ).eval()
    with outputs(generator) as seen:
        image, keypoints = meta(1, 3, 256, 256), meta(1, 15, 3)
        assert list(generator(generator.prepare(image), keypoints, keypoints).shape) == [1, 3, 256, 256]
    motion = "warping.dense_motion"
    rows = [
        (f"{motion}.compress", [32, 4, 1, 1, 1], [1, 4, 16, 64, 64]),
        (f"{motion}.compress_norm", [4], [1, 4, 16, 64, 64]),
        (f"{motion}.hourglass.encoder.0.conv", [80, 64, 3, 3, 3], [1, 64, 16, 64, 64]),
        (f"{motion}.hourglass", None, [1, 112, 16, 64, 64]),
        (f"{motion}.mask", [112, 16, 7, 7, 7], [1, 16, 16, 64, 64]),
        (f"{motion}.occlusion", [112 * 16, 1, 7, 7], [1, 1, 64, 64]),
        ("encoder.first.conv", [3, 64, 3, 3], [1, 64, 256, 256]),
        ("encoder.first.norm", [64], [1, 64, 256, 256]),
        ("encoder.down_blocks.0", None, [1, 128, 128, 128]),
        ("encoder.down_blocks.1", None, [1, 256, 64, 64]),
        ("encoder.second", [256, 512, 1, 1], [1, 512, 64, 64]),
        ("encoder.blocks.5", None, [1, 32, 16, 64, 64]),
        ("warping.third.conv", [512, 256, 3, 3], [1, 256, 64, 64]),
        ("warping.third.norm", [256], [1, 256, 64, 64]),
        ("warping.fourth", [256, 256, 1, 1], [1, 256, 64, 64]),
        ("decoder.fc", [256, 512, 3, 3], [1, 512, 64, 64]),
        ("decoder.middle.5", None, [1, 512, 64, 64]),
        ("decoder.up_0", None, [1, 256, 128, 128]),
        ("decoder.up_1", None, [1, 64, 256, 256]),
        ("decoder.to_image", [64, 3, 3, 3], [1, 3, 256, 256]),
    ]
    assert_rows(generator, seen, rows)
    assert len(generator.decoder.middle) == 6


@torch.no_grad()
def test_live_portrait_sizes() -> None:
    """Channels and sizes of the published LivePortrait, K = 21 and a frame of 512."""
    with torch.device("meta"):
        encoder = style_mapping.AppearanceEncoder()
        warping = style_mapping.WarpingNetwork(style_mapping.WarpingConfig(keypoints=21)).eval()
        decoder = style_mapping.SPADEDecoder(style_mapping.DecoderConfig(upscale=2)).eval()
    with outputs(warping) as seen:
        source = warping.prepare(encoder.eval()(meta(1, 3, 256, 256)))
        output = warping(source, meta(1, 21, 3), meta(1, 21, 3))
    assert seen["dense_motion.hourglass"] == [1, 142, 16, 64, 64]
    assert [seen[f"dense_motion.hourglass.decoder.{i}"][1] for i in range(5)] == [512, 256, 128, 64, 32]
    assert list(output.logits.shape) == [1, 22, 16, 64, 64]
    assert list(decoder(output.features).shape) == [1, 3, 512, 512]
    counted = sum(p.numel() for p in warping.parameters()), sum(p.numel() for p in decoder.parameters())
    assert [round(count / 1e6, 3) for count in counted] == [45.53, 55.365]


# What the networks do with what they are given


@torch.no_grad()
def test_one_source_serves_a_batch() -> None:
    config = style_mapping.WarpingConfig(keypoints=3, channels=4, depth=2, block=4, widest=16, blocks=2, features=8)
    torch.manual_seed(0)
    warping = style_mapping.WarpingNetwork(config).eval()
    source = warping.prepare(torch.randn(1, 4, 2, 8, 12))
    kp_source, kp_driving = torch.rand(1, 3, 3) - 0.5, torch.rand(3, 3, 3) - 0.5
    linear = torch.eye(3) + 0.1 * torch.randn(3, 3, 3)
    for options in ({}, {"linear": linear}):
        together = warping(source, kp_source, kp_driving, **options).features
        for index in range(3):
            each = {name: value[index : index + 1] for name, value in options.items()}
            alone = warping(source, kp_source, kp_driving[index : index + 1], **each).features
            assert torch.allclose(together[index : index + 1], alone, atol=1e-5)


@torch.no_grad()
def test_composition_as_printed_and_as_published() -> None:
    """They agree where one motion has all the weight, and the volumes' is the sum of what each motion alone gives."""
    config = style_mapping.WarpingConfig(keypoints=2, channels=4, depth=2, block=4, widest=8, blocks=1, features=8)
    torch.manual_seed(1)
    flow = style_mapping.WarpingNetwork(config).eval()
    volumes = flow.with_composition("volumes")
    assert volumes.config.composition == "volumes" and volumes.dense_motion is flow.dense_motion
    source = flow.prepare(torch.randn(1, 4, 2, 8, 8))
    keypoints = torch.rand(1, 2, 3) - 0.5, torch.rand(1, 2, 3) - 0.5
    assert not torch.allclose(flow(source, *keypoints).features, volumes(source, *keypoints).features, atol=1e-4)
    flow.dense_motion.mask.weight.zero_()
    flow.dense_motion.mask.bias.copy_(torch.tensor([0.0, 60.0, 0.0]))  # the weights are shared
    assert torch.allclose(flow(source, *keypoints).features, volumes(source, *keypoints).features, atol=1e-5)
    with pytest.raises(ValueError, match="composition must be 'flow' or 'volumes', got 'both'"):
        style_mapping.WarpingConfig(composition="both")


def test_wrong_shapes_are_refused() -> None:
    warping = style_mapping.WarpingNetwork(
        style_mapping.WarpingConfig(keypoints=2, channels=4, depth=2, block=4, widest=8, blocks=1, features=8)
    ).eval()
    source = warping.prepare(torch.zeros(1, 4, 2, 8, 8))
    with pytest.raises(ValueError, match=r"kp_driving must be \[B, 2, 3\], got \[1, 3, 3\]"):
        warping(source, torch.zeros(1, 2, 3), torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match=r"feature must be \[B, 4, 2, h, w\] with h and w multiples of 2"):
        warping.prepare(torch.zeros(1, 4, 2, 8, 7))
    with pytest.raises(
        ValueError, match=r"image must be \[B, 3, H, W\] with H and W multiples of 128, got \[1, 3, 64, 64\]"
    ):
        style_mapping.KeypointDetector()(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"features must be \[B, 256, h, w\], got \[1, 4, 8, 8\]"):
        style_mapping.SPADEDecoder()(torch.zeros(1, 4, 8, 8))


@torch.no_grad()
def test_the_older_public_variant_loads() -> None:
    """First convolution 7x7, the residual decoder, a detector that does not shrink: told by shapes."""
    built = style_mapping.IntermediateGenerator(
        style_mapping.AppearanceEncoder(style_mapping.AppearanceConfig(kernel=7)),
        style_mapping.WarpingNetwork(),
        style_mapping.ResidualDecoder(),
    )
    theirs = {}
    patterns = [
        (r"encoder\.blocks\.(\d)", r"resblocks_3d.3dr\1"),
        (r"encoder\.", ""),
        (r"warping\.dense_motion\.hourglass\.encoder\.", "dense_motion_network.hourglass.encoder.down_blocks."),
        (r"warping\.dense_motion\.hourglass\.decoder\.", "dense_motion_network.hourglass.decoder.up_blocks."),
        (r"warping\.dense_motion\.hourglass\.", "dense_motion_network.hourglass.decoder."),
        (r"warping\.dense_motion\.compress_norm", "dense_motion_network.norm"),
        (r"warping\.dense_motion\.", "dense_motion_network."),
        (r"warping\.", ""),
        (r"decoder\.blocks\.(\d)", r"resblocks_2d.2dr\1"),
        (r"decoder\.up_blocks", "up_blocks"),
        (r"decoder\.to_image", "final"),
    ]
    for name, value in built.state_dict().items():
        for pattern, replacement in patterns:
            changed, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                theirs[changed] = value
                break
    assert len(theirs) == len(built.state_dict())
    loaded = load_checkpoint(theirs, "face_vid2vid.generator")
    assert isinstance(loaded.decoder, style_mapping.ResidualDecoder) and loaded.encoder.config.kernel == 7
    assert all(torch.equal(value, built.state_dict()[name]) for name, value in loaded.state_dict().items())
    detector = goldens.seeded_state_dict("face_vid2vid.kp_detector")
    del detector["down.weight"]
    assert load_checkpoint(detector, "face_vid2vid.kp_detector").config.shrink == 1
