// The bridge of the `spade` hot path: what the bindings hand to the CPU and CUDA kernels. Formulas: README.md.
#pragma once
#include <cstdint>

#include "tensor.h"

namespace fastface::spade {

enum class Activation : int32_t { kNone = 0, kRelu = 1, kLeakyRelu = 2 };

struct Params {
  int64_t batch, channels, height, width;
  int64_t scale;               // H = scale * h of the modulation maps; 0 without maps
  View<4> x;                   // [B, C, H, W]
  View<4> gamma;               // [B, C, h, w] in the dtype of x; data is null where there is no map
  View<4> beta;                // the same
  View<4> residual;            // [B, C, H, W] in the dtype of x; data is null where there is none
  View<4> out;                 // [B, C, H, W] in the dtype of x; unused by instance_stats
  const float* gamma_channel;  // [B, C], contiguous; null where there is none
  const float* beta_channel;   // the same
  float* mean;  // [B, C], contiguous: written by instance_stats, read by modulated_norm, which computes it where null
  float* rstd;  // the same
  double eps;
  Activation activation;
  float slope;
};

}  // namespace fastface::spade
