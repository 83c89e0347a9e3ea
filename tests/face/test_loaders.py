"""Files of morphable models, written here in the layouts that their owners document."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastface.face import load_face_model, save_face_model
from tests.face.models import random_model

RNG = np.random.default_rng(0)
TETRAHEDRON = np.array([[1.0, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])
OUTWARD = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def arrays(modes: int = 5, expressions: int = 3) -> dict[str, np.ndarray]:
    """A tetrahedron with random modes."""
    return {
        "mean": TETRAHEDRON.reshape(-1, 1) * 9,
        "identity": RNG.standard_normal((12, modes)),
        "identity_scale": RNG.random((modes, 1)) + 0.1,
        "expression": RNG.standard_normal((12, expressions)),
        "expression_scale": RNG.random((expressions, 1)) + 0.1,
    }


def expected_shape(a: dict[str, np.ndarray], p: np.ndarray, e: np.ndarray) -> torch.Tensor:
    shape = a["mean"].ravel() + a["identity"] @ (a["identity_scale"].ravel() * p)
    return torch.from_numpy((shape + a["expression"] @ (a["expression_scale"].ravel() * e)).reshape(-1, 3)).float()


def check(path: Path, a: dict[str, np.ndarray], unit: str, licence: str) -> None:
    model = load_face_model(path)
    p, e = RNG.standard_normal(a["identity"].shape[1]), RNG.standard_normal(a["expression"].shape[1])
    found = model.shape(torch.from_numpy(p[None]).float(), torch.from_numpy(e[None]).float())[0]
    torch.testing.assert_close(found, expected_shape(a, p, e), rtol=1e-4, atol=1e-4)
    assert model.unit == unit and licence in model.licence
    assert float(torch.linalg.det(model.mean[model.triangles.long()]).sum()) > 0, "triangles face outward"


def one(a: dict[str, np.ndarray], *kinds: str) -> dict[str, np.ndarray]:
    """`a` with scales of 1, for layouts that have none."""
    return a | {f"{kind}_scale": np.ones((a[kind].shape[1], 1)) for kind in kinds}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_our_own_file_keeps_everything(tmp_path: Path, dtype: torch.dtype) -> None:
    model = random_model()
    path = tmp_path / "face.safetensors"
    save_face_model(model, path, dtype=dtype)
    back = load_face_model(path)
    assert [p.name for p in tmp_path.iterdir()] == ["face.safetensors"]
    for (name, expected), (other, found) in zip(model.tensors(), back.tensors(), strict=True):
        rough = dtype == torch.float16 and name.endswith("basis")
        torch.testing.assert_close(found, expected, rtol=1e-3 if rough else 0, atol=0)
        assert name == other and found.dtype == expected.dtype
    assert (back.unit, back.licence, back.identity_names) == (model.unit, model.licence, model.identity_names)
    if dtype == torch.float32:
        assert back.content_hash == model.content_hash
    save_face_model(model, tmp_path / "again.safetensors", dtype=dtype)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "face.safetensors"
    save_face_model(random_model(), path)
    before = path.read_bytes()

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_face_model(random_model(seed=1), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1), cut=st.booleans())
def test_a_damaged_file_is_refused(tmp_path: Path, position: float, cut: bool) -> None:
    """Cut anywhere, or one bit turned anywhere: one line, or the same model where the bit was padding."""
    path = tmp_path / "face.safetensors"
    save_face_model(random_model(vertices=20), path)
    data = bytearray(path.read_bytes())
    index = int(position * (len(data) - 1))
    if cut:
        data = data[:index]
    else:
        data[index] ^= 1
    path.write_bytes(bytes(data))
    try:
        load_face_model(path)
    except ValueError as error:
        assert str(error).startswith(f"cannot read a face model from {path}: ") and "\n" not in str(error)
    else:
        assert not cut


def test_bfm_2009(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io", reason="a .mat file needs scipy")
    a = arrays()
    file = {"shapeMU": a["mean"], "shapePC": a["identity"], "shapeEV": a["identity_scale"]}
    texture = {"texMU": a["mean"], "texPC": a["identity"], "texEV": a["identity_scale"]}
    io.savemat(tmp_path / "01_MorphableModel.mat", file | texture | {"tl": (OUTWARD + 1).astype(np.uint32)})
    no_expression = {"expression": np.empty((12, 0)), "expression_scale": np.empty((0, 1))}
    check(tmp_path / "01_MorphableModel.mat", a | no_expression, "um", "Basel")


def test_bfm_front(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io", reason="a .mat file needs scipy")
    a = one(arrays(), "identity", "expression")
    keypoints = RNG.integers(1, 5, (1, 68))
    io.savemat(tmp_path / "BFM_model_front.mat", {
        "meanshape": a["mean"].T, "idBase": a["identity"], "exBase": a["expression"], "tri": OUTWARD[:, ::-1] + 1.0,
        "keypoints": keypoints,
    })  # fmt: skip
    check(tmp_path / "BFM_model_front.mat", a, "um", "Basel")
    landmarks = load_face_model(tmp_path / "BFM_model_front.mat").landmarks68
    assert landmarks is not None and landmarks.vertices[:, 0].tolist() == (keypoints[0] - 1).tolist()


@pytest.mark.parametrize("transposed", [False, True])
def test_bfm_2017(tmp_path: Path, transposed: bool) -> None:
    h5py = pytest.importorskip("h5py", reason="an .h5 file needs h5py")
    a = arrays()
    path = tmp_path / "model2017-1_bfm_nomouth.h5"
    with h5py.File(path, "w") as file:
        for group, kind in (("shape", "identity"), ("expression", "expression")):
            file[f"{group}/model/mean"] = a["mean"].ravel() if kind == "identity" else np.zeros(12)
            file[f"{group}/model/pcaBasis"] = a[kind]
            file[f"{group}/model/pcaVariance"] = a[f"{kind}_scale"].ravel() ** 2
        file["shape/representer/points"] = TETRAHEDRON.T
        file["shape/representer/cells"] = OUTWARD.T if transposed else OUTWARD
    check(path, a, "mm", "Basel")
    with h5py.File(path, "a") as file:
        del file["expression/model/pcaBasis"]
    with pytest.raises(ValueError, match="it has no expression/model/pcaBasis"):
        load_face_model(path)


def test_lsfm(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io", reason="a .mat file needs scipy")
    a = one(arrays(), "identity", "expression")
    fmod = {"mean": a["mean"], "id_basis": a["identity"], "exp_basis": a["expression"], "tri": OUTWARD + 1}
    io.savemat(tmp_path / "all_all_all.mat", {"fmod": fmod})
    check(tmp_path / "all_all_all.mat", a, "mm", "LSFM")
    del fmod["tri"]
    io.savemat(tmp_path / "all_all_all.mat", {"fmod": fmod})
    with pytest.raises(ValueError, match="the struct fmod must have tri"):
        load_face_model(tmp_path / "all_all_all.mat")


def flame() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    a = one(arrays(300, 100), "identity", "expression")
    directions = np.concatenate([a["identity"], a["expression"]], 1).reshape(4, 3, 400)
    return a, {"v_template": a["mean"].reshape(4, 3), "shapedirs": directions, "f": OUTWARD.astype(np.uint32)}


def test_flame_npz(tmp_path: Path) -> None:
    a, content = flame()
    np.savez(tmp_path / "flame.npz", **content, kintree_table=np.zeros((2, 5)))
    check(tmp_path / "flame.npz", a, "m", "FLAME")


class Chumpy:
    """Pickles as chumpy's arrays do: by the name of a class that is not installed, with the array in the state."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x


