"""The photo that moves: what is asked for is what a detector finds again, and what should stay still does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastface.models.lifted import (
    PRESETS,
    DrivingMotion,
    Lifted,
    LiftedConfig,
    Motion,
    rotation_angles,
    rotation_matrix,
)
from tests.real import media_file

pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def detector():
    pytest.importorskip("mediapipe", reason="needs MediaPipe: pip install 'fastface-kernels[face]'")
    from fastface.face import MediaPipeLandmarks

    return MediaPipeLandmarks()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    data = pytest.importorskip("skimage.data", reason="needs scikit-image: pip install 'fastface-kernels[demo]'")
    return data.astronaut()


@pytest.fixture(scope="module")
def model(detector) -> Lifted:
    return Lifted(landmarks=detector)


@pytest.fixture(scope="module")
def source(model, photo):
    return model.prepare(photo)


@pytest.fixture(scope="module")
def neutral(detector, source) -> np.ndarray:
    return detector(source.portrait.numpy())[0].points


def found(model, source, detector, **controls) -> np.ndarray:
    faces = detector(model.render_uint8(source, Motion.of(**controls))[0].numpy())
    assert len(faces) == 1, f"the face is lost at {controls}"
    return faces[0].points


def correlation(a, b) -> float:
    return float(np.corrcoef(a, b)[0, 1])


# Acceptance


def test_the_head_turns_as_far_as_asked(model, source, detector, neutral) -> None:
    from fastface.models.lifted.driving import head_rotation

    asked = [(y, 0, 0) for y in (-15, -8, 8, 15)] + [(0, p, 0) for p in (-10, 10)] + [(0, 0, r) for r in (-15, 15)]
    asked += [(10, 5, -8), (-10, -6, 8)]
    errors = {"yaw": [], "pitch": [], "roll": []}
    everything = []
    for yaw, pitch, roll in asked:
        error = np.abs(
            head_rotation(neutral, found(model, source, detector, yaw=yaw, pitch=pitch, roll=roll)) - (yaw, pitch, roll)
        )
        everything.append(error)
        for name, value, each in zip(errors, (yaw, pitch, roll), error, strict=True):
            if value:
                errors[name].append(each)
    assert np.mean(everything) <= 3
    for name, values in errors.items():
        assert np.mean(values) <= 3, (name, values)


def test_mouth_and_eyes_follow_their_controls(model, source, detector) -> None:
    from fastface.face import lip_gap_in_widths
    from fastface.models.lifted.driving import eye_opening

    asked = np.linspace(0, 1, 7)
    mouth = [lip_gap_in_widths(found(model, source, detector, jaw_open=float(value))) for value in asked]
    eyes = [eye_opening(found(model, source, detector, blink=float(value))) for value in asked]
    assert correlation(asked, mouth) >= 0.9
    assert mouth[-1] - mouth[0] > 0.08
    assert correlation(asked, [-np.mean(eye) for eye in eyes]) >= 0.9
    assert np.mean(eyes[-1]) < 0.6 * np.mean(eyes[0])


def test_each_eye_closes_alone(model, source, detector) -> None:
    from fastface.models.lifted.driving import eye_opening

    right, left = eye_opening(found(model, source, detector, blink_left=1))
    assert left < 0.7 * right
    right, left = eye_opening(found(model, source, detector, blink_right=1))
    assert right < 0.7 * left


def test_smile_and_pucker_change_the_width_of_the_mouth(model, source, detector, neutral) -> None:
    def width(points: np.ndarray) -> float:
        return float(np.linalg.norm(points[61] - points[291]))

    assert width(found(model, source, detector, smile=1)) > 1.05 * width(neutral)
    assert width(found(model, source, detector, pucker=1)) < 0.93 * width(neutral)


def test_no_motion_gives_the_portrait(model, source) -> None:
    frame = model.render_uint8(source, Motion.of())[0].numpy().astype(np.float64)
    portrait = source.portrait.numpy().astype(np.float64)
    head = source.layer.numpy()[..., 3] > 0
    mean_square = ((frame - portrait)[head] ** 2).mean()
    assert mean_square == 0 or 10 * np.log10(255**2 / mean_square) >= 35
    assert np.array_equal(frame[~head], portrait[~head])


def test_a_small_motion_is_a_small_change(model, source) -> None:
    """No jump between the portrait and the first frame that moves."""
    still = model.render(source, Motion.of())
    for controls in (dict(yaw=0.05, roll=0.05), dict(jaw_open=0.001), dict(jaw_open=0.01), dict(smile=0.02),
                     dict(pucker=0.02)):  # fmt: skip
        moved = model.render(source, Motion.of(**controls))
        assert float((still - moved).abs().mean()) < 0.002, controls
        # The mean does not see a hairline that pops.
        assert int(((still - moved).abs().amax(1) > 40 / 255).sum()) == 0, controls


@pytest.mark.parametrize("controls", [dict(yaw=15), dict(yaw=-15), dict(pitch=-10), dict(roll=15), dict(jaw_open=1)])
def test_what_is_not_the_head_stays_exactly(model, source, controls) -> None:
    frame = model.render_uint8(source, Motion.of(**controls))[0].numpy()
    portrait = source.portrait.numpy()
    still = np.ones(frame.shape[:2], dtype=bool)
    still[:, 60:-60] = False  # the rims left and right: background, collar and shoulder
    still[-30:] = True
    assert np.array_equal(frame[still], portrait[still])


@pytest.mark.parametrize("roll", [-15, 15])
def test_the_neck_bends_and_the_collar_stays(model, source, roll) -> None:
    """The lower end of the neck is still to a few pixels while the chin above it moves with the head."""
    flow = model._pose(source, Motion.of(roll=roll))[0]
    moved = np.linalg.norm(flow - np.stack(np.meshgrid(np.arange(512), np.arange(512)), -1), axis=-1)
    chin, width = (source.landmarks[152, :2].numpy() + 1) * 511 / 2, source.face_width * 511 / 2
    columns = np.arange(int(chin[0] - 0.3 * width), int(chin[0] + 0.3 * width))
    head = source.layer.numpy()[..., 3] > 127
    ends = 511 - head[::-1].argmax(0)[columns]
    assert moved[ends, columns].max() < 0.03 * width
    assert moved[int(chin[1]) - 5, int(chin[0])] > 0.05 * width


def test_a_bend_is_what_its_equation_says() -> None:
    from fastface.models.lifted.model import _bend

    rng = np.random.default_rng(0)
    size = 37
    here = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).astype(np.float32)
    follow = np.clip((30 - here[..., 1]) / 20, 0, 1)  # 1 up to row 10, 0 from row 30
    shift = np.broadcast_to(rng.uniform(-3, 3, 2).astype(np.float32), (size, size, 2))
    bent = _bend(shift, follow)
    expected = np.clip((30 - here[..., 1] - bent[..., 1]) / 20, 0, 1)[..., None] * shift
    np.testing.assert_allclose(bent, expected, atol=0.05)
    assert np.array_equal(bent[:7], shift[:7]) and not bent[34:].any()
    assert np.array_equal(_bend(shift, np.ones_like(follow)), shift)


def test_a_closed_lid_looks_like_skin(model, source) -> None:
    """It has the grain of the cheek and no border above."""
    import cv2

    from fastface.face import topology as topo

    frame = model.render_uint8(source, Motion.of(blink=1))[0].numpy().astype(np.float32)
    fine = frame - cv2.GaussianBlur(frame, (0, 0), 2.0)
    points = (source.landmarks.numpy()[:, :2] + 1) * 511 / 2
    grain, steps = [], []
    for upper, lower in (
        (topo.EYE_RIGHT_UPPER, topo.EYE_RIGHT_LOWER),
        (topo.EYE_LEFT_UPPER, topo.EYE_LEFT_LOWER),
    ):
        length = float(np.linalg.norm(points[upper[0]] - points[upper[-1]]))
        middle = points[list(upper[3:6])]
        top, bottom = float(middle[:, 1].mean()), float(points[list(lower[3:6]), 1].mean())
        columns = slice(int(middle[:, 0].min()), int(middle[:, 0].max()))
        lid = slice(int(top), int(top + 0.6 * (bottom - top)))
        cheek = slice(int(bottom + 0.3 * length), int(bottom + 0.5 * length))
        grain.append(fine[lid, columns].std() / fine[cheek, columns].std())
        rows = frame[int(top - 0.2 * length) : lid.stop, columns].mean((1, 2))
        steps.append(np.abs(np.diff(rows)).max())
    assert np.mean(grain) > 0.5
    assert np.max(steps) < 6


def between_lips(points: np.ndarray, size: int, grow: int = 0) -> np.ndarray:
    """``[size, size]``: what the inner edges of the lips enclose, and so many pixels around it."""
    import cv2

    from fastface.face import topology as topo

    outline = points[[*topo.LIPS_INNER_UPPER, *topo.LIPS_INNER_LOWER[::-1]], :2]
    mask = cv2.fillPoly(np.zeros((size, size), np.uint8), [outline.round().astype(np.int32)], 1)
    return cv2.dilate(mask, np.ones((2 * grow + 1, 2 * grow + 1), np.uint8)) > 0


def test_closed_lips_cover_the_teeth(model, source, detector, neutral) -> None:
    white = source.portrait.numpy().min(-1)  # of the channels: high on teeth, low on lips
    teeth = np.median(white[between_lips(neutral, 512)])
    for closing in (-0.36, -0.42, -0.5):
        frame = model.render_uint8(source, Motion.of(jaw_open=closing))[0].numpy()
        seam = frame.min(-1)[between_lips(detector(frame)[0].points, 512, grow=2)]
        assert np.percentile(seam, 97) < 1.15 * teeth, closing  # lips shine; the rows of teeth would come to 1.3


def test_a_painted_mouth_fades_into_its_corners(model, source, detector) -> None:
    closed = model.prepare(model.render_uint8(source, Motion.of(jaw_open=-0.42))[0].numpy())
    frame = model.render_uint8(closed, Motion.of(jaw_open=0.5))[0].numpy()
    points = detector(frame)[0].points
    right, left = points[78, 0], points[308, 0]
    share = np.abs(2 * (np.arange(512) - right) / (left - right) - 1)
    inside, bright = between_lips(points, 512), frame.max(-1)
    assert np.median(bright[inside & (share < 0.9)[None]]) < 90
    assert np.median(bright[inside & (share > 0.9)[None]]) > 90


def test_the_far_cheek_goes_behind_the_nose(model, source, detector) -> None:
    """A head that turns is not a picture that shears: the half that turns away gets narrower."""

    def halves(points: np.ndarray) -> float:
        return float((points[454, 0] - points[1, 0]) / (points[1, 0] - points[234, 0]))

    ratios = [halves(found(model, source, detector, yaw=yaw)) for yaw in (-15, 0, 15)]
    assert ratios[0] > 1.3 * ratios[1] and ratios[1] > 1.3 * ratios[2]


# Behaviour


def test_frames_are_what_the_interface_says(model, source) -> None:
    frame = model.render(source, Motion.of(yaw=5))
    assert frame.shape == (1, 3, 512, 512) and frame.dtype == torch.float32
    assert float(frame.min()) >= 0 and float(frame.max()) <= 1
    assert source.photo.shape == (512, 512, 3) and source.layer.shape == (512, 512, 4)


def test_the_same_motion_gives_the_same_frame(model, photo, source) -> None:
    motion = Motion.of(yaw=9, pitch=3, jaw_open=0.4, blink=0.5)
    first = model.render_uint8(source, motion)
    assert torch.equal(first, model.render_uint8(source, motion))
    assert torch.equal(first, model.render_uint8(model.prepare(photo), motion))


def test_a_batch_is_its_frames(model, source) -> None:
    motions = [Motion.of(yaw=8), Motion.of(jaw_open=0.7), Motion.of(), Motion.of(roll=-4, blink=1)]
    together = model.render_uint8(source, Motion.cat(motions))
    assert together.shape == (4, 512, 512, 3)
    for frame, motion in zip(together, motions, strict=True):
        assert torch.equal(frame, model.render_uint8(source, motion)[0])


def test_the_backends_agree(detector, source) -> None:
    from fastface import ops

    motion = Motion.of(yaw=9, pitch=3, jaw_open=0.4)
    reference = Lifted(landmarks=detector, backend="reference").render_uint8(source, motion)
    try:
        native = Lifted(landmarks=detector, backend="cpu").render_uint8(source, motion)
    except ops.BackendUnavailable as error:
        pytest.skip(f"needs the cpu backend: {error}")
    different = (reference.int() - native.int()).abs()
    assert float((different > 2).float().mean()) < 1e-3


@pytest.mark.parametrize("size", [128, 300])
def test_other_sizes(detector, photo, size) -> None:
    model = Lifted(LiftedConfig(size=size), landmarks=detector)
    source = model.prepare(photo)
    frame = model.render_uint8(source, Motion.of(yaw=-10, jaw_open=0.5, blink=0.3))
    assert frame.shape == (1, size, size, 3)
    assert torch.equal(model.render_uint8(source, Motion.of())[0], source.portrait)


def test_a_head_cut_off_by_the_photo(model, photo) -> None:
    for cut in (photo[:, 215:], photo[:160], photo[60:185, 170:280]):
        source = model.prepare(np.ascontiguousarray(cut))
        assert torch.equal(model.render_uint8(source, Motion.of())[0], source.portrait)
        moved = model.render_uint8(source, Motion.of(yaw=15, roll=10, jaw_open=0.6, blink=0.6, gaze_x=1))
        assert not torch.equal(moved[0], source.portrait)


def test_float_and_uint8_portraits_are_the_same(model, photo, source) -> None:
    tensor = torch.from_numpy(photo).permute(2, 0, 1).float() / 255
    assert torch.equal(model.prepare(tensor).layer, source.layer)


def test_precomputed_points_replace_the_detector(detector, photo, source) -> None:
    from fastface.face import PrecomputedLandmarks

    points = detector(photo)[0].points
    for given in (points, points[:468]):  # with and without irises
        model = Lifted(landmarks=PrecomputedLandmarks(given))
        prepared = model.prepare(photo)
        assert model.render(prepared, Motion.of(yaw=5, blink=1, gaze_x=1)).shape == (1, 3, 512, 512)


def test_a_person_mask_of_ones_own(detector, photo) -> None:
    """Any mask will do, even one that knows nothing; the model stays whole."""
    for level in (0.0, 1.0):
        model = Lifted(landmarks=detector, person=lambda image, v=level: np.full(image.shape[:2], v, dtype=np.float32))
        source = model.prepare(photo)
        assert torch.equal(model.render_uint8(source, Motion.of())[0], source.portrait)
        model.render(source, Motion.of(yaw=10))


def test_without_a_mask_network_colours_decide(detector, photo, source, monkeypatch) -> None:
    from fastface.models.lifted import model as module

    def missing() -> None:
        raise ImportError("no MediaPipe")

    monkeypatch.setattr(module, "MediaPipePerson", missing)
    alpha = Lifted(landmarks=detector).prepare(photo).layer[..., 3] > 127
    expected = source.layer[..., 3] > 127
    overlap = float((alpha & expected).sum()) / float((alpha | expected).sum())
    assert overlap > 0.85


def test_extreme_motions_stay_finite(model, source) -> None:
    for motion in (
        Motion.of(yaw=80, pitch=-60, roll=170),
        Motion.of(scale=3.0, translation=(2.0, -2.0, 1.0)),
        Motion.of(scale=0.1),
        Motion.of(jaw_open=5, smile=-5, pucker=5, brow_raise=5, blink=5, gaze_x=9, gaze_y=-9),
    ):
        assert model.render_uint8(source, motion).shape == (1, 512, 512, 3)


def test_presets_start_near_the_portrait_and_move() -> None:
    for name, preset in PRESETS.items():
        start = preset(0.0)
        assert float(start.rotation.abs().max()) < 3.5, name
        assert float(start.expression[:, 0].abs().max()) < 0.05, name
        motions = [preset(0.04 * index) for index in range(100)]
        spread = torch.cat([m.rotation for m in motions]).std(0).sum()
        spread += torch.cat([m.expression for m in motions]).std(0).sum()
        assert float(spread) > 0.3, name


def test_rotation_angles_invert_rotation_matrix() -> None:
    degrees = torch.tensor([[15.0, -10.0, 20.0], [-40.0, 30.0, -75.0], [0.0, 0.0, 0.0]])
    matrix = rotation_matrix(degrees)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotation_angles(matrix), degrees, atol=1e-3, rtol=0)
    nose = torch.tensor([0.0, 0.0, -1.0])
    assert (rotation_matrix(torch.tensor([[10.0, 0, 0]])) @ nose)[0, 0] > 0  # to the image's right
    assert (rotation_matrix(torch.tensor([[0, 10.0, 0]])) @ nose)[0, 1] < 0  # up


# A driving face


def test_a_driving_face_is_followed(model, source, detector, neutral) -> None:
    """Frames of the model itself drive it: what they show comes out as a motion again."""
    driver = DrivingMotion(detector, smoothing=0)
    first = driver(source.portrait.numpy(), 0.0)
    assert float(first.rotation.abs().max()) < 0.1 and float(first.offsets.abs().max()) < 1e-3
    turned = driver(model.render_uint8(source, Motion.of(yaw=12, roll=-6))[0].numpy(), 0.04)
    assert abs(float(turned.rotation[0, 0]) - 12) < 3.5 and abs(float(turned.rotation[0, 2]) + 6) < 2
    opened = driver(model.render_uint8(source, Motion.of(jaw_open=0.8))[0].numpy(), 0.08)
    assert float(opened.offsets[0, 14, 1]) > 0.05  # the lower lip goes down
    again = found_offsets(model, source, detector, opened)
    assert again > 0.04
    closed = driver(model.render_uint8(source, Motion.of(blink=1))[0].numpy(), 0.12)
    assert float(closed.expression[0, 4:6].min()) > 0.4


def found_offsets(model, source, detector, motion) -> float:
    from fastface.face import lip_gap_in_widths

    opened = detector(model.render_uint8(source, motion)[0].numpy())[0].points
    return lip_gap_in_widths(opened) - lip_gap_in_widths(detector(source.portrait.numpy())[0].points)


def test_a_frame_without_a_face_holds_the_last_motion(model, source, detector) -> None:
    driver = DrivingMotion(detector)
    driver(source.portrait.numpy(), 0.0)
    turned = driver(model.render_uint8(source, Motion.of(yaw=12))[0].numpy(), 0.04)
    held = driver(np.zeros((200, 300, 3), dtype=np.uint8), 0.08)
    assert driver.missed == 1 and driver.frames == 3
    assert torch.equal(held.rotation, turned.rotation)


def test_another_size_and_aspect_of_the_driving_video_changes_nothing(model, source, detector) -> None:
    import cv2

    frames = [source.portrait.numpy(), model.render_uint8(source, Motion.of(yaw=12, roll=5))[0].numpy()]
    rotations = []
    for transform in (
        lambda f: f,
        lambda f: cv2.resize(f, (900, 900), interpolation=cv2.INTER_CUBIC),
        lambda f: cv2.copyMakeBorder(f, 40, 10, 200, 300, cv2.BORDER_CONSTANT, value=(90, 90, 90)),
    ):
        driver = DrivingMotion(detector, smoothing=0)
        for index, frame in enumerate(frames):
            motion = driver(np.ascontiguousarray(transform(frame)), index / 25)
        rotations.append(motion.rotation[0].numpy())
    assert np.abs(rotations[0] - rotations[1]).max() < 2.5 and np.abs(rotations[0] - rotations[2]).max() < 2.5


def test_smoothing_calms_noise_and_keeps_motion() -> None:
    from fastface.face import OneEuro

    rng = np.random.default_rng(0)
    calm = OneEuro(np.full(1, 2.0, dtype=np.float32), np.full(1, 0.15, dtype=np.float32))
    noisy = rng.normal(0, 1, 200).astype(np.float32)
    smooth = np.array([calm(noisy[i : i + 1], i / 25)[0] for i in range(200)])
    assert smooth[20:].std() < 0.7 * noisy[20:].std()
    prompt = OneEuro(np.full(1, 2.0, dtype=np.float32), np.full(1, 0.15, dtype=np.float32))
    last = 0.0
    for i in range(25):
        last = prompt(np.array([2.0 * i], dtype=np.float32), i / 25)[0]
    assert abs(last - 48) < 5


@pytest.mark.parametrize("name", ["portrait_a.jpg", "portrait_b.jpg"])
def test_real_portraits(detector, name) -> None:
    from fastface.face import lip_gap_in_widths
    from fastface.media import read_image
    from fastface.models.lifted.driving import head_rotation

    model = Lifted(landmarks=detector)
    source = model.prepare(read_image(media_file(name)))
    assert torch.equal(model.render_uint8(source, Motion.of())[0], source.portrait)
    neutral = detector(source.portrait.numpy())[0].points
    errors = [
        np.abs(head_rotation(neutral, found(model, source, detector, yaw=y, pitch=p, roll=r)) - (y, p, r))
        for y, p, r in ((15, 0, 0), (-15, 0, 0), (0, 10, 0), (0, -10, 0), (0, 0, 15), (0, 0, -15))
    ]
    assert np.mean(errors) <= 3
    asked = np.linspace(0, 1, 6)
    opened = [lip_gap_in_widths(found(model, source, detector, jaw_open=float(value))) for value in asked]
    assert correlation(asked, opened) >= 0.9


# Bad input


def test_bad_portraits(model, photo) -> None:
    for portrait, message in (
        (np.zeros((16, 16, 3), dtype=np.uint8), "at least 32x32 pixels, got 16x16"),
        (np.zeros((64, 64), dtype=np.uint8), r"portrait must be .* got \[64, 64\] uint8"),
        (np.zeros((64, 64, 4), dtype=np.uint8), r"portrait must be .* got \[64, 64, 4\]"),
        (torch.full((3, 64, 64), 7.0), "got values from 7 to 7"),
        (torch.full((3, 64, 64), float("nan")), "got values from nan to nan"),
        (np.zeros((200, 300, 3), dtype=np.uint8), "no face found in the portrait of 300x200 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            model.prepare(portrait)


def test_a_face_of_few_pixels_is_refused(model, photo, detector) -> None:
    from fastface.face import Face

    points = detector(photo)[0].points
    with pytest.raises(ValueError, match="at least 24 pixels wide, got 9"):
        model.prepare(photo, face=Face(points * 0.1))
    with pytest.raises(ValueError, match="landmarks must be at least 468"):
        model.prepare(photo, face=Face(points[:68]))


def test_bad_motions(model, source) -> None:
    good = Motion.of()
    with pytest.raises(ValueError, match=r"expression must be among .* got wink"):
        Motion.of(wink=1.0)
    with pytest.raises(ValueError, match=r"rotation must be \[B, 3\], got \[3\]"):
        Motion(torch.zeros(3), good.translation, good.scale, good.expression)
    with pytest.raises(ValueError, match=r"translation must be \[1, 3\], got \[2, 3\]"):
        Motion(good.rotation, torch.zeros(2, 3), good.scale, good.expression)
    with pytest.raises(ValueError, match="rotation must be finite"):
        Motion.of(yaw=float("nan"))
    with pytest.raises(ValueError, match="scale must be positive"):
        Motion.of(scale=0.0)
    with pytest.raises(TypeError, match="motion must be a Motion, got dict"):
        model.render(source, {"yaw": 3})
    with pytest.raises(ValueError, match="source must be prepared at size 128, got one of size 512"):
        Lifted(LiftedConfig(size=128)).render(source, good)
    with pytest.raises(ValueError, match="motions must not be empty"):
        Motion.cat([])


def test_bad_configs_and_points() -> None:
    from fastface.face import PrecomputedLandmarks

    with pytest.raises(ValueError, match="size must be from 64 to 2048, got 8"):
        LiftedConfig(size=8)
    with pytest.raises(ValueError, match="crop must be from 1.6 to 8"):
        LiftedConfig(crop=1.0)
    with pytest.raises(ValueError, match="smoothing must be at least 0, got -1"):
        DrivingMotion(PrecomputedLandmarks(), smoothing=-1)
    with pytest.raises(ValueError, match=r"points must be \[N, 3\] with N >= 468"):
        PrecomputedLandmarks(np.zeros((68, 3)))
    with pytest.raises(ValueError, match="points must be finite"):
        PrecomputedLandmarks(np.full((468, 3), np.nan))


def test_the_detector_says_how_to_get_it(monkeypatch) -> None:
    import sys

    from fastface.face import MediaPipeLandmarks

    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(ImportError, match=r"pip install 'fastface-kernels\[face\]'"):
        MediaPipeLandmarks()


def test_the_detector_refuses_other_arrays(detector) -> None:
    with pytest.raises(ValueError, match=r"image must be \[H, W, 3\] uint8"):
        detector(np.zeros((8, 8), dtype=np.uint8))


def test_a_small_face_in_a_large_image_is_found(detector, photo) -> None:
    import cv2

    small = cv2.resize(photo, (300, 300), interpolation=cv2.INTER_AREA)
    large = np.full((1200, 1600, 3), 120, dtype=np.uint8)
    large[500:800, 900:1200] = small
    faces = detector(large)
    assert len(faces) == 1
    centre = faces[0].points[:, :2].mean(0)
    assert np.abs(centre - (900 + 224 * 300 / 512, 500 + 122 * 300 / 512)).max() < 12
