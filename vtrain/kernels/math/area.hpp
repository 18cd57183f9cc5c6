// asinh, acosh and atanh: logarithms of pairs.
//
// The pair is exact to 2^-104, the logarithm of its first part to 2^-68 (power.hpp), and the second part adds lo / hi.
// Results down to 2^-26 keep 2^-68 of themselves; smaller ones are x and its cube. One rounding is left.
// Measured: at most 0.88 units.
#pragma once
#include "power.hpp"

VT_BEGIN

VT_FN Pair log_of_pair(Pair u) { return add(log_long(u.hi), {u.lo / u.hi, 0}); }

// log(a + root) for root = sqrt(a^2 + 1) or sqrt(a^2 - 1), which is a for large numbers.
VT_FN double log_of_sum(double a, double one) {
  const bool large = a > 0x1p60;
  const Pair square = product(a, a), inside = sum(square.hi, one);
  const Pair r = square_root(sum_ordered(inside.hi, inside.lo + square.lo));
  const Pair u = select(large, {a, 0}, add({a, 0}, r)), y = log_of_pair(u);
  return sided(select(large, add(y, {0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56}), y));
}

// Below 1.1 2^-25 asinh x is x - x^3/6.
VT_FN double m_asinh(double x) {
  const double a = magnitude_of(x), y = a < infinity() ? with_sign(log_of_sum(a, 1), x) : x;
  return x == x ? (a < 0x1.2p-25 ? next_inward(x) : y) : quiet_nan();
}

VT_FN double m_acosh(double x) {
  const double y = x < infinity() ? log_of_sum(x, -1) : x;
  return x >= 1 ? y : quiet_nan();
}

// log((1 + |x|) / (1 - |x|)) / 2. Below 1.4 2^-26 it is x + x^3/3.
VT_FN double m_atanh(double x) {
  const double a = magnitude_of(x), bounded = a < 1 ? a : 0.5;
  const double y = 0.5 * sided(log_of_pair(normalised(quotient(sum(1, bounded), sum(1, -bounded)))));
  const double limit = a < 1 ? y : infinity();
  return a <= 1 ? (a < 0x1.6p-26 ? next_outward(x) : with_sign(limit, x)) : quiet_nan();
}

VT_END
