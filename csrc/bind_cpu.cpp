// The module fastface._cpu: takes pointers, sizes and strides as integers, picks the instruction set tier, drops the
// GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu_features.h"
#include "warp_cpu.h"

namespace py = pybind11;

namespace fastface {
namespace {

std::vector<std::string> tiers() { return {kCpuTierNames, kCpuTierNames + static_cast<int>(best_cpu_tier()) + 1}; }

CpuTier choose_tier() {
  const char* wish = std::getenv("FASTFACE_CPU_TIER");
  const CpuTier best = best_cpu_tier();
  if (wish == nullptr || *wish == '\0') return best;
  std::string supported;
  for (const std::string& name : tiers()) supported += (supported.empty() ? "" : ", ") + name;
  for (int i = 0; i < kCpuTiers; ++i) {
    if (std::string(wish) != kCpuTierNames[i]) continue;
    if (i <= static_cast<int>(best)) return static_cast<CpuTier>(i);
    throw std::runtime_error("FASTFACE_CPU_TIER=" + std::string(wish) + " cannot run here (supported: " + supported +
                             ")");
  }
  throw std::runtime_error("FASTFACE_CPU_TIER must be one of " + supported + ", got '" + std::string(wish) + "'");
}

// Read once: a module that fails to import with a clear reason is a backend that says why it cannot be used.
CpuTier chosen = CpuTier::kBaseline;

using PyView4 = std::tuple<uintptr_t, int32_t, std::array<int64_t, 4>>;
using PyView5 = std::tuple<uintptr_t, int32_t, std::array<int64_t, 5>>;

template <int N>
View<N> to_view(const std::tuple<uintptr_t, int32_t, std::array<int64_t, N>>& from) {
  View<N> view;
  view.data = reinterpret_cast<void*>(std::get<0>(from));
  const int32_t dtype = std::get<1>(from);
  if (dtype < 0 || dtype > 2) throw std::invalid_argument("dtype must be 0, 1 or 2, got " + std::to_string(dtype));
  view.dtype = static_cast<DType>(dtype);
  for (int i = 0; i < N; ++i) view.stride[i] = std::get<2>(from)[i];
  return view;
}

warp::CpuOp warp_op(const std::string& name) {
  if (name == "pack_motions") return warp::CpuOp::kPackMotions;
  if (name == "compose_flow") return warp::CpuOp::kComposeFlow;
  if (name == "compose_volumes") return warp::CpuOp::kComposeVolumes;
  if (name == "motion_field") return warp::CpuOp::kMotionField;
  throw std::invalid_argument("unknown warp op '" + name + "'");
}

void run_warp(const std::string& name, const std::array<int64_t, 6>& sizes, const PyView5& feature,
              const PyView5& logits, const PyView4& occlusion, const PyView5& out, uintptr_t kp_source,
              uintptr_t kp_driving, uintptr_t linear, bool linear_per_keypoint, bool align_corners, double sigma2,
              int threads) {
  const warp::CpuOp op = warp_op(name);
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

  bool done = false;
  {
    py::gil_scoped_release release;
    if (threads < 1) threads = 1;
#ifdef FASTFACE_X86_TIERS
    if (chosen == CpuTier::kAvx512) {
      done = warp::avx512::run(op, params, threads);
    } else if (chosen == CpuTier::kAvx2) {
      done = warp::avx2::run(op, params, threads);
    } else {
      done = warp::baseline::run(op, params, threads);
    }
#else
    done = warp::baseline::run(op, params, threads);
#endif
  }
  if (!done) throw std::bad_alloc();
}

}  // namespace
}  // namespace fastface

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "The CPU kernels of fastface, free of torch: called through fastface.ops.";
  fastface::chosen = fastface::choose_tier();
  m.def("tiers", &fastface::tiers, "The instruction set tiers that can run here, lowest first.");
  m.def("tier", [] { return fastface::kCpuTierNames[static_cast<int>(fastface::chosen)]; }, "The tier in use.");
  m.def("warp", &fastface::run_warp);
}
