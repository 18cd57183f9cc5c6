// The one header that knows host from device. Everything else is written once, in terms of what this file offers.
//
// Host: compiled once for each instruction set (VTRAIN_VARIANT); a block is an OpenMP thread and a warp's 32 lanes are a
// loop. Device: compiled by NVRTC; a block is a thread block, a lane is a thread.
//
// All templates and functions of the kernels stand between VT_BEGIN and VT_END, in a namespace of the variant: the linker
// would otherwise be free to use one variant's copy of an inline function in another.
#pragma once

#define VT_CAT2(a, b) a##b
#define VT_CAT(a, b) VT_CAT2(a, b)

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define VT_DEVICE 1
#define VTRAIN_VARIANT device
#define VT_FN __device__ __forceinline__
#define VT_EACH(q) for (int q = 0; q < WARP; q++)
using int8_t = signed char;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
using size_t = decltype(sizeof(0));
#else
#define VT_DEVICE 0
#ifndef VTRAIN_VARIANT
#define VTRAIN_VARIANT generic
#endif
#define VT_FN inline __attribute__((always_inline))
// Over the lanes that a thread holds, which never touch each other's elements: one vector loop.
#define VT_EACH(q) _Pragma("GCC ivdep") for (int q = 0; q < WARP; q++)
#include <omp.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#endif

#define VT_BEGIN namespace vtrain { namespace VT_CAT(in_, VTRAIN_VARIANT) {
#define VT_END } }

VT_BEGIN

VT_FN uint32_t as_bits(float x) {
#if VT_DEVICE
  return __float_as_uint(x);
#else
  uint32_t b; std::memcpy(&b, &x, 4); return b;
#endif
}
VT_FN uint64_t as_bits(double x) {
#if VT_DEVICE
  return static_cast<uint64_t>(__double_as_longlong(x));
#else
  uint64_t b; std::memcpy(&b, &x, 8); return b;
#endif
}
VT_FN float as_float(uint32_t b) {
#if VT_DEVICE
  return __uint_as_float(b);
#else
  float x; std::memcpy(&x, &b, 4); return x;
#endif
}
VT_FN double as_double(uint64_t b) {
#if VT_DEVICE
  return __longlong_as_double(static_cast<long long>(b));
#else
  double x; std::memcpy(&x, &b, 8); return x;
#endif
}

// A warp's 32 lanes: a loop on the host, threads on a device. A thread holds WARP of a warp's values and HELD of a 16 x 16
// tile's; the q-th that it holds is that of lane lane_of(q), or of (held_row(q), held_column(q)).
constexpr int LANES = 32;
#if VT_DEVICE
constexpr int WARP = 1, HELD = 8;
constexpr bool VECTORS = false;
VT_FN int lane_of(int) { return static_cast<int>(threadIdx.x % LANES); }
VT_FN int held_row(int q) { return static_cast<int>(threadIdx.x % LANES) / 8 * 4 + q / 2; }
VT_FN int held_column(int q) { return static_cast<int>(threadIdx.x % LANES) % 8 * 2 + q % 2; }
#else
constexpr int WARP = LANES, HELD = 256;
constexpr bool VECTORS = true;  // neighbours in memory are worth a loop of their own
VT_FN constexpr int lane_of(int q) { return q; }
VT_FN constexpr int held_row(int q) { return q / 16; }
VT_FN constexpr int held_column(int q) { return q % 16; }
#endif

// The last lane that this thread holds: what happens once for each 32 lanes happens there.
VT_FN int last_lane() { return lane_of(WARP - 1); }

// f(q) for each held lane below n. The host has a loop without a condition for whole warps.
template <class F> VT_FN void each_lane(int64_t n, const F& f) {
#if VT_DEVICE
  if (lane_of(0) < n) f(0);
#else
  if (n >= LANES) VT_EACH(q) f(q);
  else VT_EACH(q) if (q < n) f(q);
#endif
}

// The tree over a warp's values: f(v[l], v[l ^ 16]), then 8, 4, 2, 1; f commutes. Every lane gets the result.
template <class T, class F> VT_FN T fold(const T (&held)[WARP], const F& f) {
#if VT_DEVICE
  T x = held[0];
  for (int half = LANES / 2; half; half /= 2) x = f(x, __shfl_xor_sync(0xffffffffu, x, half));
  return x;
#else
  T x[LANES];
  for (int q = 0; q < LANES; q++) x[q] = held[q];
  for (int q = 0; q < 16; q++) x[q] = f(x[q], x[q + 16]);
  for (int q = 0; q < 8; q++) x[q] = f(x[q], x[q + 8]);
  for (int q = 0; q < 4; q++) x[q] = f(x[q], x[q + 4]);
  for (int q = 0; q < 2; q++) x[q] = f(x[q], x[q + 2]);
  return f(x[0], x[1]);
#endif
}

// Of the lanes below `lane` those whose flag is set, and of all 32: a compaction's positions, in order.
struct Ranks {
  uint32_t flags;
  VT_FN int below(int lane) const { return count(flags & ((1u << lane) - 1u)); }
  VT_FN int all() const { return count(flags); }
  VT_FN static int count(uint32_t x) {
#if VT_DEVICE
    return __popc(x);
#else
    return __builtin_popcount(x);
#endif
  }
};
VT_FN Ranks ranks(const bool (&held)[WARP]) {
#if VT_DEVICE
  return {__ballot_sync(0xffffffffu, held[0])};
#else
  uint32_t flags = 0;
  for (int q = 0; q < LANES; q++) flags |= static_cast<uint32_t>(held[q]) << q;
  return {flags};
#endif
}

VT_FN double infinity() { return as_double(0x7ff0000000000000ull); }
VT_FN double magnitude_of(double x) { return as_double(as_bits(x) & 0x7fffffffffffffffull); }
VT_FN float magnitude_of(float x) { return as_float(as_bits(x) & 0x7fffffffu); }

// The upper half of a product of 64-bit integers, and how many leading bits of x, not 0, are zero.
VT_FN uint64_t multiply_high(uint64_t a, uint64_t b) {
#if VT_DEVICE
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}
VT_FN int leading_zeros(uint64_t x) {
#if VT_DEVICE
  return __clzll(static_cast<long long>(x));
#else
  return __builtin_clzll(x);
#endif
}

// Square roots, correctly rounded (IEEE 754).
VT_FN double root(double x) {
#if VT_DEVICE
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

// Whether a fused multiply-add is one instruction.
#if VT_DEVICE || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool FUSES = true;
#else
constexpr bool FUSES = false;
#endif

// Fused multiply-add, one rounding.
VT_FN double fused(double a, double b, double c) {
#if VT_DEVICE
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);  // one instruction, or the C library's function, which rounds once too (C11 7.12.13.1)
#endif
}
VT_FN float fused(float a, float b, float c) {
#if VT_DEVICE
  return __fmaf_rn(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  // The product is exact in double. The sum is rounded to odd, so that rounding it once more, to float, is correct
  // (Boldo and Melquiond 2008: 53 >= 24 + 2 bits): where the sum is inexact and its last bit even, the neighbour on the
  // error's side is the odd one.
  const double p = static_cast<double>(a) * static_cast<double>(b), w = static_cast<double>(c);
  const double s = p + w;
  const double t = s - p;
  const double e = (p - (s - t)) + (w - t);
  const uint64_t bits = as_bits(s);
  const bool inexact = (e > 0) | (e < 0);
  const uint64_t away = ((e < 0) == (s < 0)) ? bits + 1 : bits - 1;
  return static_cast<float>(as_double((inexact & ((bits & 1) == 0)) ? away : bits));
#endif
}

VT_END
