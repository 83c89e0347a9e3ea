"""Face streams: both ends agree to the bit, errors stay within half a step, and no damage passes for a face."""

from __future__ import annotations

import hashlib
import itertools
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastface.face import FaceParameters, built_in_head
from fastface.media.face_stream import (
    DecodedFrame,
    FaceStreamDecoder,
    FaceStreamEncoder,
    Quantizer,
    Reference,
    StreamHeader,
    encode_face_stream,
    measure,
    read_face_stream,
    write_face_stream,
)
from fastface.media.face_stream.coding import BitReader, BitWriter, seal, unseal
from tests.face.models import random_model
from tests.real import media_file

SIZE = (640, 480)
BASIS = "0123456789abcdef" * 4


def tracks(frames: int, expressions: int = 28, seed: int = 0, fps: float = 25.0) -> np.ndarray:
    """Smooth motion ``[T, E + 7]`` with the noise of a detector that filters its points."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(frames)[:, None, None] / fps
    count = expressions + 7
    waves = np.sin(2 * np.pi * (rng.uniform(0.1, 1.5, (4, count)) * seconds + rng.uniform(0, 1, (4, count))))
    motion = (waves * rng.exponential(0.2, (4, count))).sum(1)
    noise = rng.standard_normal((frames, count)) * 0.02
    for before, after in itertools.pairwise(noise):
        after += 0.6 * before
    values = motion + noise
    values[:, expressions] = 15 * np.exp(0.05 * values[:, expressions])
    values[:, expressions + 1 : expressions + 4] *= 0.3
    values[:, expressions + 4 :] = values[:, expressions + 4 :] * 20 + (310, 250, 60)
    return values.astype(np.float32)


def header_for(vectors: np.ndarray, **options) -> StreamHeader:
    return StreamHeader("headgan", BASIS, Quantizer.physical(vectors.shape[1] - 7, SIZE), **options)


def timed(vectors, fps: float = 25.0) -> list:
    return [(vector, index / fps) for index, vector in enumerate(vectors)]


def decode(header: StreamHeader, packets) -> tuple[list[DecodedFrame], FaceStreamDecoder]:
    decoder = FaceStreamDecoder(header)
    return [frame for packet in packets for frame in decoder.push(packet)], decoder


VECTORS = tracks(120)
HEADER = header_for(VECTORS, key_interval=20)
PACKETS = list(encode_face_stream(HEADER, timed(VECTORS), frames_per_packet=3))
WHOLE = {frame.seconds: frame.vector for frame in decode(HEADER, PACKETS)[0]}


def is_key(packet: bytes) -> bool:
    opened = unseal(packet, HEADER.session)
    assert opened is not None
    return opened.key


def check_recovery(received: list[bytes], first_bad: int, last_bad: int) -> FaceStreamDecoder:
    """Decodes; every frame said to be decoded is right, and all are from the first key packet after the damage on."""
    frames, decoder = decode(HEADER, received)
    assert [f.seconds for f in frames] == sorted(f.seconds for f in frames)
    decoded = {f.seconds: f.vector for f in frames if f.state == "decoded"}
    assert all(np.array_equal(vector, WHOLE[seconds]) for seconds, vector in decoded.items())
    next_key = next((n for n in range(last_bad + 1, len(PACKETS)) if is_key(PACKETS[n])), len(PACKETS))
    expected = [s for n, s in enumerate(WHOLE) if n < 3 * first_bad or n >= 3 * next_key]
    assert sorted(decoded) == expected
    return decoder


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_both_ends_agree_to_the_bit(data) -> None:
    expressions = data.draw(st.integers(0, 40))
    frames = data.draw(st.integers(1, 40))
    vectors = tracks(frames, expressions, data.draw(st.integers(0, 1000)))
    header = header_for(vectors, key_interval=data.draw(st.integers(1, 30)), fps=data.draw(st.floats(1, 120)))
    encoder = FaceStreamEncoder(header, frames_per_packet=data.draw(st.integers(1, 16)))
    faces = data.draw(st.lists(st.booleans(), min_size=frames, max_size=frames))
    ticks = np.cumsum(data.draw(st.lists(st.integers(1, 10**7), min_size=frames, max_size=frames)))
    packets, mirror = [], []
    for vector, face, tick in zip(vectors, faces, ticks, strict=True):
        packets += encoder.push(vector if face else None, tick / 90_000)
        mirror.append(encoder.reconstructed.copy())
    decoded, _ = decode(header, packets + encoder.finish())
    assert np.array_equal(np.array([f.vector for f in decoded]), np.array(mirror))
    assert [f.state for f in decoded] == ["decoded" if face else "no face" for face in faces]
    assert [round(f.seconds * 90_000) for f in decoded] == ticks.tolist()
    quantizer = header.quantizer
    for vector, face, result in zip(vectors, faces, mirror, strict=True):
        if face:
            assert quantizer.levels(result) == quantizer.levels(vector)


def test_errors_are_half_a_step_of_physical_size() -> None:
    vectors = tracks(200, seed=3).astype(np.float64)
    quantizer = Quantizer.physical(28, SIZE, expression=0.02, degrees=0.1, pixels=0.1)
    error = np.abs([quantizer.vector(quantizer.levels(v)) - v for v in vectors]).max(0)
    limits = [0.01] * 28 + [vectors[:, 28].max() * 0.05 / 128] + [np.radians(0.05)] * 3 + [0.05 * 640 / 256] * 3
    assert np.all(error < 1.01 * np.array(limits)) and np.all(error > 0.8 * np.array(limits))


@pytest.mark.parametrize("share", [0.002, 0.01, 0.1])
def test_adaptive_steps_keep_to_the_share_of_every_range(share) -> None:
    vectors = tracks(150, seed=5)
    vectors[:, 0] = 0.3  # does not move
    vectors[:, 1] *= 1e-4  # hardly moves
    vectors[:, 28] *= np.linspace(0.3, 3, 150, dtype=np.float32)
    vectors[:, 32] = 266.25
    header = StreamHeader("headgan", BASIS, Quantizer.adaptive(vectors, SIZE, share=share))
    packets = list(encode_face_stream(header, timed(vectors)))
    result = np.array([frame.vector for frame in decode(header, packets)[0]])
    error = np.abs(result.astype(np.float64) - vectors).max(0)
    span = np.ptp(vectors.astype(np.float64), 0)
    assert np.all(error[span > 0] <= share * span[span > 0])
    assert np.all(error[span > 0] > 0.7 * share * span[span > 0]), "no step is finer than it need be"
    assert error[0] < 1e-7 and error[32] < 1e-4
    report = measure(header, packets, list(vectors))
    assert 0.9 * share < report.largest_error <= share


def test_bytes_and_values_are_the_same_everywhere() -> None:
    """Levels made of whole numbers; an exponential or a sum that rounds differently on a machine would show here."""
    quantizer = Quantizer.physical(28, SIZE)
    levels = [[(n * n * (i + 3) // 16 + 37 * i) % 97 - 48 for i in range(35)] for n in range(60)]
    vectors = np.array([quantizer.vector(each) for each in levels])
    header = StreamHeader("headgan", BASIS, quantizer, key_interval=20)
    packets = list(encode_face_stream(header, timed(vectors)))
    assert [quantizer.levels(vector) for vector in vectors] == levels
    assert hashlib.sha256(vectors.astype("<f4").tobytes()).hexdigest()[:16] == "4f5a0e808613aab6"
    assert hashlib.sha256(header.data + b"".join(packets)).hexdigest()[:16] == "779e0cda4bbfdea1"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**26), 2**26), st.integers(0, 20), st.integers(0, 20))))
def test_codes_read_back(codes) -> None:
    writer = BitWriter()
    for value, order, escape in codes:
        before = writer.length
        writer.signed(value, order, escape)
        unsigned = 2 * value if value >= 0 else -2 * value - 1
        if (unsigned >> order) < escape:
            assert writer.length - before == (unsigned >> order) + 1 + order
    data = writer.to_bytes()
    assert len(data) == -(-writer.length // 8)
    reader = BitReader(data)
    assert [reader.signed(order, escape) for _, order, escape in codes] == [value for value, _, _ in codes]
    assert reader.left == 8 * len(data) - writer.length
    with pytest.raises(ValueError, match="ends within"):
        reader.bits(9)


@pytest.mark.parametrize("dropped", range(len(PACKETS)))
def test_any_lost_packet_is_noticed_and_mended_at_the_next_key(dropped) -> None:
    decoder = check_recovery(PACKETS[:dropped] + PACKETS[dropped + 1 :], dropped, dropped)
    last, first = dropped == len(PACKETS) - 1, dropped == 0
    assert decoder.counts.lost == (not last and not first)
    assert decoder.counts.resyncs == (dropped > 0 and any(map(is_key, PACKETS[dropped + 1 :])))
    if not last:
        assert decoder.counts.unreadable > 0 or is_key(PACKETS[dropped + 1])


def test_any_flipped_byte_is_noticed_and_mended_at_the_next_key() -> None:
    rng = np.random.default_rng(1)
    for number, packet in enumerate(PACKETS):
        for place in sorted({0, 5, 6, 7, len(packet) - 1, *rng.integers(len(packet), size=6).tolist()}):
            flipped = bytearray(packet)
            flipped[place] ^= int(rng.integers(1, 256))
            decoder = check_recovery(PACKETS[:number] + [bytes(flipped)] + PACKETS[number + 1 :], number, number)
            assert decoder.counts.damaged == 1 and decoder.counts.lost == (0 < number < len(PACKETS) - 1)


def test_a_burst_of_losses() -> None:
    decoder = check_recovery(PACKETS[:9] + PACKETS[17:], 9, 16)
    assert decoder.counts.lost == 8 and decoder.counts.resyncs == 1


def test_packets_twice_late_and_from_another_session() -> None:
    other = header_for(VECTORS, key_interval=19)
    foreign = next(encode_face_stream(other, timed(VECTORS)))
    swapped = [*PACKETS[:8], PACKETS[9], PACKETS[8], PACKETS[10], PACKETS[10], foreign, b"", *PACKETS[11:]]
    counts = check_recovery(swapped, 8, 8).counts
    assert (counts.late, counts.lost, counts.damaged, counts.resyncs) == (2, 1, 2, 1)
    assert counts.decoded + counts.concealed == len(VECTORS)
    assert "2 late" in str(counts) and "0 no face" in str(counts)


def test_lost_frames_hold_and_then_become_neutral() -> None:
    vectors = tracks(200)
    header = header_for(vectors, key_interval=1000)
    packets = list(encode_face_stream(header, timed(vectors)))
    frames, decoder = decode(header, [*packets[:10], packets[60]])  # 100 frames, 4 s, and no key
    shown = frames[19].vector
    assert frames[19].state == "decoded" and {f.state for f in frames[20:]} == {"concealed"}
    assert np.allclose(np.diff([f.seconds for f in frames[:50]]), 0.04)
    assert len(frames) == 20 + 30 + 2, "1.2 s of change, then the frames that came"
    for frame in frames[20:]:
        since = frame.seconds - frames[19].seconds
        share = np.clip(1 - (since - 0.2) / 1.0, 0, 1)
        assert np.allclose(frame.vector[:28], share * shown[:28], atol=1e-6)
        assert np.array_equal(frame.vector[28:], shown[28:])
    live = decoder.conceal(frames[19].seconds + 0.7)
    assert np.allclose(live.vector[:28], 0.5 * shown[:28], atol=1e-6)
    assert decoder.counts.lost == 50 and decoder.counts.unreadable == 1


@pytest.mark.parametrize("fps", [24.0, 25.0, 26.0])
def test_as_many_frames_are_concealed_as_were_lost(fps) -> None:
    """Also where the camera's clock is not quite what the header says."""
    packets = list(encode_face_stream(HEADER, timed(VECTORS, fps), frames_per_packet=3))
    frames, decoder = decode(HEADER, packets[:8] + packets[9:])
    assert len(frames) == len(VECTORS) and [f.state for f in frames].count("concealed") == decoder.counts.concealed
    assert np.abs([f.seconds - n / fps for n, f in enumerate(frames)]).max() < 0.3 / fps


