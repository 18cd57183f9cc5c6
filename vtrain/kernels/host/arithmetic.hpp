// Host: see tile/arithmetic.hpp.
#pragma once
#include <cstring>

#include "../config.hpp"

VT_BEGIN

VT_FN uint32_t as_bits(float x) { uint32_t b; std::memcpy(&b, &x, 4); return b; }
VT_FN uint64_t as_bits(double x) { uint64_t b; std::memcpy(&b, &x, 8); return b; }
VT_FN float as_float(uint32_t b) { float x; std::memcpy(&x, &b, 4); return x; }
VT_FN double as_double(uint64_t b) { double x; std::memcpy(&x, &b, 8); return x; }

VT_FN uint64_t multiply_high(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
VT_FN int leading_zeros(uint64_t x) { return __builtin_clzll(x); }
VT_FN int count_ones(uint32_t x) { return __builtin_popcount(x); }

VT_FN double root(double x) { return __builtin_sqrt(x); }
VT_FN float root(float x) { return __builtin_sqrtf(x); }

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool FUSES = true;
#else
constexpr bool FUSES = false;
#endif

VT_FN double fused(double a, double b, double c) {
  return __builtin_fma(a, b, c);  // one instruction, or the C library's function, which rounds once too (C11 7.12.13.1)
}
VT_FN float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
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