def chumpy_pickle(content: dict[str, Any], protocol: int) -> bytes:
    """The pickle of `content`, with `Chumpy` under the name of chumpy's class."""
    data = pickle.dumps(content, protocol)
    here, there = (f"c{module}\n{name}\n".encode() for module, name in ((__name__, "Chumpy"), ("chumpy.ch", "Ch")))
    assert here in data
    return data.replace(here, there)


@pytest.mark.parametrize("protocol", [0, 2])
def test_flame_pickle(tmp_path: Path, protocol: int) -> None:
    sparse = pytest.importorskip("scipy.sparse", reason="FLAME's regressor is a scipy matrix")
    a, content = flame()
    wrapped = {name: Chumpy(array) if name != "f" else array for name, array in content.items()}
    wrapped["J_regressor"] = sparse.csc_matrix(np.eye(4))  # type: ignore[assignment]  # as in the file
    path = tmp_path / "generic_model.pkl"
    path.write_bytes(chumpy_pickle(wrapped, protocol))
    check(path, a, "m", "FLAME")


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


class Shell:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "executed"
    for bomb in (Bomb(mark), Shell(f"touch {mark}")):
        path = tmp_path / "generic_model.pkl"
        path.write_bytes(pickle.dumps({**flame()[1], "weights": bomb}, protocol))
        with pytest.raises(ValueError, match="and only arrays are read from a pickle"):
            load_face_model(path)
        assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "a plain unpickler would have run it"


