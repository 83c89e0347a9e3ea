"""Motion templates: what is saved comes back, and a pickle never runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastface.models.live_portrait import LivePortraitMotion, MotionTemplate, load_template, save_template
from fastface.models.live_portrait.networks import rotation_matrix


def clip(frames: int, *, seed: int = 0, keypoints: int = 21, ratios: bool = True) -> LivePortraitMotion:
    """Random absolute motions."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(frames, *shape, generator=generator)

    return LivePortraitMotion(
        rotation=rotation_matrix(20 * normal(3)),
        expression=0.02 * normal(keypoints, 3),
        scale=1.3 + 0.05 * normal(1),
        translation=0.1 * normal(3),
        eyes=normal(2).abs() if ratios else None,
        lips=normal(1).abs() if ratios else None,
    )


def assert_same(one: LivePortraitMotion, other: LivePortraitMotion) -> None:
    assert one.relative == other.relative and one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


@settings(max_examples=15, deadline=None)
@given(frames=st.integers(1, 7), keypoints=st.sampled_from([5, 21]), ratios=st.booleans(), fps=st.floats(0.1, 240))
def test_a_template_comes_back_as_it_was_saved(tmp_path_factory, frames, keypoints, ratios, fps) -> None:
    path = tmp_path_factory.mktemp("template") / "new" / "clip.safetensors"
    motions = clip(frames, keypoints=keypoints, ratios=ratios)
    save_template(MotionTemplate(motions, fps), path)
    loaded = load_template(path)
    assert loaded.fps == fps and len(loaded) == frames
    assert_same(loaded.motions, motions)
    assert [each.name for each in path.parent.iterdir()] == ["clip.safetensors"]


def test_changes_and_times() -> None:
    template = MotionTemplate(clip(5), fps=10.0)
    assert torch.allclose(template.changes.rotation[0], torch.eye(3), atol=1e-6)
    assert template.changes.expression[0].abs().max() == 0 and template.changes.scale[0] == 1
    for seconds, index in ((0.0, 0), (0.09, 0), (0.1, 1), (0.3, 3), (99.0, 4), (-1.0, 0)):
        assert_same(template.at(seconds), template.changes.frames(slice(index, index + 1)))
    calm = template.smoothed(0.2).motions
    assert calm.expression.std(0).mean() < 0.7 * template.motions.expression.std(0).mean()


def public(motions: LivePortraitMotion, *, rotation: str = "R", lists: bool = True, fps: float = 25) -> dict:
    """The dict of a public template."""
    arrays = {name: tensor.numpy() for name, tensor in motions.tensors().items()}
    frames = [
        {
            "scale": arrays["scale"][i : i + 1],
            rotation: arrays["rotation"][i : i + 1],
            "exp": arrays["expression"][i : i + 1],
            "t": arrays["translation"][i : i + 1],
            "kp": np.zeros((1, 21, 3), dtype=np.float32),
            "x_s": np.zeros((1, 21, 3), dtype=np.float32),
        }
        for i in range(len(motions))
    ]
    data = {"n_frames": len(motions), "output_fps": fps, "motion": frames}
    if lists:
        data["c_eyes_lst"] = [arrays["eyes"][i : i + 1] for i in range(len(motions))]
        data["c_lip_lst"] = [arrays["lips"][i : i + 1] for i in range(len(motions))]
    return data


