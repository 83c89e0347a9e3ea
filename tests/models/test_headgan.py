"""HeadGAN's networks: the goldens, the tables of the paper, the variants, the losses and the metrics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastface.checkpoints import load_checkpoint
from fastface.models.headgan import (
    Discriminator,
    DiscriminatorConfig,
    Encoding,
    Generator,
    GeneratorConfig,
    audio_and_mouth,
    losses,
    metrics,
)
from fastface.models.headgan.generator import AdaINBlock, SPADEBlock, warp
from tests import goldens


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return goldens.seeded_state_dict("headgan.generator")


@pytest.fixture(scope="module")
def generator(state) -> Generator:
    return load_checkpoint(state, "headgan.generator")


def channel_stats(feature: Tensor) -> np.ndarray:
    return torch.stack([feature[0].mean((1, 2)), feature[0].std((1, 2), correction=0)], 1).numpy()


# Goldens


@torch.no_grad()
def test_generator_goldens(state, generator) -> None:
    recipe, arrays = goldens.load("headgan.generator.npz")
    goldens.check_weights(state, recipe)
    given = goldens.make_inputs(recipe)
    reference = generator.encode(given["ref_rgb"], given["ref_nmfc"])
    output = generator(reference, given["driving"], given["audio"])
    for name, limit in (("flow", 3e-4), ("mask", 3e-5), ("warped", 4e-4), ("image", 2e-4)):
        assert goldens.difference(getattr(output, name), arrays, name) < limit, name
    for scale, feature in enumerate(output.features):
        assert np.abs(channel_stats(feature) - arrays[f"warped_features.{scale}.channel_stats"]).max() < 5e-6
    blocks = {
        "spade": (generator.flow_network.block_middle, given["spade.x"], given["spade.map"]),
        "spade_rgb": (generator.rendering_network.spade[3], given["spade_rgb.x"], given["spade_rgb.map"]),
        "adain": (generator.rendering_network.adain[1], given["adain.x"], given["adain.style"]),
        "resample": (warp, given["resample.x"], given["resample.flow"]),
    }
    for name, (block, *arguments) in blocks.items():
        assert goldens.difference(block(*arguments), arrays, name) < 2e-5, name


@pytest.mark.parametrize("name", ["headgan.discriminator", "headgan.mouth_discriminator"])
def test_discriminator_goldens(name: str) -> None:
    recipe, arrays = goldens.load(f"{name}.npz")
    state = goldens.seeded_state_dict(name)
    goldens.check_weights(state, recipe)
    given = goldens.make_inputs(recipe)
    discriminator = load_checkpoint(state, name)

    def judge(image: Tensor) -> list[list[Tensor]]:
        if "audio" in given:
            return discriminator(audio_and_mouth(given["audio"], image))
        return discriminator(torch.cat([given["nmfc"], image], 1))

    with torch.no_grad():
        real, fake = judge(given["real"]), judge(given["fake"])
        for scale in (0, 1):
            assert goldens.difference(real[scale][-1], arrays, f"prediction.{scale}") < 1e-4
            for layer in range(4):
                stored = arrays[f"feature.{scale}.{layer}.channel_stats"]
                assert np.abs(channel_stats(real[scale][layer]) - stored).max() < 1e-5
        found = [
            losses.hinge(real, True),
            losses.hinge(fake, False),
            losses.generator_hinge(fake),
            losses.LossWeights().feature_matching * losses.feature_matching_loss(real, fake),
        ]
    assert np.abs(torch.stack(found).numpy() - arrays["losses"]).max() < 1e-5


# The tables of the paper, layer by layer


def shapes(module: nn.Module, call: Callable[[], object], kinds: tuple[type, ...]) -> list[tuple[str, list[int]]]:
    """Kind and output shape [H, W, C] of each layer of those kinds that ran, in order."""
    seen: list[tuple[str, list[int]]] = []

    def note(layer: nn.Module, _: object, output: Tensor) -> None:
        seen.append((type(layer).__name__, [*output.shape[2:], output.shape[1]]))

    hooks = [layer.register_forward_hook(note) for layer in module.modules() if isinstance(layer, kinds)]
    call()
    for hook in hooks:
        hook.remove()
    return seen


def test_tables_4_and_5() -> None:
    from fastface.models.headgan.generator import _Down

    with torch.device("meta"):
        generator = Generator()
        image, face = torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 256, 256)
        faces, audio = torch.zeros(1, 9, 256, 256), torch.zeros(1, 300)
    flow, render = generator.flow_network, generator.rendering_network
    reference = generator.encode(image, face)
    encoder = [("_Down", [256, 256, 32]), ("_Down", [128, 128, 128]), ("_Down", [64, 64, 512])]
    assert shapes(flow, lambda: generator.encode(image, face), (_Down,)) == encoder
    assert flow.encoder.layers[0].conv.in_channels == 6 and render.encoder.layers[0].conv.in_channels == 9
    blocks = (SPADEBlock, AdaINBlock, _Down)
    heads = (flow.to_flow, flow.to_mask, render.to_image)
    assert [(head.kernel_size, head.out_channels) for head in heads] == [((7, 7), 2), ((7, 7), 1), ((7, 7), 3)]
    assert shapes(flow, lambda: flow(reference.features[2], faces), blocks) == [
        ("SPADEBlock", [64, 64, 512]),
        ("SPADEBlock", [64, 64, 512]),
        ("SPADEBlock", [64, 64, 512]),
        ("SPADEBlock", [128, 128, 128]),
    ]
    warped = generator(reference, faces, audio)
    assert [list(f.shape[1:]) for f in warped.features] == [[32, 256, 256], [128, 128, 128], [512, 64, 64]]
    assert list(warped.flow.shape) == [1, 2, 256, 256] and list(warped.mask.shape) == [1, 1, 256, 256]
    assert shapes(render, lambda: render(faces, warped.features, warped.warped, audio), blocks) == [
        *encoder,
        ("SPADEBlock", [64, 64, 512]),
        ("AdaINBlock", [64, 64, 512]),
        ("SPADEBlock", [128, 128, 128]),
        ("AdaINBlock", [128, 128, 128]),
        ("SPADEBlock", [256, 256, 32]),
        ("AdaINBlock", [256, 256, 32]),
        ("SPADEBlock", [256, 256, 32]),
    ]
    assert list(warped.image.shape) == [1, 3, 256, 256]
    # Parameters in millions: F's encoder 0.64, its decoder 30.0, R 21.1.
    count = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in generator.named_children()}
    own = sum(p.numel() for p in flow.encoder.parameters()) / 1e6
    assert round(own, 2) == 0.64 and round(count["flow_network"] - own, 1) == 30.0
    assert round(count["rendering_network"], 1) == 21.1


# Variants and errors

SMALL = {"channels": (4, 16, 64), "hidden": 8}


def run(config: GeneratorConfig, batch: int = 2, size: tuple[int, int] = (24, 36)):
    torch.manual_seed(0)
    generator = Generator(config).eval()
    with torch.no_grad():
        reference = generator.encode(torch.rand(1, 3, *size) * 2 - 1, torch.rand(1, config.face_channels, *size))
        audio = torch.randn(batch, config.audio) if config.audio else None
        return generator, reference, generator(reference, torch.rand(batch, 3 * config.face_channels, *size), audio)


@pytest.mark.parametrize(
    "change",
    [{}, {"audio": 0}, {"flow": False}, {"mask": False}, {"residual": False}, {"face_first": False}],
    ids=str,
)
def test_variants(change: dict) -> None:
    generator, reference, output = run(GeneratorConfig(**SMALL, **change))
    assert output.image.shape == (2, 3, 24, 36) and output.image.abs().max() <= 1
    assert (output.flow is None) == (change == {"flow": False})
    assert (output.mask is None) == (change in ({"flow": False}, {"mask": False}))
    if change == {"flow": False}:
        assert torch.equal(output.warped[0], reference.image[0]) and not hasattr(generator.flow_network, "blocks")
    names = {name.split(".")[1] for name, _ in generator.named_parameters()}
    assert ("adain" in names) == (change != {"audio": 0})


def ends_in_its_convolution(block: SPADEBlock) -> bool:
    """Whether what the last convolution gives is the block's output itself, nothing added."""
    given: list[Tensor] = []
    hook = block.conv1.register_forward_hook(lambda *seen: given.append(seen[-1]))
    channels, inputs = block.conv0.in_channels, block.norm0.shared.in_channels
    output = block(torch.zeros(1, channels, 8, 8, device="meta"), torch.zeros(1, inputs, 8, 8, device="meta"))
    hook.remove()
    return output is given[0]


