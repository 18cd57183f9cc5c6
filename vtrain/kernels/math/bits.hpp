// What the elementary functions share: numbers taken apart and put together by their bits, and polynomials.
//
// The functions are branch-free: special cases are selected after everything is computed, so that a compiler can run a
// loop of them in vector registers. Conversions between integers and doubles add a large number whose last place is one
// (before AVX-512 there is no instruction for 64-bit integers). Every NaN that a function returns has the same bits.
//
// All polynomial coefficients come from one method: the polynomial through f at the d + 1 Chebyshev nodes of the stated
// interval, found with mpmath at 260 bits by divided differences, expanded in powers and rounded to double. The error
// given at each polynomial is the measured largest one after that rounding.
#pragma once
#include "../tile/arithmetic.hpp"

VT_BEGIN

VT_FN double quiet_nan() { return as_double(0x7ff8000000000000ull); }

// The magnitude of one number with the sign of another.
VT_FN double with_sign(double magnitude, double sign) {
  return as_double(as_bits(magnitude_of(magnitude)) | (as_bits(sign) & 0x8000000000000000ull));
}

// The nearest integer (ties to even) to |x| < 2^51, as a double and in two's complement.
struct Nearest {
  double value;
  uint64_t integer;
};
VT_FN Nearest nearest(double x) {
  const double shifted = x + 0x1.8p52;
  return {shifted - 0x1.8p52, as_bits(shifted) - 0x4338000000000000ull};
}

// 2^(biased - 1023) for 0 < biased < 2047.
VT_FN double power_of_two(uint64_t biased) { return as_double(biased << 52); }

// y 2^n for -2044 <= n <= 1024 and 1/2 <= |y| < 2, with one rounding: the first product is exact.
VT_FN double scaled(double y, uint64_t n) {
  const uint64_t sum = n + 2046, half = sum >> 1;
  return (y * power_of_two(half)) * power_of_two(sum - half);
}

// x = 2^n m with sqrt(1/2) <= m < sqrt(2), up to one unit in the last place; x positive and finite.
struct Binary {
  double n, m;
};
VT_FN Binary binary(double x) {
  const uint64_t root_half = 0x3fe6a09e667f3bcdull;
  const bool subnormal = x < 0x1p-1022;
  const uint64_t b = as_bits(subnormal ? x * 0x1p54 : x) + (0x3ff0000000000000ull - root_half);
  const double biased = as_double((b >> 52) | 0x4330000000000000ull) - 0x1p52;
  return {biased - (subnormal ? 1077.0 : 1023.0), as_double((b & 0x000fffffffffffffull) + root_half)};
}

// The double next to x, away from 0 or toward it: f(x) rounded, where it is x but for terms too small for a double, so that
// the rounding of a result to fewer bits goes to the right side. Zeros and what has no neighbours nearby stay.
VT_FN double next_outward(double x) { return as_double(as_bits(x) + (magnitude_of(x) > 0x1p-1000)); }
VT_FN double next_inward(double x) { return as_double(as_bits(x) - (magnitude_of(x) > 0x1p-1000)); }

VT_FN double horner(double, double c) { return c; }
template <typename... C>
VT_FN double horner(double x, double c, C... higher) { return c + x * horner(x, higher...); }

VT_END
