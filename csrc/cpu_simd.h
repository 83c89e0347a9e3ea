// SIMD of one ISA tier, over the vector extensions of GCC and Clang; intrinsics only where those have no word for it.
//
// A translation unit is compiled once per tier. Everything here has internal linkage and lives in the tier's namespace,
// so that the linker can never replace a function of the baseline by a copy that was compiled for a newer processor.
// For the same reason tier code uses no inline function or template of the standard library.
#pragma once
#ifndef FASTFACE_TIER
#error "compile with -DFASTFACE_TIER=baseline, avx2 or avx512"
#endif
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "tensor.h"

namespace fastface::FASTFACE_TIER {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

template <int N>
struct VecOf;
template <>
struct VecOf<4> {
  typedef float f __attribute__((vector_size(16)));
  typedef int32_t i __attribute__((vector_size(16)));
  typedef uint32_t u __attribute__((vector_size(16)));
  typedef uint16_t h __attribute__((vector_size(8)));
};
template <>
struct VecOf<8> {
  typedef float f __attribute__((vector_size(32)));
  typedef int32_t i __attribute__((vector_size(32)));
  typedef uint32_t u __attribute__((vector_size(32)));
  typedef uint16_t h __attribute__((vector_size(16)));
};
template <>
struct VecOf<16> {
  typedef float f __attribute__((vector_size(64)));
  typedef int32_t i __attribute__((vector_size(64)));
  typedef uint32_t u __attribute__((vector_size(64)));
  typedef uint16_t h __attribute__((vector_size(32)));
};
using vf = VecOf<kLanes>::f;
using vi = VecOf<kLanes>::i;
using vu = VecOf<kLanes>::u;

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// A number as a type, for lambdas that need it while compiling.
template <int V>
struct Int {
  static constexpr int value = V;
};

// How many threads share `work` values: below so many, starting threads costs more than it saves.
inline int team(int threads, int64_t work) {
  constexpr int64_t kSerialWork = 1 << 15;
  return work < kSerialWork ? 1 : threads;
}

// How many tasks a thread takes at once.
inline int64_t grain(int64_t tasks, int threads) { return most(1, tasks / (16 * static_cast<int64_t>(threads))); }

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <int N>
inline typename VecOf<N>::f splat(float value) {
  return value - typename VecOf<N>::f{};  // x - 0 is x for every x, NaN and -0 too
}

inline vi lane_index() {
  vi lane;
  for (int j = 0; j < kLanes; ++j) lane[j] = j;
  return lane;
}

// value[index[j]] in lane j.
inline vf permute(vf value, vi index) {
#if defined(__clang__)
  vf result;
  for (int j = 0; j < kLanes; ++j) result[j] = value[index[j]];
  return result;
#else
  return __builtin_shuffle(value, index);
#endif
}

template <int N>
inline typename VecOf<N>::f widen(Half, typename VecOf<N>::h bits) {
#if defined(__F16C__)
  if constexpr (N == 4) {
    long long low;
    memcpy(&low, &bits, 8);
    return (typename VecOf<N>::f)_mm_cvtph_ps(_mm_cvtsi64_si128(low));
  } else if constexpr (N == 8) {
    return (typename VecOf<N>::f)_mm256_cvtph_ps((__m128i)bits);
  } else {
#if defined(__AVX512F__)
    return (typename VecOf<N>::f)_mm512_cvtph_ps((__m256i)bits);
#endif
  }
#else
  // Rebias the exponent (15 to 127); subnormals get their value from a float subtraction instead.
  using U = typename VecOf<N>::u;
  using F = typename VecOf<N>::f;
  const U wide = __builtin_convertvector(bits, U);
  const U shifted = (wide & 0x7fffu) << 13;
  const F subnormal = (F)(shifted + (113u << 23)) - (F)(U{} + (113u << 23));
  U result = shifted + (112u << 23);
  result = shifted >= (0x7c00u << 13) ? shifted + (224u << 23) : result;  // infinity and NaN keep the top exponent
  result = shifted < (0x0400u << 13) ? (U)subnormal : result;
  return (F)(result | ((wide & 0x8000u) << 16));
#endif
}

template <int N>
inline typename VecOf<N>::f widen(BFloat16, typename VecOf<N>::h bits) {
  return (typename VecOf<N>::f)(__builtin_convertvector(bits, typename VecOf<N>::u) << 16);
}

// Round to nearest even; NaN stays NaN.
template <int N>
inline typename VecOf<N>::h narrow(BFloat16, typename VecOf<N>::f value) {
  using U = typename VecOf<N>::u;
  const U bits = (U)value;
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U quiet = (bits >> 16) | 0x40u;
  return __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, typename VecOf<N>::h);
}

