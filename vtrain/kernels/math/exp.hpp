// exp, exp2 and expm1.
//
// Range reduction (Cody and Waite): x = n ln 2 + r + t, |r| <= 0.3467, with ln 2 = L1 + L2 where L1 has 42 bits: n L1 and
// x - n L1 are exact, and t holds the rounding error of r. Then e^(r+t) = 1 + r + (r^2 Q(r) + t + t r), Q of degree 10
// (error of r^2 Q: 2^-61). 1 + r is kept exactly, as two numbers, so that only the last addition and the parenthesis
// (at most 0.07, relative error 2^-51) round: below 0.5 + 0.1 units in the last place. Measured:
// at most 0.76 units, where the result is subnormal.
#pragma once
#include "dd.hpp"

VT_BEGIN

// x + low = n ln 2 + hi + lo for |x| <= 800, low much smaller than x.
struct ExpArgument {
  uint64_t n;
  double hi, lo;
};
VT_FN ExpArgument exp_argument(double x, double low) {
  const Nearest n = nearest(x * 0x1.71547652b82fep+0);
  const double high = x - n.value * 0x1.62e42fefa3800p-1, rest = n.value * 0x1.ef35793c76730p-45;
  const double hi = high - rest;
  return {n.integer, hi, ((high - hi) - rest) + low};
}

// (e^r - 1 - r) / r^2 = 1/2 + r (...) for |r| <= 0.3467: all but the first coefficient.
VT_FN double exp_rest(double r) {
  return horner(r, 0x1.5555555555557p-3, 0x1.5555555555556p-5, 0x1.11111111100dcp-7, 0x1.6c16c16c162d4p-10,
                0x1.a01a01abe7fe1p-13, 0x1.a01a01a6d889cp-16, 0x1.71de0231960ebp-19, 0x1.27e4db646b17ep-22,
                0x1.af4de97ca4194p-26, 0x1.1f730349868cep-29);
}

// e^(r+t), error below 2^-56.
VT_FN Pair exp_pair(double r, double t) {
  const Pair one = sum_ordered(1, r);
  const double tail = r * r * (0.5 + r * exp_rest(r)) + (t + t * r);
  return normalised({one.hi, one.lo + tail});
}

// Where e^x overflows and where it is below half the least subnormal number, with some room.
VT_FN double exp_clamped(double x) {
  const double below = x > 710 ? 710.0 : x;
  return below < -746 ? -746.0 : below;
}

VT_FN double m_exp(double x) {
  const ExpArgument a = exp_argument(exp_clamped(x), 0);
  const double y = scaled(sided(exp_pair(a.hi, a.lo)), a.n);
  return x == x ? y : quiet_nan();
}

// 2^x = 2^n e^(r ln 2), n the nearest integer. r ln 2 as a pair: the product of the leading bits is exact.
VT_FN double m_exp2(double x) {
  const double below = x > 1025 ? 1025.0 : x, clamped = below < -1076 ? -1076.0 : below;
  const Nearest n = nearest(clamped);
  const double r = clamped - n.value, rh = leading_bits(r);
  const Pair a = sum_ordered(rh * 0x1.62e42fcp-1, (r - rh) * 0x1.62e42fcp-1 + r * 0x1.7d1cf79abc9e4p-28);
  const double y = scaled(exp_pair(a.hi, a.lo).hi, n.integer);
  return x == x ? y : quiet_nan();
}

// e^x - 1 for -60 <= x < 709, as a pair with relative error below 2^-57. With p = 2^n and r^2/2 as a pair,
// e^x - 1 = (p - 1) + p r + p r^2/2 + p (r^3 (...) + t + t r); the first three are summed exactly: p - 1 is 0 or larger
// than p r.
VT_FN Pair expm1_pair(double x) {
  const ExpArgument a = exp_argument(x, 0);
  const double r = a.hi, t = a.lo, p = power_of_two(a.n + 1023);
  const Pair half_square = product(r, 0.5 * r), whole = sum(p, -1);
  const Pair first = sum_ordered(whole.hi, p * r), second = sum(first.hi, p * half_square.hi);
  const double tail = half_square.lo + (2 * r * half_square.hi * exp_rest(r) + (t + t * r));
  return normalised({second.hi, second.lo + (first.lo + (whole.lo + p * tail))});
}

// Below -60 the result is -1; from 60 on it is e^x. Below 2^-52 e^x - 1 is x + x^2/2, next to x on
// the side of infinity; signed zeros stay. Measured: at most 0.84 units.
VT_FN double m_expm1(double x) {
  const double below = x > 60 ? 60.0 : x;
  const double y = expm1_pair(below < -60 ? -60.0 : below).hi;
  const double large = x > 60 ? m_exp(x) : y;
  const double z = x < 0 ? next_inward(x) : next_outward(x);
  return x == x ? (magnitude_of(x) < 0x1.5p-52 ? z : large) : quiet_nan();
}

VT_END
