"""Cut the head out of a portrait: who is where, a soft matte with clean colours, and the picture behind."""

from __future__ import annotations

from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from fastface.face.landmarks import mediapipe_solutions, silence

Array = NDArray[np.float32]
Image = NDArray[np.uint8]


class PersonMask(Protocol):
    """Anything that says where a person is: an ``[H, W, 3]`` uint8 RGB image to ``[H, W]`` float32 in [0, 1]."""

    def __call__(self, image: Image) -> Array: ...


class MediaPipePerson:
    """MediaPipe's selfie segmentation (256x256 inside). Raises ImportError, naming the extra, without MediaPipe."""

    def __init__(self) -> None:
        self._solutions = mediapipe_solutions()
        self._network: Any = None

    def __call__(self, image: Image) -> Array:
        image = np.ascontiguousarray(image)
        if self._network is None:
            with silence:
                self._network = self._solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)
                mask = self._network.process(image).segmentation_mask
        else:
            mask = self._network.process(image).segmentation_mask
        return np.asarray(mask, dtype=np.float32).copy()


def smoothstep(x: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, a cubic between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def dilate(mask: NDArray[Any], radius: float) -> NDArray[Any]:
    """Grow by `radius` pixels (shrink when negative)."""
    size = 2 * max(1, round(abs(radius))) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return np.asarray((cv2.dilate if radius > 0 else cv2.erode)(mask, kernel))


def push_pull(image: Array, weight: Array) -> Array:
    """Fill where `weight` is 0 from where it is 1, by normalised averages at coarser and coarser scales.

    Args:
        image: ``[H, W, C]`` float32.
        weight: ``[H, W]`` in [0, 1].
    """
    levels = [(image * weight[..., None], weight)]
    while min(levels[-1][1].shape) > 2:
        colour, mass = levels[-1]
        size = ((mass.shape[1] + 1) // 2, (mass.shape[0] + 1) // 2)
        colour = cv2.resize(cv2.GaussianBlur(colour, (5, 5), 0), size, interpolation=cv2.INTER_AREA)
        mass = cv2.resize(cv2.GaussianBlur(mass, (5, 5), 0), size, interpolation=cv2.INTER_AREA)
        # Keep the mass below one: a region once known must not dilute what lies far from it.
        gain = np.minimum(1.0, 4.0 * mass) / np.maximum(mass, 1e-8)
        levels.append((colour * gain[..., None], mass * gain))
    colour, mass = levels[-1]
    filled = colour / np.maximum(mass, 1e-8)[..., None]
    for colour, mass in reversed(levels[:-1]):
        coarse = cv2.resize(filled, (mass.shape[1], mass.shape[0]), interpolation=cv2.INTER_LINEAR)
        mass = np.clip(mass, 0, 1)[..., None]
        filled = colour + (1 - mass) * coarse
    return np.asarray(filled, dtype=np.float32)


def guided(mask: Array, guide: Array, radius: int, eps: float) -> Array:
    """The guided filter with a grey guide in [0, 1]: smooth `mask`, keep the guide's edges."""
    window = (2 * radius + 1, 2 * radius + 1)

    def mean(x: Array) -> Array:
        return np.asarray(cv2.blur(x, window), dtype=np.float32)

    mean_guide, mean_mask = mean(guide), mean(mask)
    slope = (mean(guide * mask) - mean_guide * mean_mask) / (mean(guide * guide) - mean_guide**2 + eps)
    offset = mean_mask - slope * mean_guide
    return np.clip(mean(slope) * guide + mean(offset), 0, 1)


def grab_cut(image: Image, labels: NDArray[np.uint8], iterations: int) -> NDArray[np.bool_]:
    """GrabCut from labels (0 background, 1 foreground, 2 and 3 probably so). Deterministic."""
    cv2.setRNGSeed(0)
    labels = labels.copy()
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image, labels, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def refine(image: Array, mask: Array, band: float) -> Array:
    """A soft matte from a coarse one: within the band, alpha by projection onto the line from background to
    foreground colour.

    ``alpha = (I - B)·(F - B) / |F - B|²`` where F and B are the colours spread from the sure sides; where they are
    too alike to tell, or where the pixel lies off that line, the coarse mask stays.

    Args:
        image: ``[H, W, 3]`` in [0, 1].
        mask: ``[H, W]`` in [0, 1].
        band: half the width of the unknown band, pixels.
    """
    inside, outside = (mask > 0.9).astype(np.float32), (mask < 0.1).astype(np.float32)
    inside, outside = dilate(inside, -band), dilate(outside, -band)
    unknown = (inside + outside) < 0.5
    front, behind = push_pull(image, inside), push_pull(image, outside)
    line = front - behind
    length = (line**2).sum(-1)
    raw = ((image - behind) * line).sum(-1) / np.maximum(length, 1e-4)
    alpha = np.clip(raw, 0, 1)
    off = ((image - behind - raw[..., None] * line) ** 2).sum(-1)
    trust = length / (length + 0.02) * np.exp(-off / (0.25 * length + 1e-3))
    soft = cv2.GaussianBlur(mask, (0, 0), band * 0.35)
    mixed = trust * alpha + (1 - trust) * soft
    # The coarse mask bounds the answer, so that a background of the hair's colour is not drawn in.
    mixed = np.clip(mixed, smoothstep(soft, 0.5, 1.0), smoothstep(soft, 0.0, 0.5))
    mixed = smoothstep(mixed, 0.06, 0.94)
    return np.where(unknown, mixed, inside).astype(np.float32)


def mirror_fill(image: Array, hole: NDArray[np.bool_], depth: float) -> Array:
    """Fill a hole: near its border by the picture mirrored at the border, which keeps its grain, deeper by `push_pull`.

    Args:
        image: ``[H, W, 3]`` in [0, 1].
        hole: ``[H, W]``.
        depth: pixels over which the mirror image gives way.
    """
    known = (~hole).astype(np.float32)
    smooth = push_pull(image, known)
    distance, labels = cv2.distanceTransformWithLabels(
        hole.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    seeds = np.zeros((int(labels.max()) + 1, 2), dtype=np.float32)
    ys, xs = np.nonzero(~hole)
    seeds[labels[ys, xs]] = np.stack([xs, ys], 1)
    nearest = cv2.GaussianBlur(seeds[labels], (0, 0), 1.5)  # the border zigzags by pixels; its mirror image should not
    here = np.stack(np.meshgrid(np.arange(hole.shape[1]), np.arange(hole.shape[0])), -1).astype(np.float32)
    there = 2 * nearest - here
    mirrored = cv2.remap(image, there, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    valid = cv2.remap(known, there, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    # Through something thin, such as a collar, the mirror shows what is beyond: take only what looks like the border
    # itself.
    border = cv2.remap(smooth, nearest, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    alike = np.exp(-((cv2.GaussianBlur(mirrored, (0, 0), 2.0) - border) ** 2).sum(-1) / 0.02)
    weight = (valid > 0.99) * np.clip(1 - distance / depth, 0, 1) * alike
    weight = cv2.GaussianBlur(weight.astype(np.float32), (0, 0), 1.5)[..., None]
    filled = weight * mirrored + (1 - weight) * smooth
    return np.where(hole[..., None], filled, image).astype(np.float32)


def fill_behind(image: Array, hole: NDArray[np.bool_], person: Array, depth: float) -> Array:
    """The picture behind a head: below the line between the shoulders' edges the body goes on, above it the background.

    Filled together the two would run into each other where a turning head uncovers a collar.

    Args:
        image: ``[H, W, 3]`` in [0, 1].
        hole: ``[H, W]``, the head.
        person: ``[H, W]`` in [0, 1], the person's mask.
        depth: see `mirror_fill`.
    """
    body = (person > 0.5) & ~hole
    line = _shoulder_line(hole, body)
    if line is None:
        return mirror_fill(image, hole, depth)
    below = np.arange(hole.shape[0])[:, None] > line[None]
    behind = mirror_fill(image, hole | body, depth)
    beneath = mirror_fill(image, ~body, depth)
    share = cv2.GaussianBlur(below.astype(np.float32), (0, 0), 0.8)[..., None]
    return np.where(hole[..., None], behind + share * (beneath - behind), image).astype(np.float32)


def _shoulder_line(hole: NDArray[np.bool_], body: NDArray[np.bool_]) -> Array | None:
    """``[W]``, the height in every column at which the body begins behind the head; None where it touches the head
    nowhere.
    """
    rows = np.nonzero(hole.any(1))[0]
    if len(rows) == 0:
        return None
    width = hole.shape[1]
    first, last = hole.argmax(1), width - 1 - hole[:, ::-1].argmax(1)
    ends = []
    for edge, step in ((first, -2), (last, 2)):
        beside = np.clip(edge[rows] + step, 0, width - 1)
        touching = body[rows, beside]
        # A few rows in a row: a stray pixel of the mask is no shoulder.
        firm = np.convolve(touching, np.ones(6), "valid") == 6
        if firm.any():
            row = rows[int(firm.argmax())]
            ends.append((float(edge[row]), float(row)))
    if not ends or body.sum() < 50:
        return None
    ends.sort()
    return np.interp(np.arange(width), [x for x, _ in ends], [y for _, y in ends]).astype(np.float32)
