"""Files of morphable models: our own, and those that others publish.

Nothing in a file is ever executed: pickles pass an allow-list of names, and objects of unknown libraries become inert
shells. Every loader turns triangles outward, keeps the unit and the licence, and raises ValueError with one line for a
file that is not what it should be. SciPy and h5py are needed for .mat and .h5 files only.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastface._files import replacing
from fastface._unpickling import ArrayUnpickler
from fastface.face.model import MorphableModel, SurfacePoints, check_indices

_FORMAT = "fastface.morphable_model/1"
BUILT_IN = Path(__file__).parent / "data" / "head.safetensors"
_BFM = "Basel Face Model: non-commercial use, under the terms of the University of Basel"
_FLAME = "FLAME: under the terms of the Max Planck Institute for Intelligent Systems that came with the file"
_LSFM = "LSFM: non-commercial research, under the terms of Imperial College London"
_ICT = "ICT-FaceKit: MIT, University of Southern California Institute for Creative Technologies"
_MEDIAPIPE = "MediaPipe canonical face model: Apache-2.0, The MediaPipe Authors"
_FLAME_ARRAYS = ("v_template", "shapedirs", "f")
_FLAME_IDENTITIES = 300  # of the 400 shape directions; the expressions follow

Array = NDArray[Any]


def built_in_head() -> MorphableModel:
    """The head that comes with fastface: 46 identities, 28 expressions, MediaPipe's 468 points among its vertices.

    Synthetic: made by ``python -m fastface.face.synthetic`` around the mean of that detector's points on photographs.
    Centimetres.
    """
    return load_face_model(BUILT_IN)


def save_face_model(model: MorphableModel, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a model as safetensors, whole or not at all; `dtype` float16 halves the bases and rounds them.

    Raises:
        ValueError: another extension than .safetensors, or a dtype that is neither float32 nor float16.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a face model's extension must be .safetensors, got {path.suffix or 'none'}: {path}")
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"dtype must be torch.float32 or torch.float16, got {dtype}")
    bases = {name: getattr(model, name).to(dtype) for name in ("identity_basis", "expression_basis")}
    rounded = replace(model, **{name: basis.float() for name, basis in bases.items()})
    about = {
        "format": _FORMAT,
        "unit": model.unit,
        "licence": model.licence,
        "identity_names": model.identity_names,
        "expression_names": model.expression_names,
        "content_hash": rounded.content_hash,
    }
    tensors = {name: bases.get(name, tensor).cpu().contiguous() for name, tensor in rounded.tensors()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, {"about": json.dumps(about)}))  # one entry, as safetensors shuffles several


def load_face_model(path: str | Path) -> MorphableModel:
    """Read a morphable model; what it is follows from the extension and the content.

    - ``.safetensors``: written by `save_face_model`.
    - ``.mat``: BFM 2009 (``shapeMU``, µm), its 35,709-vertex front (``meanshape``) or LSFM (struct ``fmod``, which must
      hold its triangles as ``tri``).
    - ``.h5``: BFM 2017 or 2019, mm.
    - ``.npz`` or ``.pkl``: FLAME, m, without its joints; the first 300 directions are identities.
    - a folder: ICT-FaceKit's ``FaceXModel``, cm.
    - ``.obj``: MediaPipe's canonical face, cm, which has no modes.

    Coefficients are standard deviations where the file knows them, else the file's own.

    Raises:
        ValueError: no such file, not such a model, damaged, or a pickle that asks for anything but arrays; one line.
        ImportError: SciPy or h5py is missing for a file that needs it.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no such face model: {path}")
    loader = _ict if path.is_dir() else _LOADERS.get(path.suffix.lower())
    if loader is None:
        raise ValueError(f"a face model must be a folder or one of {', '.join(_LOADERS)}, got {path}")
    try:
        return loader(path)
    except KeyError as error:
        raise ValueError(f"cannot read a face model from {path}: it has no {error.args[0]}") from error
    except _DAMAGED as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"cannot read a face model from {path}: {lines[0]}") from error


