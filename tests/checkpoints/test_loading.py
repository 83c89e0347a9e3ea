"""Reading weight files: what fits, what does not, and what must never run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastface
from fastface.checkpoints import Layout, fold_spectral_norm, load_checkpoint, loading, read_state_dict, register
from tests import goldens

NAME = "headgan.discriminator"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return goldens.seeded_state_dict(NAME)


@pytest.fixture(scope="module")
def expected(state) -> dict[str, Tensor]:
    return load_checkpoint(state, NAME).state_dict()


def same(module: nn.Module, expected: dict[str, Tensor]) -> bool:
    found = module.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_form_of_a_checkpoint(tmp_path, state, expected) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "c.pt"
    )
    for name in ("a.safetensors", "b.pth", "c.pt"):
        module = fastface.load_checkpoint(tmp_path / name, layout=NAME)
        assert same(module, expected) and not module.training


@pytest.mark.parametrize("spelling", ["hook", "parametrization"])
def test_spectral_norm_is_folded(spelling: str) -> None:
    """With the stored vectors, as PyTorch's own module computes in evaluation mode."""
    torch.manual_seed(0)
    wrap = nn.utils.spectral_norm if spelling == "hook" else nn.utils.parametrizations.spectral_norm
    conv = wrap(nn.Conv2d(3, 5, 3))
    conv(torch.randn(1, 3, 8, 8))  # one power iteration
    conv.eval()
    plain = nn.Conv2d(3, 5, 3)
    plain.load_state_dict(fold_spectral_norm(conv.state_dict()))
    x = torch.randn(1, 3, 8, 8)
    assert torch.allclose(plain(x), conv(x), atol=1e-6)
    state = conv.state_dict()
    gone = next(name for name in state if name.endswith("_u"))
    del state[gone]
    with pytest.raises(ValueError, match="for its spectral norm, which the checkpoint does not have"):
        fold_spectral_norm(state)


def test_entries_that_do_not_fit_are_summed_up(state) -> None:
    for change, message in (
        ({"discriminator_0.model4.0.bias": None}, r"1 missing \(scales\.0\.layers\.4\.conv\.bias\)"),
        ({"extra": torch.zeros(1), "more": torch.zeros(1)}, r"2 unexpected \(extra, more\)"),
        ({"discriminator_1.model4.0.bias": torch.zeros(2)}, r"1 of another shape \(.*\[2\] instead of \[1\]\)"),
    ):
        changed = {name: value for name, value in {**state, **change}.items() if value is not None}
        with pytest.raises(ValueError, match=message) as caught:
            load_checkpoint(changed, NAME)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(ValueError, match=r"the state dict has no entry of layout headgan\.generator: .*, \.\.\.$"):
        load_checkpoint(state, "headgan.generator")
    with pytest.raises(ValueError, match=r"layout must be one of .*headgan\.generator, .*, got 'headgan\.x'"):
        load_checkpoint(state, "headgan.x")
    with pytest.raises(ValueError, match="got 'nobody.generator'"):
        load_checkpoint(state, "nobody.generator")


# What tells the configuration of a generator.
FLOW, RENDER = "flow_network.enc.0.1.0.weight", "rendering_network.cond_enc.0.1.0.weight"
SHARED, AUDIO = (
    "rendering_network.cond_dec.0.norm_0.mlp_shared.0.weight",
    "rendering_network.cond_dec_audio.0.norm1.fc.weight",
)


@pytest.mark.parametrize(
    "change, message",
    [
        ({FLOW: [8, 3, 7, 7]}, "flow_network must encode an image and a render, at least 4 channels, got 3"),
        ({FLOW: [8, 2, 7, 7]}, "flow_network must encode an image and a render, at least 4 channels, got 2"),
        ({FLOW: [8]}, r"flow_network\.encoder\.layers\.0\.conv\.weight must have 4 dimensions .*, got \[8\]"),
        ({FLOW: []}, r"must have 4 dimensions with no size 0, got \[\]"),
        ({FLOW: [0, 6, 7, 7]}, r"must have 4 dimensions with no size 0, got \[0, 6, 7, 7\]"),
        ({FLOW: [8, 7, 7, 7]}, "rendering_network must encode renders of 4 channels each, got 9"),
        ({RENDER: [9]}, r"rendering_network\.encoder.* must have 4 dimensions .*, got \[9\]"),
        ({SHARED: []}, r"shared\.weight must have 4 dimensions with no size 0, got \[\]"),
        ({AUDIO: [8]}, r"affine\.weight must have 2 dimensions .*, got \[8\]"),
        ({FLOW: None}, r"flow_network\.encoder\.layers\.0\.conv\.weight is missing"),
    ],
)
def test_a_generator_of_other_shapes(change: dict, message: str) -> None:
    shapes = {FLOW: [8, 6, 7, 7], RENDER: [8, 9, 7, 7], SHARED: [4, 128, 3, 3], AUDIO: [256, 10]} | change
    state = {name: torch.zeros(shape) for name, shape in shapes.items() if shape is not None}
    with pytest.raises(ValueError, match=f"does not fit layout headgan.generator: .*{message}$") as caught:
        load_checkpoint(state, "headgan.generator")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "shape, message",
    [([8, 6, 4, 4], "a discriminator must have at least 2 layers, got 1"), ([8], r"must have 4 dimensions .*\[8\]")],
)
def test_a_discriminator_of_other_shapes(shape: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"does not fit layout headgan.discriminator: .*{message}$"):
        load_checkpoint({"discriminator_0.model0.0.weight": torch.zeros(shape)}, NAME)


