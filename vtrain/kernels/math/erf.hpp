// erf and erfc.
//
// Away from 0 both use erfc a = e^(-a^2) F(t) / (1 + 2a), t = (a - K) / (a + K): F lies between 1 and 1.29 and is smooth in t
// up to infinity. a^2 is taken exactly, as a pair.
#pragma once
#include "exp.hpp"

VT_BEGIN

// e^(-a^2) 2^-n and n, for 0 <= a <= 28.
struct Gauss {
  Pair value;
  uint64_t n;
};
VT_FN Gauss gauss(double a) {
  const Pair square = product(a, a);
  const ExpArgument e = exp_argument(-square.hi, -square.lo);
  const Pair r = sum_ordered(e.hi, e.lo);
  return {exp_pair(r.hi, r.lo), e.n};
}

// erf a for 7/8 <= a <= 6, 1 - erfc a: K = 3, degree 16 (relative error 2^-57 with the first coefficient as a pair). erfc
// is a pair, at most 0.22.
VT_FN double erf_right(double a) {
  const double t = (a - 3) / (a + 3);
  const double rest = horner(t, -0x1.15c084bb9e8f5p-3, -0x1.85a15c58aa4e5p-5, 0x1.098366a5b498fp-3,
                             -0x1.e88b803a4cf37p-4, 0x1.17ca2877d0b0ep-4, -0x1.8574c409400d6p-6, 0x1.4b884eec912c1p-9,
                             0x1.ef1bdaa658804p-10, -0x1.98db892c57a6ep-11, -0x1.b91228f2e1ec9p-14,
                             0x1.0663e4b1d85c0p-13, 0x1.4d6f3dc54b000p-18, -0x1.52c02d3e3d6d7p-16,
                             -0x1.f47391c7f85c8p-21, 0x1.dbe42d53d65d6p-19, 0x1.00634bad2d0b3p-20);
  const Pair f = sum_ordered(0x1.40c522d7e4987p+0, t * rest), d = sum_ordered(2 * a, 1);
  const Gauss g = gauss(a);
  const Pair n = product(g.value.hi, f.hi);
  const double low = g.value.hi * (f.lo + 0x1.881cf8fc70023p-55) + g.value.lo * f.hi;
  const Pair q = quotient({n.hi, n.lo + low}, d);
  const double p = power_of_two(g.n + 1023);
  const Pair s = sum_ordered(1, -(p * q.hi));
  return s.hi + (s.lo - p * q.lo);
}

// For |x| <= 7/8: x + x P(x^2), P a polynomial of degree 11 in w = x^2 - 197/512 (error 2^-59.9), so that P and what is
// added to its constant are small; at this centre the rounded coefficients of 1 and w are also nearly exact. w is a pair.
VT_FN double erf_middle(double x) {
  const Pair z = product(x, x), w = sum_ordered(-0x1.8ap-2, z.hi);
  const double q = horner(w.hi, -0x1.3353ac807ddcfp-2, 0x1.60533927833fep-4, -0x1.471b7d9aac7f7p-6,
                          0x1.f4a9324ec9505p-9, -0x1.440fb318b483ap-11, 0x1.6aa13eaddb233p-14, -0x1.64f1559fd35afp-17,
                          0x1.39678ef3e5d51p-20, -0x1.f089fe36f7a39p-24, 0x1.673ac23f7d820p-27, -0x1.dc231ada3d240p-31);
  return x + x * (-0x1.159c3d598df9ap-10 + (w.hi * q + (w.lo + z.lo) * -0x1.3353ac807ddcfp-2));
}

// From 6 on erf rounds to 1. Measured: at most 0.87 units.
VT_FN double m_erf(double x) {
  const double a = magnitude_of(x), bounded = a < 6 ? a : 6.0;
  const double right = with_sign(erf_right(bounded), x);
  const double y = a < 0.875 ? erf_middle(with_sign(bounded, x)) : right;
  return x == x ? y : quiet_nan();
}

// For a >= 0.46875: K = 3.5, degree 21 (error 2^-57.5 with the first coefficient as a pair). t is a pair too, its second
// part times F' (degree 3, error 0.04); numerator and denominator are pairs, and one division serves both quotients. The
// rounding errors of t times the rest of F, and of the result, remain.
VT_FN double erfc_right(double a) {
  const Pair plus = sum(a, 3.5), minus = sum(a, -3.5), d = sum(2 * a, 1);
  const double reciprocal = 1 / (plus.hi * d.hi);
  const Pair t = quotient(minus, plus, reciprocal * d.hi);
  const double rest = horner(t.hi, -0x1.1ebd220ea593bp-3, -0x1.59e2c284b11dcp-7, 0x1.8f702ec6b32d5p-4,
                             -0x1.d76830c353284p-4, 0x1.686106046f740p-4, -0x1.8ff5ef76cff28p-5, 0x1.38ec6670fedecp-6,
                             -0x1.143c4ca7be77ap-8, -0x1.3cf36958acfe2p-12, 0x1.27e664f06446ap-11,
                             -0x1.fda90c4322dd6p-14, -0x1.66e2291ff46bdp-15, 0x1.9708dd55950eep-16,
                             0x1.388197de63e5ep-19, -0x1.0001d1b3ce9ebp-18, -0x1.7cd45026aa566p-25,
                             0x1.42772e132e0bap-21, -0x1.0d0121f579786p-27, -0x1.90d8f05703c96p-24,
                             0x1.24711cbe9fd4cp-31, 0x1.683ab467c75f2p-27);
  const double slope = horner(t.hi, -0.1625, -0.0117, 0.592, -0.629);
  const Pair f = sum_ordered(0x1.3e0a99a0ee914p+0, t.hi * rest);
  const Gauss g = gauss(a);
  const Pair n = multiply(g.value, {f.hi, f.lo + (t.lo * slope + -0x1.8531da02bdba6p-57)});
  const Pair q = quotient(n, d, reciprocal * plus.hi);
  return scaled(q.hi + q.lo, g.n);
}

// For |x| < 0.46875: 1 - x - x P(x^2), degree 8 (error 2^-56.5); 1 - x is a pair.
VT_FN double erfc_middle(double x) {
  const double z = x * x;
  const double p = horner(z, 0x1.06eba8214db69p-3, -0x1.812746b0379d4p-2, 0x1.ce2f21a040938p-4, -0x1.b82ce310f3d38p-6,
                          0x1.565bcc7a3d92dp-8, -0x1.c02d7702f7abbp-11, 0x1.f994610832a25p-14, -0x1.f2ba89ca4036ep-17,
                          0x1.9099c0d9b21ebp-20);
  const Pair s = sum_ordered(1, -x);
  return s.hi + (s.lo - x * p);
}

// erfc(-x) = 2 - erfc x; beyond 28 it is below half the least subnormal number. Measured: at most 0.80 units.
VT_FN double m_erfc(double x) {
  const double a = magnitude_of(x), right = erfc_right(a < 28 ? a : 28.0);
  const double outside = x < 0 ? 2 - right : right;
  const double y = a < 0.46875 ? erfc_middle(x) : outside;
  return x == x ? y : quiet_nan();
}

VT_END