@pytest.mark.parametrize(
    "name", ["builtins.eval", "builtins.getattr", "numpy.load", "numpy.ndarray.tofile", "os.system"]
)
def test_names_outside_of_the_list_are_refused(tmp_path: Path, name: str) -> None:
    module, attribute = name.split(".", 1)
    data = pickle.PROTO + bytes([4]) + b"".join(
        pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode() for text in (module, attribute)
    ) + pickle.STACK_GLOBAL + pickle.STOP  # fmt: skip
    (tmp_path / "model.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=f"it asks for {name}, and only arrays"):
        load_face_model(tmp_path / "model.pkl")


def write_obj(path: Path, vertices: np.ndarray, faces: list[list[int]]) -> None:
    lines = ["# a comment", "o mesh"] + [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices] + ["vt 0 0"]
    path.write_text("\n".join(lines + ["f " + " ".join(f"{i + 1}/1/{i + 1}" for i in face) for face in faces]) + "\n")


def test_ict(tmp_path: Path) -> None:
    cube = np.array([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    a = {
        "mean": cube.reshape(-1, 1),
        "identity": RNG.standard_normal((24, 3)),
        "expression": RNG.standard_normal((24, 2)),
    }
    write_obj(tmp_path / "generic_neutral_mesh.obj", cube, quads)
    names = [f"identity{i:03d}" for i in range(3)], ["jawOpen", "mouthSmile_L"]
    for kind, group in zip(("identity", "expression"), names, strict=True):
        for index, name in enumerate(group):
            write_obj(tmp_path / f"{name}.obj", cube + a[kind][:, index].reshape(-1, 3), quads)
    landmarks = RNG.integers(0, 8, 68).tolist()
    (tmp_path / "vertex_indices.json").write_text(
        json.dumps({"expressions": names[1], "idx_to_landmark_verts": landmarks})
    )
    check(tmp_path, one(a, "identity", "expression"), "cm", "MIT")
    model = load_face_model(tmp_path)
    assert len(model.triangles) == 12 and model.expression_names == ("jawOpen", "mouthSmile_L")
    assert model.landmarks68 is not None and model.landmarks68.vertices[:, 0].tolist() == landmarks
    write_obj(tmp_path / "jawOpen.obj", cube[:7], [])
    with pytest.raises(ValueError, match="jawOpen.obj must have 8 vertices, got 7"):
        load_face_model(tmp_path)


def test_mediapipe(tmp_path: Path) -> None:
    path = tmp_path / "canonical_face_model.obj"
    write_obj(path, RNG.normal(size=(468, 3)), [[0, 1, 2], [2, 1, 467]])
    model = load_face_model(path)
    assert model.mean.shape == (468, 3) and model.identities == model.expressions == 0 and model.unit == "cm"
    assert model.dense is not None and torch.equal(model.dense.of(model.mean), model.mean)
    assert "Apache-2.0" in model.licence
    write_obj(path, RNG.normal(size=(467, 3)), [])
    with pytest.raises(ValueError, match="must have 468 vertices, got 467"):
        load_face_model(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".mat", ".h5", ".npz", ".pkl", ".obj"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 300, b"not a model\nat all", bytes(range(256)) * 8])
def test_wrong_content_is_one_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    for package in {".mat": ["scipy"], ".h5": ["h5py"]}.get(suffix, []):
        pytest.importorskip(package, reason=f"a {suffix} file needs {package}")
    path = tmp_path / f"face{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot read a face model from") as caught:
        load_face_model(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 0.99), suffix=st.sampled_from([".mat", ".h5", ".npz", ".pkl"]))
def test_truncated_files_are_one_line(tmp_path: Path, position: float, suffix: str) -> None:
    io = pytest.importorskip("scipy.io", reason="a .mat file needs scipy")
    h5py = pytest.importorskip("h5py", reason="an .h5 file needs h5py")
    path = tmp_path / f"face{suffix}"
    content = flame()[1]
    if suffix == ".mat":
        io.savemat(path, content)
    elif suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in content.items():
                file[name] = array
    elif suffix == ".npz":
        np.savez(path, **content)
    else:
        path.write_bytes(pickle.dumps(content, 2))
    path.write_bytes(path.read_bytes()[: int(position * path.stat().st_size)])
    with pytest.raises(ValueError, match="cannot read a face model from"):
        load_face_model(path)


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such face model"):
        load_face_model(tmp_path / "none.h5")
    (tmp_path / "face.txt").write_text("")
    with pytest.raises(ValueError, match="must be a folder or one of .safetensors, .mat"):
        load_face_model(tmp_path / "face.txt")
    with pytest.raises(ValueError, match=r"extension must be .safetensors, got .bin"):
        save_face_model(random_model(), tmp_path / "face.bin")
    with pytest.raises(ValueError, match="cannot read a face model from"):
        load_face_model(tmp_path)  # a folder that is not ICT-FaceKit's
