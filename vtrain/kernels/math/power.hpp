// pow.
//
// |x| = 2^n m as in log.hpp, s = f / (2 + f) as a pair, log m = 2 s (1 + z/3 + z^2/5 + z^3 T(z)), z = s^2 <= 0.0295: the
// first terms are pairs, T (Taylor's, 13 terms, error 2^-76 of the sum) is at most 2^-18 of the whole. So log |x| is a
// pair with a relative error below 2^-68, y log |x| (at most 745) one with an absolute error below 2^-58, and its
// exponential (exp.hpp) rounds once more. Measured error: below 0.70 units in the last place.
#pragma once
#include "exp.hpp"
#include "log.hpp"

VT_BEGIN

// log of a positive finite number.
VT_FN Pair log_long(double a) {
  const Binary b = binary(a);
  const double f = b.m - 1;
  const Pair s = quotient({f, 0}, sum(2, f)), z = multiply(s, s);
  const double t = horner(z.hi, 0x1.2492492492492p-3, 0x1.c71c71c71c71cp-4, 0x1.745d1745d1746p-4,
                          0x1.3b13b13b13b14p-4, 0x1.1111111111111p-4, 0x1.e1e1e1e1e1e1ep-5,
                          0x1.af286bca1af28p-5, 0x1.8618618618618p-5, 0x1.642c8590b2164p-5,
                          0x1.47ae147ae147bp-5, 0x1.2f684bda12f68p-5, 0x1.1a7b9611a7b96p-5,
                          0x1.0842108421084p-5);
  const Pair fifth = multiply(z, {0x1.999999999999ap-3, -0x1.999999999999ap-57}), inner = add({0x1.5555555555555p-2, 0x1.5555555555555p-56}, fifth);
  const Pair series = add(multiply(z, inner), {z.hi * z.hi * z.hi * t, 0});
  const Pair twice{2 * s.hi, 2 * s.lo};
  const Pair ln2 = sum(b.n * 0x1.62e42fefa3800p-1, b.n * 0x1.ef35793c76730p-45);
  return add(ln2, add(twice, multiply(twice, series)));
}

// Of a, not negative.
VT_FN bool is_integer(double a) { return (a >= 0x1p52) | ((a + 0x1p52) - 0x1p52 == a); }

// a^y for 0 < a < infinity. Beyond 2^80 y matters by its sign alone: a is 1, or its logarithm at least 2^-53.
VT_FN double power_of(double a, double y) {
  const double low = y < -0x1p80 ? -0x1p80 : y, bounded = low > 0x1p80 ? 0x1p80 : low;
  const Pair l = log_long(a), p = product(l.hi, bounded);
  const double clamped = exp_clamped(p.hi);
  const ExpArgument e = exp_argument(clamped, clamped == p.hi ? p.lo + l.lo * bounded : 0.0);
  const Pair r = sum(e.hi, e.lo);  // exp_pair wants what the leading number could not hold
  return scaled(exp_pair(r.hi, r.lo).hi, e.n);
}

VT_FN double m_pow(double x, double y) {
  const double a = magnitude_of(x), size = magnitude_of(y);
  const bool whole = is_integer(size), odd = whole & (size < 0x1p53) & !is_integer(0.5 * size);
  const bool ordinary = (a > 0) & (a < infinity());
  const double extreme = (a == 0) == (y > 0) ? 0.0 : infinity();  // of 0 and infinity
  const double magnitude = ordinary ? power_of(a, y) : extreme;
  const bool negative = as_bits(x) >> 63;
  const double value = negative & odd ? -magnitude : magnitude;
  const double real = negative & ordinary & !whole ? quiet_nan() : value;
  const double known = (x != x) | (y != y) ? quiet_nan() : real;
  return (y == 0) | (x == 1) ? 1.0 : known;
}

VT_END
