// What both bindings share: how tensors and parameters come from Python, as plain integers.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "warp.h"

namespace fastface {

// (address, number of the dtype, strides in elements)
template <int N>
using PyView = std::tuple<uintptr_t, int32_t, std::array<int64_t, N>>;

template <int N>
View<N> to_view(const PyView<N>& from) {
  View<N> view;
  view.data = reinterpret_cast<void*>(std::get<0>(from));
  const int32_t dtype = std::get<1>(from);
  if (dtype < 0 || dtype > 2) throw std::invalid_argument("dtype must be 0, 1 or 2, got " + std::to_string(dtype));
  view.dtype = static_cast<DType>(dtype);
  for (int i = 0; i < N; ++i) view.stride[i] = std::get<2>(from)[i];
  return view;
}

namespace warp {

// The fields of Params, as `_params` of fastface/ops/warp.py lists them: (batch, channels, keypoints, depth, height,
// width), feature, logits, occlusion, out, kp_source, kp_driving, linear, linear_per_keypoint, align_corners, sigma2.
using PyParams = std::tuple<std::array<int64_t, 6>, PyView<5>, PyView<5>, PyView<4>, PyView<5>, uintptr_t, uintptr_t,
                            uintptr_t, bool, bool, double>;

inline Params to_params(const PyParams& from) {
  const auto& [sizes, feature, logits, occlusion, out, kp_source, kp_driving, linear, per_keypoint, align_corners,
               sigma2] = from;
  Params params;
  params.batch = sizes[0];
  params.channels = sizes[1];
  params.keypoints = sizes[2];
  params.depth = sizes[3];
  params.height = sizes[4];
  params.width = sizes[5];
  params.feature = to_view<5>(feature);
  params.logits = to_view<5>(logits);
  params.occlusion = to_view<4>(occlusion);
  params.out = to_view<5>(out);
  params.kp_source = reinterpret_cast<const float*>(kp_source);
  params.kp_driving = reinterpret_cast<const float*>(kp_driving);
  params.linear = reinterpret_cast<const float*>(linear);
  params.linear_per_keypoint = per_keypoint;
  params.align_corners = align_corners;
  params.sigma2 = static_cast<float>(sigma2);
  return params;
}

}  // namespace warp
}  // namespace fastface