def test_the_paper_as_printed() -> None:
    with torch.device("meta"):
        paper, code = Generator(GeneratorConfig.paper()), Generator()
    for generator, hidden, printed in ((paper, 128, True), (code, 256, False)):
        blocks = [module for module in generator.modules() if isinstance(module, SPADEBlock)]
        assert len(blocks) == 8
        assert {norm.shared.out_channels for block in blocks for norm in (block.norm0, block.norm1)} == {hidden}
        assert {ends_in_its_convolution(block) for block in blocks} == {printed}
        assert any("to_mask" in name for name, _ in generator.named_parameters()) != printed
        generator.flow_network.encoder = nn.Identity()
        image, face = torch.rand(1, 3, 8, 12), torch.rand(1, 3, 8, 12)
        pair = (image, face) if printed else (face, image)
        assert torch.equal(generator.encode(image, face).features, torch.cat(pair, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wide_flow", [False, True])
def test_warp_in_16_bits_loses_one_rounding(dtype: torch.dtype, wide_flow: bool) -> None:
    torch.manual_seed(0)
    image, flow = torch.rand(2, 3, 256, 256).to(dtype), (5 * torch.randn(2, 2, 256, 256)).to(dtype)
    found = warp(image, flow.float() if wide_flow else flow)
    assert found.dtype == dtype
    # Half a unit in the last place of a number below 1.
    assert (found - warp(image.float(), flow.float())).abs().max() <= torch.finfo(dtype).eps / 4


def test_warp_in_float64_is_exact() -> None:
    torch.manual_seed(0)
    image, flow = torch.rand(1, 2, 31, 256).double(), torch.full((1, 2, 31, 256), 0.5)
    expected = (image[..., :-1, :-1] + image[..., :-1, 1:] + image[..., 1:, :-1] + image[..., 1:, 1:]) / 4
    assert (warp(image, flow)[..., :-1, :-1] - expected).abs().max() < 1e-12


def test_the_order_of_the_reference_matters() -> None:
    code, paper = (run(GeneratorConfig(**SMALL, face_first=first))[2].image for first in (True, False))
    assert not torch.allclose(code, paper)


def test_bad_arguments() -> None:
    generator, reference, _ = run(GeneratorConfig(**SMALL))
    faces, audio = torch.rand(1, 9, 24, 36), torch.randn(1, 300)
    for arguments, message in (
        ((torch.rand(1, 6, 24, 36), audio), r"faces must be \[., 9, 24, 36\], got \[1, 6, 24, 36\]"),
        ((faces, None), r"audio must be \[1, 300\], got None"),
        ((faces, torch.randn(1, 84)), r"audio must be \[1, 300\], got \[1, 84\]"),
    ):
        with pytest.raises(ValueError, match=message):
            generator(reference, *arguments)
    with pytest.raises(ValueError, match="multiples of 4, at least 8, got 30x36"):
        generator.encode(torch.rand(1, 3, 30, 36), torch.rand(1, 3, 30, 36))
    two = Encoding(reference.image.expand(2, -1, -1, -1), reference.features)
    with pytest.raises(ValueError, match="reference must have batch 1 or 3 like faces, got 2"):
        generator(two, faces.expand(3, -1, -1, -1), audio.expand(3, -1))
    with pytest.raises(ValueError, match="channels must grow fourfold"):
        GeneratorConfig(channels=(32, 64, 128))
    with pytest.raises(ValueError, match=r"x must be \[B, 6, H, W\], got \[1, 3, 8, 8\]"):
        Discriminator()(torch.zeros(1, 3, 8, 8))


# Losses and metrics


def test_generator_loss_adds_up_and_trains() -> None:
    generator, _, _ = run(GeneratorConfig(**SMALL))
    size = (24, 36)
    image, face = torch.rand(1, 3, *size) * 2 - 1, torch.rand(1, 3, *size)
    discriminator = Discriminator(DiscriminatorConfig(6, 4, 3, 2))
    output = generator(generator.encode(image, face), torch.rand(1, 9, *size), torch.randn(1, 300))
    fakes, reals = discriminator(torch.cat([face, output.image], 1)), discriminator(torch.cat([face, image], 1))
    terms = losses.generator_loss(
        output,
        image,
        fakes=[fakes],
        reals=[reals],
        features=lambda x: [x, torch.nn.functional.avg_pool2d(x, 2)],
        face=(face[:, :1] > 0.5).float(),
        person=torch.ones(1, 1, *size),
    )
    assert set(terms) == {
        "adversarial",
        "feature_matching",
        "l1_image",
        "l1_warped",
        "features_image",
        "features_warped",
        "mask",
    }
    mask = (face[:, :1] > 0.5).float()
    assert torch.allclose(terms["l1_image"], 50 * ((output.image - image).abs() * mask).mean())
    assert torch.allclose(terms["adversarial"], -(fakes[0][-1].mean() + fakes[1][-1].mean()) / 2)
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())
    with pytest.raises(ValueError, match="person must be None"):
        no_mask = run(GeneratorConfig(**SMALL, mask=False))[2]
        losses.generator_loss(no_mask, no_mask.image, fakes=[fakes], reals=[reals], person=torch.ones(1, 1, *size))


def test_masked_l1_is_the_mean_over_all_pixels() -> None:
    torch.manual_seed(0)
    image, target, mask = torch.rand(2, 3, 7, 10), torch.rand(2, 3, 7, 10), torch.zeros(2, 1, 7, 10)
    mask[..., :5] = 1
    seen = (image - target)[..., :5].abs()
    assert losses.masked_l1(image, target, mask).item() == pytest.approx(seen.mean().item() / 2)
    assert losses.masked_l1(image, target).item() == pytest.approx((image - target).abs().mean().item())


def test_angles_differ_the_short_way_round() -> None:
    truth = torch.tensor([[179.0, -170.0, 10.0], [0.0, -90.0, 350.0]])
    angles = torch.tensor([[-179.0, 170.0, 15.0], [180.0, 90.0, -10.0]])
    assert metrics.ard(angles, truth) == metrics.ard(truth, angles) == pytest.approx((2 + 20 + 5 + 180 + 180 + 0) / 6)
    assert metrics.ard(angles + 720, truth) == pytest.approx(metrics.ard(angles, truth))
    assert metrics.are(torch.tensor([[359.0, -358.0, 180.0]])) == pytest.approx((1 + 2 + 180) / 3)
    assert np.isnan(metrics.are(torch.tensor([[float("nan"), 0.0, 0.0]])))
    with pytest.raises(ValueError, match="there must be at least one frame, got none"):
        metrics.are(torch.zeros(0, 3))


def test_metrics() -> None:
    truth = torch.randint(0, 255, (3, 3, 8, 8), dtype=torch.uint8)
    off = truth.int() + 1
    assert metrics.l1_distance(off, truth) == 1.0
    assert metrics.psnr(off, truth) == pytest.approx(20 * np.log10(255))
    assert metrics.psnr(truth, truth) == float("inf")
    angles = torch.tensor([[10.0, -5.0, 0.0], [2.0, 1.0, -3.0]])
    assert metrics.are(angles) == pytest.approx(21 / 6)
    assert metrics.ard(angles, angles + 2) == pytest.approx(2)
    units = torch.tensor([[True, False, True, False]])
    assert metrics.au_hamming(units, ~units) == 1.0 and metrics.au_hamming(units, units) == 0.0
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert metrics.csim(lambda x: x, embeddings, torch.tensor([[1.0, 0.0]])) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"both must have one shape, got \[2, 3\] and \[1, 3\]"):
        metrics.ard(angles, angles[:1])
    with pytest.raises(TypeError, match="units must be booleans"):
        metrics.au_hamming(units.int(), units.int())