def written(path: Path, data: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_a_public_template(tmp_path, protocol) -> None:
    motions = clip(3)
    template = load_template(written(tmp_path / "a.pkl", public(motions, fps=30), protocol))
    assert template.fps == 30
    assert_same(template.motions, motions)


def test_what_older_public_templates_lack(tmp_path) -> None:
    motions = clip(3)
    old = public(motions, rotation="R_d", lists=False)
    del old["output_fps"], old["n_frames"]
    template = load_template(written(tmp_path / "a.pkl", old))
    assert template.fps == 25 and template.motions.eyes is None and template.motions.lips is None
    assert torch.equal(template.motions.rotation, motions.rotation)
    short = public(motions)
    short["c_lip_lst"] = short["c_lip_lst"][:2]
    assert load_template(written(tmp_path / "b.pkl", short)).motions.lips is None
    double = public(motions)
    double["motion"][0] = {name: value.astype(np.float64) for name, value in double["motion"][0].items()}
    double["output_fps"] = np.float64(12.5)
    assert load_template(written(tmp_path / "c.pkl", double)).fps == 12.5


class Runs:
    """Calls something when it is unpickled."""

    def __init__(self, call, *arguments) -> None:
        self._reduced = call, arguments

    def __reduce__(self):
        return self._reduced


def test_code_in_a_template_is_not_run_and_is_named(tmp_path) -> None:
    proof = tmp_path / "proof"
    for name, attack, wanted in (
        ("system", Runs(os.system, f"touch {proof}"), f"{os.system.__module__}.system"),
        ("eval", Runs(eval, f"open({str(proof)!r}, 'w')"), "builtins.eval"),
        ("getattr", Runs(getattr, "x", "upper"), "builtins.getattr"),
        ("load", Runs(np.load, "x.npy"), "numpy.load"),
    ):
        data = public(clip(2))
        data["motion"][1]["kp"] = attack
        with pytest.raises(ValueError, match=f"is refused: it asks for {wanted}, and only arrays"):
            load_template(written(tmp_path / f"{name}.pkl", data))
        with pytest.raises(ValueError, match=f"asks for {wanted}"):
            load_template(written(tmp_path / f"{name}.pkl", attack, 5))
    assert not proof.exists()


def test_other_ways_out_of_the_unpickler(tmp_path) -> None:
    def refused(data: bytes, message: str) -> None:
        path = tmp_path / "a.pkl"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            load_template(path)

    # A dotted name would walk from an allowed class to anything.
    refused(b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", r"asks for numpy\.ndarray\.__class__")
    refused(b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "asks for the codec 'rot13'")
    refused(b"Pelsewhere\n.", "asks for the object 'elsewhere' from outside")
    refused(pickle.dumps(torch.zeros(2)), r"asks for torch\.")
    refused(pickle.dumps(public(clip(2)))[:-400], "cannot be read")
    refused(b"", "cannot be read")


def test_contents_that_are_no_template(tmp_path) -> None:
    good = public(clip(2))

    def fails(message: str, **changes: object) -> None:
        data = good | {"motion": [dict(frame) for frame in good["motion"]]}
        for key, value in changes.items():
            data["motion"][1][key] = value
        with pytest.raises(ValueError, match=message):
            load_template(written(tmp_path / "a.pkl", data))

    fails(r"frame 1: R must hold \[3, 3\] numbers, got \[1, 3\]", R=np.zeros((1, 3)))
    fails(r"frame 1: exp must hold \[-1, 3\] numbers, got \[1, 4\]", exp=np.zeros((1, 4)))
    fails(r"as many keypoints, got \[4, 21\]", exp=np.zeros((1, 4, 3)))
    fails("is refused: its arrays must be of numbers, got dtype 'O8'", t=np.array([None] * 3))
    fails("frame 1: t must be numbers, got bool", t=np.array([True] * 3))
    fails("expression must be finite", exp=np.full((1, 21, 3), np.nan))
    fails("scale must be positive", scale=np.zeros((1, 1)))
    del good["motion"][1]["scale"]
    fails("frame 1 has no scale")
    for data in ([], {"motion": []}, {"motion": 3}, {}):
        with pytest.raises(ValueError, match="must hold a dict with a list 'motion'"):
            load_template(written(tmp_path / "a.pkl", data))


def test_bad_files(tmp_path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match="no such motion template"):
        load_template(tmp_path / "none.pkl")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"must be \.safetensors or \.pkl, got \.txt"):
        load_template(tmp_path / "a.txt")
    save_file({"weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="expected the format .* got None"):
        load_template(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"extension must be \.safetensors, got \.pkl"):
        save_template(MotionTemplate(clip(1), 25), tmp_path / "a.pkl")
    with pytest.raises(ValueError, match="fps must be positive, got 0"):
        MotionTemplate(clip(1), 0)
    with pytest.raises(ValueError, match="motions must be absolute, at least one, got 0"):
        MotionTemplate(clip(2).frames(slice(0)), 25)
    with pytest.raises(ValueError, match="motions must be absolute"):
        MotionTemplate(LivePortraitMotion.of(), 25)
