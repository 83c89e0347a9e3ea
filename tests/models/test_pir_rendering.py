"""Cameras, decoders by their structure, EG3D's renderer by its call, and the generator around them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastface import load_checkpoint
from fastface.models.pir import (
    GeneratorConfig,
    ImportanceRenderer,
    PlaneNetwork,
    Rendering,
    SynthesisConfig,
    TriplaneGenerator,
    camera_rays,
    camera_vector,
    diagonal_fov,
    orbit,
    plane_decoder,
    projection_rays,
)
from tests import goldens

OPTIONS = {
    "depth_resolution": 12, "depth_resolution_importance": 9, "ray_start": 2.25, "ray_end": 3.3, "box_warp": 1,
    "disparity_space_sampling": False, "clamp_mode": "softplus", "decoder_lr_mul": 1, "c_gen_conditioning_zero": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def golden() -> tuple[dict, dict, dict[str, Tensor]]:
    recipe, arrays = goldens.load("eg3d.decoder.npz")
    return recipe, arrays, goldens.make_inputs(recipe)


def stored(arrays: dict, name: str) -> Tensor:
    return torch.from_numpy(arrays[f"in.{name}"])


def test_rays_are_eg3ds(golden) -> None:
    _, arrays, _ = golden
    for name, intrinsics in (("rays", "intrinsics"), ("rays_skew", "intrinsics_skew")):
        origins, directions = camera_rays(stored(arrays, "cam2world"), stored(arrays, intrinsics), 16)
        assert goldens.difference(directions, arrays, f"{name}.directions") < 2e-6
        assert goldens.difference(origins[:, 0], arrays, f"{name}.origin") < 2e-6
        assert torch.equal(origins, origins[:, :1].expand_as(origins))


def test_the_papers_cameras_project_their_rays_to_their_pixels() -> None:
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(2, 3, 3, dtype=torch.float64))[0]
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    translation = torch.tensor([[0.1, -0.2, 3.0], [0.0, 0.3, 2.0]], dtype=torch.float64)
    intrinsics = torch.tensor([[30.0, 1.5, 4.0], [0.0, 28.0, 3.0], [0.0, 0.0, 1.0]], dtype=torch.float64).repeat(
        2, 1, 1
    )
    origins, directions = projection_rays(intrinsics, rotation, translation, (6, 9))
    assert torch.allclose(directions.norm(dim=-1), torch.ones((), dtype=torch.float64))
    points = origins + 1.7 * directions  # equation (4)
    seen = (intrinsics @ (rotation @ points.mT + translation[..., None])).mT
    row, column = 4, 7
    assert torch.allclose(
        seen[:, row * 9 + column, :2] / seen[:, row * 9 + column, 2:], torch.tensor([7.5, 4.5], dtype=torch.float64)
    )
    pose = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    pose[:, :3, :3], pose[:, :3, 3] = rotation.mT, -(rotation.mT @ translation[..., None])[..., 0]
    scaled = intrinsics / torch.tensor([9.0, 6.0, 1.0], dtype=torch.float64)[:, None]
    for one, other in zip(camera_rays(pose, scaled, (6, 9)), (origins, directions), strict=True):
        assert torch.allclose(one, other)


def test_orbit() -> None:
    pivot = (0.0, 0.1, 0.2)
    poses = orbit(torch.tensor([0.0, 90.0, -30.0]), torch.tensor([0.0, 0.0, 20.0]), radius=2.5, pivot=pivot)
    assert torch.allclose(poses[:, :3, 3].norm(dim=1), torch.tensor(2.5))
    assert torch.allclose(poses[0, :3, 3], torch.tensor([0.0, 0.0, 2.5]))
    assert torch.allclose(poses[1, :3, 3], torch.tensor([2.5, 0.0, 0.0]), atol=1e-6)
    assert (poses[2, :3, 3] * torch.tensor([-1.0, 1.0, 1.0]) > 0).all()  # to the person's right, above, in front
    rotation = poses[:, :3, :3]
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand(3, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(3))
    assert (rotation[:, 1, 1] < 0).all()  # upright: down in the image is down in the world
    origins, directions = camera_rays(poses, diagonal_fov().expand(3, 3, 3), 33)
    middle = 33 * 16 + 16
    reach = (torch.tensor(pivot) - origins[:, middle]).norm(dim=1, keepdim=True)
    assert torch.allclose(
        origins[:, middle] + reach * directions[:, middle], torch.tensor(pivot).expand(3, 3), atol=1e-5
    )


def test_field_of_view() -> None:
    assert abs(float(diagonal_fov()[0, 0, 0]) - 4.2647) < 3e-3
    _, directions = camera_rays(torch.eye(4)[None], diagonal_fov(50.0), 1001)
    corners = directions[0, 0] @ directions[0, -1]
    assert abs(math.degrees(math.acos(float(corners))) - 50) < 0.1
    assert camera_vector(torch.eye(4)[None], diagonal_fov())[0, [0, 15, 24]].tolist() == [1, 1, 1]


class FullyConnectedLayer(nn.Module):
    """As EG3D's names its members."""

    def __init__(self, inputs: int, outputs: int, lr_multiplier: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.randn(outputs))
        self.weight_gain, self.bias_gain = lr_multiplier / math.sqrt(inputs), lr_multiplier


