// Errors, devices and architectures, for the launching code of every CUDA kernel.
#pragma once
#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastface::cuda {

// Throws std::runtime_error with the error's name and what was being done; clears the error, so that no later call
// inherits it.
inline void check(cudaError_t error, const std::string& doing) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  throw std::runtime_error(std::string(cudaGetErrorName(error)) + " while " + doing + ": " + cudaGetErrorString(error));
}

// Makes a device current for the lifetime of the object.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    int current = 0;
    check(cudaGetDevice(&current), "asking for the current device");
    if (current == device) return;
    check(cudaSetDevice(device), "switching to device " + std::to_string(device));
    previous_ = current;
  }
  ~DeviceGuard() {
    if (previous_ >= 0) (void)cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;  // -1: the device was current already
};

// Attributes of a device do not change; asking once keeps them off the launch path.
template <cudaDeviceAttr kAttribute>
int attribute(int device) {
  static std::array<std::atomic<int>, 64> known{};  // the value plus one, 0 while unknown
  const bool cached = device >= 0 && device < static_cast<int>(known.size());
  if (cached && known[device] > 0) return known[device] - 1;
  int value = 0;
  check(cudaDeviceGetAttribute(&value, kAttribute, device),
        "reading attribute " + std::to_string(static_cast<int>(kAttribute)) + " of device " + std::to_string(device));
  if (cached) known[device] = value + 1;
  return value;
}

inline int processors(int device) { return attribute<cudaDevAttrMultiProcessorCount>(device); }

// What this binary holds, as built: "80-real", ..., "120" (the last one as real code and as PTX).
inline std::vector<std::string> architectures() {
  std::vector<std::string> all(1);
  for (const char c : std::string(FASTFACE_CUDA_ARCHITECTURES)) {
    if (c == ',') {
      all.emplace_back();
    } else {
      all.back() += c;
    }
  }
  return all;
}

// Why this binary has no code for a device, or "" if it has.
inline std::string refuse_device(int device) {
  const int major = attribute<cudaDevAttrComputeCapabilityMajor>(device);
  const int minor = attribute<cudaDevAttrComputeCapabilityMinor>(device);
  const int capability = 10 * major + minor;
  std::string built;
  for (const std::string& name : architectures()) {
    const int number = std::atoi(name.c_str());
    const bool real = name.find("-virtual") == std::string::npos, ptx = name.find("-real") == std::string::npos;
    // Real code runs on its own and on later minor versions; PTX is compiled by the driver for anything newer.
    if ((real && number / 10 == major && number <= capability) || (ptx && number <= capability)) return "";
    built += (built.empty() ? "" : ", ") + name;
  }
  return "device " + std::to_string(device) + " has compute capability " + std::to_string(major) + "." +
         std::to_string(minor) + ", this build holds " + built;
}

}  // namespace fastface::cuda
