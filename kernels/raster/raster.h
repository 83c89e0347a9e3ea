// The bridge of the `raster` hot path: what the binding hands to the CPU kernel. Formulas: README.md.
#pragma once
#include <cstdint>

#include "tensor.h"

namespace fastface::raster {

enum class Cull : int32_t { kNone = 0, kBack = 1, kFront = 2 };

// Everything is contiguous.
struct Params {
  int64_t batch, vertices, triangles, attributes, height, width;
  const float* vertex;      // [B, V, 3]: x, y in pixels, z
  const int32_t* triangle;  // [T, 3]
  const void* attribute;    // [T, A], or [V, A] with per_vertex
  DType dtype;              // of the attributes and the image
  int32_t per_vertex;
  Cull cull;
  void* image;       // [B, A, H, W]
  int32_t* visible;  // [B, H, W], -1 outside
  float* depth;      // [B, H, W], inf outside
  int32_t* skipped;  // [B]
};

}  // namespace fastface::raster
