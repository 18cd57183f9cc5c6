// Device: see tile/arithmetic.hpp.
#pragma once
#include "../config.hpp"

VT_BEGIN

VT_FN uint32_t as_bits(float x) { return __float_as_uint(x); }
VT_FN uint64_t as_bits(double x) { return static_cast<uint64_t>(__double_as_longlong(x)); }
VT_FN float as_float(uint32_t b) { return __uint_as_float(b); }
VT_FN double as_double(uint64_t b) { return __longlong_as_double(static_cast<long long>(b)); }

VT_FN uint64_t multiply_high(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
VT_FN int leading_zeros(uint64_t x) { return __clzll(static_cast<long long>(x)); }
VT_FN int count_ones(uint32_t x) { return __popc(x); }

VT_FN double root(double x) { return __dsqrt_rn(x); }
VT_FN float root(float x) { return __fsqrt_rn(x); }

constexpr bool FUSES = true;
VT_FN double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
VT_FN float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }

VT_END
