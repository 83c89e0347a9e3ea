"""Networks as other packages have them: the same formulas in other words, under other names, with other conventions.

Sizes are small; what is drawn at random at construction is drawn from PyTorch's generator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def grid3d(d: int, h: int, w: int) -> Tensor:
    """Coordinates (x, y, z) of voxels, both ends included."""
    axes = [torch.linspace(-1, 1, n) for n in (d, h, w)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack((x, y, z), -1)


class Conv3dBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Unet3d(nn.Module):
    """Two levels down and up, skips concatenated behind."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.downs = nn.ModuleList([Conv3dBlock(inputs, 8), Conv3dBlock(8, 12)])
        self.ups = nn.ModuleList([Conv3dBlock(12, 8), Conv3dBlock(16, 6)])
        self.out_filters = 6 + inputs

    def forward(self, x: Tensor) -> Tensor:
        first = F.avg_pool3d(self.downs[0](x), (1, 2, 2))
        y = F.avg_pool3d(self.downs[1](first), (1, 2, 2))
        y = torch.cat([self.ups[0](F.interpolate(y, scale_factor=(1, 2, 2))), first], 1)
        return torch.cat([self.ups[1](F.interpolate(y, scale_factor=(1, 2, 2))), x], 1)


class PortraitMotion(nn.Module):
    """Dense motion as LivePortrait has it: plain keypoints, the driving ones first; a dict."""

    def __init__(self, points: int = 5, channels: int = 6, compressed: int = 2, depth: int = 4) -> None:
        super().__init__()
        self.points = points
        self.hourglass = Unet3d((points + 1) * (compressed + 1))
        outputs = self.hourglass.out_filters
        self.mask = nn.Conv3d(outputs, points + 1, 7, padding=3)
        self.compress = nn.Conv3d(channels, compressed, 1)
        self.norm = nn.BatchNorm3d(compressed)
        self.occlusion = nn.Conv2d(outputs * depth, 1, 7, padding=3)

    def sparse(self, feature: Tensor, driving: Tensor, source: Tensor) -> Tensor:
        identity = grid3d(*feature.shape[2:]).to(feature)[None, None]
        moved = identity - driving[:, :, None, None, None] + source[:, :, None, None, None]
        return torch.cat([identity.expand(len(feature), -1, -1, -1, -1, -1), moved], 1)

    def heat(self, feature: Tensor, driving: Tensor, source: Tensor) -> Tensor:
        identity = grid3d(*feature.shape[2:]).to(feature)
        near = [
            torch.exp(-0.5 * ((identity - kp[:, :, None, None, None]) ** 2).sum(-1) / 0.01) for kp in (driving, source)
        ]
        maps = near[0] - near[1]
        return torch.cat([torch.zeros_like(maps[:, :1]), maps], 1)[:, :, None]

    def forward(self, feature: Tensor, kp_driving: Tensor, kp_source: Tensor) -> dict[str, Tensor]:
        b, _, d, h, w = feature.shape
        motions = self.sparse(feature, kp_driving, kp_source)
        feature = torch.relu(self.norm(self.compress(feature)))
        repeated = feature[:, None].expand(-1, self.points + 1, -1, -1, -1, -1).flatten(0, 1)
        warped = F.grid_sample(repeated, motions.flatten(0, 1), align_corners=False).view(
            b, self.points + 1, -1, d, h, w
        )
        packed = torch.cat([self.heat(feature, kp_driving, kp_source), warped], 2).view(b, -1, d, h, w)
        prediction = self.hourglass(packed)
        mask = torch.softmax(self.mask(prediction), 1)
        flow = (motions.permute(0, 1, 5, 2, 3, 4) * mask[:, :, None]).sum(1).permute(0, 2, 3, 4, 1)
        occlusion = torch.sigmoid(self.occlusion(prediction.view(b, -1, h, w)))
        return {"mask": mask, "deformation": flow, "occlusion_map": occlusion}


class VideoMotion(PortraitMotion):
    """As face-vid2vid passes keypoints, in dicts, and the source first; a tuple."""

    def forward(self, feature: Tensor, kp_source: dict, kp_driving: dict) -> tuple:  # type: ignore[override]
        out = super().forward(feature, kp_driving["value"], kp_source["value"])
        return out["deformation"], out["occlusion_map"], None


