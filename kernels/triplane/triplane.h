// The bridge of the `triplane` hot path: what the bindings hand to the CPU and CUDA kernels. Formulas: README.md.
#pragma once
#include <cstdint>

#include "tensor.h"

namespace fastface::triplane {

enum class Reduce : int32_t { kSum = 0, kMean = 1, kNone = 2 };

struct Params {
  int64_t batch, channels, depth, height, width;  // of the planes; depth 1 without a trigrid
  int64_t count;                                  // points or rays of an image
  int64_t hidden, outputs;                        // of the decoder; outputs = 1 + F
  int64_t coarse, fine;
  View<6> planes;           // [B, 3, C, D, H, W], the channels next to each other
  int32_t axes[9];          // coordinate along width, height and depth of each plane
  bool trigrid;             // whether the third coordinate counts
  const float* points;      // [B, N, 3], or the origins of the rays
  const float* directions;  // [B, R, 3]
  const float* w1;          // [h, C]
  const float* b1;          // [h]
  const float* w2;          // [1+F, h]
  const float* b2;          // [1+F]
  const float* near;        // [B, R]
  const float* far;         // [B, R]
  const float* jitter;      // [B, R, coarse], or null for 1/2
  const float* u;           // [B, R, fine], or null for the middles of equal parts
  void* features;           // [B, R, F], or what sample_planes returns; in the dtype of the planes
  float* depth_out;         // [B, R]
  float* opacity;           // [B, R]
  float box;
  Reduce reduce;
  bool white_back, disparity;
};

}  // namespace fastface::triplane
