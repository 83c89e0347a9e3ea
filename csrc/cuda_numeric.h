// The 16-bit types and conversions of the CUDA kernels. A host compiler may read this too: the tests run the kernels'
// arithmetic on the CPU.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define FASTFACE_HD __host__ __device__ __forceinline__
#define FASTFACE_UNROLL _Pragma("unroll")
#define FASTFACE_PRAGMA(text) _Pragma(#text)
#define FASTFACE_UNROLL_BY(times) FASTFACE_PRAGMA(unroll times)
#else
#define FASTFACE_HD inline
#define FASTFACE_UNROLL
#define FASTFACE_UNROLL_BY(times)
#endif

namespace fastface::cuda {

#ifdef __CUDACC__
using Half = __half;
using BFloat16 = __nv_bfloat16;
FASTFACE_HD float to_float(Half value) { return __half2float(value); }
FASTFACE_HD float to_float(BFloat16 value) { return __bfloat162float(value); }
FASTFACE_HD void assign(Half& to, float value) { to = __float2half_rn(value); }
FASTFACE_HD void assign(BFloat16& to, float value) { to = __float2bfloat16_rn(value); }
#else
using Half = _Float16;
struct BFloat16 {
  uint16_t bits;
};
inline float to_float(Half value) { return static_cast<float>(value); }
inline float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
inline void assign(Half& to, float value) { to = static_cast<Half>(value); }
inline void assign(BFloat16& to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const bool nan = value != value;
  to.bits = nan ? 0x7fff : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#endif
FASTFACE_HD float to_float(float value) { return value; }
FASTFACE_HD void assign(float& to, float value) { to = value; }

// N values that one instruction loads or stores.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

// The same held in whole registers, since the compiler would give each value of 16 bits one of its own.
template <class T, int N>
struct alignas(sizeof(T) * N) Words {
  uint32_t word[sizeof(T) * N / 4];

  FASTFACE_HD float get(int i) const {
    T value;
    if constexpr (sizeof(T) == 4) {
      memcpy(&value, &word[i], sizeof(T));
    } else {
      const uint16_t bits = static_cast<uint16_t>(word[i / 2] >> (i % 2 * 16));
      memcpy(&value, &bits, sizeof(T));
    }
    return to_float(value);
  }

  // Sets all values.
  FASTFACE_HD static Words of(const T (&values)[N]) {
    Words words;
    memcpy(&words, values, sizeof(values));
    return words;
  }
};

template <class T>
struct Words<T, 1> {
  T value;

  FASTFACE_HD float get(int) const { return to_float(value); }
  FASTFACE_HD static Words of(const T (&values)[1]) { return {values[0]}; }
};

// Hides from the compiler what it knows of a value, so that nothing derived from it stays in registers.
template <class T>
FASTFACE_HD void forget([[maybe_unused]] T& value) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) % 4 == 0) {
    uint32_t words[sizeof(T) / 4];
    memcpy(words, &value, sizeof(T));
    FASTFACE_UNROLL
    for (uint32_t& word : words) asm volatile("" : "+r"(word));
    memcpy(&value, words, sizeof(T));
  }
#endif
}

FASTFACE_HD bool is_nan(float value) { return value != value; }

}  // namespace fastface::cuda
