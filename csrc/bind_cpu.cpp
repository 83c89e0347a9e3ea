// The module fastface._cpu: takes pointers, sizes and strides as integers, picks the tier, and drops the GIL.
#include <cstdlib>
#include <initializer_list>
#include <new>
#include <utility>
#include <vector>

#include "bind_common.h"
#include "cpu_features.h"
#include "cpu_memory.h"
#include "raster_cpu.h"
#include "spade_cpu.h"
#include "tiled_conv_tier.h"
#include "triplane_cpu.h"
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

template <typename Op>
Op find_op(const std::string& name, std::initializer_list<std::pair<const char*, Op>> ops) {
  for (const auto& [known, op] : ops) {
    if (name == known) return op;
  }
  throw std::invalid_argument("unknown op '" + name + "'");
}

// Calls `run` of the chosen tier of a hot path without the GIL: run_tier(threads, avx512::run, avx2::run,
// baseline::run, arguments...).
template <typename Run, typename... Arguments>
void run_tier(int threads, [[maybe_unused]] Run avx512, [[maybe_unused]] Run avx2, Run baseline,
              const Arguments&... arguments) {
  Run run = baseline;
#ifdef FASTFACE_X86_TIERS
  if (chosen == CpuTier::kAvx512) run = avx512;
  if (chosen == CpuTier::kAvx2) run = avx2;
#endif
  bool done = false;
  {
    py::gil_scoped_release release;
    done = run(arguments..., threads < 1 ? 1 : threads);
  }
  if (!done) throw std::bad_alloc();
}

#ifdef FASTFACE_X86_TIERS
#define FASTFACE_TIERS(room, function) room::avx512::function, room::avx2::function, room::baseline::function
#else
#define FASTFACE_TIERS(room, function) room::baseline::function, room::baseline::function, room::baseline::function
#endif

void run_warp(const std::string& name, const warp::PyParams& arguments, int threads) {
  using warp::CpuOp;
  const CpuOp op = find_op<CpuOp>(name, {{"pack_motions", CpuOp::kPackMotions},
                                         {"compose_flow", CpuOp::kComposeFlow},
                                         {"compose_volumes", CpuOp::kComposeVolumes},
                                         {"motion_field", CpuOp::kMotionField}});
  const warp::Params params = warp::to_params(arguments);
  if (op != CpuOp::kMotionField) {
    const int64_t channels =
        op == CpuOp::kPackMotions ? (params.keypoints + 1) * (params.channels + 1) : params.channels;
    advise_large_pages<5>(params.out, {params.batch, channels, params.depth, params.height, params.width});
  }
  run_tier(threads, FASTFACE_TIERS(warp, run), op, params);
}

void run_spade(const std::string& name, const spade::PyParams& arguments, int threads) {
  using spade::CpuOp;
  const CpuOp op =
      find_op<CpuOp>(name, {{"modulated_norm", CpuOp::kModulatedNorm}, {"instance_stats", CpuOp::kInstanceStats}});
  const spade::Params params = spade::to_params(arguments);
  if (op == CpuOp::kModulatedNorm) {
    advise_large_pages<4>(params.out, {params.batch, params.channels, params.height, params.width});
  }
  run_tier(threads, FASTFACE_TIERS(spade, run), op, params);
}

void run_triplane(const std::string& name, const triplane::PyParams& arguments, int threads) {
  using triplane::CpuOp;
  const CpuOp op =
      find_op<CpuOp>(name, {{"sample_planes", CpuOp::kSamplePlanes}, {"render_planes", CpuOp::kRenderPlanes}});
  run_tier(threads, FASTFACE_TIERS(triplane, run), op, triplane::to_params(arguments));
}

void run_raster(const raster::PyParams& arguments, int threads) {
  run_tier(threads, FASTFACE_TIERS(raster, run), raster::to_params(arguments));
}

// (batch, depth, height, width, channels), (outputs, out_height, out_width), (taps, tile, pad), x, its strides, out,
// its strides, filters, bias, activate, slope.
using TiledConvParams =
    std::tuple<std::array<int64_t, 5>, std::array<int64_t, 3>, std::array<int64_t, 3>, uintptr_t,
               std::array<int64_t, 5>, uintptr_t, std::array<int64_t, 5>, uintptr_t, uintptr_t, bool, double>;

void run_tiled_conv(const TiledConvParams& arguments, int threads) {
  const auto& [input, output, how, x, x_stride, out, out_stride, filters, bias, activate, slope] = arguments;
  tiled_conv::Params params;
  params.batch = input[0];
  params.depth = input[1];
  params.height = input[2];
  params.width = input[3];
  params.channels = input[4];
  params.outputs = output[0];
  params.out_height = output[1];
  params.out_width = output[2];
  params.taps = how[0];
  params.tile = how[1];
  params.pad = how[2];
  params.x = to_pointer<const float>(x);
  params.out = to_pointer<float>(out);
  for (int i = 0; i < 5; ++i) {
    params.x_stride[i] = x_stride[i];
    params.out_stride[i] = out_stride[i];
  }
  params.filters = to_pointer<const float>(filters);
  params.bias = to_pointer<const float>(bias);
  params.activate = activate;
  params.slope = static_cast<float>(slope);
  View<5> written;
  written.data = params.out;
  written.dtype = DType::kFloat32;
  for (int i = 0; i < 5; ++i) written.stride[i] = params.out_stride[i];
  advise_large_pages<5>(written, {params.batch, params.outputs, params.depth, params.out_height, params.out_width});
  run_tier(threads, FASTFACE_TIERS(tiled_conv, convolve), params);
}

}  // namespace
}  // namespace fastface

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "The CPU kernels of fastface, free of torch: called through fastface.ops.";
  fastface::chosen = fastface::choose_tier();
  m.def("tiers", &fastface::tiers, "The instruction set tiers that can run here, lowest first.");
  m.def("tier", [] { return fastface::kCpuTierNames[static_cast<int>(fastface::chosen)]; }, "The tier in use.");
  m.def("warp", &fastface::run_warp);
  m.def("spade", &fastface::run_spade);
  m.def("raster", &fastface::run_raster);
  m.def("tiled_conv", &fastface::run_tiled_conv);
  m.def("triplane", &fastface::run_triplane);
}