template <int N>
inline typename VecOf<N>::h narrow(Half, typename VecOf<N>::f value) {
#if defined(__F16C__)
  typename VecOf<N>::h result;
  if constexpr (N == 4) {
    const long long low = _mm_cvtsi128_si64(_mm_cvtps_ph((__m128)value, _MM_FROUND_TO_NEAREST_INT));
    memcpy(&result, &low, 8);
  } else if constexpr (N == 8) {
    result = (typename VecOf<N>::h)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
  } else {
#if defined(__AVX512F__)
    result = (typename VecOf<N>::h)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
#endif
  }
  return result;
#else
  using U = typename VecOf<N>::u;
  using F = typename VecOf<N>::f;
  const U sign = (U)value & 0x80000000u;
  const U bits = (U)value ^ sign;
  const U odd = (bits >> 13) & 1u;
  const U normal = (bits - (112u << 23) + 0xfffu + odd) >> 13;  // carries into infinity by itself from 65520 on
  // Adding 0.5 aligns the last kept bit of a subnormal half with the last bit of the float: the adder rounds.
  const U subnormal = (U)((F)bits + (F)(U{} + (126u << 23))) - (126u << 23);
  const U special = bits > 0x7f800000u ? U{} + 0x7e00u : U{} + 0x7c00u;
  U result = bits < (113u << 23) ? subnormal : normal;
  result = bits >= (143u << 23) ? special : result;
  return __builtin_convertvector(result | (sign >> 16), typename VecOf<N>::h);
#endif
}

// N contiguous elements of any storage type as floats.
template <int N, class T>
inline typename VecOf<N>::f load(const T* from) {
  if constexpr (sizeof(T) == 4) {
    typename VecOf<N>::f value;
    memcpy(&value, from, sizeof value);
    return value;
  } else {
    typename VecOf<N>::h bits;
    memcpy(&bits, from, sizeof bits);
    return widen<N>(T{}, bits);
  }
}

template <int N, class T>
inline void store(T* to, typename VecOf<N>::f value) {
  if constexpr (sizeof(T) == 4) {
    memcpy(to, &value, sizeof value);
  } else {
    const typename VecOf<N>::h bits = narrow<N>(T{}, value);
    memcpy(to, &bits, sizeof bits);
  }
}

// A store past the caches, for whole lines that nobody reads soon: it saves reading them first. `to` is aligned to a
// full vector; fence_streams() ends a run of them. A plain store where there is no such instruction.
template <int N, class T>
inline void stream(T* to, typename VecOf<N>::f value) {
#if defined(__SSE2__)
  if constexpr (sizeof(T) == 4) {
    if constexpr (N == 4) return _mm_stream_ps(to, (__m128)value);
#if defined(__AVX2__)
    if constexpr (N == 8) return _mm256_stream_ps(to, (__m256)value);
#endif
#if defined(__AVX512F__)
    if constexpr (N == 16) return _mm512_stream_ps(to, (__m512)value);
#endif
  } else {
    const typename VecOf<N>::h bits = narrow<N>(T{}, value);
    if constexpr (N == 8) return _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)bits);
#if defined(__AVX2__)
    if constexpr (N == 16) return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)bits);
#endif
  }
#endif
  store<N>(to, value);
}

inline void fence_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// `count` < N elements; the other lanes are zero. Never touches memory beyond them.
template <int N, class T>
inline typename VecOf<N>::f load_part(const T* from, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (N == 16 && sizeof(T) == 4) {
    return (typename VecOf<N>::f)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1u), from);
  }
#endif
  T part[N] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return load<N>(part);
}

template <int N, class T>
inline void store_part(T* to, typename VecOf<N>::f value, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (N == 16 && sizeof(T) == 4) {
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1u), (__m512)value);
    return;
  }
#endif
  T part[N];
  store<N>(part, value);
  for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

template <class T>
inline float to_float(T value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else {
    T part[4] = {value};
    return load<4>(part)[0];
  }
}

template <class T>
inline T from_float(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else {
    T part[4];
    store<4>(part, splat<4>(value));
    return part[0];
  }
}