class OSGDecoder(nn.Module):
    def __init__(self, lr_multiplier: float = 1.0) -> None:
        super().__init__()
        first, second = (FullyConnectedLayer(*sizes, lr_multiplier) for sizes in ((8, 16), (16, 6)))
        self.net = nn.Sequential(first, nn.Softplus(), second)


def test_decoders_are_read_by_their_structure(golden) -> None:
    recipe, arrays, _ = golden
    network = load_checkpoint(goldens.seeded_state_dict("eg3d.decoder"), "eg3d.decoder")
    features = torch.from_numpy(arrays["plane_features"].reshape(1, 3, 131, 32)).mean(1)
    density, colour = network(features)
    assert goldens.difference(density, arrays, "decoded.sigma") < 1e-4
    assert goldens.difference(colour, arrays, "decoded.rgb") < 3e-5
    w1, b1, w2, b2 = plane_decoder(network)
    raw = nn.functional.softplus(features @ w1.mT + b1) @ w2.mT + b2
    assert torch.allclose(raw[..., :1], density, atol=1e-5)

    other = OSGDecoder(lr_multiplier=0.5)
    assert torch.allclose(plane_decoder(other).w1, other.net[0].weight * 0.5 / math.sqrt(8))
    assert torch.allclose(plane_decoder(other).b2, other.net[2].bias * 0.5)
    linear = nn.Module()
    linear.net = nn.Sequential(nn.Linear(8, 16), nn.Softplus(), nn.Linear(16, 6))
    assert torch.equal(plane_decoder(linear).w1, linear.net[0].weight)


def test_the_renderer_is_eg3ds(golden, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, arrays, inputs = golden
    network = load_checkpoint(goldens.seeded_state_dict("eg3d.decoder"), "eg3d.decoder")
    drawn = iter([inputs["render.jitter"][..., 0], inputs["render.u"][None]])
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: next(drawn))
    rays = camera_rays(stored(arrays, "cam2world"), stored(arrays, "intrinsics"), 16)
    with torch.inference_mode():
        results = ImportanceRenderer(random=True)(
            inputs["planes"], network, *rays, recipe["notes"]["render"]["options"]
        )
    for name, value, limit in zip(("features", "depth", "weight_sum"), results, (1e-4, 3e-5, 3e-5), strict=True):
        assert goldens.difference(value, arrays, f"render.{name}") < limit


def test_the_renderer_in_a_generator() -> None:
    torch.manual_seed(0)
    planes, decoder = torch.randn(2, 3, 8, 16, 16), OSGDecoder().eval()
    rays = camera_rays(orbit(torch.tensor([0.0, 20.0])), diagonal_fov().expand(2, 3, 3), 5)
    renderer = ImportanceRenderer()
    with torch.inference_mode():
        features, depth, opacity = renderer(planes, decoder, *rays, OPTIONS)
        assert (features.shape, depth.shape, opacity.shape) == ((2, 25, 5), (2, 25, 1), (2, 25, 1))
        assert torch.equal(renderer(planes, decoder, *rays, OPTIONS)[0], features)  # does not flicker
        random = ImportanceRenderer(random=True)
        assert not torch.equal(random(planes, decoder, *rays, OPTIONS)[0], features)
        assert random(planes, decoder, *rays, {**OPTIONS, "depth_resolution_importance": 0})[0].shape == (2, 25, 5)
        auto = renderer(planes, decoder, *rays, {**OPTIONS, "ray_start": "auto", "ray_end": "auto"})[0]
        assert not torch.equal(auto, features)
        paper = ImportanceRenderer(axes="xy_xz_yz")(planes, decoder, *rays, OPTIONS)[0]
        assert not torch.allclose(paper, features)
    planes.requires_grad_()
    renderer(planes, decoder, *rays, OPTIONS)[0].sum().backward()
    assert planes.grad.abs().sum() > 0 and decoder.net[0].weight.grad.abs().sum() > 0


def generator(**changes) -> TriplaneGenerator:
    torch.manual_seed(0)
    config = dict(
        latent=10, synthesis=SynthesisConfig(outputs=24, size=32, style=16, base=256, most=16), channels=8, hidden=16,
        image=64, image_channels=(8, 4),
    )  # fmt: skip
    return TriplaneGenerator(GeneratorConfig(**{**config, **changes})).eval()