@pytest.mark.parametrize("told", ["first\nsecond", ""])
def test_what_build_raises_is_told_in_one_line(told: str) -> None:
    def build(state: object) -> nn.Module:
        raise ZeroDivisionError(told)

    register(Layout("headgan.of_this_test", build, [("x", "x")]))
    try:
        with pytest.raises(ValueError) as caught:
            load_checkpoint({"x": torch.zeros(1)}, "headgan.of_this_test")
    finally:
        del loading._layouts["headgan.of_this_test"]
    reason = "first" if told else "ZeroDivisionError"
    assert str(caught.value) == f"the state dict does not fit layout headgan.of_this_test: {reason}"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: torch.zeros(1)}, "the state dict must map names to tensors, got 0: Tensor"),
        ({"epoch": 3}, "the state dict must map names to tensors, got 'epoch': int"),
        ({"model": {"x": torch.zeros(1)}}, "the state dict must map names to tensors, got 'model': dict"),
    ],
)
def test_entries_that_are_no_names_and_tensors(state, change: dict, message: str, tmp_path) -> None:
    with pytest.raises(TypeError, match=message):
        load_checkpoint({**state, **change}, NAME)
    with pytest.raises(TypeError, match="source must be a path or a state dict, got Linear"):
        load_checkpoint(nn.Linear(2, 2), NAME)
    torch.save({0: torch.zeros(1)}, tmp_path / "numbered.pth")
    with pytest.raises(ValueError, match="numbered.pth must hold a state dict, got dict"):
        load_checkpoint(tmp_path / "numbered.pth", NAME)


@pytest.mark.parametrize("shapes", [([4, 3], [4], [4]), ([4, 3], [3], [3]), ([4], [4], [1]), ([], [], [1])])
def test_spectral_norm_of_other_shapes(shapes: tuple[list[int], ...]) -> None:
    names = ("a.weight_orig", "a.weight_u", "a.weight_v")
    state = {name: torch.ones(shape) for name, shape in zip(names, shapes, strict=True)}
    with pytest.raises(ValueError, match=r"a\.weight_orig, a\.weight_u and a\.weight_v must be \[K, \.\.\.\]"):
        fold_spectral_norm(state)


class _Code:
    """A pickle that would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_a_pickle_never_runs(tmp_path, state) -> None:
    trace = tmp_path / "ran"
    torch.save({**state, "payload": _Code(trace)}, tmp_path / "new.pth")
    torch.save({**state, "payload": _Code(trace)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(_Code(trace)))
    for name in ("new.pth", "old.pth", "bare.pkl"):
        with pytest.raises(ValueError, match=r"asks for \w+\.system$|or no file of torch.save$") as caught:
            load_checkpoint(tmp_path / name, NAME)
        assert "\n" not in str(caught.value)
    assert not trace.exists()
    torch.load(tmp_path / "new.pth", weights_only=False)
    assert trace.exists(), "the pickle of this test would run code, if it were let"


def test_bad_files(tmp_path, state) -> None:
    torch.save(state, tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("no tensors")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    torch.save({"a": {"x": torch.zeros(1)}, "b": {"y": torch.zeros(1)}}, tmp_path / "two.pth")
    for name, message in (
        ("absent.pth", "no such checkpoint file"),
        ("cut.pth", "is truncated, or no file of torch.save"),
        ("empty.pth", "is truncated, or no file of torch.save"),
        ("text.safetensors", "cannot be read"),
        ("list.pth", "must hold a state dict, got list"),
        ("two.pth", r"holds several state dicts \(a, b\)"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            read_state_dict(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)
