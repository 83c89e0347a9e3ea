"""How the head varies: identity by smooth fields in space, expression by landmarks that pull the skin.

Displacements are ``[V, 3]`` in centimetres, of one standard deviation of an identity and of a full expression. Numbers
are MediaPipe's landmarks; where only the person's right is named, the left moves as its mirror image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fastface.face.synthetic.measure import LANDMARKS
from fastface.face.synthetic.mesh import HeadMesh
from fastface.face.synthetic.surface import Array, extend, laplacian, smoothstep

Moves = Mapping[int, tuple[float, float, float]]


@dataclass(frozen=True)
class _Pull:
    """An expression by what it does to landmarks, named on the person's right."""

    moves: Moves
    reach: float  # how far around them the skin follows
    hold: tuple[int, ...] = ()  # landmarks that stay
    each_side: bool = False  # an expression for each side instead of one for both


_EYES = {-1: (33, 133, 159, 145), 1: (263, 362, 386, 374)}  # corners and middles of the lids
_LID_UPPER = (246, 161, 160, 159, 158, 157, 173)  # of the right eye, above `_LID_LOWER`
_LID_LOWER = (7, 163, 144, 145, 153, 154, 155)
_LIDS = (33, 133, *_LID_UPPER, *_LID_LOWER)
_UPPER_LIP = (185, 40, 39, 37, 0, 191, 80, 81, 82, 13)
_LOWER_LIP = (146, 91, 181, 84, 17, 95, 88, 178, 87, 14)
_CORNERS, _NOSE, _MIDDLE = (61, 78), (1, 2, 98, 129), (0, 13, 14, 17)
# How far landmarks go with the jaw: the middle of the lower lip further than the chin, as it also leaves the teeth.
_JAW_SHARE = {
    17: 1.5, 84: 1.48, 181: 1.4, 91: 1.22, 146: 0.98, 61: 0.75, 14: 1.55, 87: 1.53, 178: 1.45, 88: 1.3, 95: 1.08,
    78: 0.75, 18: 1.15, 83: 1.12, 182: 1.05, 106: 0.9, 43: 0.65, 57: 0.38, 202: 0.5, 204: 0.7, 194: 0.85, 211: 0.65,
    32: 0.75, 200: 1.0, 199: 0.95, 175: 0.95, 152: 1.0, 148: 1.0, 176: 1.0, 149: 0.95, 150: 0.9, 171: 0.9, 140: 0.85,
    170: 0.75, 136: 0.85, 172: 0.8, 58: 0.55, 132: 0.25, 93: 0.0,
}  # fmt: skip
# Along x; as the joints glide forward while the jaw turns, it turns about a line below them.
_JAW_AXIS = np.array([0.0, -4.2, -3.0])
_JAW_OPEN = np.radians(15)

