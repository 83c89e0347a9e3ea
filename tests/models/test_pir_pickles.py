"""EG3D's pickles: what they hold is read, what they would run is not."""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastface.models.pir import SynthesisConfig, TriplaneGenerator, convert_pickle, load_generator, read_pickle
from fastface.models.pir.generator import GeneratorConfig
from fastface.models.pir.pickles import _MAGIC, _storage, _Unpickler
from tests.models.eg3d_names import eg3d_state

OPTIONS = {
    "ray_start": 2.0,
    "ray_end": 3.0,
    "depth_resolution": 24,
    "depth_resolution_importance": 16,
    "box_warp": 1.2,
    "clamp_mode": "softplus",
    "superresolution_module": "training.superresolution.SuperresolutionHybrid8XDC",
}
EG3D_AXES = [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]]


class Code:
    """Runs something when a plain unpickle meets it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.fixture
def persistence() -> Iterator[type]:
    """The modules that such pickles name, while they are written. Returns the class of a persistent object."""

    class EasyDict(dict[str, Any]):
        __module__, __qualname__ = "dnnlib.util", "EasyDict"

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError("this would run the source code of a pickle")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    named = {"EasyDict": EasyDict, "_reconstruct_persistent_obj": _reconstruct_persistent_obj}
    names = ("dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence")
    modules = {name: types.ModuleType(name) for name in names}
    for module in modules.values():
        vars(module).update(named)

    class Persistent:
        def __init__(self, class_name: str, module: nn.Module, source: str = "raise SystemExit", **attributes: Any):
            self.meta = (class_name, module, source, attributes)

        def __reduce__(self) -> tuple[Any, ...]:
            class_name, module, source, attributes = self.meta
            meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name}
            return _reconstruct_persistent_obj, (EasyDict(meta, state={**vars(module), **attributes}),)

    sys.modules.update(modules)
    yield Persistent
    for name in modules:
        del sys.modules[name]


def nested(state: dict[str, Tensor], persistent: type) -> nn.Module:
    """A tree of modules with the names of a state dict."""
    root = nn.Module()
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        if leaf.endswith(("noise_const", "resample_filter", "w_avg")):
            module.register_buffer(leaf, tensor)
        else:
            module.register_parameter(leaf, nn.Parameter(tensor))
    return root


@pytest.fixture(scope="module")
def small() -> TriplaneGenerator:
    torch.manual_seed(0)
    synthesis = SynthesisConfig(outputs=12, size=8, style=16, base=64, most=8)
    config = GeneratorConfig(16, 25, 2, synthesis, channels=4, hidden=8, image=32, image_channels=(8, 4))
    return TriplaneGenerator(config).eval()


def generator_module(
    state: dict[str, Tensor],
    persistence: type,
    axes: Any = EG3D_AXES,
    renderer: str = "ImportanceRenderer",
) -> nn.Module:
    """EG3D's generator with a renderer of that class and those plane axes; None for one without."""
    module, rendering = nested(state, persistence), nn.Module()
    if axes is not None:
        rendering.plane_axes = torch.tensor(axes, dtype=torch.float32)
    module._modules["renderer"] = persistence(renderer, rendering)
    return module


