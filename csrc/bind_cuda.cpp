// The module fastface._cuda: takes pointers, sizes, strides, device and stream as integers, and drops the GIL. It loads
// on machines without a driver, where every call raises.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda_device.h"
#include "warp_cuda.h"

namespace py = pybind11;

namespace fastface {
namespace {

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

warp::Params warp_params(const std::array<int64_t, 6>& sizes, const PyView<5>& feature, const PyView<5>& logits,
                         const PyView<4>& occlusion, const PyView<5>& out, uintptr_t kp_source, uintptr_t kp_driving,
                         uintptr_t linear, bool linear_per_keypoint, bool align_corners, double sigma2) {
  warp::Params params;
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
  params.linear_per_keypoint = linear_per_keypoint;
  params.align_corners = align_corners;
  params.sigma2 = static_cast<float>(sigma2);
  return params;
}

void run_warp(const std::string& op, const std::array<int64_t, 6>& sizes, const PyView<5>& feature,
              const PyView<5>& logits, const PyView<4>& occlusion, const PyView<5>& out, uintptr_t kp_source,
              uintptr_t kp_driving, uintptr_t linear, bool linear_per_keypoint, bool align_corners, double sigma2,
              int device, uintptr_t stream) {
  const warp::Params params = warp_params(sizes, feature, logits, occlusion, out, kp_source, kp_driving, linear,
                                          linear_per_keypoint, align_corners, sigma2);
  py::gil_scoped_release release;
  warp::cuda_run(op, params, device, stream);
}

std::string refuse_warp(const std::string& op, const std::array<int64_t, 6>& sizes, const PyView<5>& feature,
                        const PyView<5>& logits, const PyView<4>& occlusion, const PyView<5>& out, uintptr_t kp_source,
                        uintptr_t kp_driving, uintptr_t linear, bool linear_per_keypoint, bool align_corners,
                        double sigma2, int device) {
  const warp::Params params = warp_params(sizes, feature, logits, occlusion, out, kp_source, kp_driving, linear,
                                          linear_per_keypoint, align_corners, sigma2);
  return warp::cuda_refuse(op, params, device);
}

}  // namespace
}  // namespace fastface

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA kernels of fastface, free of torch: called through fastface.ops.";
  m.def("architectures", &fastface::cuda::architectures,
        "What this binary holds: 80-real, ..., the last one with PTX.");
  m.def("warp", &fastface::run_warp);
  m.def("warp_refuse", &fastface::refuse_warp, "Why a device cannot run a call, or an empty string.");
}
