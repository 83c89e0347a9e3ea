"""Style Mapping as a system: its motions, its checkpoints, the style side and the losses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastface.checkpoints import convert
from fastface.engine import optimize
from fastface.models import style_mapping
from fastface.models.headgan import Discriminator, DiscriminatorConfig
from fastface.models.style_mapping import (
    HeadMotion,
    KeypointMotion,
    RelativeMotion,
    StyleAwareConfig,
    StyleAwareGenerator,
    StyleMapping,
    facial_map,
    hull_scale,
    losses,
    retrieve_references,
    stack_patterns,
)
from tests.models.small_style_mapping import K, save_as_published, small

# Of images in [0, 1]: random weights, 25 convolutions deep, make much of float32's roundings.
ROUNDING = 2e-3


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Networks this small spend their time in the meetings of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> StyleMapping:
    return small()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """A portrait and three driving frames."""
    colours = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(colours, (128, 128), mode="bilinear")


@pytest.fixture(scope="module")
def source(model, images):
    return model.prepare(images[:1])


def motions(batch: int = 1, seed: int = 0) -> HeadMotion:
    made = torch.Generator().manual_seed(seed)
    angles = 30 * torch.randn(batch, 3, generator=made)
    translation, expression = (0.1 * torch.randn(batch, *shape, generator=made) for shape in ((3,), (K, 3)))
    return HeadMotion(angles, translation, expression)


# Motions


def test_keypoints_follow_the_papers_equation() -> None:
    motion, canonical = motions(2), torch.rand(1, K, 3) - 0.5
    found = motion.keypoints(canonical)
    for index in range(2):
        for k in range(K):
            expected = (
                motion.rotation[index] @ canonical[0, k] + motion.translation[index] + motion.expression[index, k]
            )
            assert torch.allclose(found[index, k], expected, atol=1e-6)


def test_free_view() -> None:
    """A turn is rigid, angles add up, and each is about its own axis; the public weights know pi as 3.14."""
    motion, canonical = motions(), torch.rand(1, K, 3) - 0.5
    turned = motion.turned(yaw=20, pitch=-7, roll=3)
    assert torch.allclose(turned.angles - motion.angles, torch.tensor([[-7.0, 20.0, 3.0]]), atol=1e-5)
    assert turned.expression is motion.expression and turned.translation is motion.translation
    bare = replace(motion, expression=torch.zeros(1, K, 3))
    one, other = (
        torch.cdist(each.keypoints(canonical), each.keypoints(canonical)) for each in (bare, bare.turned(yaw=50))
    )
    assert torch.allclose(one, other, atol=1e-5)
    straight = HeadMotion(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, K, 3))
    quarter = 90 * math.pi / 3.14
    nose = torch.tensor([[[0.0, 0.0, -1.0]]]).expand(1, K, 3)  # towards the viewer; x is right, y down
    assert torch.allclose(straight.turned(yaw=quarter).keypoints(nose)[0, 0], torch.tensor([-1.0, 0, 0]), atol=1e-6)
    assert torch.allclose(straight.turned(pitch=quarter).keypoints(nose)[0, 0], torch.tensor([0, 1.0, 0]), atol=1e-6)
    assert torch.allclose(straight.turned(roll=77).keypoints(nose), nose)


def test_relative_driving() -> None:
    """By hand, and: a still clip leaves the source as it is, its own clip is absolute driving."""
    canonical = torch.rand(1, K, 3) - 0.5
    ours, first, clip = motions(1, 1), motions(1, 2), motions(3, 3)
    own, start = ours.keypoints(canonical), first.keypoints(canonical)
    moved = RelativeMotion(clip, first).on(canonical, ours)
    scale = hull_scale(own, start)
    assert moved.keypoints.shape == (3, K, 3)
    assert torch.allclose(moved.keypoints, own + scale * (clip.keypoints(canonical) - start), atol=1e-6)
    unscaled = RelativeMotion(clip, first, adapt_scale=False).on(canonical, ours)
    assert torch.allclose(unscaled.keypoints, own + clip.keypoints(canonical) - start, atol=1e-6)
    still = RelativeMotion(first, first).on(canonical, ours)
    assert torch.equal(still.keypoints, own) and torch.allclose(still.rotation, ours.rotation, atol=1e-5)
    same, wanted = RelativeMotion(clip, ours).on(canonical, ours), clip.on(canonical, ours)
    assert torch.allclose(same.keypoints, wanted.keypoints, atol=1e-6)
    assert torch.allclose(same.rotation, wanted.rotation, atol=1e-5)


def test_strength() -> None:
    """Of what departs from nothing, or from the clip's first frame."""
    motion, first = motions(2, 1), motions(1, 2)
    weaker = motion.scaled(pose=0.5, expression=0)
    assert torch.allclose(weaker.angles, motion.angles / 2) and torch.allclose(
        weaker.translation, motion.translation / 2
    )
    assert not weaker.expression.any()
    driven = RelativeMotion(motion, first)
    for name in ("angles", "translation", "expression"):
        assert torch.allclose(getattr(driven.scaled().driving, name), getattr(motion, name), atol=1e-5)
        none = getattr(driven.scaled(pose=0, expression=0).driving, name)
        assert torch.allclose(none, getattr(first, name).expand_as(none), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 12), st.floats(0.05, 20), st.floats(0, 6.3))