def test_a_receiver_may_come_late_and_ask_for_a_key() -> None:
    encoder = FaceStreamEncoder(header_for(VECTORS, key_interval=1000), frames_per_packet=1)
    decoder = FaceStreamDecoder(encoder.header)
    for number, (vector, seconds) in enumerate(timed(VECTORS)):
        if number == 70:
            encoder.request_key()
        for packet in encoder.push(vector, seconds):
            frames = decoder.push(packet) if number >= 50 else []
            assert len(frames) == (number >= 70)
            if frames:
                assert np.array_equal(frames[0].vector, encoder.reconstructed)
    assert decoder.counts.unreadable == 20 and decoder.counts.lost == decoder.counts.resyncs == 0


def test_a_stream_that_begins_without_a_face() -> None:
    header = header_for(VECTORS)
    packets = list(encode_face_stream(header, [(None, 0.0), (None, 0.04), *timed(VECTORS)[2:9]]))
    frames, _ = decode(header, packets)
    assert [f.state for f in frames] == ["no face"] * 2 + ["decoded"] * 7
    assert not frames[0].vector[:28].any() and np.isfinite(frames[0].vector).all()
    frames[0].vector[:] = 7
    assert not (frames[1].vector == 7).any(), "frames share no memory"


def test_numbers_and_times_wrap_round(tmp_path) -> None:
    late = 2.0**32 / 90_000 - 1.0
    packets = list(encode_face_stream(HEADER, [(v, late + n / 25) for n, v in enumerate(VECTORS)], frames_per_packet=3))
    opened = [unseal(packet, HEADER.session) for packet in packets]
    moved = [seal(p._replace(sequence=(p.sequence + 65530) % 65536), HEADER.session) for p in opened if p]
    write_face_stream(tmp_path / "talk.ffs", HEADER, [*moved[:5], b"damaged", *moved[6:]])
    assert read_face_stream(tmp_path / "talk.ffs").packets[6:] == moved[6:]
    encoder = FaceStreamEncoder(HEADER, frames_per_packet=1)
    encoder._sequence = 65535
    numbers = [unseal(packet, HEADER.session) for v, t in timed(VECTORS[:2]) for packet in encoder.push(v, t)]
    assert [packet.sequence for packet in numbers if packet] == [65535, 0]
    frames, decoder = decode(HEADER, moved[:12] + moved[13:])
    assert decoder.counts.lost == 1 and decoder.counts.late == 0 and len(frames) == len(VECTORS)
    assert np.allclose(np.diff([f.seconds for f in frames]), 0.04)
    assert np.array_equal(frames[-1].vector, WHOLE[max(WHOLE)])