_PULLS = {
    "smile": _Pull(
        {61: (-0.75, 0.75, -0.6), 78: (-0.7, 0.7, -0.55), 50: (-0.1, 0.3, 0.15), 205: (-0.3, 0.4, 0.2)},
        reach=3.0, hold=(*_MIDDLE, *_NOSE, *_LID_LOWER[2:5]), each_side=True,
    ),
    "frown": _Pull(
        {61: (0.05, -0.55, -0.1), 78: (0.05, -0.5, -0.1)}, reach=2.6, hold=(*_MIDDLE, *_NOSE), each_side=True
    ),
    "stretch": _Pull(
        {61: (-0.65, -0.2, -0.4), 78: (-0.6, -0.2, -0.4)}, reach=2.8, hold=(*_MIDDLE, *_NOSE), each_side=True
    ),
    "pucker": _Pull(
        {61: (1, 0, 0.3), 78: (0.95, 0, 0.3), 40: (0.45, 0, 0.45), 91: (0.45, 0, 0.45), 80: (0.45, 0, 0.5),
         88: (0.45, 0, 0.5), 0: (0, 0.05, 0.6), 13: (0, 0, 0.65), 14: (0, 0, 0.65), 17: (0, -0.05, 0.6)},
        reach=2.6, hold=_NOSE,
    ),
    "funnel": _Pull(
        {61: (0.45, 0, 0.1), 40: (0.18, 0.16, 0.35), 0: (0, 0.25, 0.5), 91: (0.18, -0.18, 0.35), 17: (0, -0.28, 0.5),
         78: (0.42, 0, 0.08), 191: (0.28, 0.1, 0.16), 80: (0.16, 0.22, 0.25), 81: (0.08, 0.34, 0.31),
         82: (0.03, 0.41, 0.34), 13: (0, 0.43, 0.35), 95: (0.28, -0.11, 0.16), 88: (0.16, -0.24, 0.25),
         178: (0.08, -0.36, 0.31), 87: (0.03, -0.43, 0.34), 14: (0, -0.45, 0.35)},
        reach=2.4, hold=_NOSE,
    ),
    "lips_press": _Pull(
        {0: (0, -0.24, -0.16), 37: (0, -0.24, -0.16), 39: (0, -0.18, -0.14), 17: (0, 0.28, -0.16), 84: (0, 0.28, -0.16),
         181: (0, 0.21, -0.14), 13: (0, 0, -0.25), 82: (0, 0, -0.25), 14: (0, 0, -0.25), 87: (0, 0, -0.25),
         61: (0, 0, -0.05)},
        reach=1.4, hold=_NOSE,
    ),
    "lips_roll": _Pull(
        {0: (0, -0.05, -0.3), 37: (0, -0.05, -0.3), 17: (0, 0.05, -0.32), 84: (0, 0.05, -0.32), 13: (0, 0.1, -0.5),
         82: (0, 0.1, -0.5), 14: (0, -0.1, -0.5), 87: (0, -0.1, -0.5),
         80: (0.03, 0.06, -0.35), 88: (0.03, -0.06, -0.35), 61: (0.1, 0, -0.15)},
        reach=1.8, hold=_NOSE,
    ),
    "upper_lip_raise": _Pull(
        {0: (0, 0.42, 0.05), 13: (0, 0.42, 0.05), 37: (0, 0.45, 0.05), 82: (0, 0.45, 0.05), 40: (0, 0.35, 0),
         80: (0, 0.35, 0), 98: (-0.05, 0.1, 0)},
        reach=1.8, hold=(*_CORNERS, *_LOWER_LIP, 1, 2),
    ),
    "lower_lip_drop": _Pull(
        {17: (0, -0.45, 0.02), 14: (0, -0.48, 0.05), 84: (0, -0.45, 0.02), 87: (0, -0.48, 0.05), 91: (0, -0.3, 0),
         88: (0, -0.3, 0)},
        reach=1.9, hold=(*_CORNERS, *_UPPER_LIP, 152),
    ),
    "chin_raise": _Pull(
        {199: (0, 0.56, 0.2), 175: (0, 0.5, 0.15), 152: (0, 0.3, 0), 17: (0, 0.4, 0.2), 14: (0, 0.28, 0.14),
         84: (0, 0.34, 0.17), 87: (0, 0.24, 0.11)},
        reach=2.2, hold=_CORNERS,
    ),
    "cheek_puff": _Pull(
        {187: (-0.75, 0, 0.4), 205: (-0.5, 0, 0.55), 214: (-0.6, 0, 0.4), 0: (0, 0, 0.1), 17: (0, 0, 0.1)},
        reach=2.8, hold=(61, *_NOSE),
    ),
    "nose_wrinkle": _Pull(
        {129: (0, 0.32, 0), 98: (-0.03, 0.25, 0), 198: (0, 0.22, 0.12), 122: (0, 0.05, 0.1), 107: (0.08, -0.15, 0.08),
         0: (0, 0.12, 0), 37: (0, 0.14, 0)},
        reach=1.7, hold=_LIDS,
    ),
    "squint": _Pull(
        {**dict.fromkeys(_LID_LOWER[1:-1], (0, 0.16, 0.03)), **dict.fromkeys(_LID_UPPER[1:-1], (0, -0.07, 0.01)),
         50: (-0.05, 0.22, 0.1), 118: (-0.03, 0.2, 0.1)},
        reach=1.7, hold=(33, 133, 61, *_NOSE), each_side=True,
    ),
    "eyes_wide": _Pull(
        {**dict.fromkeys(_LID_UPPER[1:-1], (0, 0.24, -0.04)), **dict.fromkeys(_LID_LOWER[1:-1], (0, -0.06, 0))},
        reach=0.9, hold=(33, 133),
    ),
    "brow_inner_up": _Pull(
        {107: (0, 0.6, 0), 55: (0, 0.55, 0), 66: (0, 0.35, 0), 65: (0, 0.3, 0), 9: (0, 0.35, 0)},
        reach=2.6, hold=_LIDS,
    ),
    "brow_up": _Pull(
        {70: (0, 0.5, 0), 63: (0, 0.65, 0), 105: (0, 0.6, 0.02), 46: (0, 0.4, 0), 53: (0, 0.6, 0), 52: (0, 0.55, 0)},
        reach=2.6, hold=_LIDS, each_side=True,
    ),
    "brow_down": _Pull(
        {107: (0.18, -0.35, 0.12), 55: (0.15, -0.35, 0.08), 66: (0.1, -0.3, 0.08), 65: (0.08, -0.28, 0.05),
         105: (0, -0.18, 0.05), 52: (0, -0.16, 0.03), 9: (0, -0.25, 0.1)},
        reach=2.0, hold=_LIDS,
    ),
}  # fmt: skip