def test_hull_scale_is_the_ratio_of_sizes(corners: int, factor: float, turn: float) -> None:
    """Of a regular polygon, whatever lies inside it and wherever it lies."""
    angles = turn + torch.arange(corners) * (2 * math.pi / corners)
    outline = torch.stack([angles.cos(), angles.sin(), torch.randn(corners)], 1)
    middle = 0.2 * (torch.rand(4, 3) - 0.5)
    polygon = torch.cat([outline, middle])[torch.randperm(corners + 4)]
    unit = torch.tensor([[[0.0, 0, 5], [1, 0, 0], [1, 1, -5], [0, 1, 0]]])  # a square of area 1
    area = corners / 2 * math.sin(2 * math.pi / corners)
    found = hull_scale((factor * polygon + torch.tensor([0.3, -2.0, 9.0]))[None], unit)
    assert found.item() == pytest.approx(factor * math.sqrt(area), rel=1e-4)


def test_bad_motions() -> None:
    with pytest.raises(ValueError, match=r"angles must be \[B, 3\], got \[1, 2\]"):
        HeadMotion(torch.zeros(1, 2), torch.zeros(1, 3), torch.zeros(1, K, 3))
    with pytest.raises(ValueError, match=r"translation must be \[B, 3\], got \[2, 3\]"):
        HeadMotion(torch.zeros(1, 3), torch.zeros(2, 3), torch.zeros(1, K, 3))
    with pytest.raises(ValueError, match=r"expression must be \[1, K, 3\], got \[1, 5\]"):
        HeadMotion(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, K))
    line = torch.arange(4.0)[:, None].expand(1, 4, 3)
    with pytest.raises(ValueError, match="must span an area"):
        hull_scale(torch.rand(1, 4, 3), line)


# The system


def test_prepare_and_render(model, images, source) -> None:
    """Once and per frame gives what the whole gives, one by one or as a batch."""
    motion = model.motion_of(images[1:])
    frames = model.render(source, motion)
    assert frames.shape == (3, 3, 128, 128) and frames.min() >= 0 and frames.max() <= 1
    assert not torch.allclose(frames[0], frames[1], atol=1e-3), "the driving frame matters"
    for index in range(1, 4):
        whole = model(images[:1], images[index : index + 1])
        assert torch.allclose(frames[index - 1], whole[0], atol=ROUNDING)
        assert torch.equal(model.prepare(images[:1]).keypoints, source.keypoints)
    again = model.render(source, motion.on(source.canonical, source.motion))
    assert torch.equal(again, frames)


def test_gradients_reach_every_network(images) -> None:
    model = small().train()
    model(images[:2], images[2:]).mean().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == set()


def test_driving(model, images, source) -> None:
    """The first frame leaves the portrait as it is, and the next ones are relative to it."""
    driver = style_mapping.Driving(model)
    first, second = driver(images[1:2]), driver(images[2:3])
    one, two = model.motion_of(images[1:2]), model.motion_of(images[2:3])
    assert torch.equal(first.on(source.canonical, source.motion).keypoints, source.keypoints)
    expected = RelativeMotion(two, one).on(source.canonical, source.motion)
    assert torch.equal(model.render(source, second), model.render(source, expected))
    taken = style_mapping.Driving(model, relative=False)(images[2:3])
    assert torch.equal(model.render(source, taken), model.render(source, two))
    assert not torch.allclose(model.render(source, taken), model.render(source, second), atol=1e-2)


