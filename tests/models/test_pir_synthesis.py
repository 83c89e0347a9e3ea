"""The networks that make planes and images: goldens, and the form with static weights against the plain one."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import plain_pir as plain
from fastface import load_checkpoint
from fastface.engine import WinogradConv2d, optimize, reduce_convs
from fastface.models.pir import (
    GeneratorConfig,
    SuperResolution,
    SynthesisConfig,
    SynthesisNetwork,
    TriplaneGenerator,
    camera_rays,
    diagonal_fov,
    orbit,
)
from fastface.models.pir.synthesis import (
    MappingNetwork,
    ModulatedConv2d,
    SynthesisLayer,
    ToRGB,
    _finish,
    _finish_fused,
    upsample,
)
from tests import goldens
from tests.engine.helpers import worst

NAME = "eg3d.ffhq512"


@pytest.fixture(scope="module")
def eg3d() -> tuple[TriplaneGenerator, dict, dict[str, Tensor]]:
    """The public layout with the goldens' weights, their arrays and their inputs."""
    recipe, arrays = goldens.load(f"{NAME}.npz")
    state = goldens.seeded_state_dict(NAME)
    goldens.check_weights(state, recipe)
    inputs = goldens.make_inputs(recipe)
    inputs["c"] = torch.from_numpy(arrays["in.c"])
    return load_checkpoint(state, NAME), arrays, inputs


@torch.inference_mode()
def test_mapping(eg3d) -> None:
    generator, arrays, inputs = eg3d
    styles = generator.styles(inputs["z"], inputs["c"])
    assert styles.shape == (1, 14, 512)
    assert goldens.difference(styles[:, 0], arrays, "ws") < 1e-5
    drawn = generator.styles(inputs["z"], inputs["c"], truncation=0.7)
    assert goldens.difference(drawn[:, 5], arrays, "ws_psi07") < 1e-5
    some = generator.styles(inputs["z"], inputs["c"], truncation=0.5, cutoff=7)
    assert goldens.difference(some[:, [0, -1]], arrays, "ws_psi05_cutoff7") < 1e-5
    assert torch.equal(some[:, 6], some[:, 0]) and torch.equal(some[:, 7], styles[:, 7])


@torch.inference_mode()
def test_layers(eg3d) -> None:
    generator, arrays, inputs = eg3d
    block, w = generator.synthesis.blocks[1], inputs["w"]
    for noise in ("const", "none"):
        assert goldens.difference(block.layer0(inputs["x4"], w, noise), arrays, f"b8.conv0.{noise}") < 3e-5
    assert goldens.difference(block.layer1(inputs["x8"], w), arrays, "b8.conv1.const") < 3e-5
    assert goldens.difference(block.to_rgb(inputs["x8"], w), arrays, "b8.torgb") < 3e-5
    assert goldens.difference(upsample(inputs["up.x"]), arrays, "upsample2d") < 3e-5


@torch.inference_mode()
def test_modulated_convolutions(eg3d) -> None:
    _, arrays, inputs = eg3d
    x, weight, style = (inputs[f"mod.{name}"] for name in ("x", "weight", "styles"))
    for up in (False, True):
        conv = ModulatedConv2d(6, 8, up=up)
        conv.conv.weight.copy_(weight.transpose(0, 1) if up else weight)
        y, scale = conv(x, style)
        y = y * scale[:, :, None, None] + (inputs["mod.noise"] if up else 0)
        assert goldens.difference(y, arrays, "mod.up2" if up else "mod.same") < 3e-5
    to_rgb = ToRGB(6, 8, 6)  # whose style is the affine of what it gets: here the identity
    to_rgb.weight.copy_(weight[:, :, 0, 0])
    to_rgb.affine.weight.copy_(torch.eye(6) / to_rgb.affine.weight_gain / to_rgb.gain)
    to_rgb.affine.bias.zero_()
    assert goldens.difference(to_rgb(x, style), arrays, "mod.nodemod") < 3e-5