class _Sculptor:
    """The neutral head with the two tools that make its modes."""

    def __init__(self, head: HeadMesh) -> None:
        self.head = head
        self.points = head.vertices[:LANDMARKS]
        distance = np.linalg.norm(self.points[:, None] * [-1, 1, 1] - self.points[None], axis=-1)
        self.mirror = distance.argmin(1)  # for each landmark the one on the other side
        self.x, self.y, self.z = head.vertices.T
        self.outward = np.tanh(self.x / 1.2)
        skin = head.vertices[head.skin]
        inside = head.triangles[(head.triangles < len(skin)).all(1)]
        self.skin, self.laplacian = skin, laplacian(inside, len(skin))

    def bump(self, *landmarks: int, radius: float) -> Array:
        """``[V]``: 1 at the landmarks and their mirror images, falling off as a Gaussian."""
        centres = self.points[[*landmarks, *self.mirror[list(landmarks)]]]
        squared = ((self.head.vertices[:, None] - centres) ** 2).sum(-1).min(1)
        return np.asarray(np.exp(-squared / (2 * radius**2)))

    def move(self, weight: Array, out: float = 0.0, up: float = 0.0, front: float = 0.0, left: float = 0.0) -> Array:
        """Displacements of `weight`, `out` away from the middle."""
        return weight[:, None] * np.stack([out * self.outward + left, up + 0 * self.x, front + 0 * self.x], 1)

    def pull(self, moves: Moves, *, reach: float, hold: Iterable[int] = ()) -> Array:
        """Displacements of the skin that follows its landmarks within `reach` of them, except at `hold`."""
        fixed = list(moves)
        moved = np.zeros_like(self.skin)
        moved[fixed] = list(moves.values())
        distance = np.linalg.norm(self.skin[:, None] - self.skin[None, fixed], axis=-1).min(1)
        free = distance < reach
        free[[*fixed, *hold]] = False
        result = np.zeros_like(self.head.vertices)
        result[self.head.skin] = extend(self.laplacian, moved, free)
        return result

    def other(self, moves: Moves) -> Moves:
        """The mirror image."""
        return {int(self.mirror[index]): (-x, y, z) for index, (x, y, z) in moves.items()}


