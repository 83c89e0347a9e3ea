"""HeadGAN at 256x256: the generator in plain PyTorch, on the kernels and optimised, and a frame's 3D face."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch

from fastface import engine
from fastface.face import PNCC, FaceFitter, FaceParameters, SurfacePoints, built_in_head
from fastface.models.headgan import Generator, GeneratorConfig
from fastface.ops._verify import Verdict

from .harness import Case, Contenders

SLUG = "headgan"
OPS = ("headgan_encode", "headgan_render", "headgan_face", "headgan_fit")


def cases(device: str, quick: bool, compiled: bool) -> Iterator[Case]:
    """Batch 1, float32, random weights: the time does not depend on them."""
    makers = dict.fromkeys(OPS[:2], _make) | {"headgan_face": _face, "headgan_fit": _fit}
    for op, make in makers.items():
        if op != "headgan_fit" or device == "cpu":  # the fit runs on CPUs alone
            yield Case(
                op=op,
                shape="256x256" if op != "headgan_fit" else "1000 points",
                variant="",
                dtype="float32",
                layout="contiguous",
                batch=1,
                device=device,
                make=partial(make, op, device),
            )


def _make(op: str, device: str) -> Contenders:
    torch.manual_seed(0)
    with torch.device(device):
        plain = Generator(GeneratorConfig()).eval().requires_grad_(False)
        image, face = torch.rand(1, 3, 256, 256) * 2 - 1, torch.rand(1, 3, 256, 256)
        faces, audio = torch.rand(1, 9, 256, 256), torch.randn(1, 300)
    eager = copy.deepcopy(plain)
    for part in eager.modules():
        if hasattr(part, "backend"):
            part.backend = "reference"
    models = {"eager": eager, "plain": plain, "optimized": engine.optimize(plain)}

    def call(model: Generator) -> torch.Tensor:
        with torch.inference_mode():
            if op == "headgan_encode":
                return model.encode(image, face).features[2]
            return model(encoded[model], faces, audio).image

    with torch.inference_mode():
        encoded = {model: model.encode(image, face) for model in models.values()}

    def check(name: str) -> Verdict:
        truth, result = call(eager), call(models[name])
        error = float((truth - result).abs().max() / (truth.max() - truth.min()))
        return Verdict(error, 1e-4, error <= 1e-4)

    return {name: partial(call, model) for name, model in models.items()}, {
        name: partial(check, name) for name in ("plain", "optimized")
    }


def _face(op: str, device: str) -> Contenders:
    """The 468 points of a face to its PNCC: the fit on the CPU, the drawing where the generator is."""
    head = built_in_head()
    fitter, draw = FaceFitter(head, noise=0.01, iterations=2), PNCC(head.to(device), (256, 256))
    camera = torch.tensor([[9.0, 0.1, 0.2, 0.05, 128.0, 128.0, 0.0]])
    truth = FaceParameters.of_vector(torch.cat([torch.zeros(1, 28), camera], 1), torch.zeros(1, head.identities))
    points = truth.camera.project(fitter.points.of(head.shape(truth.identity, truth.expression)))

    def call() -> torch.Tensor:
        found = fitter.fit(points)
        vector = found.vector.to(device)
        return draw(FaceParameters.of_vector(vector, found.identity.to(device)))

    return {"fit and draw": call}, {}


def _fit(op: str, device: str) -> Contenders:
    """The fast path, one iteration of the pseudo-inverse: the identity held, as from frame to frame, or found too."""
    torch.manual_seed(0)
    head = built_in_head()
    fitter = FaceFitter(head, SurfacePoints.at(torch.randperm(len(head.mean))[:1000]), iterations=1)
    identity, camera = 0.3 * torch.randn(1, head.identities), torch.tensor([[9.0, 0.1, 0.2, 0.05, 128.0, 128.0, 0.0]])
    truth = FaceParameters.of_vector(torch.cat([0.3 * torch.randn(1, 28), camera], 1), identity)
    points = truth.camera.project(fitter.points.of(head.shape(truth.identity, truth.expression)))
    return {"held": partial(fitter.fit, points, identity), "found": partial(fitter.fit, points)}, {}
