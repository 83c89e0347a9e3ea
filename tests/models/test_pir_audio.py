"""Sound to expressions: goldens, and the cached decoder against the full recomputation with torch's own layers."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.plain_pir import Recomputing, attention_bias, blocked
from fastface import load_checkpoint
from fastface.models.pir import AudioEncoder, AudioToExpression, DecoderConfig, ExpressionDecoder
from fastface.models.pir.audio import slopes
from tests import goldens

CONFIG = DecoderConfig(outputs=5, features=24, audio=7, style=3, hidden=20, heads=4, period=4)


def recomputed(decoder: ExpressionDecoder, audio: Tensor, style: Tensor) -> Tensor:
    plain = Recomputing(decoder, audio.shape[1] // decoder.config.per_frame)
    return torch.cat([plain(*each) for each in zip(audio.split(1), style.split(1), strict=True)])


@pytest.mark.parametrize("name", ["decoder_pir", "vocaset"])
@torch.inference_mode()
def test_goldens(name: str) -> None:
    recipe, arrays = goldens.load(f"faceformer.{name}.npz")
    state = goldens.seeded_state_dict(f"faceformer.{name}")
    goldens.check_weights(state, recipe)
    decoder = load_checkpoint(state, f"faceformer.{name}")
    inputs = goldens.make_inputs(recipe)
    style = inputs.get("style", torch.from_numpy(arrays["in.style"]))
    result = decoder(inputs["audio_features"], style, inputs.get("template"))
    assert goldens.difference(result, arrays, "prediction") < 1e-4
    bias = attention_bias(60, decoder.config.period, 4).numpy()
    assert np.array_equal(bias, arrays["self_attention_bias"])
    assert np.array_equal(blocked(60, 1).numpy(), arrays["alignment_blocked"])
    assert np.array_equal(blocked(60, 2).numpy(), arrays["alignment_blocked_two_per_frame"])


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(1, 3),
    frames=st.integers(1, 11),
    per_frame=st.sampled_from([1, 2]),
    blocks=st.sampled_from([1, 2]),
    heads=st.sampled_from([2, 3, 4]),
    outputs=st.sampled_from([5, 40]),
    seed=st.integers(0, 1000),
)
def test_cached_is_recomputed(batch, frames, per_frame, blocks, heads, outputs, seed) -> None:
    torch.manual_seed(seed)
    config = DecoderConfig(outputs, 24, 7, 3, 20, heads, blocks, 4, per_frame)
    decoder = ExpressionDecoder(config).eval()
    audio, style = torch.randn(batch, frames * per_frame, 7), torch.randn(batch, 3)
    with torch.inference_mode():
        expected = recomputed(decoder, audio, style)
        found = decoder(audio, style)
        assert torch.allclose(found, expected, atol=1e-5)
        state = decoder.start(style)
        steps = [decoder.step(state, audio[:, i * per_frame : (i + 1) * per_frame]) for i in range(frames)]
        assert torch.allclose(torch.stack(steps, 1), expected, atol=1e-5)
        assert state.frames == frames


def test_a_stream_goes_on_outside_of_inference_mode() -> None:
    decoder = ExpressionDecoder(DecoderConfig(8, 24, 7, 3, 20, 4, 2, 4)).eval()
    audio, style = torch.randn(1, 6, 7), torch.randn(1, 3)
    with torch.inference_mode():
        expected = decoder(audio, style)
        state = decoder.start(style)
        steps = [decoder.step(state, audio[:, frame]) for frame in range(3)]
    steps += [decoder.step(state, audio[:, frame]) for frame in range(3, 6)]
    torch.testing.assert_close(torch.stack(steps, 1), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_long_sound() -> None:
    """Beyond 600 frames, where the published decoder ends, and beyond the room of the memory."""
    torch.manual_seed(0)
    decoder = ExpressionDecoder(CONFIG).eval().double()
    audio, style = torch.randn(1, 700, 7).double(), torch.randn(1, 3).double()
    found = decoder(audio, style)
    state = decoder.start(style)
    for frame in range(700):
        step = decoder.step(state, audio[:, frame])
    assert torch.allclose(step, found[:, -1], atol=1e-9)
    short = decoder(audio[:, :650], style)
    assert torch.allclose(short, found[:, :650], atol=1e-12)  # causal


@torch.inference_mode()
def test_the_past_fades() -> None:
    """The corrected sign: what was said long ago weighs less than what was just said."""
    bias = attention_bias(60, 25, 4)
    assert (bias[:, 59, 0] < bias[:, 59, 59]).all() and bias[0, 59, 0] == -0.5
    decoder = ExpressionDecoder(CONFIG).eval()
    state = decoder.start(torch.randn(1, 3))
    for frame in range(200):
        found = state.bias()
        assert torch.equal(found[:, 0], attention_bias(frame + 1, 4, 4)[:, -1])
        decoder.step(state, torch.randn(1, 7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("batch", "per_frame"), [(1, 1), (1, 2), (2, 1)])
@torch.inference_mode()
def test_narrow_weights(batch: int, per_frame: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    decoder = ExpressionDecoder(replace(CONFIG, per_frame=per_frame)).eval()
    narrow = decoder.narrowed(dtype)
    audio, style = torch.randn(batch, 9 * per_frame, 7), torch.randn(batch, 3)
    expected, found = decoder(audio, style), narrow(audio, style)
    assert found.dtype == torch.float32
    limit = 30 * torch.finfo(dtype).eps  # a few roundings of numbers about 1
    assert 0 < float((found - expected).abs().max()) < limit
    state = narrow.start(style)
    steps = torch.stack([narrow.step(state, each) for each in audio.split(per_frame, 1)], 1)
    assert steps.shape == expected.shape and float((steps - expected).abs().max()) < limit
    assert decoder.decode.weight.dtype == torch.float32


def test_slopes() -> None:
    assert slopes(4).tolist() == [1 / 4, 1 / 16, 1 / 64, 1 / 256]
    assert slopes(6).tolist() == [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]


SMALL = {
    "hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32,
    "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
VARIANTS = [
    {"feat_extract_norm": "group", "do_stable_layer_norm": False},
    {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
]


@pytest.fixture(params=VARIANTS, ids=["group", "layer"])
def encoder(request: pytest.FixtureRequest) -> AudioEncoder:
    pytest.importorskip("transformers", reason="wav2vec 2.0 needs transformers")
    torch.manual_seed(0)
    return AudioEncoder.large(**SMALL, **request.param)


@torch.inference_mode()
def test_audio_encoder(encoder: AudioEncoder) -> None:
    samples = torch.randn(2, 16000)
    own = encoder(samples)
    assert own.shape == (2, 49, 24)
    # At its own rate it is the model itself, and resampling to as many frames changes nothing.
    assert torch.allclose(own, encoder.model(samples).last_hidden_state, atol=1e-6)
    assert torch.allclose(encoder(samples, 49), own, atol=1e-5)
    assert encoder(samples, 25).shape == (2, 25, 24)
    assert [encoder.frames(count, 25.0) for count in (399, 400, 16000, 16080)] == [0, 0, 24, 25]


@torch.inference_mode()
def test_audio_to_expression(encoder: AudioEncoder) -> None:
    for per_frame in (1, 2):
        config = DecoderConfig(outputs=5, features=24, audio=24, style=3, hidden=20, per_frame=per_frame)
        system = AudioToExpression(encoder, ExpressionDecoder(config)).eval()
        samples, identity = torch.randn(2, 8000), torch.randn(2, 3)
        assert system(samples, identity).shape == (2, 12, 5)
        assert system(samples, identity, 31).shape == (2, 31, 5)
        louder = system(3 * samples + 1, identity)
        assert torch.allclose(louder, system(samples, identity), atol=1e-4)  # sound is normalised
        heard = system.features(samples)
        assert torch.equal(system.decoder(heard, identity), system(samples, identity))


def test_weights_of_the_encoder_load_by_their_published_names(encoder: AudioEncoder) -> None:
    other = copy.deepcopy(encoder)
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {}
    for name, tensor in encoder.model.state_dict().items():
        for new, former in old.items():
            name = name.replace(new, former)
        state[f"audio_encoder.{name}"] = tensor + 1
    other.load({**state, "vertice_map.weight": torch.zeros(2)})
    for name, tensor in other.model.state_dict().items():
        assert torch.equal(tensor, encoder.model.state_dict()[name] + 1)
    state.popitem()
    with pytest.raises(ValueError, match="the audio encoder does not fit: .*Missing"):
        other.load(state)


def test_errors() -> None:
    decoder = ExpressionDecoder(CONFIG)
    two = ExpressionDecoder(DecoderConfig(5, 24, 7, 3, 20, per_frame=2))
    for call, message in (
        (lambda: DecoderConfig(features=1023), "multiple of 2 heads"),
        (lambda: decoder(torch.zeros(1, 4, 7), torch.zeros(1, 4)), r"style must be \[B, 3\], got \[1, 4\]"),
        (lambda: decoder(torch.zeros(1, 4, 6), torch.zeros(1, 3)), r"audio must be \[1, T, 7\], got \[1, 4, 6\]"),
        (lambda: decoder(torch.zeros(2, 4, 7), torch.zeros(1, 3)), r"audio must be \[1, T, 7\]"),
        (lambda: two(torch.zeros(1, 5, 7), torch.zeros(1, 3)), r"audio must be \[1, T 2, 7\], got \[1, 5, 7\]"),
        (lambda: two.step(two.start(torch.zeros(1, 3)), torch.zeros(1, 4, 7)), "2 entries for a frame, got 4"),
        (lambda: AudioToExpression(None, decoder).features(torch.zeros(1, 16000)), "no audio encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_errors_of_the_encoder(encoder: AudioEncoder) -> None:
    for samples, frames, message in (
        (torch.zeros(400), None, r"\[B, N\]"),
        (torch.zeros(1, 300), None, "at least 25 ms"),
        (torch.zeros(1, 4000), 0, "frames must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder(samples, frames)
    system = AudioToExpression(encoder, ExpressionDecoder(CONFIG))
    for samples, message in (
        (torch.zeros(400), r"samples must be \[B, N\], got \[400\]"),
        (torch.zeros(1, 1), "at least 25 ms at 16000 Hz, got 1"),
        (torch.zeros(1, 0), "at least 25 ms"),
    ):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
            warnings.simplefilter("error")
            system(samples, torch.zeros(1, 3))