def test_a_network_is_read_and_converted(small, persistence, tmp_path: Path) -> None:
    state = eg3d_state(small)
    module = generator_module(state, persistence)
    module.register_buffer("passing", torch.zeros(3), persistent=False)
    generator = persistence("TriPlaneGenerator", module, rendering_kwargs=OPTIONS, neural_rendering_resolution=128)
    with (tmp_path / "in.pkl").open("wb") as file:
        pickle.dump({"G": None, "D": None, "G_ema": generator, "training_set_kwargs": {"seed": 1}}, file)

    (network,) = read_pickle(tmp_path / "in.pkl").values()
    assert network.rays == 128 and not network.note
    assert (network.name, network.class_name, network.axes) == ("G_ema", "TriPlaneGenerator", "eg3d")
    assert network.options == OPTIONS
    assert network.state.keys() == state.keys()
    assert all(torch.equal(network.state[name], state[name]) for name in state)

    convert_pickle(tmp_path / "in.pkl", tmp_path / "out.safetensors")
    loaded = load_generator(tmp_path / "out.safetensors")
    rendering = loaded.config.rendering
    assert (rendering.near, rendering.coarse, rendering.box, rendering.axes) == (2.0, 24, 1.2, "eg3d")
    assert loaded.config.rays == 128
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_renderer_without_axes_has_the_published_ones(small, persistence, tmp_path: Path, caplog) -> None:
    module = generator_module(eg3d_state(small), persistence, axes=None)
    network = persistence("TriPlaneGenerator", module, rendering_kwargs=OPTIONS)
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"G_ema": network}))
    found = convert_pickle(tmp_path / "in.pkl", tmp_path / "out.safetensors")
    assert found.axes == "eg3d" and "names no axes of planes" in found.note and found.note in caplog.text
    config = load_generator(tmp_path / "out.safetensors").config
    assert (config.rendering.axes, config.rays) == ("eg3d", 64)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("side", "superresolution"), [(128, "SuperresolutionHybrid2X"), (256, "SuperresolutionHybrid4X")]
)
def test_a_super_resolution_that_doubles_once(side: int, superresolution: str, persistence, tmp_path: Path) -> None:
    """As EG3D's generator of cars has it."""
    torch.manual_seed(0)
    synthesis = SynthesisConfig(outputs=12, size=8, style=16, base=64, most=8)
    config = GeneratorConfig(
        16, 25, 2, synthesis, channels=4, hidden=8, image=side, image_channels=(5, 3), image_doublings=1
    )
    generator = TriplaneGenerator(config).eval()
    module = generator_module(eg3d_state(generator), persistence)
    module.superresolution.register_buffer("resample_filter", torch.ones(4, 4))
    options = {"superresolution_module": f"training.superresolution.{superresolution}", "c_gen_conditioning_zero": True}
    options = OPTIONS | {"white_back": True, "c_scale": 1.0} | options
    network = persistence("TriPlaneGenerator", module, rendering_kwargs=options, neural_rendering_resolution=64)
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"G_ema": network}))
    convert_pickle(tmp_path / "in.pkl", tmp_path / "out.safetensors")
    loaded = load_generator(tmp_path / "out.safetensors")
    assert loaded.config.rendering.white_back and loaded.config.image_doublings == 1
    latent, camera = torch.randn(1, 16), torch.randn(1, 25)
    assert torch.equal(loaded.styles(latent, camera), loaded.styles(latent, -camera))  # the camera had no part in it
    assert torch.equal(loaded.styles(latent, camera), generator.styles(latent, 0 * camera))
    features, styles = torch.randn(1, 4, 64, 64), torch.randn(1, 4, 16)
    assert loaded.image(features, styles).shape == (1, 3, side, side)
    assert torch.equal(loaded.image(features, styles), generator.image(features, styles))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_code_never_runs(protocol: int, persistence, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    command = f"touch {mark}"
    module = nn.Linear(3, 2)
    module.trap = Code(command)
    network = persistence("Linear", module, source=f"import os; os.system({command!r})")
    payload = pickle.dumps({"G_ema": network, "trap": Code(command), "more": [Code(command)]}, protocol)
    (tmp_path / "in.pkl").write_bytes(payload)
    found = read_pickle(tmp_path / "in.pkl")["G_ema"]
    assert torch.equal(found.state["weight"], module.weight)
    assert not mark.exists()
    with pytest.raises(AssertionError, match="source code"):
        pickle.loads(payload)  # the trap works: a plain unpickle runs it


@pytest.mark.parametrize(
    "payload",
    [
        b"cos\nsystem\n(S'exit 1'\ntR.",
        b"cbuiltins\neval\n(S'1/0'\ntR.",
        b"c__builtin__\nexec\n(S'raise SystemExit'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x05posix\x8c\x06system\x86R.",
        b"ctorch.storage\n_load_from_bytes\n(" + pickle.dumps(b"cos\nsystem\n(S'exit 1'\ntR.", 0)[:-1] + b"tR.",
    ],
)
def test_names_that_run_something_are_inert(payload: bytes, tmp_path: Path) -> None:
    (tmp_path / "in.pkl").write_bytes(payload)
    with pytest.raises(ValueError, match="must hold networks|cannot be read"):
        read_pickle(tmp_path / "in.pkl")


def test_no_name_is_ever_imported() -> None:
    unpickler = _Unpickler(io.BytesIO(b""))
    for module, name in (("os", "system"), ("builtins", "eval"), ("torch", "load"), ("antigravity", "x")):
        made = unpickler.find_class(module, name)
        assert made.__mro__[1].__name__ == "_Inert"
    assert "antigravity" not in sys.modules


IDENTITIES = [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]] * 3
HALVES = [[[x / 2 for x in row] for row in matrix] for matrix in EG3D_AXES]