def test_the_linear_part_of_equation_1(model, source, monkeypatch) -> None:
    """R R̄⁻¹ where asked for: the identity where the head does not turn."""
    given = []
    original = model.warping.forward

    def spy(*arguments, linear=None):
        given.append(linear)
        return original(*arguments, linear=linear)

    monkeypatch.setattr(model.warping, "forward", spy)
    turned = source.motion.turned(yaw=25, pitch=5)
    plain = model.render(source, turned)
    monkeypatch.setattr(model, "linear", True)
    linear = model.render(source, turned)
    still = model.render(source, source.motion)
    monkeypatch.setattr(model, "linear", False)
    assert given[0] is None and not torch.allclose(plain, linear, atol=1e-2)
    assert torch.allclose(given[1] @ turned.rotation, source.motion.rotation, atol=1e-5)
    assert torch.allclose(still, model.render(source, source.motion), atol=ROUNDING)


def test_composition_as_printed(model, images, source) -> None:
    """The same weights, the warped volumes blended in place of the flows: other frames, of the same kind."""
    printed = small(composition="volumes")
    motion = model.motion_of(images[1:2])
    volumes, flow = printed.render(printed.prepare(images[:1]), motion), model.render(source, motion)
    assert volumes.shape == flow.shape and not torch.allclose(volumes, flow, atol=1e-5)


def test_an_optimised_system_is_called_as_the_plain_one(model, images, source) -> None:
    faster = optimize(model)
    frames = faster.render(faster.prepare(images[:1]), style_mapping.Driving(faster, relative=False)(images[1:2]))
    assert torch.allclose(frames, model.render(source, model.motion_of(images[1:2])), atol=ROUNDING)
    norms = [
        sum(isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d) for part in each.modules()) for each in (model, faster)
    ]
    assert norms[1] < norms[0] / 2, "most are folded"


def test_full_size_shapes() -> None:
    with torch.device("meta"):
        model = StyleMapping.from_random()
        portrait = torch.empty(1, 3, 256, 256)
        motion = KeypointMotion(torch.empty(2, 15, 3), torch.empty(2, 3, 3))
    source = model.prepare(portrait)
    assert source.canonical.shape == source.keypoints.shape == (1, 15, 3)
    assert source.volume.feature.shape == (1, 32, 16, 64, 64)
    assert source.volume.compressed.shape == (1, 4, 16, 64, 64)
    assert model.render(source, motion).shape == (2, 3, 256, 256)
    count = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.named_children()}
    generator = count["encoder"] + count["warping"] + count["decoder"]
    assert [round(each, 2) for each in (count["keypoints"], count["pose"], generator)] == [41.94, 30.25, 100.99]


def test_bad_arguments(model, source, images) -> None:
    with pytest.raises(ValueError, match=r"portrait must be \[1, 3, H, W\], got \[2, 3, 128, 128\]"):
        model.prepare(images[:2])
    with pytest.raises(ValueError, match=r"image must be \[B, 3, H, W\] with H and W multiples of 128"):
        model.prepare(torch.zeros(1, 3, 100, 128))
    with pytest.raises(ValueError, match=r"expression must be \[B, 5, 3\], got \[1, 7, 3\]"):
        model.render(source, HeadMotion(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 7, 3)))


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "vox.pth.tar"
    save_as_published(model, path)
    return path


def test_from_checkpoint(model, checkpoint, images, source, tmp_path) -> None:
    motion = model.motion_of(images[1:2])
    frame = model.render(source, motion)
    convert(checkpoint, tmp_path / "vox.safetensors")
    for path in (checkpoint, tmp_path / "vox.safetensors"):
        loaded = StyleMapping.from_checkpoint(path)
        assert not loaded.training and not loaded.linear
        assert torch.equal(loaded.render(loaded.prepare(images[:1]), loaded.motion_of(images[1:2])), frame)
    printed = StyleMapping.from_checkpoint(checkpoint, linear=True, composition="volumes")
    assert printed.linear and printed.warping.config.composition == "volumes"