inline vf floor_(vf value) {  // |value| < 2^31 or NaN
#if defined(__AVX512F__)
  return (vf)_mm512_roundscale_ps((__m512)value, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (vf)_mm256_floor_ps((__m256)value);
#else
  const vi nan = value != value;
  const vf truncated = __builtin_convertvector(__builtin_convertvector(nan ? vf{} : value, vi), vf);
  const vf result = truncated > value ? truncated - 1.0f : truncated;
  return nan ? value : result;
#endif
}

// a * b + c. Written out in the hot loops, so that it does not hang on the contraction mode of the compiler.
template <int N>
inline typename VecOf<N>::f fma_(typename VecOf<N>::f a, typename VecOf<N>::f b, typename VecOf<N>::f c) {
#if defined(__FMA__)
  using F = typename VecOf<N>::f;
  if constexpr (N == 4) return (F)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
  if constexpr (N == 8) return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#endif
#if defined(__AVX512F__)
  if constexpr (N == 16) return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#endif
  return a * b + c;
}
inline vf fma_(vf a, vf b, vf c) { return fma_<kLanes>(a, b, c); }

// The larger and the smaller one; b where one is NaN.
inline vf max_(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

inline vf min_(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// -|x|, of NaN a NaN.
inline vf minus_abs(vf x) { return (vf)((vu)x | 0x80000000u); }

// e^x for x up to 88.72, within about one unit in the last place. Below 2^-126 it is zero; NaN stays NaN.
inline vf exp_(vf x) {
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const vf biased = fma_(x, vf{} + 1.44269504088896341f, vf{} + 12582912.0f);
  const vf n = biased - 12582912.0f;
  vf r = fma_(n, vf{} - 0.693359375f, x);
  r = fma_(n, vf{} + 2.12194440e-4f, r);  // ln 2 in two parts, the first with few bits, so that n * part is exact
  vf p = fma_(r, vf{} + 1.9875691500e-4f, vf{} + 1.3981999507e-3f);
  p = fma_(p, r, vf{} + 8.3334519073e-3f);
  p = fma_(p, r, vf{} + 4.1665795894e-2f);
  p = fma_(p, r, vf{} + 1.6666665459e-1f);
  p = fma_(p, r, vf{} + 5.0000001201e-1f);
  p = fma_(p, r * r, r) + 1.0f;
#if defined(__AVX512F__)
  const vf result = (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const vf result = (vf)((vu)p + ((vu)biased << 23));
#endif
  return x < -87.33654f ? vf{} : result;  // ln 2^-126
}

// In-register transpose of an N x N block: log2(N) rounds of interleaving the first half of the rows with the second.
template <int N>
inline void transpose(typename VecOf<N>::f (&row)[N]) {
  using F = typename VecOf<N>::f;
  using I = typename VecOf<N>::i;
  I low, high;
  for (int i = 0; i < N; ++i) {
    low[i] = i / 2 + (i % 2) * N;
    high[i] = N / 2 + i / 2 + (i % 2) * N;
  }
  for (int round = 1; round < N; round *= 2) {
    F next[N];
    for (int i = 0; i < N / 2; ++i) {
#if defined(__clang__)
      for (int j = 0; j < N; ++j) {
        next[2 * i][j] = j % 2 ? row[i + N / 2][j / 2] : row[i][j / 2];
        next[2 * i + 1][j] = j % 2 ? row[i + N / 2][N / 2 + j / 2] : row[i][N / 2 + j / 2];
      }
#else
      next[2 * i] = __builtin_shuffle(row[i], row[i + N / 2], low);
      next[2 * i + 1] = __builtin_shuffle(row[i], row[i + N / 2], high);
#endif
    }
    for (int i = 0; i < N; ++i) row[i] = next[i];
  }
}

// Reads `count` elements, `stride` apart, of a tensor of any dtype.
template <class T>
inline void read_row(const T* from, int64_t stride, int64_t count, float* to) {
  int64_t i = 0;
  if (stride == 1) {
    for (; i + kLanes <= count; i += kLanes) store<kLanes>(to + i, load<kLanes>(from + i));
    if (i < count) store<kLanes>(to + i, load_part<kLanes>(from + i, count - i));
    return;
  }
  if (stride == 0) {
    const vf value = splat<kLanes>(to_float(*from));
    for (; i < count; i += kLanes) store<kLanes>(to + i, value);
    return;
  }
  if constexpr (sizeof(T) == 4) {
    for (; i < count; ++i) to[i] = from[i * stride];
  } else {
    T part[kLanes];
    for (; i + kLanes <= count; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) part[j] = from[(i + j) * stride];
      store<kLanes>(to + i, load<kLanes>(part));
    }
    for (; i < count; ++i) to[i] = to_float(from[i * stride]);
  }
}

// As above with the dtype of a view; `to` has room for `count` rounded up to kLanes.
inline void read_row(const void* data, DType dtype, int64_t offset, int64_t stride, int64_t count, float* to) {
  by_dtype<Half, BFloat16>(
      dtype, [&](auto zero) { read_row(static_cast<const decltype(zero)*>(data) + offset, stride, count, to); });
}

template <class T>
inline void write_row(const float* from, T* to, int64_t stride, int64_t count) {
  int64_t i = 0;
  if (stride == 1) {
    for (; i + kLanes <= count; i += kLanes) store<kLanes>(to + i, load<kLanes>(from + i));
    if (i < count) store_part<kLanes>(to + i, load<kLanes>(from + i), count - i);
    return;
  }
  if constexpr (sizeof(T) == 4) {
    for (; i < count; ++i) to[i * stride] = from[i];
  } else {
    T part[kLanes];
    for (; i < count; i += kLanes) {
      const int64_t n = count - i < kLanes ? count - i : kLanes;
      store<kLanes>(part, load<kLanes>(from + i));
      for (int64_t j = 0; j < n; ++j) to[(i + j) * stride] = part[j];
    }
  }
}

inline void write_row(const float* from, void* data, DType dtype, int64_t offset, int64_t stride, int64_t count) {
  by_dtype<Half, BFloat16>(
      dtype, [&](auto zero) { write_row(from, static_cast<decltype(zero)*>(data) + offset, stride, count); });
}

// Memory aligned to a cache line; `data` is null where there is none left.
struct Buffer {
  char* data = nullptr;
  explicit Buffer(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, bytes + 64) == 0) data = static_cast<char*>(memory);
  }
  ~Buffer() { free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

}  // namespace
}  // namespace fastface::FASTFACE_TIER