@pytest.mark.parametrize(
    ("options", "parts", "message"),
    [
        ({}, {}, "must have rendering options, got none"),
        (OPTIONS, {"axes": IDENTITIES}, "must have planes on the axes of one of xy_xz_yz, .*, got others or none"),
        (OPTIONS, {"axes": HALVES}, "got others or none"),
        (OPTIONS, {"axes": None, "renderer": "OtherRenderer"}, "got others or none"),
        (OPTIONS | {"superresolution_module": "a.SuperresolutionHybrid2X"}, {}, "EG3D's to 32x32, got .*Hybrid2X"),
        (OPTIONS | {"superresolution_module": "a.Other"}, {}, "superresolution_module must be EG3D's .*, got Other"),
        (OPTIONS | {"c_scale": "x"}, {}, "condition_scale must be a finite number, got 'x'"),
        (OPTIONS, {"rays": "x"}, "rays must be an integer from 1 on, got 'x'"),
        (OPTIONS | {"ray_start": float("nan")}, {}, "near must be a finite number, got nan"),
        (OPTIONS | {"ray_end": "far"}, {}, "far must be a finite number, got 'far'"),
        (OPTIONS | {"ray_start": 3.5}, {}, "near must be below far, got 3.5 and 3"),
        (OPTIONS | {"depth_resolution": "x"}, {}, "coarse must be an integer, got 'x'"),
        (OPTIONS | {"depth_resolution": True}, {}, "coarse must be an integer, got True"),
        (OPTIONS | {"depth_resolution": 2}, {}, "coarse must be from 4 to 4096 with a fine pass, got 2"),
        (OPTIONS | {"depth_resolution": 5000}, {}, "coarse must be from 4 to 4096 with a fine pass, got 5000"),
        (OPTIONS | {"depth_resolution_importance": 2.5}, {}, "fine must be an integer, got 2.5"),
        (OPTIONS | {"disparity_space_sampling": True, "ray_start": -1.0}, {}, "near must be positive with disparity"),
        (
            OPTIONS | {"disparity_space_sampling": True, "ray_start": "auto", "ray_end": "auto"},
            {},
            "near and far must be numbers with disparity, got 'auto'",
        ),
        (OPTIONS | {"decoder_lr_mul": 0.5}, {}, "decoder_lr_mul must be 1, as in all published weights, got 0.5"),
        (OPTIONS | {"sr_antialias": False}, {}, "sr_antialias must be True, .*, got False"),
        (OPTIONS | {"superresolution_noise_mode": "random"}, {}, "noise_mode must be 'none', .*, got 'random'"),
        (OPTIONS | {"box_warp": 0.0}, {}, "box must be positive, got 0.0"),
    ],
)
def test_rendering_that_makes_no_sense(small, persistence, tmp_path: Path, options, parts, message) -> None:
    module = generator_module(eg3d_state(small), persistence, **{k: v for k, v in parts.items() if k != "rays"})
    rays = parts.get("rays", 64)
    network = persistence("Generator", module, rendering_kwargs=options, neural_rendering_resolution=rays)
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"G_ema": network}))
    with pytest.raises(ValueError, match=f"network G_ema of .*in.pkl.*{message}"):
        convert_pickle(tmp_path / "in.pkl", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


class Rebuilt:
    """A tensor of a storage of six numbers, wherever it says that it lies."""

    def __init__(self, *place: object) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (torch.arange(6.0).storage(), *self.place, False, {})


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_tensors_lie_in_their_storage(persistence, tmp_path: Path) -> None:
    def found(*place: object) -> Tensor:
        module = nn.Module()
        module._buffers["a"] = Rebuilt(*place)
        (tmp_path / "in.pkl").write_bytes(pickle.dumps({"G": persistence("Module", module)}))
        return read_pickle(tmp_path / "in.pkl")["G"].state["a"]

    assert torch.equal(found(1, (2, 2), (1, 3)), torch.tensor([[1.0, 4.0], [2.0, 5.0]]))
    assert found(6, (0, 3), (3, 1)).shape == (0, 3)
    for place in ((1, (6,), (1,)), (0, (2, 2), (1, 5)), (0, (1 << 40,), (0,)), (0, (1 << 62, 4), (1, 1))):
        with pytest.raises(ValueError, match="a tensor must lie in its storage of 6 numbers"):
            found(*place)
    for place in ((-1, (2,), (1,)), (0, (-2,), (1,)), (0, (2,), (-1,)), (0, 2, 1), (0, (2.0,), (1,))):
        with pytest.raises(ValueError, match="must be integers from 0 on"):
            found(*place)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool])
