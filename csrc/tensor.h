// Plain views of tensors as the bindings receive them: a pointer, sizes and strides. No framework is included here.
#pragma once
#include <cstdint>

namespace fastface {

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// `visit` called with a zero of the type that a tensor holds; how a device spells the 16-bit types is its own.
template <class Half, class BFloat16, class Visit>
auto by_dtype(DType dtype, const Visit& visit) {
  if (dtype == DType::kFloat16) return visit(Half{});
  if (dtype == DType::kBFloat16) return visit(BFloat16{});
  return visit(float{});
}

// N strides, in elements. The sizes live in the parameter struct of the kernel, since its tensors share them.
template <int N>
struct View {
  void* data;
  DType dtype;
  int64_t stride[N];
};

}  // namespace fastface
