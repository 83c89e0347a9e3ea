// The module fastface._cuda: takes pointers, sizes, strides, device and stream as integers, and drops the GIL. It loads
// on machines without a driver, where every call raises.
#include "bind_common.h"
#include "cuda_device.h"
#include "spade_cuda.h"
#include "triplane_cuda.h"
#include "warp_cuda.h"

namespace py = pybind11;

namespace fastface {
namespace {

void run_warp(const std::string& op, const warp::PyParams& arguments, int device, uintptr_t stream) {
  const warp::Params params = warp::to_params(arguments);
  py::gil_scoped_release release;
  warp::cuda_run(op, params, device, stream);
}

std::string refuse_warp(const std::string& op, const warp::PyParams& arguments, int device) {
  return warp::cuda_refuse(op, warp::to_params(arguments), device);
}

void run_spade(const std::string& op, const spade::PyParams& arguments, uintptr_t scratch, int device,
               uintptr_t stream) {
  const spade::Params params = spade::to_params(arguments);
  py::gil_scoped_release release;
  spade::cuda_run(op, params, to_pointer<float>(scratch), device, stream);
}

std::string refuse_spade(const std::string& op, const spade::PyParams& arguments, int device) {
  return spade::cuda_refuse(op, spade::to_params(arguments), device);
}

int64_t scratch_spade(const std::string& op, const spade::PyParams& arguments, int device) {
  return spade::cuda_scratch(op, spade::to_params(arguments), device);
}

void run_triplane(const std::string& op, const triplane::PyParams& arguments, int device, uintptr_t stream) {
  const triplane::Params params = triplane::to_params(arguments);
  py::gil_scoped_release release;
  triplane::cuda_run(op, params, device, stream);
}

std::string refuse_triplane(const std::string& op, const triplane::PyParams& arguments, int device) {
  return triplane::cuda_refuse(op, triplane::to_params(arguments), device);
}

}  // namespace
}  // namespace fastface

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA kernels of fastface, free of torch: called through fastface.ops.";
  m.def("architectures", &fastface::cuda::architectures,
        "What this binary holds: 80-real, ..., the last one with PTX.");
  m.def("warp", &fastface::run_warp);
  m.def("warp_refuse", &fastface::refuse_warp, "Why a device cannot run a call, or an empty string.");
  m.def("spade", &fastface::run_spade);
  m.def("spade_refuse", &fastface::refuse_spade, "Why a device cannot run a call, or an empty string.");
  m.def("spade_scratch", &fastface::scratch_spade, "How many float32 of scratch a call needs.");
  m.def("triplane", &fastface::run_triplane);
  m.def("triplane_refuse", &fastface::refuse_triplane, "Why a device cannot run a call, or an empty string.");
}