def test_an_intact_packet_with_impossible_content_is_damage() -> None:
    opened = unseal(PACKETS[0], HEADER.session)
    assert opened is not None
    for payload in (b"", b"\0" * 40, opened.payload[:20], opened.payload + b"\0", b"\0\0\1" + opened.payload):
        frames, decoder = decode(HEADER, [seal(opened._replace(payload=payload), HEADER.session), *PACKETS[1:]])
        assert decoder.counts.damaged == 1
        assert all(np.array_equal(f.vector, WHOLE[f.seconds]) for f in frames if f.state == "decoded")


def test_the_header_comes_back_as_it_went() -> None:
    parameters = FaceParameters.of_vector(torch.from_numpy(VECTORS[:1]), torch.randn(1, 46))
    reference = Reference.of(b"\x89PNG\r\n\x1a\n and the rest", parameters)
    for options in (
        {},
        {"weights_hash": BASIS[::-1], "fps": 30_000 / 1001, "synthetic": False},
        {"reference": reference, "key_interval": 65535},
    ):
        header = StreamHeader("gesicht-ü", BASIS, Quantizer.adaptive(VECTORS, SIZE), **options)
        assert StreamHeader.read(header.data + b"packets") == header
    assert torch.equal(reference.parameters.vector, parameters.vector)
    assert torch.equal(reference.parameters.identity, parameters.identity)


