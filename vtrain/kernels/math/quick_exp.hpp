// exp, tanh and the logistic function of a float: float64 arithmetic to about one unit in its last place, then one rounding.
//
// No step is exact for its own sake. That the floats are correctly rounded is shown by trying all of them
// (benchmarks/exhaust.py), with fused operations and without; after any change here that must be done again.
#pragma once
#include "bits.hpp"

VT_BEGIN

VT_FN float quiet_nan_float() { return as_float(0x7fc00000u); }

VT_FN float with_sign(float magnitude, float sign) {
  return as_float((as_bits(magnitude) & 0x7fffffffu) | (as_bits(sign) & 0x80000000u));
}

VT_FN double quick_horner(double, double c) { return c; }
template <typename... C>
VT_FN double quick_horner(double x, double c, C... higher) { return multiply_add(x, quick_horner(x, higher...), c); }

// x = n ln 2 + r, |r| <= 0.3467: 2^n and e^r - 1 (degree 11, error 2^-55.8). |x| at most 160. A NaN stays one.
struct QuickExp {
  uint64_t n;    // 2^n is power_of_two(1023 + n)
  double minus;  // e^r - 1
};
VT_FN QuickExp quick_exp(double x) {
  const double shifted = multiply_add(x, 0x1.71547652b82fep+0, 0x1.8p52), n = shifted - 0x1.8p52;
  const double r = multiply_add(n, -0x1.ef35793c76730p-45, multiply_add(n, -0x1.62e42fefa3800p-1, x));
  const double q = quick_horner(r, 0x1.0000000000001p-1, 0x1.5555555555556p-3, 0x1.5555555553d59p-5,
                                0x1.11111111109b0p-7, 0x1.6c16c1788fadap-10, 0x1.a01a01a7c6789p-13,
                                0x1.a019b8fe4a7c1p-16, 0x1.71de0da53cc04p-19, 0x1.2891971114d7fp-22,
                                0x1.af38bf7412cbap-26);
  return {as_bits(shifted), multiply_add(r * r, q, r)};
}

// y 2^n, for a normal result; of n only the low bits count.
VT_FN double times_power(double y, uint64_t n) { return as_double(as_bits(y) + (n << 52)); }

// Where the results are infinity, 1 or 0 anyway; NaN passes.
VT_FN float bounded_below(float x, float low) { return x < low ? low : x; }
VT_FN float bounded_above(float x, float high) { return x > high ? high : x; }

VT_FN float exp_float(float x) {
  const QuickExp e = quick_exp(static_cast<double>(bounded_below(bounded_above(x, 90.0f), -110.0f)));
  const float y = static_cast<float>(times_power(1 + e.minus, e.n));
  return x == x ? y : quiet_nan_float();
}

// 1 / (1 + e^-x). Near 0 it is 1/2 + x/4 - x^3/48, whose last term a double has no room for. (1/2 + x/4) is a multiple of
// half the last place of x, and x 2^-26 is less: taken off, it leads to the same side of all boundaries.
VT_FN float sigmoid_float(float x) {
  const double minus = -static_cast<double>(bounded_below(bounded_above(x, 110.0f), -110.0f));
  const QuickExp e = quick_exp(minus);
  const double far = 1 / (1 + times_power(1 + e.minus, e.n)), near = multiply_add(minus, -0x1.fffffep-3, 0.5);
  const float y = static_cast<float>(magnitude_of(x) < 0x1p-12f ? near : far);
  return x == x ? y : quiet_nan_float();
}

// E / (E + 2) with E = e^(2|x|) - 1 = 2^n (e^r - 1) + (2^n - 1). From 10 on it rounds to 1.
VT_FN float tanh_float(float x) {
  const QuickExp e = quick_exp(2 * static_cast<double>(bounded_above(magnitude_of(x), 10.0f)));
  const double power = as_double((e.n << 52) + 0x3ff0000000000000ull);
  const double minus = multiply_add(power, e.minus, power - 1);
  const float y = static_cast<float>(minus / (minus + 2));
  return x == x ? with_sign(y, x) : quiet_nan_float();
}

VT_END