def _own(path: Path) -> MorphableModel:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, the file is no mapping
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if about.get("format") != _FORMAT:
        raise ValueError(f"its format must be {_FORMAT}, got {about.get('format')}")
    parts: dict[str, Any] = {
        name: SurfacePoints(tensors.pop(f"{name}.vertices"), tensors.pop(f"{name}.weights"))
        for name in ("landmarks68", "dense")
        if f"{name}.vertices" in tensors
    }
    parts |= {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    parts |= {name: tuple(about[name]) for name in ("identity_names", "expression_names")}
    model = MorphableModel(**parts, unit=about["unit"], licence=about["licence"])
    if model.content_hash != about["content_hash"]:
        raise ValueError(f"its content hash must be {about['content_hash']}, got {model.content_hash}")
    return model


def _mat(path: Path) -> MorphableModel:
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise ImportError("a .mat file needs SciPy: pip install 'fastface-kernels[face-models]'") from error
    try:
        content = loadmat(path)
    except (MatReadError, NotImplementedError, TypeError) as error:  # NotImplementedError: HDF5 inside
        raise ValueError(str(error)) from error
    if "shapeMU" in content:
        return _model(
            content["shapeMU"], _from_zero(content["tl"]), identity=content["shapePC"],
            identity_scale=content["shapeEV"], unit="um", licence=_BFM,
        )  # fmt: skip
    if "meanshape" in content:
        return _model(
            content["meanshape"], _from_zero(content["tri"]), identity=content["idBase"], expression=content["exBase"],
            landmarks68=_from_zero(content["keypoints"]), unit="um", licence=_BFM,
        )  # fmt: skip
    if "fmod" in content:
        fmod = content["fmod"][0, 0]
        missing = {"mean", "tri", "id_basis", "exp_basis"} - set(fmod.dtype.names or ())
        if missing:
            raise ValueError(f"the struct fmod must have {', '.join(sorted(missing))}")
        return _model(
            fmod["mean"], _from_zero(fmod["tri"]), identity=fmod["id_basis"], expression=fmod["exp_basis"],
            unit="mm", licence=_LSFM,
        )  # fmt: skip
    names = ", ".join(name for name in content if not name.startswith("__"))
    raise ValueError(f"expected shapeMU (BFM 2009), meanshape (its front) or fmod (LSFM), got {names or 'nothing'}")


def _from_zero(index: Array) -> Array:
    """MATLAB's indices, which count from 1 and may be unsigned."""
    return index.astype(np.int64) - 1


def _h5(path: Path) -> MorphableModel:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("an .h5 file needs h5py: pip install 'fastface-kernels[face-models]'") from error
    with h5py.File(path) as file:

        def read(name: str) -> Array:
            if name not in file:
                raise KeyError(name)
            return np.asarray(file[name])

        cells = read("shape/representer/cells")
        return _model(
            read("shape/model/mean") + read("expression/model/mean"),
            cells.T if cells.shape[0] == 3 and cells.shape[1] != 3 else cells,
            identity=read("shape/model/pcaBasis"),
            identity_scale=np.sqrt(read("shape/model/pcaVariance")),
            expression=read("expression/model/pcaBasis"),
            expression_scale=np.sqrt(read("expression/model/pcaVariance")),
            unit="mm",
            licence=_BFM,
        )


def _npz(path: Path) -> MorphableModel:
    with np.load(path, allow_pickle=False) as archive:
        return _flame({name: archive[name] for name in archive.files if name in _FLAME_ARRAYS})


def _pkl(path: Path) -> MorphableModel:
    content = _ModelUnpickler.load_file(path)
    if not isinstance(content, dict):
        raise ValueError(f"expected a dictionary, got {type(content).__name__}")
    return _flame({name: _array(name, content[name]) for name in _FLAME_ARRAYS if name in content})


def _flame(content: dict[str, Array]) -> MorphableModel:
    directions = content["shapedirs"]
    if directions.ndim != 3 or directions.shape[1] != 3:
        raise ValueError(f"shapedirs must be [V, 3, modes], got {list(directions.shape)}")
    directions = directions.reshape(-1, directions.shape[2])
    return _model(
        content["v_template"], content["f"].astype(np.int64), identity=directions[:, :_FLAME_IDENTITIES],
        expression=directions[:, _FLAME_IDENTITIES:], unit="m", licence=_FLAME,
    )  # fmt: skip


def _ict(folder: Path) -> MorphableModel:
    if not (folder / "vertex_indices.json").is_file():
        raise ValueError("a folder must be ICT-FaceKit's FaceXModel, it has no vertex_indices.json")
    indices = json.loads((folder / "vertex_indices.json").read_text())
    mean, triangles = read_obj(folder / "generic_neutral_mesh.obj")
    identities = sorted(path.stem for path in folder.glob("identity[0-9]*.obj"))
    expressions = list(indices["expressions"])

    def modes(names: list[str]) -> Array:
        offsets = []
        for name in names:
            vertices, _ = read_obj(folder / f"{name}.obj")
            if vertices.shape != mean.shape:
                raise ValueError(f"{name}.obj must have {len(mean)} vertices, got {len(vertices)}")
            offsets.append((vertices - mean).ravel())
        return np.stack(offsets, 1) if offsets else np.empty((mean.size, 0))

    return _model(
        mean, triangles, identity=modes(identities), expression=modes(expressions),
        landmarks68=np.array(indices["idx_to_landmark_verts"]), identity_names=identities, expression_names=expressions,
        unit="cm", licence=_ICT,
    )  # fmt: skip


def _obj(path: Path) -> MorphableModel:
    mean, triangles = read_obj(path)
    if len(mean) != 468:
        raise ValueError(f"MediaPipe's canonical face must have 468 vertices, got {len(mean)}")
    return replace(_model(mean, triangles, unit="cm", licence=_MEDIAPIPE), dense=SurfacePoints.at(torch.arange(468)))


def read_obj(path: str | Path) -> tuple[Array, Array]:
    """Vertices ``[V, 3]`` and triangles ``[T, 3]`` of a Wavefront file; a polygon is split into a fan.

    Raises ValueError for a line that is not what it should be, and for a file without vertices.
    """
    vertices: list[list[float]] = []
    triangles: list[tuple[int, int, int]] = []
    for number, line in enumerate(Path(path).read_text(errors="replace").splitlines(), 1):
        kind, *words = line.split() or [""]
        try:
            if kind == "v":
                x, y, z = words[:3]
                vertices.append([float(x), float(y), float(z)])
            elif kind == "f":
                corners = [int(word.split("/")[0]) for word in words]
                corners = [corner - 1 if corner > 0 else len(vertices) + corner for corner in corners]
                triangles += [(corners[0], b, c) for b, c in zip(corners[1:-1], corners[2:], strict=True)]
        except ValueError as error:
            raise ValueError(
                f"line {number} of {path} must be a vertex or a face, got {line.strip()[:60]!r}"
            ) from error
    if not vertices:
        raise ValueError(f"no vertices in {path}")
    return np.array(vertices), np.array(triangles, dtype=np.int64).reshape(-1, 3)


def _model(
    mean: Array,
    triangles: Array,
    *,
    unit: str,
    licence: str,
    identity: Array | None = None,
    identity_scale: Array | None = None,
    expression: Array | None = None,
    expression_scale: Array | None = None,
    landmarks68: Array | None = None,
    identity_names: list[str] | None = None,
    expression_names: list[str] | None = None,
) -> MorphableModel:
    """A model of arrays: mean [3V] or [V, 3], bases [3V, modes], scales [modes], triangles and landmarks from 0."""
    mean = np.asarray(mean, dtype=np.float32).reshape(-1, 3)

    def basis(name: str, values: Array | None) -> Tensor:
        if values is None:
            return torch.zeros(len(mean), 3, 0)
        values = np.asarray(values, dtype=np.float32)
        if values.ndim != 2 or values.shape[0] != mean.size:
            raise ValueError(f"the {name} basis must be [{mean.size}, modes], got {list(values.shape)}")
        return torch.from_numpy(values.reshape(len(mean), 3, -1))

    def scales(values: Array | None, modes: int) -> Tensor:
        return (
            torch.ones(modes) if values is None else torch.from_numpy(np.asarray(values, dtype=np.float32).reshape(-1))
        )

    identities, expressions = basis("identity", identity), basis("expression", expression)
    vertices = torch.from_numpy(mean)
    return MorphableModel(
        mean=vertices,
        identity_basis=identities,
        identity_scale=scales(identity_scale, identities.shape[2]),
        expression_basis=expressions,
        expression_scale=scales(expression_scale, expressions.shape[2]),
        triangles=_outward(vertices, torch.from_numpy(np.asarray(triangles, dtype=np.int64))),
        unit=unit,
        licence=licence,
        landmarks68=None
        if landmarks68 is None
        else SurfacePoints.at(torch.from_numpy(np.asarray(landmarks68, dtype=np.int64).ravel())),
        identity_names=tuple(identity_names or ()),
        expression_names=tuple(expression_names or ()),
    )


def _outward(vertices: Tensor, triangles: Tensor) -> Tensor:
    """All triangles as they are, or all turned round where most of the surface looks inward."""
    if triangles.dim() != 2 or triangles.shape[1] != 3:
        raise ValueError(f"triangles must be [T, 3], got {list(triangles.shape)}")
    check_indices("triangles", triangles, len(vertices))
    a, b, c = (vertices - vertices.mean(0))[triangles].unbind(1)
    facing = float((torch.linalg.cross(b - a, c - a) * (a + b + c)).sum())
    return (triangles if facing >= 0 else triangles.flip(1)).int()


class _Shell:
    """What stands for an object of a library that is not to run: its state and nothing else."""

    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ModelUnpickler(ArrayUnpickler):
    """Reads arrays, and objects of chumpy, scipy.sparse and their like as shells; refuses any other name."""

    def unknown(self, module: str, name: str) -> Any:
        if (module, name) in _INERT or module.split(".")[0] == "chumpy" or module.startswith("scipy.sparse"):
            return _Shell
        return super().unknown(module, name)


_INERT = {
    *((module, "_reconstructor") for module in ("copy_reg", "copyreg")),
    *((module, "object") for module in ("__builtin__", "builtins")),
}


def _array(name: str, value: Any) -> Array:
    """The array itself, or the one inside of a chumpy object (its `x`)."""
    if isinstance(value, _Shell) and isinstance(value.state, dict):
        value = value.state.get("x")
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} must be an array of numbers, got {type(value).__name__}")
    return np.asarray(value)


_LOADERS: dict[str, Callable[[Path], MorphableModel]] = {
    ".safetensors": _own,
    ".mat": _mat,
    ".h5": _h5,
    ".npz": _npz,
    ".pkl": _pkl,
    ".obj": _obj,
}
# What the readers of damaged files raise.
_DAMAGED = (
    ValueError, TypeError, IndexError, AttributeError, OSError, EOFError, MemoryError, UnicodeError, struct.error,
    zlib.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