class Warper(nn.Module):
    """A warping network around either, called by keyword."""

    def __init__(self, motion: nn.Module, channels: int = 6, depth: int = 4) -> None:
        super().__init__()
        self.dense_motion_network = motion
        self.third = nn.Sequential(
            nn.Conv2d(channels * depth, 16, 3, padding=1), nn.BatchNorm2d(16), nn.LeakyReLU(0.01)
        )
        self.fourth = nn.Conv2d(16, 16, 1)

    def forward(self, feature: Tensor, kp_driving: Tensor, kp_source: Tensor) -> Tensor:
        moved = self.dense_motion_network(feature=feature, kp_driving=kp_driving, kp_source=kp_source)
        out = F.grid_sample(feature, moved["deformation"], align_corners=False)
        return self.fourth(self.third(out.view(len(out), -1, *out.shape[3:]))) * moved["occlusion_map"]


class Modulation(nn.Module):
    """SPADE as its authors' names have it."""

    def __init__(self, norm_nc: int, label_nc: int, hidden: int = 16, norm: str = "instance") -> None:
        super().__init__()
        make = nn.InstanceNorm2d if norm == "instance" else nn.BatchNorm2d
        self.param_free_norm = make(norm_nc, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_nc, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, norm_nc, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden, norm_nc, 3, padding=1)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        normalized = self.param_free_norm(x)
        segmap = F.interpolate(segmap, size=x.size()[2:], mode="nearest")
        actv = self.mlp_shared(segmap)
        return normalized * (1 + self.mlp_gamma(actv)) + self.mlp_beta(actv)


class ShiftFirst(nn.Module):
    """SPADE by other hands: the shift comes first, gamma is the factor itself, activations are functions."""

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__()
        self.shift = nn.Conv2d(16, channels, 5, padding=2)
        self.scale = nn.Conv2d(16, channels, 5, padding=2)
        self.embed = nn.Conv2d(labels, 16, 3, padding=1)
        self.bn = nn.InstanceNorm2d(channels, eps=1e-3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.leaky_relu(self.embed(F.interpolate(y, size=x.shape[-2:])), 0.2)
        return F.leaky_relu(self.bn(x) * self.scale(h) + self.shift(h), 0.2)


class Bilinear(Modulation):
    """Looks like SPADE, but resizes the map another way."""

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        actv = self.mlp_shared(F.interpolate(segmap, size=x.shape[2:], mode="bilinear", align_corners=True))
        return self.param_free_norm(x) * (1 + self.mlp_gamma(actv)) + self.mlp_beta(actv)


class ModulatedBlock(nn.Module):
    """SPADE's residual block, its convolutions under spectral norm."""

    def __init__(self, fin: int, fout: int, labels: int, hidden: int, parametrized: bool) -> None:
        super().__init__()
        wrap = nn.utils.parametrizations.spectral_norm if parametrized else nn.utils.spectral_norm
        middle = min(fin, fout)
        self.conv_0 = wrap(nn.Conv2d(fin, middle, 3, padding=1))
        self.conv_1 = wrap(nn.Conv2d(middle, fout, 3, padding=1))
        self.norm_0, self.norm_1 = (Modulation(channels, labels, hidden) for channels in (fin, middle))
        self.learned = fin != fout
        if self.learned:
            self.conv_s = wrap(nn.Conv2d(fin, fout, 1, bias=False))
            self.norm_s = Modulation(fin, labels, hidden)

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        skip = self.conv_s(self.norm_s(x, seg)) if self.learned else x
        dx = self.conv_0(F.leaky_relu(self.norm_0(x, seg), 0.2))
        return skip + self.conv_1(F.leaky_relu(self.norm_1(dx, seg), 0.2))


class Decoder(nn.Module):
    """A SPADE decoder with pixel shuffle."""

    def __init__(self, channels: int = 16, parametrized: bool = False, hidden: int = 16) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.middle = ModulatedBlock(2 * channels, 2 * channels, channels, hidden, parametrized)
        self.up = ModulatedBlock(2 * channels, channels, channels, hidden, parametrized)
        self.conv_img = nn.Sequential(nn.Conv2d(channels, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, feature: Tensor) -> Tensor:
        x = self.middle(self.fc(feature), feature)
        x = self.up(F.interpolate(x, scale_factor=2), feature)
        return torch.sigmoid(self.conv_img(F.leaky_relu(x, 0.2)))


class Adaptive(nn.Module):
    """AdaIN, gamma in the first half of the linear layer's outputs, or in the second."""

    def __init__(self, channels: int, style: int, beta_first: bool = False) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.fc = nn.Linear(style, 2 * channels)
        self.beta_first = beta_first

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        a, b = self.fc(s).view(len(s), -1, 1, 1).chunk(2, 1)
        gamma, beta = (b, a) if self.beta_first else (a, b)
        return (1 + gamma) * self.norm(x) + beta


class AdaptiveBlock(nn.Module):
    """A block of a generator steered by audio; one activation object serves twice."""

    def __init__(self, channels: int = 8, style: int = 5) -> None:
        super().__init__()
        self.norm1, self.norm2 = Adaptive(channels, style), Adaptive(channels, style, beta_first=True)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.actv = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        x = self.conv1(self.actv(self.norm1(x, s)))
        return self.conv2(self.actv(self.norm2(x, s)))


def encoder(channels: int = 8, affine: bool = True) -> nn.Sequential:
    """Image to image with instance norm; one ReLU object, in place, for all."""
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, channels, 7),
        nn.InstanceNorm2d(channels, affine=affine),
        relu,
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.InstanceNorm2d(2 * channels, affine=affine, eps=1e-4),
        relu,
        nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
        nn.InstanceNorm2d(channels, affine=affine),
        nn.LeakyReLU(0.1),
        nn.Conv2d(channels, 3, 3, padding=1),
        nn.InstanceNorm2d(3),
        nn.Tanh(),
    )