def test_a_damaged_header_is_refused() -> None:
    data = header_for(VECTORS, reference=Reference(b"\xff\xd8\xff", (0.5,), tuple(VECTORS[0].tolist()))).data
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 0x11
        with pytest.raises(ValueError, match="face stream"):
            StreamHeader.read(bytes(flipped))
        with pytest.raises(ValueError, match="face stream"):
            StreamHeader.read(data[:place])


def test_another_version_or_unknown_fields_are_refused() -> None:
    data = bytearray(HEADER.data)
    data[4:6] = b"\0\7"
    with pytest.raises(ValueError, match="must be version 1, got 7"):
        StreamHeader.read(bytes(data))
    for body in (HEADER.data[:10] + bytes([HEADER.data[10] | 0x80]) + HEADER.data[11:-4], HEADER.data[:-4] + b"more"):
        body = body[:6] + struct.pack(">I", len(body) + 4) + body[10:]
        with pytest.raises(ValueError, match="fields that this fastface does not know"):
            StreamHeader.read(body + struct.pack(">I", zlib.crc32(body)))


def test_another_face_model_or_weights_are_refused_with_both_hashes() -> None:
    model, other = random_model(expressions=28), random_model(expressions=28, seed=1)
    header = StreamHeader("headgan", model.content_hash, HEADER.quantizer, weights_hash=BASIS)
    header.check(model)
    header.check(model, weights_hash=BASIS)
    with pytest.raises(ValueError, match=f"{model.content_hash[:12]}, got {other.content_hash[:12]}"):
        header.check(other)
    with pytest.raises(ValueError, match="weights 0123456789ab, got fedcba987654"):
        header.check(model, weights_hash=BASIS[::-1])


