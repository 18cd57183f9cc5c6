// Square roots and their reciprocals.
#pragma once
#include "dd.hpp"

VT_BEGIN

VT_FN double m_sqrt(double x) {
  const double y = root(x);
  return y == y ? y : quiet_nan();
}

// With s = sqrt(x) and y = 1 / s rounded, x = s^2 + d and 1 = s y + e exactly, so 1 / sqrt(x) = y (1 + e - d y^2 / 2) to
// 2^-104. Small numbers are scaled, so that no product underflows. Measured: at most 0.51 units.
VT_FN double m_rsqrt(double x) {
  const bool small = x < 0x1p-500;
  const double v = small ? x * 0x1p600 : x;
  const double s = root(v), y = 1 / s;
  const Pair square = product(s, s), unit = product(s, y);
  const double d = (v - square.hi) - square.lo, e = (1 - unit.hi) - unit.lo;
  const double z = (y + y * (e - 0.5 * d * y * y)) * (small ? 0x1p300 : 1.0);
  const double limit = x == infinity() ? 0.0 : z;
  const double with_zero = x == 0 ? with_sign(infinity(), x) : limit;
  return x >= 0 ? with_zero : quiet_nan();
}

VT_END