def identity_modes(head: HeadMesh) -> dict[str, Array]:
    """Each mode's displacement at one standard deviation, with no motion or scaling of the landmarks as a whole."""
    s = _Sculptor(head)
    x, y, z = s.x, s.y, s.z
    bump, move, ramp = s.bump, s.move, smoothstep
    side = np.where(x < 0, -1, 1)
    eye = np.array([s.points[list(_EYES[k])].mean(0) for k in (-1, 1)])[(side + 1) // 2]  # [V, 3]
    of_eye = head.vertices - eye
    eyes = np.exp(-(of_eye**2).sum(1) / (2 * 1.3**2))
    lids = np.exp(-((of_eye / [1.2, 0.6, 1.3]) ** 2).sum(1) / 2) * np.tanh(of_eye[:, 1] / 0.3)
    front = ramp(z, -4, 3)
    neck = ramp(-y, 4.5, 9) * ramp(-z, -2.5, 2)
    nose_tip, mouth = bump(1, 4, radius=0.9), bump(0, 37, 39, 61, 17, 84, 181, 13, 14, radius=1.0)
    modes = {
        "head_width": move(np.abs(x) / 7.7, out=0.35),
        "head_depth": move(z, front=0.05),
        "cranium_height": move(ramp(y, 4, 13), up=0.9),
        "cranium_back": move(ramp(-z, -1, 12), front=-1.0),
        "temple_width": move(bump(21, 162, radius=2.4), out=0.3),
        "forehead_width": move(bump(103, 54, radius=2.0), out=0.3),
        "forehead_slope": move(ramp(y, 5, 13) * front, front=-0.9),
        "forehead_bulge": move(bump(151, 108, radius=2.0), front=0.3),
        "midface_length": move(ramp(-y, -2.5, 2.0), up=-0.3),
        "lower_face_length": move(ramp(-y, 2.5, 9.0), up=-0.4),
        "brow_ridge": move(bump(105, 66, 107, 9, radius=0.9), front=0.25),
        "brow_height": move(bump(70, 63, 105, 66, 107, radius=0.9), up=0.25),
        "brow_height_side": move(bump(70, 63, 105, 66, 107, radius=0.9) * s.outward, up=0.2),
        "brow_tilt": move(bump(70, 63, radius=0.9) - bump(107, 66, radius=0.9), up=0.2),
        "brow_spacing": move(bump(107, 55, radius=0.9), out=0.2),
        "eye_spacing": move(eyes, out=0.2),
        "eye_width": move(eyes * of_eye[:, 0] * side, out=0.12),
        "eye_opening": move(lids, up=0.12),
        "eye_tilt": move(eyes * of_eye[:, 0] * side, up=0.12),
        "eye_depth": move(eyes, front=-0.2),
        "eye_height": move(eyes, up=0.2),
        "eye_opening_side": move(lids * side, up=0.12),
        "nose_length": move(bump(1, 2, 98, radius=1.3), up=-0.3),
        "nose_width": move(bump(129, 98, radius=0.8), out=0.22),
        "nose_bridge_height": move(bump(6, 197, radius=0.8), front=0.25),
        "nose_bridge_width": move(bump(188, 174, 198, radius=0.7), out=0.15),
        "nose_tip_forward": move(nose_tip, front=0.3),
        "nose_tip_width": move(bump(45, 220, radius=0.5), out=0.15),
        "nose_tip_up": move(nose_tip, up=0.22),
        "nose_hump": move(bump(195, radius=0.5), front=0.18),
        "cheekbone_width": move(bump(116, 123, 117, radius=1.5), out=0.3),
        "cheekbone_forward": move(bump(117, 118, 50, radius=1.4), front=0.25),
        "cheek_fullness": move(bump(187, 205, 207, radius=1.4), out=0.25, front=0.15),
        "jaw_width": move(bump(58, 172, 132, radius=2.0), out=0.4),
        "jaw_angle_height": move(bump(58, 172, radius=1.8), up=0.4),
        "chin_height": move(bump(152, 175, 148, radius=1.5), up=-0.35),
        "chin_forward": move(bump(152, 199, 175, radius=1.6), front=0.4),
        "chin_width": move(bump(176, 140, 149, radius=1.2), out=0.3),
        "mouth_width": move(bump(61, radius=0.9), out=0.25),
        "mouth_height": move(mouth, up=-0.2),
        "lips_forward": move(mouth, front=0.22),
        "upper_lip": move(bump(0, 37, 39, 40, radius=0.45), up=0.14, front=0.05),
        "lower_lip": move(bump(17, 84, 181, 91, radius=0.45), up=-0.16, front=0.05),
        "neck_width": move(neck * np.hypot(x, z + 5.5) / 5.5, out=0.4) * [1, 1, 0]
        + move(neck * (z + 5.5) / 5.5, front=0.4),
        "nose_side": move(nose_tip + bump(2, radius=0.8), left=0.15),
        "chin_side": move(bump(152, 175, 148, 17, radius=2.0), left=0.2),
    }
    return {name: _shape_only(head, _with_eyes(head, field)) for name, field in modes.items()}


def _with_eyes(head: HeadMesh, field: Array) -> Array:
    """The eyeballs go with their lids, undeformed."""
    field = field.copy()
    for side, part in head.eyes.items():
        field[part] = field[list(_EYES[side])].mean(0)
    return field


def _shape_only(head: HeadMesh, field: Array) -> Array:
    """`field` less the similarity (to first order) that explains most of it at the landmarks."""
    tangents = np.concatenate(
        [np.broadcast_to(np.eye(3)[:, None], (3, len(field), 3)), np.cross(np.eye(3)[:, None], head.vertices[None]),
         head.vertices[None]]
    )  # fmt: skip
    seen = tangents[:, :LANDMARKS].reshape(7, -1)
    share = np.linalg.lstsq(seen.T, field[:LANDMARKS].reshape(-1), rcond=None)[0]
    return np.asarray(field - np.tensordot(share, tangents, 1))


def expression_modes(head: HeadMesh) -> dict[str, Array]:
    """Each expression's displacement at full strength."""
    s = _Sculptor(head)
    modes = _jaw_modes(s)
    closed = s.points[list(_LID_LOWER)] + [0, 0.08, 0.02] - s.points[list(_LID_UPPER)]
    blink = dict(zip(_LID_UPPER, map(tuple, closed), strict=True)) | dict.fromkeys(_LID_LOWER[1:-1], (0, 0.07, 0.01))
    pulls = {"blink": _Pull(blink, 0.75, (33, 133, 223, 222, 224, 52, 53, 65), each_side=True)} | _PULLS
    for name, pull in pulls.items():
        hold = [*pull.hold, *s.mirror[list(pull.hold)]]
        if pull.each_side:
            modes[f"{name}_left"] = s.pull(s.other(pull.moves), reach=pull.reach, hold=hold)
            modes[f"{name}_right"] = s.pull(pull.moves, reach=pull.reach, hold=hold)
        else:
            modes[name] = s.pull({**s.other(pull.moves), **pull.moves}, reach=pull.reach, hold=hold)
    mouth = (*_CORNERS, *_MIDDLE, 40, 91)
    aside = dict.fromkeys([*mouth, *map(int, s.mirror[list(mouth)])], (0.65, 0.0, 0.0))
    return modes | {"mouth_side": s.pull(aside, reach=2.6, hold=(1, 2, 98, 327))}


def _jaw_modes(s: _Sculptor) -> dict[str, Array]:
    """The jaw turned open, to a side and forward."""
    y, z = (s.points - _JAW_AXIS)[:, 1:].T
    cos, sin = np.cos(_JAW_OPEN), np.sin(_JAW_OPEN)
    opened = np.stack([0 * y, cos * y - sin * z - y, sin * y + cos * z - z], 1)
    share = _JAW_SHARE | {int(s.mirror[index]): part for index, part in _JAW_SHARE.items()}
    still = [*_UPPER_LIP, *_NOSE, 4]

    def jaw(moved: Array, most: float = 1.0) -> Array:
        return s.pull(
            {index: tuple(min(part, most) * moved[index]) for index, part in share.items()},
            reach=5.5,
            hold=[*still, *s.mirror[still]],
        )

    return {
        "jaw_open": jaw(opened, most=2.0),
        "jaw_side": jaw(np.zeros_like(s.points) + [0.7, 0, 0]),
        "jaw_forward": jaw(np.zeros_like(s.points) + [0, -0.05, 0.6]),
    }