def test_files(tmp_path) -> None:
    path = tmp_path / "folder" / "talk.ffs"
    write_face_stream(path, HEADER, iter(PACKETS))
    stream = read_face_stream(path)
    assert stream.header == HEADER and stream.packets == PACKETS and stream.broken is None
    assert [p.name for p in path.parent.iterdir()] == ["talk.ffs"]

    def breaking():
        yield PACKETS[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_face_stream(path, HEADER, breaking())
    assert read_face_stream(path) == stream and len(list(path.parent.iterdir())) == 1


def test_a_file_that_is_cut_off_gives_what_is_there(tmp_path) -> None:
    path = tmp_path / "talk.ffs"
    write_face_stream(path, HEADER, PACKETS)
    data = path.read_bytes()
    ends = [len(HEADER.data), *(len(HEADER.data) + n for n in itertools.accumulate(len(p) + 2 for p in PACKETS))]
    for cut in range(len(HEADER.data), len(data), 7):
        path.write_bytes(data[:cut])
        stream = read_face_stream(path)
        whole = sum(end <= cut for end in ends) - 1
        assert stream.packets == PACKETS[:whole]
        assert (stream.broken is None) == (cut in ends)
        assert stream.broken is None or f"after {whole} packets" in stream.broken
    path.write_bytes(data[:100])
    with pytest.raises(ValueError, match=f"ends within its header: 100 of {len(HEADER.data)} bytes: .*talk.ffs"):
        read_face_stream(path)


def test_a_flipped_byte_of_a_file_costs_one_packet_at_most(tmp_path) -> None:
    path = tmp_path / "talk.ffs"
    write_face_stream(path, HEADER, PACKETS)
    data = path.read_bytes()
    starts = list(itertools.accumulate((len(p) + 2 for p in PACKETS), initial=len(HEADER.data)))
    rng = np.random.default_rng(2)
    lengths = [start + byte for start in starts[:-1] for byte in (0, 1)]
    for place in sorted({*lengths[::3], *rng.integers(len(HEADER.data), len(data), size=60).tolist()}):
        flipped = bytearray(data)
        flipped[place] ^= int(rng.integers(1, 256))
        path.write_bytes(flipped)
        stream = read_face_stream(path)
        number = sum(start <= place for start in starts) - 1
        assert stream.packets[:number] == PACKETS[:number]
        assert stream.packets[number + 1 :] == PACKETS[number + 1 :]
        assert (stream.packets == PACKETS) == (place in lengths and number < len(PACKETS) - 1)
        if stream.packets != PACKETS:
            check_recovery(stream.packets, number, number)


def test_the_report_adds_up() -> None:
    frames: list = [*VECTORS]
    frames[40] = None
    packets = list(encode_face_stream(HEADER, timed(frames), frames_per_packet=4))
    report = measure(HEADER, packets, frames)
    payload = sum(map(len, packets))
    assert (report.frames, report.packets, report.payload_bytes) == (120, 30, payload)
    assert report.seconds == pytest.approx(4.8) and report.header_bytes == len(HEADER.data)
    assert report.payload_kbps == pytest.approx(payload * 8 / 4800)
    assert report.wire_kbps == pytest.approx((payload + 30 * 40) * 8 / 4800)
    framing = 8 * payload - sum(report.bits.values())
    assert 30 * (9 * 8 + 3) + 4 <= framing <= 30 * (9 * 8 + 3 + 7) + 4
    alone = [len(p) for p in encode_face_stream(HEADER, timed(VECTORS), frames_per_packet=1)]
    assert abs(report.key_bits / 8 - sum(alone[::20]) + 6 * 9.5) < 12
    assert 0.001 < report.mean_error < report.largest_error < 0.05
    text = str(report)
    assert "rotation" in text and f"{report.payload_kbps:.2f} kbit/s" in text and report.worst in text
    with pytest.raises(ValueError, match="all 119 frames, got: 30 packets, 119 decoded"):
        measure(HEADER, packets, frames[:-1])
    with pytest.raises(ValueError, match="at least one frame with a face"):
        measure(HEADER, list(encode_face_stream(HEADER, [(None, 0.0)])), [None])


def test_smooth_tracks_fit_into_six_kbit() -> None:
    vectors = tracks(500, seed=9)
    header = header_for(vectors)
    report = measure(header, list(encode_face_stream(header, timed(vectors))), list(vectors))
    assert 4 < report.payload_kbps < 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:-1], r"vector must be \[35\], got \[34\]"),
        (lambda v: np.where(np.arange(35) == 3, np.nan, v), "vector must be finite, got 1 values"),
        (lambda v: np.where(np.arange(35) == 28, 0, v), "scale must be positive, got 0"),
        (lambda v: np.where(np.arange(35) == 30, 1e6, v), "rotation 1 must lie within 2.24 steps"),
    ],
)
def test_vectors_that_cannot_be_coded_change_nothing(change, message) -> None:
    encoder = FaceStreamEncoder(HEADER, frames_per_packet=1)
    first = encoder.push(VECTORS[0], 0.0)
    with pytest.raises(ValueError, match=message):
        encoder.push(change(VECTORS[1]), 0.04)
    with pytest.raises(ValueError, match="seconds must grow from 0, got 0 after 0"):
        encoder.push(VECTORS[1], 0.0)
    second = encoder.push(VECTORS[1], 0.04)
    assert first + second == list(encode_face_stream(HEADER, timed(VECTORS[:2]), frames_per_packet=1))


