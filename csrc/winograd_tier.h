// The two transforms of a 3x3 convolution by Winograd's F(2x2, 3x3), for fastface/engine/winograd.py, which has the
// formulas. One copy per instruction set tier, each in a namespace of its own.
#pragma once
#include <cstdint>

namespace fastface::winograd {

// Tiles of 2x2 outputs are numbered row by row, image by image; `first` and `count` say which ones are meant.
struct Params {
  int64_t batch, height, width, channels;
  int64_t first, count;
  int64_t rows;       // of a matrix of `tiles`: how many tiles there is room for
  float* image;       // NHWC: the input, or the output
  int64_t stride[3];  // of the image, in elements: batch, y, x; channels lie next to each other
  float* tiles;       // [16, rows, channels], contiguous
  const float* bias;  // [channels], or null; output only
};

#define FASTFACE_WINOGRAD_TIER(tier)              \
  namespace tier {                                \
  bool input(const Params& params, int threads);  \
  bool output(const Params& params, int threads); \
  }
FASTFACE_WINOGRAD_TIER(baseline)
FASTFACE_WINOGRAD_TIER(avx2)
FASTFACE_WINOGRAD_TIER(avx512)
#undef FASTFACE_WINOGRAD_TIER

}  // namespace fastface::winograd
