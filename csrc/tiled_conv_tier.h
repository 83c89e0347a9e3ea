// Convolutions by tiles, for fastface/engine/winograd.py and fft_conv.py, which have the formulas. One copy per
// instruction set tier, each in a namespace of its own.
#pragma once
#include <cstdint>

namespace fastface::tiled_conv {

// Strides are in elements: batch, channel, depth, y, x.
struct Params {
  int64_t batch, depth, height, width, channels;  // of the input
  int64_t outputs, out_height, out_width;         // of the output, which has the batch and depth of the input
  int64_t taps;  // over depth, as many as keep the depth with zeros around it: 1, 3 or 7
  int64_t tile;  // outputs per side of a tile: 2 or 4 of 3x3 filters by Winograd, 16 of 7x7 filters by Fourier
  int64_t pad;   // zeros around the image
  const float* x;
  int64_t x_stride[5];
  float* out;
  int64_t out_stride[5];
  const float* filters;  // [frequencies, columns / 32, taps, channels, 32], the last 16 columns of an odd number apart
  const float* bias;     // [outputs], or null
  bool activate;         // by a leaky ReLU of `slope`
  float slope;
};

// False where memory runs out.
#define FASTFACE_TILED_CONV_TIER(tier)              \
  namespace tier {                                  \
  bool convolve(const Params& params, int threads); \
  }
FASTFACE_TILED_CONV_TIER(baseline)
FASTFACE_TILED_CONV_TIER(avx2)
FASTFACE_TILED_CONV_TIER(avx512)
#undef FASTFACE_TILED_CONV_TIER

}  // namespace fastface::tiled_conv