def test_arguments_out_of_range(tmp_path) -> None:
    quantizer = Quantizer.physical(2, SIZE)
    for message, call in {
        r"image_size must be positive and below 65536, got \(0, 480\)": lambda: Quantizer.physical(2, (0, 480)),
        "step must be 7 to 262 numbers, got 263": lambda: Quantizer.physical(256, SIZE),
        "offset must be 7 numbers like step, got 8": lambda: Quantizer(SIZE, (1.0,) * 7, (1.0,) * 8),
        "step must be positive, got 0.0": lambda: Quantizer(SIZE, (0.0,) * 7, (1.0,) * 7),
        "offset must be finite": lambda: Quantizer(SIZE, (1.0,) * 7, (1e39,) * 7),
        r"vectors must be \[T, expressions \+ 7\], got \[9\]": lambda: Quantizer.adaptive(np.ones(9), SIZE),
        "share must be between 0 and 1, got 1": lambda: Quantizer.adaptive(VECTORS, SIZE, share=1),
        "model_id must be 1 to 255 bytes": lambda: StreamHeader("", BASIS, quantizer),
        "basis_hash must be 64 hexadecimal digits, got 'abc'": lambda: StreamHeader("m", "abc", quantizer),
        "fps must be between 1 and 1000, got nan": lambda: StreamHeader("m", BASIS, quantizer, fps=float("nan")),
        "key_interval must be between 1": lambda: StreamHeader("m", BASIS, quantizer, key_interval=0),
        r"vector must be \[9\], got \[35\]": lambda: StreamHeader(
            "m", BASIS, quantizer, reference=Reference(b"\xff\xd8\xff", (), tuple(VECTORS[0].tolist()))
        ),
        "must be a PNG or JPEG file, got bytes b'GIF89a'": lambda: Reference(b"GIF89a", (), ()),
        "parameters must be one face, got 2": lambda: Reference.of(
            b"\xff\xd8\xff", FaceParameters.of_vector(torch.from_numpy(VECTORS[:2]), torch.zeros(1, 3))
        ),
        "frames_per_packet must be 1 to 16, got 17": lambda: FaceStreamEncoder(HEADER, frames_per_packet=17),
        "hold must be at least 0": lambda: FaceStreamDecoder(HEADER, decay=0),
        "not a face stream: it must begin with b'FFS1', got b'RIFF'": lambda: StreamHeader.read(b"RIFF...."),
        "no such face stream": lambda: read_face_stream(tmp_path / "none.ffs"),
        "got the directory": lambda: read_face_stream(tmp_path),
        "expected a file name, got the directory": lambda: write_face_stream(tmp_path, HEADER, []),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_a_decoded_frame_is_a_face() -> None:
    identity = torch.randn(1, 46)
    frame = decode(HEADER, PACKETS)[0][7]
    parameters = frame.parameters(identity)
    assert torch.equal(parameters.vector[0], torch.from_numpy(frame.vector))
    assert torch.equal(parameters.identity, identity)


def test_a_real_clip_fits_into_six_kbit_within_one_percent() -> None:
    clip = media_file("driving_a.mp4")
    pytest.importorskip("mediapipe", reason="needs MediaPipe: pip install 'fastface-kernels[face]'")
    pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[video]'")
    from fastface.face import FaceFitter, MediaPipeLandmarks
    from fastface.media import VideoReader

    head = built_in_head()
    fitter = FaceFitter(head, noise=0.01)
    detector = MediaPipeLandmarks(video=True, max_faces=1)
    with VideoReader(clip) as reader:
        found = [(torch.from_numpy(detector(image)[0].points[:468]), seconds) for image, seconds in reader]
        size = reader.size
    times = np.array([seconds for _, seconds in found])
    nearest = [int(np.abs(times - n / 25).argmin()) for n in range(int(times[-1] * 25) + 1)]
    points = torch.stack([found[n][0] for n in nearest])
    identity = fitter.fit(points).identity.median(0, keepdim=True).values
    vectors = fitter.fit(points, identity).vector.numpy()
    for quantizer, limit in ((Quantizer.adaptive(vectors, size), 0.01), (Quantizer.physical(28, size), 0.025)):
        header = StreamHeader("headgan", head.content_hash, quantizer)
        report = measure(header, list(encode_face_stream(header, timed(vectors))), list(vectors))
        assert report.payload_kbps < 6 and report.largest_error <= limit, str(report)
