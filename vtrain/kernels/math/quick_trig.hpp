// sin and cos of a float: see quick_exp.hpp.
#pragma once
#include "quick_exp.hpp"
#include "trig.hpp"

VT_BEGIN

constexpr float QUICK_TURNS = 0x1p15f;  // beyond that the numbers of trig.hpp are needed

// x - h pi for a half integer h below 2^15. With pi = A + B, where A has 53 bits, x - h A is a multiple of 2^-52 and at
// most 2, so that a fused operation is exact; else A is taken in two parts of 33 bits, whose products with h are exact.
VT_FN double less_half_turns(double x, double h) {
  if (FUSES) return fused(h, -0x1.1a62633145c07p-53, fused(h, -0x1.921fb54442d18p+1, x));
  return ((x - h * 0x1.921fb544p+1) - h * 0x1.0b4611a6p-33) - h * 0x1.3198a2e037073p-68;
}

// sin r (-1)^parity for |r| <= pi/2: r + r^3 P(r^2), P of degree 7 (error 2^-54.6).
VT_FN double quick_sin(double r, uint64_t parity) {
  const double z = r * r;
  const double p = quick_horner(z, -0x1.5555555555555p-3, 0x1.1111111111107p-7, -0x1.a01a01a018a9cp-13,
                                0x1.71de3a5455c01p-19, -0x1.ae6455a1662bap-26, 0x1.61240136cad4cp-33,
                                -0x1.ae512d142fbafp-41, 0x1.89a311d705ceep-49);
  return as_double(as_bits(multiply_add(r * z, p, r)) ^ (parity << 63));
}

// For |x| <= QUICK_TURNS.
struct QuickSin {
  VT_FN bool usual(float x) const { return magnitude_of(x) <= QUICK_TURNS; }
  VT_FN float operator()(float x) const {
    const double wide = static_cast<double>(x);
    const double shifted = multiply_add(wide, 0x1.45f306dc9c883p-2, 0x1.8p52);
    const float y = static_cast<float>(quick_sin(less_half_turns(wide, shifted - 0x1.8p52), as_bits(shifted)));
    return magnitude_of(x) < 0x1p-12f ? x : y;  // signed zeros stay
  }
  VT_FN float any(float x) const { return static_cast<float>(m_sin(static_cast<double>(x))); }
};

// cos x = sin(x + pi/2): with h = n - 1/2, x - h pi, and n an integer.
struct QuickCos {
  VT_FN bool usual(float x) const { return magnitude_of(x) <= QUICK_TURNS; }
  VT_FN float operator()(float x) const {
    const double wide = static_cast<double>(x);
    const double shifted = multiply_add(wide, 0x1.45f306dc9c883p-2, 0.5) + 0x1.8p52;
    return static_cast<float>(quick_sin(less_half_turns(wide, (shifted - 0x1.8p52) - 0.5), as_bits(shifted)));
  }
  VT_FN float any(float x) const { return static_cast<float>(m_cos(static_cast<double>(x))); }
};

VT_END
