// What both bindings share: how tensors and parameters come from Python, as plain integers.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "raster.h"
#include "spade.h"
#include "triplane.h"
#include "warp.h"

namespace fastface {

template <typename T>
T* to_pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline DType to_dtype(int32_t number) {
  if (number < 0 || number > 2) throw std::invalid_argument("dtype must be 0, 1 or 2, got " + std::to_string(number));
  return static_cast<DType>(number);
}

// (address, number of the dtype, strides in elements)
template <int N>
using PyView = std::tuple<uintptr_t, int32_t, std::array<int64_t, N>>;

template <int N>
View<N> to_view(const PyView<N>& from) {
  View<N> view;
  view.data = to_pointer<void>(std::get<0>(from));
  view.dtype = to_dtype(std::get<1>(from));
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
  params.kp_source = to_pointer<const float>(kp_source);
  params.kp_driving = to_pointer<const float>(kp_driving);
  params.linear = to_pointer<const float>(linear);
  params.linear_per_keypoint = per_keypoint;
  params.align_corners = align_corners;
  params.sigma2 = static_cast<float>(sigma2);
  return params;
}

}  // namespace warp

namespace spade {

// The fields of Params, as `_params` of fastface/ops/spade.py lists them: (batch, channels, height, width, scale), x,
// gamma, beta, residual, out, gamma and beta per channel, mean, rstd, eps, activation, slope.
using PyParams = std::tuple<std::array<int64_t, 5>, PyView<4>, PyView<4>, PyView<4>, PyView<4>, PyView<4>, uintptr_t,
                            uintptr_t, uintptr_t, uintptr_t, double, int32_t, double>;

inline Params to_params(const PyParams& from) {
  const auto& [sizes, x, gamma, beta, residual, out, gamma_channel, beta_channel, mean, rstd, eps, activation, slope] =
      from;
  Params params;
  params.batch = sizes[0];
  params.channels = sizes[1];
  params.height = sizes[2];
  params.width = sizes[3];
  params.scale = sizes[4];
  params.x = to_view<4>(x);
  params.gamma = to_view<4>(gamma);
  params.beta = to_view<4>(beta);
  params.residual = to_view<4>(residual);
  params.out = to_view<4>(out);
  params.gamma_channel = to_pointer<const float>(gamma_channel);
  params.beta_channel = to_pointer<const float>(beta_channel);
  params.mean = to_pointer<float>(mean);
  params.rstd = to_pointer<float>(rstd);
  params.eps = eps;
  params.activation = static_cast<Activation>(activation);
  params.slope = static_cast<float>(slope);
  return params;
}

}  // namespace spade

namespace raster {

// The fields of Params, as `_params` of fastface/ops/raster.py lists them: (batch, vertices, triangles, attributes,
// height, width), vertex, triangle, attribute, dtype, per_vertex, cull, and the outputs in the order of RasterOutput.
using PyParams = std::tuple<std::array<int64_t, 6>, uintptr_t, uintptr_t, uintptr_t, int32_t, bool, int32_t,
                            std::array<uintptr_t, 4>>;

inline Params to_params(const PyParams& from) {
  const auto& [sizes, vertex, triangle, attribute, dtype, per_vertex, cull, out] = from;
  Params params;
  params.batch = sizes[0];
  params.vertices = sizes[1];
  params.triangles = sizes[2];
  params.attributes = sizes[3];
  params.height = sizes[4];
  params.width = sizes[5];
  params.vertex = to_pointer<const float>(vertex);
  params.triangle = to_pointer<const int32_t>(triangle);
  params.attribute = to_pointer<const void>(attribute);
  params.dtype = to_dtype(dtype);
  params.per_vertex = per_vertex;
  params.cull = static_cast<Cull>(cull);
  params.image = to_pointer<void>(out[0]);
  params.visible = to_pointer<int32_t>(out[1]);
  params.depth = to_pointer<float>(out[2]);
  params.skipped = to_pointer<int32_t>(out[3]);
  return params;
}

}  // namespace raster

namespace triplane {

// The fields of Params, as `_params` of fastface/ops/triplane.py lists them: (batch, channels, depth, height, width,
// count, hidden, outputs, coarse, fine), planes, axes, trigrid, (points, directions, w1, b1, w2, b2), (near, far,
// jitter, u), (features, depth, opacity), box, reduce, white_back, disparity.
using PyParams = std::tuple<std::array<int64_t, 10>, PyView<6>, std::array<int32_t, 9>, bool, std::array<uintptr_t, 6>,
                            std::array<uintptr_t, 4>, std::array<uintptr_t, 3>, double, int32_t, bool, bool>;

inline Params to_params(const PyParams& from) {
  const auto& [sizes, planes, axes, trigrid, rays, depths, out, box, reduce, white_back, disparity] = from;
  Params params;
  params.batch = sizes[0];
  params.channels = sizes[1];
  params.depth = sizes[2];
  params.height = sizes[3];
  params.width = sizes[4];
  params.count = sizes[5];
  params.hidden = sizes[6];
  params.outputs = sizes[7];
  params.coarse = sizes[8];
  params.fine = sizes[9];
  params.planes = to_view<6>(planes);
  for (int i = 0; i < 9; ++i) params.axes[i] = axes[i];
  params.trigrid = trigrid;
  params.points = to_pointer<const float>(rays[0]);
  params.directions = to_pointer<const float>(rays[1]);
  params.w1 = to_pointer<const float>(rays[2]);
  params.b1 = to_pointer<const float>(rays[3]);
  params.w2 = to_pointer<const float>(rays[4]);
  params.b2 = to_pointer<const float>(rays[5]);
  params.near = to_pointer<const float>(depths[0]);
  params.far = to_pointer<const float>(depths[1]);
  params.jitter = to_pointer<const float>(depths[2]);
  params.u = to_pointer<const float>(depths[3]);
  params.features = to_pointer<void>(out[0]);
  params.depth_out = to_pointer<float>(out[1]);
  params.opacity = to_pointer<float>(out[2]);
  params.box = static_cast<float>(box);
  params.reduce = static_cast<Reduce>(reduce);
  params.white_back = white_back;
  params.disparity = disparity;
  return params;
}

}  // namespace triplane
}  // namespace fastface
