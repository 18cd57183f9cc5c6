// log, log1p, log2 and log10.
//
// x = 2^n m, sqrt(1/2) <= m < sqrt(2), f = m - 1 (exact). With s = f / (2 + f), log m = 2 atanh s, and
// 2 atanh s = f - f^2/2 + s (f^2/2 + R), R = 2 atanh(s) / s - 2 = s^2 P(s^2), P of degree 6 (error of R: 2^-56, which s
// makes 2^-59): the small number s multiplies all that is not exact. f - f^2/2 is kept as two numbers, and so is its sum
// with the leading bits of n ln 2, which are exact. Below 0.5 + 0.2 units in the last place. Measured:
// at most 0.75 units.
#pragma once
#include "dd.hpp"

VT_BEGIN

// log(1 + f) for -0.293 <= f <= 0.415, as hi + lo, lo at most 0.02.
VT_FN Pair log_pair(double f) {
  const double s = f / (2 + f), z = s * s, half_square = 0.5 * f * f;
  const double r = z * horner(z, 0x1.5555555555558p-1, 0x1.99999999952d7p-2, 0x1.2492492df281ap-2, 0x1.c71c62e3f11e6p-3,
                              0x1.7462b51cb66b1p-3, 0x1.39fe51a7c18f9p-3, 0x1.2b5900de53b32p-3);
  const Pair lead = sum_ordered(f, -half_square);
  return {lead.hi, lead.lo + s * (half_square + r)};
}

// The limits of a logarithm y of x, and where there is none.
VT_FN double log_limits(double x, double y) {
  const double finite = x < infinity() ? y : x, with_zero = x == 0 ? -infinity() : finite;
  return x >= 0 ? with_zero : quiet_nan();
}

// n ln 2 + a + low.
VT_FN double log_sum(double n, Pair a, double low) {
  const Pair s = sum_ordered(n * 0x1.62e42fefa3800p-1, a.hi);
  return s.hi + (s.lo + (a.lo + (low + n * 0x1.ef35793c76730p-45)));
}

VT_FN double m_log(double x) {
  const Binary b = binary(x);
  return log_limits(x, log_sum(b.n, log_pair(b.m - 1), 0));
}

// log1p x = log u + c / u, where u + c = 1 + x exactly. Near u = 1 x itself is f. c / m is at most 2^-53, so a truncated
// series does for 1 / m = (1 - s) / (1 + s). c is nothing for large x, where 2^-n underflows. Below 2^-52
// log1p x is x - x^2/2. Measured: at most 0.84 units.
VT_FN double m_log1p(double x) {
  const Pair u = sum(1, x);
  const Binary b = binary(u.hi);
  const bool near_one = b.n == 0;
  const double f = near_one ? x : b.m - 1;
  const double c = u.lo * power_of_two(nearest(1023 - b.n).integer);
  const double low = near_one | (x > 0x1p60) ? 0.0 : c * (1 + f * (-1 + f * (1 - f)));
  const double y = log_sum(b.n, log_pair(f), low);
  const double z = x < 0 ? next_outward(x) : next_inward(x);
  return magnitude_of(x) < 0x1.5p-52 ? z : log_limits(1 + x, y);
}

// (hi + lo) / ln b as a pair: log b = 1 / (hi + lo).
VT_FN Pair log_in_base(Pair a, double hi, double lo) {
  const Pair p = product(a.hi, hi);
  return {p.hi, p.lo + (a.hi * lo + a.lo * hi)};
}

// n + log(m) / ln 2, the second as a pair. Measured: at most 0.86 units.
VT_FN double m_log2(double x) {
  const Binary b = binary(x);
  const Pair a = log_in_base(log_pair(b.m - 1), 0x1.71547652b82fep+0, 0x1.777d0ffda0d24p-56);
  const Pair s = sum_ordered(b.n, a.hi);
  return log_limits(x, s.hi + (s.lo + a.lo));
}

// n log10(2) + log(m) / ln 10, the leading 42 bits of log10(2) apart. Measured: at most 0.73 units.
VT_FN double m_log10(double x) {
  const Binary b = binary(x);
  const Pair a = log_in_base(log_pair(b.m - 1), 0x1.bcb7b1526e50ep-2, 0x1.95355baaafad3p-57);
  const Pair s = sum_ordered(b.n * 0x1.34413509f7800p-2, a.hi);
  return log_limits(x, s.hi + (s.lo + (a.lo + b.n * 0x1.fef311f12b358p-46)));
}

VT_END
