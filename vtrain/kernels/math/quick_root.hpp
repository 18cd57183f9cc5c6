// Square roots of a float: see quick_exp.hpp.
#pragma once
#include "quick_exp.hpp"
#include "root.hpp"

VT_BEGIN

VT_FN float sqrt_float(float x) {
  const float y = root(x);
  return y == y ? y : quiet_nan_float();
}

// For normal positive numbers: an estimate from the bits, two steps in float (errors 2^-10.6 and 2^-20; the first one's
// constants are those of Moroz, Samotyy and Horyachyy 2021, doi:10.3390/computation9020021), and in double, with
// e = 1 - x y^2, y (1 + e / 2 + 3 e^2 / 8): no division, no square root.
struct QuickRsqrt {
  VT_FN bool usual(float x) const { return as_bits(x) - 0x00800000u < 0x7f000000u; }
  VT_FN float operator()(float x) const {
    const float y0 = as_float(0x5f1ffff9u - (as_bits(x) >> 1));
    const float y1 = (0.703952253f * y0) * (2.38924456f - (x * y0) * y0);
    const float y2 = y1 * (1.5f - ((0.5f * x) * y1) * y1);
    const double y = static_cast<double>(y2), e = multiply_add(static_cast<double>(x) * y, -y, 1);
    return static_cast<float>(multiply_add(y * e, multiply_add(e, 0.375, 0.5), y));
  }
  VT_FN float any(float x) const { return static_cast<float>(m_rsqrt(static_cast<double>(x))); }
};

VT_FN float rsqrt_float(float x) { return QuickRsqrt().usual(x) ? QuickRsqrt()(x) : QuickRsqrt().any(x); }

VT_END
