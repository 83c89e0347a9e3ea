"""Images of every kind come in as one kind, and bad ones with one line."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

Pillow = pytest.importorskip("PIL.Image")

from fastface.media import contact_sheet, read_image, synthetic_tag, write_image  # noqa: E402  # after the skip


@pytest.fixture
def picture() -> np.ndarray:
    rows, columns = np.mgrid[:60, :80]
    return np.stack([rows * 4, columns * 3, (rows + columns) % 256], -1).astype(np.uint8)


def test_grey_rgba_palette_and_16_bits(tmp_path, picture) -> None:
    image = Pillow.fromarray(picture)
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("P").save(tmp_path / "palette.png")
    rgba = np.dstack([picture, np.full((60, 80), 0, dtype=np.uint8)])
    rgba[:30, :, 3] = 255
    Pillow.fromarray(rgba).save(tmp_path / "rgba.png")
    deep = (picture[..., 0].astype(np.uint16) * 257).astype(np.uint16)
    Pillow.fromarray(deep).save(tmp_path / "deep.png")
    grey = read_image(tmp_path / "grey.png")
    assert grey.shape == (60, 80, 3) and np.array_equal(grey[..., 0], grey[..., 2])
    assert read_image(tmp_path / "palette.png").shape == (60, 80, 3)
    flat = read_image(tmp_path / "rgba.png")
    assert np.array_equal(flat[:30], picture[:30]) and (flat[30:] == 255).all()
    assert np.array_equal(read_image(tmp_path / "deep.png")[..., 0], picture[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, picture, orientation) -> None:
    from PIL import ImageOps

    exif = Pillow.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Pillow.fromarray(picture).save(path, exif=exif)
    with Pillow.open(path) as opened:
        expected = np.array(ImageOps.exif_transpose(opened))
    assert np.array_equal(read_image(path), expected)


def test_large_images_are_reduced(tmp_path, picture) -> None:
    large = Pillow.fromarray(picture).resize((3000, 2250))
    for name in ("large.png", "large.jpg"):
        large.save(tmp_path / name)
        reduced = read_image(tmp_path / name, max_side=700)
        assert max(reduced.shape) == 700 and abs(reduced.shape[0] / reduced.shape[1] - 0.75) < 0.01
        assert np.abs(reduced.mean((0, 1)) - picture.mean((0, 1))).max() < 2
    assert read_image(tmp_path / "large.png", max_side=None).shape == (2250, 3000, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: peak memory is read in its units")
def test_a_hundred_megapixels_fit_into_two_gibibytes(tmp_path) -> None:
    path = tmp_path / "huge.png"
    Pillow.new("RGB", (10_000, 10_000), (90, 120, 150)).save(path, compress_level=1)
    code = (
        "import re, sys; from fastface.media import read_image; image = read_image(sys.argv[1]);"
        # Not ru_maxrss: a child starts with its parent's.
        "print(image.shape, re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.startswith("(4096, 4096, 3)") or done.stdout.startswith("(3333")
    assert int(done.stdout.split()[-1]) < 2 * 2**20  # KiB


def test_bad_images(tmp_path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    Pillow.new("RGB", (16, 16)).save(tmp_path / "tiny.png")
    whole = tmp_path / "whole.jpg"
    Pillow.effect_noise((200, 200), 50).convert("RGB").save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:2000])
    for name, message in (
        ("absent.png", "no such image"),
        ("empty.jpg", "cannot read an image"),
        ("text.png", "cannot read an image"),
        ("tiny.png", "at least 32x32 pixels, got 16x16"),
        ("cut.jpg", "cannot read an image"),
        (".", "expected an image file, got the directory"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_written_images_are_tagged_and_whole(tmp_path, picture) -> None:
    for name in ("new/a.png", "b.jpg"):
        write_image(tmp_path / name, picture)
        with Pillow.open(tmp_path / name) as opened:
            tag = opened.info.get("Comment", opened.info.get("comment"))
            assert (tag.decode() if isinstance(tag, bytes) else tag) == synthetic_tag()
    assert np.array_equal(read_image(tmp_path / "new" / "a.png"), picture)
    with pytest.raises(ValueError, match="extension must be .png, .jpg or .jpeg, got .bmp"):
        write_image(tmp_path / "c.bmp", picture)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.jpg", "new"]


def test_contact_sheet(picture) -> None:
    assert contact_sheet([picture] * 5, columns=4).shape == (2 * 60 + 4, 4 * 80 + 12, 3)
    assert contact_sheet([picture], side=30).shape == (30, 40, 3)
    with pytest.raises(ValueError, match="at least one frame"):
        contact_sheet([])