def test_bad_checkpoints(checkpoint, tmp_path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    torch.save({"generator": state["generator"]}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match="half.pth must hold .* kp_detector, he_estimator missing, found generator"):
        StyleMapping.from_checkpoint(tmp_path / "half.pth")
    torch.save(state["generator"], tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="bare.pth must hold .* missing, found one state dict"):
        StyleMapping.from_checkpoint(tmp_path / "bare.pth")
    torch.save(state | {"kp_detector": state["he_estimator"]}, tmp_path / "mixed.pth")
    with pytest.raises(ValueError, match="kp_detector of .*mixed.pth has no entry of layout face_vid2vid.kp_detector"):
        StyleMapping.from_checkpoint(tmp_path / "mixed.pth")
    pose = state["he_estimator"]
    fewer = pose | {"fc_exp.weight": pose["fc_exp.weight"][:6], "fc_exp.bias": pose["fc_exp.bias"][:6]}
    torch.save(state | {"he_estimator": fewer}, tmp_path / "variants.pth")
    with pytest.raises(ValueError, match="mixes variants .*: generator 5, kp_detector 5, he_estimator 2"):
        StyleMapping.from_checkpoint(tmp_path / "variants.pth")
    with pytest.raises(ValueError, match="no such checkpoint file"):
        StyleMapping.from_checkpoint(tmp_path / "none.pth")


# The style side

SMALL_STYLE = StyleAwareConfig(channels=2, widest=8)


def test_style_aware_generator_table() -> None:
    """8 halvings of 512 from 64 channels to 512, and back with what lies beside."""
    with torch.device("meta"):
        generator = StyleAwareGenerator().eval()
    shapes: dict[str, list[int]] = {}
    for name, part in (*generator.downs.named_children(), *generator.ups.named_children()):
        side = "down" if part in list(generator.downs) else "up"
        part.register_forward_hook(lambda _, given, out, key=f"{side}{name}": shapes.update({key: list(out.shape[1:])}))
    assert list(generator(torch.empty(1, 13, 512, 512, device="meta")).shape) == [1, 3, 512, 512]
    widths = [64, 128, 256, 512, 512, 512, 512, 512]
    downs = {f"down{i}": [width, 256 >> i, 256 >> i] for i, width in enumerate(widths)}
    ups = {f"up{i}": [width, 4 << i, 4 << i] for i, width in enumerate(reversed(widths[:-1]))}
    assert shapes == downs | ups
    inputs = [up.conv[0].in_channels for up in generator.ups]
    assert inputs == [512, *(2 * width for width in [512, 512, 512, 512, 256, 128])]
    assert generator.to_image.in_channels == 128 and generator.downs[0].conv[0].in_channels == 13
    assert sum(isinstance(part, nn.BatchNorm2d) for part in generator.modules()) == 3 * (8 + 7)


def test_style_aware_generator(tmp_path) -> None:
    torch.manual_seed(0)
    generator = StyleAwareGenerator(SMALL_STYLE).eval()
    x = torch.rand(2, 13, 256, 512)
    with torch.no_grad():
        image = generator(x)
        other = x.clone()
        other[:, :1] = 1 - other[:, :1]
        assert image.shape == (2, 3, 256, 512) and image.abs().max() <= 1
        assert not torch.allclose(generator(other), image, atol=1e-4), "the facial map matters"
        torch.save(generator.state_dict(), tmp_path / "style.pth")
        loaded = StyleAwareGenerator.from_checkpoint(tmp_path / "style.pth")
        assert torch.equal(loaded(x), image)
    generator.train()(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    with pytest.raises(
        ValueError, match=r"x must be \[B, 13, H, W\] with H and W multiples of 256, got \[1, 13, 256, 100\]"
    ):
        generator(torch.rand(1, 13, 256, 100))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth holds no style-aware generator: downs.0.conv.0.weight is missing"):
        StyleAwareGenerator.from_checkpoint(tmp_path / "other.pth")
    state = generator.state_dict()
    del state["ups.1.conv.0.bias"]
    torch.save(state, tmp_path / "hole.pth")
    with pytest.raises(ValueError, match="hole.pth holds no style-aware generator: .*ups.1.conv.0.bias"):
        StyleAwareGenerator.from_checkpoint(tmp_path / "hole.pth")


def face_points(size: int = 64) -> Tensor:
    """68 points on circles where a face has its parts: outline, brows, nose, eyes, lips."""

    def circle(count: int, x: float, y: float, rx: float, ry: float) -> Tensor:
        angles = torch.arange(count) * (2 * math.pi / count)
        return torch.stack([x + rx * angles.cos(), y + ry * angles.sin()], 1)

    parts = [
        circle(17, 0.5, 0.5, 0.4, 0.45),
        circle(5, 0.33, 0.3, 0.08, 0.02),
        circle(5, 0.67, 0.3, 0.08, 0.02),
        circle(9, 0.5, 0.5, 0.05, 0.1),
        circle(6, 0.33, 0.4, 0.08, 0.04),
        circle(6, 0.67, 0.4, 0.08, 0.04),
        circle(12, 0.5, 0.72, 0.15, 0.07),
        circle(8, 0.5, 0.72, 0.1, 0.03),
    ]
    return size * torch.cat(parts)[None]


def test_the_generators_input() -> None:
    """A facial map of lines at the landmarks, and the patterns behind it in their order."""
    points = face_points(512)
    drawn = facial_map(points)
    assert drawn.shape == (1, 1, 512, 512) and 0 < (drawn > 0).float().mean() < 0.05
    x, y = points[0].round().long().unbind(1)
    assert (nn.functional.max_pool2d(drawn, 3, 1, 1)[0, 0, y, x] > 0.3).all()
    patterns = torch.arange(12.0).reshape(4, 3, 1, 1).expand(4, 3, 256, 256) / 12
    stacked = stack_patterns(patterns)
    assert torch.allclose(stacked[0, :, 100, 77], torch.arange(12.0) / 6 - 1, atol=1e-6)
    assert torch.cat([drawn, stacked], 1).shape == (1, StyleAwareConfig().inputs, 512, 512)
    with pytest.raises(ValueError, match=r"patterns must be \[4, 3, h, w\], got \[3, 3, 8, 8\]"):
        stack_patterns(torch.zeros(3, 3, 8, 8))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_references_are_found_wherever_the_head_is(dimensions: int) -> None:
    torch.manual_seed(0)
    frames = torch.randn(20, 68, dimensions)
    rotation = torch.linalg.qr(torch.randn(4, dimensions, dimensions))[0]
    rotation[:, 0] *= torch.linalg.det(rotation).sign()[:, None]
    wanted = [7, 0, 19, 3]
    templates = 3 * frames[wanted] @ rotation + torch.randn(4, 1, dimensions) + 0.1 * torch.randn(4, 68, dimensions)
    assert retrieve_references(frames, templates) == wanted
    mirrored = frames[5] * torch.tensor([-1.0, *[1.0] * (dimensions - 1)])
    assert retrieve_references(torch.stack([mirrored, frames[5] + 0.2 * frames[6]]), frames[5:6]) == [1]
    with pytest.raises(ValueError, match=r"must be \[N, P, D\] and \[T, P, D\], got \[0, 68, 2\] and \[4, 68, 3\]"):
        retrieve_references(torch.zeros(0, 68, 2), torch.zeros(4, 68, 3))


# Losses


def test_part_weights() -> None:
    """5 in the mouth, 3 in the eyes, 1 on the skin, 0 elsewhere; the skin may come from a mask."""
    points = face_points(100)
    weights = losses.part_weights(points, (100, 120))
    assert weights.shape == (1, 1, 100, 120)
    found = [weights[0, 0, y, x].item() for x, y in ((50, 72), (33, 40), (67, 40), (50, 55), (2, 2), (119, 50))]
    assert found == [5, 3, 3, 1, 0, 0]
    mask = torch.zeros(1, 1, 100, 120)
    mask[..., 90:] = 1
    masked = losses.part_weights(points, (100, 120), skin=mask)
    assert [masked[0, 0, y, x].item() for x, y in ((50, 72), (50, 55), (119, 50))] == [5, 0, 1]
    with pytest.raises(ValueError, match=r"landmarks must be \[B, 68, 2\], got \[1, 68, 3\]"):
        losses.part_weights(torch.zeros(1, 68, 3), (8, 8))
    with pytest.raises(ValueError, match=r"skin must be \[1, 1, 100, 120\], got \[1, 1, 8, 8\]"):
        losses.part_weights(points, (100, 120), skin=torch.zeros(1, 1, 8, 8))


def test_reconstruction_weighs_the_parts() -> None:
    image, target = torch.rand(1, 3, 100, 120), torch.rand(1, 3, 100, 120)
    parts = losses.part_weights(face_points(100), (100, 120))
    by_hand = sum(w * ((image - target).abs() * (parts == w)).sum() for w in (1, 3, 5)) / image.numel()
    assert losses.reconstruction_loss(image, target, parts).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert losses.reconstruction_loss(image, target).item() == pytest.approx((image - target).abs().mean().item())


@pytest.mark.parametrize("adversarial", ["least_squares", "hinge"])
def test_adversarial_losses(adversarial) -> None:
    real, fake = ([[torch.zeros(1), torch.tensor([0.5, 2.0])]], [[torch.zeros(1), torch.tensor([-2.0, 0.5])]])
    image = torch.zeros(1, 3, 4, 4)
    generator = losses.generator_loss(image, image, real=real, fake=fake, adversarial=adversarial)["adversarial"]
    discriminator = losses.discriminator_loss(real, fake, adversarial)
    expected = {
        # (D - 1)² on real, D² on fake; (D - 1)² for the generator
        "least_squares": ((0.25 + 1) / 2 + (4 + 0.25) / 2, (9 + 0.25) / 2),
        # relu(1 - D) on real, relu(1 + D) on fake; -D for the generator
        "hinge": ((0.5 + 0) / 2 + (0 + 1.5) / 2, (2 - 0.5) / 2),
    }[adversarial]
    assert (discriminator.item(), generator.item()) == pytest.approx(expected)
    with pytest.raises(ValueError, match="adversarial must be 'least_squares' or 'hinge', got 'wgan'"):
        losses.discriminator_loss(real, fake, "wgan")


def test_a_generators_terms_add_up_and_train() -> None:
    torch.manual_seed(0)
    generator, discriminator = StyleAwareGenerator(SMALL_STYLE), Discriminator(DiscriminatorConfig(16, 4, 2, 2))
    x, target = torch.rand(2, 13, 256, 256), torch.rand(2, 3, 256, 256) * 2 - 1
    image = generator(x)
    terms = losses.generator_loss(
        image,
        target,
        real=discriminator(torch.cat([x, target], 1)),
        fake=discriminator(torch.cat([x, image], 1)),
        parts=losses.part_weights(face_points(256).expand(2, -1, -1), (256, 256)),
        features=lambda each: [each, nn.functional.avg_pool2d(each, 2)],
        keypoints=(torch.rand(1, K, 3), torch.rand(1, K, 3)),
    )
    assert set(terms) == {"adversarial", "reconstruction", "feature_matching", "features", "keypoints"}
    torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in generator.parameters())


def test_style_transfer_loss() -> None:
    """With a linear f both terms are known; with the paper's, gradients reach what made the motion."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(6, 4, bias=False))
    motion, style = torch.rand(3, 2, 3), torch.rand(3, 2, 3)
    terms = losses.style_transfer_loss(linear, motion, style)
    weight = linear[1].weight
    distances = ((motion - style).flatten(1) @ weight.T).square().sum(1)
    assert terms["style"].item() == pytest.approx(distances.mean().item(), rel=1e-5)
    assert terms["gradient"].item() == pytest.approx((weight.sum(0).norm().item() - 1) ** 2, rel=1e-4)
    assert set(terms) == {"style", "gradient"} and not motion.requires_grad
    network = losses.StyleTransferNetwork()
    assert [layer.out_features for layer in network if isinstance(layer, nn.Linear)] == [1024, 512, 256]
    maker = nn.Linear(8, 204)
    made = maker(torch.rand(2, 8)).unflatten(1, (68, 3))
    terms = losses.style_transfer_loss(network, made, torch.rand(2, 68, 3), motion_loss=made.square().mean())
    torch.stack(list(terms.values())).sum().backward()
    assert set(terms) == {"style", "gradient", "motion"} and maker.weight.grad is not None
