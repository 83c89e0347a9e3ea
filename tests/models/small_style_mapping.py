"""Style Mapping with every layer of the published networks and few channels, and its weights as they are published."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from fastface.checkpoints import loading
from fastface.models import style_mapping
from fastface.models.style_mapping import StyleMapping
from tests import goldens

K = 5


def small(**options) -> StyleMapping:
    """Every layer of the published networks, few channels."""
    torch.manual_seed(0)
    parts = style_mapping
    model = StyleMapping(
        parts.KeypointDetector(parts.KeypointConfig(keypoints=K, channels=(16, 8, 8, 8, 4, 4), depth=4)),
        parts.PoseExpressionNetwork(parts.PoseConfig(keypoints=K, stem=4, channels=(8, 8, 16, 16))),
        parts.AppearanceEncoder(parts.AppearanceConfig(block=4, channels=4, depth=4)),
        parts.WarpingNetwork(
            parts.WarpingConfig(keypoints=K, channels=4, depth=4, block=4, widest=16, features=8, **options)
        ),
        parts.SPADEDecoder(parts.DecoderConfig(features=8, channels=(16, 8, 4), hidden=4)),
    )
    for part in model.modules():  # PyTorch's own start lets what is in an image fade from layer to layer
        if isinstance(part, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight)
    for head in (model.pose.translation, model.pose.expression):
        nn.init.normal_(head.weight, std=0.02)
    return model.eval()


def _public_names(part: str, module: nn.Module) -> dict[str, Tensor]:
    """The state of a module under the names of its public layout."""
    layout = loading.find(f"face_vid2vid.{part}")
    entries = json.loads((goldens.FOLDER / f"{layout.name}.json").read_text())["entries"]
    names = [name.replace("weight_orig", "weight") for name, _, _ in entries if not name.endswith(("_u", "_v"))]
    state = module.state_dict()
    return {name: state[ours] for name in names if (ours := layout.rename(name)) is not None}


def save_as_published(model: StyleMapping, path: Path) -> None:
    """One file of the family: the networks among what else a training keeps."""
    generator = style_mapping.IntermediateGenerator(model.encoder, model.warping, model.decoder)
    parts = {"generator": generator, "kp_detector": model.keypoints, "he_estimator": model.pose}
    state: dict = {part: _public_names(part, module) for part, module in parts.items()}
    torch.save(state | {"epoch": 3, "optimizer_generator": {"state": {}, "param_groups": [{"lr": 1e-4}]}}, path)
