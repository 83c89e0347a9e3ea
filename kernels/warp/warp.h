// The bridge of the `warp` hot path: what the bindings hand to the CPU and CUDA kernels. Formulas: README.md.
#pragma once
#include <cstdint>

#include "tensor.h"

namespace fastface::warp {

struct Params {
  int64_t batch, channels, keypoints, depth, height, width;
  View<5> feature;    // [B, C, D, H, W]; unused by motion_field
  View<5> logits;     // [B, K+1, D, H, W]; unused by pack_motions
  View<4> occlusion;  // [B, 1, H, W]; data is null where there is none
  // pack_motions: [B, (K+1)*(C+1), D, H, W]; compose_*: [B, C, D, H, W]; motion_field: float32, seen as [B, 3, D, H, W]
  View<5> out;
  const float* kp_source;   // [B, K, 3], contiguous
  const float* kp_driving;  // [B, K, 3], contiguous
  const float* linear;      // [B, 3, 3] or [B, K, 3, 3], contiguous; null for pure translations
  int32_t linear_per_keypoint;
  int32_t align_corners;
  float sigma2;
};

}  // namespace fastface::warp