class FirstOrder(nn.Module):
    """Dense motion in two dimensions with Jacobians: nothing here that is known."""

    def __init__(self, points: int = 3) -> None:
        super().__init__()
        self.hourglass = nn.Sequential(nn.Conv2d((points + 1) * 4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.mask = nn.Conv2d(8, points + 1, 7, padding=3)

    def forward(self, image: Tensor, driving: dict, source: dict) -> Tensor:
        axes = [torch.linspace(-1, 1, n) for n in image.shape[2:]]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
        linear = source["jacobian"] @ torch.inverse(driving["jacobian"])
        moved = grid - driving["value"][:, :, None, None]
        moved = torch.einsum("bkij,bkhwj->bkhwi", linear, moved) + source["value"][:, :, None, None]
        motions = torch.cat([grid.expand(len(image), 1, -1, -1, -1), moved], 1)
        warped = [F.grid_sample(image, motions[:, k], align_corners=False) for k in range(motions.shape[1])]
        maps = torch.cat([torch.cat([w[:, :1].square(), w], 1) for w in warped], 1)
        return (motions * torch.softmax(self.mask(self.hourglass(maps)), 1)[..., None]).sum(1)


class Scaled(nn.Module):
    """A linear layer that stores weights of unit variance."""

    def __init__(self, inputs: int, outputs: int, lr: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.weight_gain, self.bias_gain = lr / inputs**0.5, lr

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias * self.bias_gain, x, (self.weight * self.weight_gain).t())


class PointDecoder(nn.Module):
    """Features of points on three planes, averaged, to density and colours."""

    def __init__(self, channels: int = 4, hidden: int = 16, colours: int = 5) -> None:
        super().__init__()
        self.net = nn.Sequential(Scaled(channels, hidden, 0.5), nn.Softplus(), Scaled(hidden, 1 + colours))

    def forward(self, sampled: Tensor, directions: Tensor) -> dict[str, Tensor]:
        x = sampled.mean(1)
        n, m, c = x.shape
        x = self.net(x.reshape(n * m, c)).view(n, m, -1)
        return {"rgb": torch.sigmoid(x[..., 1:]) * 1.002 - 0.001, "sigma": x[..., :1]}


class Marcher(nn.Module):
    """Midpoints of colours, densities and depths, composited."""

    def forward(self, colours: Tensor, sigmas: Tensor, depths: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
        deltas = depths[:, :, 1:] - depths[:, :, :-1]
        colours, sigmas, middles = ((x[:, :, :-1] + x[:, :, 1:]) / 2 for x in (colours, sigmas, depths))
        alpha = 1 - torch.exp(-F.softplus(sigmas - 1) * deltas)
        through = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :, :1]), 1 - alpha + 1e-10], -2), -2)
        weights = alpha * through[:, :, :-1]
        colour, total = (weights * colours).sum(-2), weights.sum(2)
        depth = torch.nan_to_num((weights * middles).sum(-2) / total, float("inf"))
        depth = torch.clamp(depth, depths.min(), depths.max())
        if options.get("white_back", False):
            colour = colour + 1 - total
        return colour * 2 - 1, depth, weights