def test_storages_of_every_kind(dtype: torch.dtype, persistence, tmp_path: Path) -> None:
    module = nn.Module()
    module.register_buffer("a", (torch.randn(3, 5) * 4).to(dtype).T)
    module.register_buffer("empty", torch.zeros(0, 2, dtype=dtype))
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"G": persistence("Module", module)}))
    found = read_pickle(tmp_path / "in.pkl")["G"].state
    assert torch.equal(found["a"], module.a) and found["a"].dtype == dtype and found["empty"].shape == (0, 2)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_hostile_storages_are_refused() -> None:
    file = io.BytesIO()
    torch.save(torch.arange(6.0).storage(), file, _use_new_zipfile_serialization=False)
    assert torch.equal(_storage(file.getvalue()).tensor, torch.arange(6.0))
    deep = pickle.dumps(_MAGIC, 2) + b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns."
    for data in (b"", deep, file.getvalue()[:-1], file.getvalue() + b"\0"):
        with pytest.raises((ValueError, EOFError, KeyError, pickle.UnpicklingError)):
            _storage(data)


def test_networks_that_never_end_are_refused(persistence, tmp_path: Path) -> None:
    loop = nn.Module()
    loop._modules["again"] = loop
    many = nn.Linear(2, 2)
    for _ in range(60):
        outer = nn.Module()
        outer._modules.update(one=many, other=many)
        many = outer
    for module in (loop, many):
        (tmp_path / "in.pkl").write_bytes(pickle.dumps({"G": persistence("Module", module)}))
        with pytest.raises(ValueError, match="each part of a network must be in one place"):
            read_pickle(tmp_path / "in.pkl")


def test_bad_files(tmp_path: Path, persistence) -> None:
    (tmp_path / "text.pkl").write_text("hello")
    (tmp_path / "numbers.pkl").write_bytes(pickle.dumps({"G_ema": 3}))
    (tmp_path / "good.pkl").write_bytes(pickle.dumps({"G_ema": persistence("Linear", nn.Linear(2, 2))}))
    torch.save({"a": torch.zeros(2)}, tmp_path / "torch.pkl")
    for name, message in (
        ("none.pkl", "no such"), ("text.pkl", "cannot be read"), ("numbers.pkl", "must hold networks"),
        ("torch.pkl", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_pickle(tmp_path / name)
    with pytest.raises(ValueError, match=r"end in \.safetensors"):
        convert_pickle(tmp_path / "good.pkl", tmp_path / "out.pth")
    with pytest.raises(ValueError, match="holds G_ema, not 'G'"):
        convert_pickle(tmp_path / "good.pkl", tmp_path / "out.safetensors", "G")
    assert not (tmp_path / "out.safetensors").exists()
