// The module fastface._cpu: takes pointers, sizes and strides as integers, picks the tier, and drops the GIL.
#include <cstdlib>
#include <new>
#include <vector>

#include "bind_common.h"
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

warp::CpuOp warp_op(const std::string& name) {
  if (name == "pack_motions") return warp::CpuOp::kPackMotions;
  if (name == "compose_flow") return warp::CpuOp::kComposeFlow;
  if (name == "compose_volumes") return warp::CpuOp::kComposeVolumes;
  if (name == "motion_field") return warp::CpuOp::kMotionField;
  throw std::invalid_argument("unknown warp op '" + name + "'");
}

void run_warp(const std::string& name, const warp::PyParams& arguments, int threads) {
  const warp::CpuOp op = warp_op(name);
  const warp::Params params = warp::to_params(arguments);
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