class Rays(nn.Module):
    """A volume renderer of planes, whose third repeats the second: random depths, then more where something is."""

    second = (2, 0)  # the coordinates that the last plane is read at

    def __init__(self) -> None:
        super().__init__()
        self.ray_marcher = Marcher()

    def points(self, planes: Tensor, decoder: nn.Module, at: Tensor, directions: Tensor, options: dict) -> tuple:
        n, r, s, _ = at.shape
        scaled = at.reshape(n, r * s, 3) * 2 / options["box_warp"]
        pairs = [scaled[..., list(pair)] for pair in ((0, 1), (0, 2), self.second)]
        grid = torch.stack(pairs, 1).flatten(0, 1)[:, None]
        sampled = F.grid_sample(planes.flatten(0, 1), grid, align_corners=False)
        sampled = sampled.permute(0, 3, 2, 1).reshape(n, 3, r * s, -1)
        out = decoder(sampled, directions[:, :, None].expand(-1, -1, s, -1).reshape(n, r * s, 3))
        return out["rgb"].view(n, r, s, -1), out["sigma"].view(n, r, s, 1)

    def finer(self, depths: Tensor, weights: Tensor, count: int) -> Tensor:
        n, r = depths.shape[:2]
        weights = weights.view(1, n * r, -1)
        weights = F.avg_pool1d(F.max_pool1d(weights, 2, 1, padding=1), 2, 1).squeeze(0) + 0.01
        bins = depths.reshape(n * r, -1)
        bins, weights = (bins[:, :-1] + bins[:, 1:]) / 2, weights[:, 1:-1] + 1e-5
        pdf = weights / weights.sum(-1, keepdim=True)
        cdf = torch.cat([torch.zeros_like(pdf[:, :1]), pdf.cumsum(-1)], -1)
        u = torch.rand(n * r, count, device=cdf.device)
        above = torch.searchsorted(cdf, u, right=True)
        below, above = (above - 1).clamp(min=0), above.clamp(max=pdf.shape[1])
        low, high = cdf.gather(1, below), cdf.gather(1, above)
        width = torch.where(high - low < 1e-5, torch.ones_like(low), high - low)
        start = bins.gather(1, below)
        return (start + (u - low) / width * (bins.gather(1, above) - start)).view(n, r, count, 1)

    def forward(
        self, planes: Tensor, decoder: nn.Module, ray_origins: Tensor, ray_directions: Tensor, rendering_options: dict
    ) -> tuple[Tensor, Tensor, Tensor]:
        start, end, count = (rendering_options[key] for key in ("ray_start", "ray_end", "depth_resolution"))
        n, r, _ = ray_origins.shape
        depths = torch.linspace(start, end, count, device=planes.device).view(1, 1, count, 1).repeat(n, r, 1, 1)
        depths = depths + torch.rand_like(depths) * (end - start) / (count - 1)
        at = ray_origins[:, :, None] + depths * ray_directions[:, :, None]
        colours, sigmas = self.points(planes, decoder, at, ray_directions, rendering_options)
        _, _, weights = self.ray_marcher(colours, sigmas, depths, rendering_options)
        fine = self.finer(depths, weights, rendering_options["depth_resolution_importance"])
        at = ray_origins[:, :, None] + fine * ray_directions[:, :, None]
        more = self.points(planes, decoder, at, ray_directions, rendering_options)
        depths, order = torch.sort(torch.cat([depths, fine], -2), dim=-2)
        colours, sigmas = (torch.cat(pair, -2) for pair in zip((colours, sigmas), more, strict=True))
        colours, sigmas = (x.gather(-2, order.expand(-1, -1, -1, x.shape[-1])) for x in (colours, sigmas))
        colour, depth, weights = self.ray_marcher(colours, sigmas, depths, rendering_options)
        return colour, depth, weights.sum(2)


class HeadGenerator(nn.Module):
    """A latent to planes, to what rays see of them."""

    def __init__(self, renderer: nn.Module | None = None, **options: object) -> None:
        super().__init__()
        self.renderer = renderer or Rays()
        self.decoder = PointDecoder()
        self.to_planes = nn.Linear(6, 3 * 4 * 9 * 11)
        given = {"ray_start": 2.25, "ray_end": 3.3, "depth_resolution": 12, "depth_resolution_importance": 10}
        self.rendering_kwargs = {**given, "box_warp": 1.1, "clamp_mode": "softplus", **options}

    def forward(self, z: Tensor, origins: Tensor, directions: Tensor) -> dict[str, Tensor]:
        planes = self.to_planes(z).view(len(z), 3, 4, 9, 11)
        image, depth, opacity = self.renderer(planes, self.decoder, origins, directions, self.rendering_kwargs)
        return {"image": image.mT, "depth": depth, "opacity": opacity}


def settled(module: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics and vectors as after training."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
        if getattr(part, "affine", False):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
        for hook in part._forward_pre_hooks.values():
            for _ in range(20):
                hook(part, ())  # a power iteration in training mode
    return module.eval()
