#include "cpu_features.h"

#ifdef FASTFACE_X86_TIERS
#include <cpuid.h>

#include <cstdint>
#endif

namespace fastface {

#ifdef FASTFACE_X86_TIERS
namespace {

// XCR0: the register files that the operating system saves on a context switch.
uint64_t saved_registers() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

bool has(uint32_t word, int bit) { return word >> bit & 1; }

}  // namespace

CpuTier best_cpu_tier() {
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return CpuTier::kBaseline;
  const bool fma = has(ecx, 12), osxsave = has(ecx, 27), avx = has(ecx, 28), f16c = has(ecx, 29);
  if (!(fma && osxsave && avx && f16c)) return CpuTier::kBaseline;
  const uint64_t saved = saved_registers();
  constexpr uint64_t kYmm = 0x6, kZmm = 0xe6;  // SSE and AVX state; with it opmask, ZMM0-15 high, ZMM16-31
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return CpuTier::kBaseline;
  if ((saved & kYmm) != kYmm || !has(ebx, 5)) return CpuTier::kBaseline;
  const bool avx512 = has(ebx, 16) && has(ebx, 17) && has(ebx, 30) && has(ebx, 31);  // F, DQ, BW, VL
  return avx512 && (saved & kZmm) == kZmm ? CpuTier::kAvx512 : CpuTier::kAvx2;
}
#else
CpuTier best_cpu_tier() { return CpuTier::kBaseline; }
#endif

}  // namespace fastface