@torch.inference_mode()
def test_backbone_and_renderer(eg3d) -> None:
    generator, arrays, inputs = eg3d
    planes = generator.planes(generator.styles(inputs["z"], inputs["c"]))
    assert planes.shape == (1, 3, 32, 256, 256) and planes.stride(2) == 1  # rendered without a copy
    assert goldens.difference(planes.flatten(1, 2), arrays, "planes") < 5e-5
    pose, intrinsics = inputs["c"][:, :16].reshape(1, 4, 4), inputs["c"][:, 16:].reshape(1, 3, 3)
    jitter, u = inputs["render.jitter"][..., 0], inputs["render.u"][None]
    seen = generator.render(planes, pose, intrinsics, 16, jitter=jitter, u=u)
    for name, value, limit in zip(("features", "depth", "weight_sum"), seen, (1e-4, 3e-5, 3e-5), strict=True):
        assert goldens.difference(value.flatten(2).mT, arrays, f"render.{name}") < limit


@torch.inference_mode()
def test_super_resolution(eg3d) -> None:
    generator, arrays, inputs = eg3d
    style = generator.styles(inputs["z"], inputs["c"])[:, -1]
    x, image = inputs["sr_small.features"], inputs["sr_small.rgb"]
    for index, block in enumerate(generator.superresolution.blocks):
        x, image = block(x, image, style[:, None].expand(-1, 3, -1), "none")
        assert goldens.difference(x, arrays, f"sr_small.block{index}.x") < 3e-5
        assert goldens.difference(image, arrays, f"sr_small.block{index}.rgb") < 3e-5


@pytest.mark.slow
@torch.inference_mode()
def test_super_resolution_at_full_size_and_optimized(eg3d) -> None:
    generator, arrays, inputs = eg3d
    styles = generator.styles(inputs["z"], inputs["c"])
    fast = optimize(generator)
    assert sum(isinstance(part, WinogradConv2d) for part in fast.modules()) == 9
    image = fast.superresolution(inputs["sr.features"], styles[:, -1], inputs["sr.rgb"])
    assert goldens.difference(image, arrays, "sr.image") < 3e-5
    assert goldens.difference(fast.planes(styles).flatten(1, 2), arrays, "planes") < 5e-5


def small(clamp: float | None = None) -> SynthesisNetwork:
    network = SynthesisNetwork(SynthesisConfig(outputs=6, size=16, style=16, base=1024, most=70, clamp=clamp)).eval()
    for parameter in (block.layer1.noise_strength for block in network.blocks):
        torch.nn.init.constant_(parameter, 0.3)
    return network


@settings(max_examples=5, deadline=None)
@given(batch=st.integers(1, 3), clamp=st.sampled_from([None, 0.5]), seed=st.integers(0, 1000))
def test_static_weights_are_the_plain_network(batch: int, clamp: float | None, seed: int) -> None:
    torch.manual_seed(seed)
    network = small(clamp)
    styles = torch.randn(batch, network.styles, 16)
    expected = plain.synthesis(network, styles)
    assert torch.allclose(network(styles), expected, atol=1e-4 * float(expected.detach().abs().max()))
    with torch.inference_mode():
        for form in (network, optimize(network)):
            assert torch.allclose(form(styles), expected, atol=1e-4 * float(expected.abs().max()))


def test_gradients_are_those_of_the_plain_network() -> None:
    torch.manual_seed(0)
    network = small(clamp=1.0).double()
    styles = torch.randn(2, network.styles, 16, dtype=torch.float64)
    found = []
    for run in (network, lambda styles: plain.synthesis(network, styles)):
        network.zero_grad()
        run(styles).square().sum().backward()
        found.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-8) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.inference_mode()
def test_convolutions_in_16_bits(dtype: torch.dtype) -> None:
    """Of the backbone and the super-resolution, whatever part of them is called."""
    torch.manual_seed(0)
    synthesis = SynthesisConfig(outputs=12, size=16, style=16, base=512, most=32)
    config = GeneratorConfig(9, 0, 2, synthesis, channels=4, hidden=8, image=64, image_channels=(16, 8))
    generator = TriplaneGenerator(config).eval()
    given = torch.randn(2, 9), orbit(torch.tensor([10.0, -5.0])), diagonal_fov().expand(2, 3, 3)
    expected, planes = generator(*given, size=11), generator.planes(generator.styles(given[0]))
    for module in (generator, optimize(generator)):
        reduced = reduce_convs(module, dtype)
        found = reduced(*given, size=11)
        assert found.dtype == torch.float32 and 0 < worst(expected, found) < 16 * torch.finfo(dtype).eps
        found = reduced.planes(reduced.styles(given[0]))
        assert found.dtype == dtype and 0 < worst(planes, found.float()) < 8 * torch.finfo(dtype).eps


