// Which instruction set tiers this processor and operating system can run.
#pragma once

namespace fastface {

enum class CpuTier { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };
constexpr int kCpuTiers = 3;
constexpr const char* kCpuTierNames[kCpuTiers] = {"baseline", "avx2", "avx512"};

// The highest tier that was compiled in, that the processor has, and whose registers the operating system saves.
CpuTier best_cpu_tier();

}  // namespace fastface
