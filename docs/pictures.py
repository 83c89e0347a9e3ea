"""Draws the pictures of README.md: `python docs/pictures.py [animate] [headgan] [speak]`, all of them by default."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from skimage.data import astronaut
from torch import Tensor

from fastface.audio import speech_level
from fastface.face import FaceParameters, MorphableModel, built_in_head, largest_face, lip_gap_in_widths, topology
from fastface.face.synthetic.picture import draw_head
from fastface.media import contact_sheet
from fastface.models.headgan import HeadGAN, HeadGANMotion
from fastface.models.headgan.edits import express, turn
from fastface.models.lifted import Lifted, Motion
from fastface.models.posegan.corpus.espeak import Speech, Voice, synthesizer
from fastface.models.posegan.default import load_default
from fastface.models.posegan.speaker import Speaker

# The portrait itself, then what the model makes of it.
MOTIONS = (
    {},
    {"yaw": -15},
    {"yaw": 15, "smile": 0.3},
    {"pitch": 9, "blink_left": 1, "blink_right": 1},
    {"roll": 12, "jaw_open": 0.3},
    {"yaw": 8, "jaw_open": 0.8, "brow_raise": 0.6},
)
# Turns and expressions of the 3D face, above the frames that come of them.
FACES = (
    ({}, {}),
    ({"yaw": -18}, {}),
    ({"yaw": 18}, {"smile_left": 0.5, "smile_right": 0.5}),
    ({"pitch": 10}, {"brow_up_left": 0.8, "brow_up_right": 0.8}),
    ({"roll": -12}, {"jaw_open": 0.5}),
    ({"yaw": 10}, {"pucker": 0.8, "blink_left": 0.9, "blink_right": 0.9}),
)
SIDE = 288
# Lips that close, part, spread and round, and teeth on the lip.
SENTENCE, VOICE = "Mama, see four blue bees.", Voice("en-us", rate=150)
MOUTH = 180  # pixels of its picture
FPS = 25


def tile(frame: Tensor) -> np.ndarray:
    """``[1, 3, H, W]`` in [0, 1] to ``[SIDE, SIDE, 3]``."""
    return resized(pixels(frame), SIDE)


def pixels(frame: Tensor) -> np.ndarray:
    return (frame[0].permute(1, 2, 0) * 255).round().byte().numpy()


def resized(picture: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def save(sheet: np.ndarray, name: str) -> None:
    Image.fromarray(sheet).save(Path(__file__).with_name(name), quality=88)


def animate() -> None:
    model = Lifted()
    source = model.prepare(astronaut())
    save(np.concatenate([tile(model.render(source, Motion.of(**motion))) for motion in MOTIONS], 1), "animate.jpg")


def headgan() -> None:
    system = HeadGAN(size=512)
    portrait = system.prepare(astronaut())
    columns = []
    for angles, expression in FACES:
        moved = turn(express(portrait.parameters, system.model, expression), system.model, **angles)
        motion = HeadGANMotion.of(moved)
        columns.append(np.concatenate([tile(system.draw(portrait, motion)), tile(system.render(portrait, motion))]))
    save(np.concatenate(columns, 1), "headgan.jpg")


def speak() -> None:
    """The mouths of the 3D face at rest and of a portrait in the middle of every phoneme of a sentence."""
    with synthesizer() as say:
        speech = say(SENTENCE, VOICE)
    system, head = HeadGAN(size=512), built_in_head()
    source = system.prepare(astronaut())
    faces = system.landmarks(pixels(source.portrait))
    points = faces[largest_face(faces)].points
    portrait = spoken(speech, source.parameters, head, lip_gap_in_widths(points))
    camera = source.parameters.camera.vector
    at_rest = FaceParameters.of_vector(
        torch.cat([torch.zeros(1, head.expressions), camera], 1), torch.zeros(1, head.identities)
    )
    neutral = spoken(speech, at_rest, head, None)
    side = round(0.8 * np.linalg.norm(points[topology.EAR_LEFT] - points[topology.EAR_RIGHT]))
    left, top = (points[topology.LIPS_INNER_UPPER[5], :2] - side / 2).round().astype(int)
    seen = slice(top, top + side), slice(left, left + side)
    tiles = []
    for phoneme in speech.phonemes:
        if not phoneme.symbol:
            continue
        frame = min(round((phoneme.start + phoneme.end) / 2 * FPS), len(portrait) - 1)
        shape = head.shape(expression=neutral[frame : frame + 1, :-7])
        drawn = draw_head(head, shape, height=11.0, centre=(0.0, -4.0, 0.0), side=MOUTH)
        rendered = system.render(source, HeadGANMotion(portrait[None, max(0, frame - 2) : frame + 1]))
        tiles.append(
            np.concatenate([pixels(drawn[None]), resized(pixels(rendered)[seen], MOUTH), label(phoneme.symbol)])
        )
    save(contact_sheet(tiles, columns=7, side=len(tiles[0])), "speak.jpg")


def spoken(speech: Speech, own: FaceParameters, model: MorphableModel, opening: float | None) -> Tensor:
    """The parameters ``[T, E+7]`` of a face that says it."""
    speaker = Speaker(*load_default(), own, model=model, opening=opening, fps=FPS, level=speech_level(speech.samples))
    return torch.cat([speaker.push(speech.samples).vectors, speaker.finish().vectors])


def label(text: str) -> np.ndarray:
    """``[., MOUTH, 3]``, in a font that has the letters of the IPA."""
    from matplotlib.font_manager import findfont

    strip = Image.new("RGB", (MOUTH, 32), "white")
    font = ImageFont.truetype(findfont("DejaVu Sans"), 22)
    ImageDraw.Draw(strip).text((MOUTH / 2, 15), text, fill="black", font=font, anchor="mm")
    return np.asarray(strip)


PICTURES = {draw.__name__: draw for draw in (animate, headgan, speak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)} (default: all)")
    names = parser.parse_args().names or PICTURES
    for name in names:
        if name not in PICTURES:
            parser.error(f"NAME must be one of {', '.join(PICTURES)}, got {name}")
        PICTURES[name]()


if __name__ == "__main__":
    main()