@torch.inference_mode()
def test_generator() -> None:
    model = generator(rendering=Rendering(coarse=12, fine=12))
    latent, pose, intrinsics = torch.randn(2, 10), orbit(torch.tensor([0.0, 10.0])), diagonal_fov().expand(2, 3, 3)
    assert model(latent, pose, intrinsics, size=16).shape == (2, 3, 64, 64)
    styles = model.styles(latent)
    planes = model.planes(styles)
    assert planes.shape == (2, 3, 8, 32, 32) and planes.stride(2) == 1
    seen = model.render(planes, pose, intrinsics, (9, 7))
    assert [each.shape[1:] for each in seen] == [(8, 9, 7), (1, 9, 7), (1, 9, 7)]
    origins, directions = camera_rays(pose, intrinsics, (9, 7))
    result = model.config.rendering.render(planes, origins, directions, plane_decoder(model.decoder))
    assert torch.equal(seen.features[:, :, 3, 5], result.features[:, 3 * 7 + 5])
    assert torch.equal(seen.depth[:, 0, 8, 6], result.depth[:, -1])
    summed = model.render(planes, pose, intrinsics, 5, rendering=Rendering(coarse=12, fine=0, reduce="mean"))
    assert not torch.allclose(summed.features, model.render(planes, pose, intrinsics, 5).features)


def test_the_papers_sizes() -> None:
    with torch.device("meta"):
        model = TriplaneGenerator()
        planes = model.planes(model.styles(torch.zeros(1, 144)))
        assert planes.shape == (1, 3, 32, 256, 256)
        assert model.superresolution(torch.zeros(1, 32, 128, 128), torch.zeros(1, 512)).shape == (1, 3, 512, 512)
    convolutions = [part for part in model.synthesis.modules() if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d))]
    assert sum(part.weight.numel() for part in convolutions) > 23e6


def test_errors() -> None:
    model = generator(image=0)
    for call, message in (
        (lambda: GeneratorConfig(channels=16), "three planes of 16 channels, got 96"),
        (lambda: model.image(torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 16)), "no super-resolution"),
        (lambda: plane_decoder(nn.Linear(2, 2)), "`net` of two linear layers"),
        (lambda: plane_decoder(PlaneNetwork(4).net), "`net` of two linear layers"),
        (lambda: Rendering.of_options({"ray_start": 1}), "must have ray_end, depth_resolution"),
        (lambda: Rendering(near="auto"), "near must be a finite number, got 'auto'"),
        (lambda: Rendering(near=3.0, far=3.0), "near must be below far, got 3 and 3"),
        (lambda: Rendering(coarse=2.0), "coarse must be an integer, got 2.0"),
        (lambda: Rendering(fine=-1), "fine must be from 0 to 4096, got -1"),
        (lambda: Rendering(box=math.inf), "box must be a finite number, got inf"),
        (lambda: Rendering(axes="xyz"), "axes must be one of xy_xz_yz, .*, got 'xyz'"),
        (lambda: Rendering(reduce="max"), "reduce must be one of sum, mean, got 'max'"),
        (lambda: Rendering.of_options({**OPTIONS, "density_noise": 0.5}), "must be 0 here, got 0.5"),
        (lambda: Rendering.of_options({**OPTIONS, "clamp_mode": "relu"}), "'softplus', got 'relu'"),
        (lambda: orbit(0.0, 90.0), "between -90 and 90"),
        (lambda: orbit(0.0, math.nan), "between -90 and 90"),
        (lambda: orbit(torch.tensor([0.0, math.nan])), "yaw must be finite, got"),
        (lambda: orbit(0.0, radius=0.0), "radius must be positive"),
        (lambda: diagonal_fov(180.0), "between 0 and 180"),
        (lambda: camera_rays(torch.eye(4), diagonal_fov(), 4), r"cam2world must be \[B, 4, 4\], got \[4, 4\]"),
        (lambda: camera_rays(torch.eye(4)[None], diagonal_fov().expand(2, 3, 3), 4), r"\[1, 3, 3\], got \[2, 3, 3\]"),
        (lambda: camera_rays(torch.eye(4)[None], torch.eye(3), 4), r"intrinsics must be \[B, 3, 3\], got \[3, 3\]"),
        (lambda: camera_rays(torch.eye(4)[None], torch.eye(3)[None], (0, 4)), "at least 1x1"),
        (lambda: projection_rays(*torch.eye(3).expand(2, 1, 3, 3), torch.zeros(3), 4), r"translation must be \[1, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    activated = OSGDecoder()
    activated.net[1] = nn.ReLU()
    with pytest.raises(ValueError, match="softplus with beta 1"):
        plane_decoder(activated)
