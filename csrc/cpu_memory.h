// How the operating system backs the memory that kernels write.
#pragma once
#include <cstdint>

#include "tensor.h"
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastface {

// Asks for pages of 2 MiB under a large output. Fresh memory is mapped page by page as it is first written, and at 4
// KiB that costs more than computing what is written. Only whole large pages inside the tensor are meant, so nothing
// grows.
template <int N>
void advise_large_pages(const View<N>& out, const int64_t (&sizes)[N]) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  int64_t elements = 1, span = 1;
  for (int i = 0; i < N; ++i) {
    elements *= sizes[i];
    span += (sizes[i] - 1) * out.stride[i];
  }
  if (out.data == nullptr || span != elements) return;  // a slice of something else
  const uintptr_t begin = reinterpret_cast<uintptr_t>(out.data);
  const uintptr_t end = begin + static_cast<uintptr_t>(elements) * (out.dtype == DType::kFloat32 ? 4 : 2);
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: failing is fine
#else
  (void)out;
  (void)sizes;
#endif
}

}  // namespace fastface
