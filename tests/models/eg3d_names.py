"""Our generator's weights under the names of EG3D's public checkpoints: the inverse of its layout."""

from __future__ import annotations

import re

from torch import Tensor, nn

from fastface.models.pir import TriplaneGenerator


def eg3d_state(generator: TriplaneGenerator) -> dict[str, Tensor]:
    state = {}
    for name, tensor in generator.state_dict().items():
        owner = generator.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.ConvTranspose2d):
            tensor = tensor.transpose(0, 1)
        elif name.endswith("to_rgb.weight"):
            tensor = tensor[:, :, None, None]
        for ours, theirs in (
            (r"^mapping\.average", "backbone.mapping.w_avg"),
            (r"^mapping\.layers\.", "backbone.mapping.fc"),
            (r"^mapping\.", "backbone.mapping."),
            (r"^superresolution\.blocks\.", "superresolution.block"),
            (r"\.layer(\d)\.modulated\.conv\.", r".conv\1."),
            (r"\.layer(\d)\.noise$", r".conv\1.noise_const"),
            (r"\.layer(\d)\.", r".conv\1."),
            (r"\.to_rgb\.", ".torgb."),
        ):
            name = re.sub(ours, theirs, name)
        name = re.sub(r"^synthesis\.blocks\.(\d+)", lambda found: f"backbone.synthesis.b{4 * 2 ** int(found[1])}", name)
        state[name] = tensor
    return state