def test_a_batch_is_its_images() -> None:
    network = small()
    styles = torch.randn(3, 16)
    with torch.inference_mode():
        together = network(styles)
        alone = torch.cat([network(style[None]) for style in styles])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.is_contiguous(memory_format=torch.channels_last)


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_upsampling_is_the_filter(channels: int, height: int, width: int) -> None:
    x = torch.randn(2, channels, height, width)
    assert torch.allclose(upsample(x), plain.upsample(x), atol=1e-6)


@pytest.mark.parametrize("up", [False, True])
@torch.inference_mode()
def test_float16_does_not_overflow(up: bool) -> None:
    """Maps at the clamp and strong styles: sums of products are far beyond 65504 before they are scaled back."""
    layer = SynthesisLayer(256, 16, 32, 16, up=up, clamp=256.0).eval()
    x = (100 * torch.randn(1, 256, 16 // (1 + up), 16 // (1 + up))).clamp(-256, 256)
    style = 10 * torch.randn(1, 32)
    expected = layer(x, style, "none")
    found = copy.deepcopy(layer).half()(x.half(), style.half(), "none")
    assert expected.abs().max() > 100
    assert (found.float() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("noise", [None, (9, 7), (3, 1, 9, 7)], ids=str)
@torch.inference_mode()
def test_one_launch_is_the_three_passes(noise: tuple[int, ...] | None, dtype: torch.dtype) -> None:
    y = torch.randn(3, 20, 9, 7).to(dtype, memory_format=torch.channels_last)
    scale, bias = torch.rand(3, 20) + 0.01, torch.randn(20)
    added = None if noise is None else torch.randn(noise).to(dtype)
    fused = _finish_fused(y, scale, bias, added)
    wide = None if added is None else added.double()
    expected = _finish(y.double(), scale.double(), bias.double(), wide)
    assert fused.dtype == dtype and fused.is_contiguous(memory_format=torch.channels_last)
    rounding = {} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 2**-8}  # of the output, once
    torch.testing.assert_close(fused.double(), expected, **(rounding or {"rtol": 1e-5, "atol": 1e-5}))


def test_noise() -> None:
    layer = small().blocks[1].layer1
    x, style = torch.randn(2, 70, 8, 8), torch.randn(2, 16)
    assert not torch.equal(layer(x, style, "random"), layer(x, style, "random"))
    assert torch.equal(layer(x, style, "const"), layer(x, style))
    with pytest.raises(ValueError, match="'const', 'none' or 'random', got 'off'"):
        layer(x, style, "off")
    with pytest.raises(ValueError, match=r"constant noise is \[8, 8\], not \[6, 8\]"):
        layer(x[:, :, :6], style)


def test_clamped_images_are_added_behind_the_clamp() -> None:
    to_rgb = ToRGB(5, 3, 4, clamp=0.1)
    x, style, image = torch.randn(2, 5, 6, 7), torch.randn(2, 4), torch.randn(2, 3, 6, 7)
    assert (to_rgb(x, style, image) - image).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("doublings", [1, 2])
@torch.inference_mode()
def test_other_sizes_of_super_resolution(doublings: int) -> None:
    network = SuperResolution(5, (8, 4), style=16, size=64, doublings=doublings).eval()
    features, style = torch.randn(2, 5, 11, 13), torch.randn(2, 16)
    image = network(features, style)
    assert image.shape == (2, 3, 64, 64)
    assert torch.allclose(image, plain.super_resolution(network, features, style), atol=1e-4)


def test_errors() -> None:
    for build, message in (
        (lambda: SynthesisConfig(size=96), "power of 2"),
        (lambda: SuperResolution(2), "at least 3"),
        (lambda: SuperResolution(doublings=3), "doublings must be 1 or 2, got 3"),
        (lambda: GeneratorConfig(rays=0), "rays must be an integer from 1 on, got 0"),
        (lambda: small()(torch.randn(1, 3, 16)), r"\[B, 6, 16\]"),
        (lambda: MappingNetwork(4)(torch.randn(2, 5)), r"latent must be \[B, 4\]"),
        (lambda: MappingNetwork(4)(torch.randn(2, 4), torch.randn(2, 3)), "condition must be None"),
        (lambda: MappingNetwork(4, 3)(torch.randn(2, 4)), r"condition must be \[B, 3\]"),
        (lambda: MappingNetwork(4, 3)(torch.randn(2, 4), torch.randn(1, 3)), r"condition must be \[2, 3\]"),
        (lambda: camera_rays(torch.eye(4), torch.eye(3), 4), "cam2world must be"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
