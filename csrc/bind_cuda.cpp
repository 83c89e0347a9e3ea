// The module fastface._cuda: takes pointers, sizes, strides, device and stream as integers, and drops the GIL. It loads
// on machines without a driver, where every call raises.
#include "bind_common.h"
#include "cuda_device.h"
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

}  // namespace
}  // namespace fastface

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA kernels of fastface, free of torch: called through fastface.ops.";
  m.def("architectures", &fastface::cuda::architectures,
        "What this binary holds: 80-real, ..., the last one with PTX.");
  m.def("warp", &fastface::run_warp);
  m.def("warp_refuse", &fastface::refuse_warp, "Why a device cannot run a call, or an empty string.");
}
