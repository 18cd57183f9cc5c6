// tanh, the logistic function, sinh and cosh, of numbers close to e^|x| and e^-|x|, carried as pairs.
#pragma once
#include "exp.hpp"

VT_BEGIN

// With E = e^(-2|x|) - 1, tanh |x| = -E / (E + 2). E has a relative error below 2^-56 also near 0, and numerator,
// denominator and quotient are pairs: one rounding is left. From 20 on tanh rounds to 1; below 1.375 2^-26 it is x - x^3/3,
// next to x. Measured: at most 0.88 units.
VT_FN double m_tanh(double x) {
  const double a = magnitude_of(x);
  const Pair e = expm1_pair(-2 * (a > 20 ? 20.0 : a)), d = sum_ordered(2, e.hi);
  const Pair q = quotient({-e.hi, -e.lo}, {d.hi, d.lo + e.lo});
  const double y = with_sign(q.hi + q.lo, x), z = a < 0x1.6p-26 ? next_inward(x) : y;
  return x == x ? z : quiet_nan();
}

// 1 / (1 + e^-x). With E = e^-|x| it is 1 / (1 + E) or E / (1 + E). Below -40 the latter is E to 2^-57. Near
// 0 it is 1/2 + x/4 - x^3/48, where the last is too small for a double and may decide a rounding. Measured: at most 0.77
// units.
VT_FN double m_sigmoid(double x) {
  const ExpArgument a = exp_argument(exp_clamped(-magnitude_of(x)), 0);
  const Pair p = exp_pair(a.hi, a.lo), e = {scaled(p.hi, a.n), scaled(p.lo, a.n)};
  const Pair d = sum_ordered(1, e.hi);
  const bool negative = x < 0;
  const Pair q = quotient({negative ? e.hi : 1.0, negative ? e.lo : 0.0}, {d.hi, d.lo + e.lo});
  const double y = x < -40 ? e.hi : q.hi + q.lo;
  const Pair sum = sum_ordered(0.5, 0.25 * x);
  const double near = sided(sum_ordered(sum.hi, sum.lo - x * x * x * 0x1.5555555555555p-6));
  return x == x ? (magnitude_of(x) < 0x1p-12 ? near : y) : quiet_nan();
}

// With E = e^|x| - 1, sinh |x| = (E + E / (E + 1)) / 2; above 40 it is e^|x| / 2. Below 1.1 2^-25 it is x + x^3/6.
VT_FN double m_sinh(double x) {
  const double a = magnitude_of(x);
  const Pair e = expm1_pair(a > 40 ? 40.0 : a), d = sum(e.hi, 1);
  const Pair near = add(e, quotient(e, {d.hi, d.lo + e.lo}));
  const ExpArgument r = exp_argument(a > 711 ? 711.0 : a, 0);
  const bool large = a > 40;
  const double y = scaled(sided(select(large, exp_pair(r.hi, r.lo), near)), (large ? r.n : 0) - 1);
  const double z = a < 0x1.2p-25 ? next_outward(x) : with_sign(y, x);
  return x == x ? z : quiet_nan();
}

// 2^(n - 1) (p + 2^-2n / p) with p 2^n = e^|x|.
VT_FN double m_cosh(double x) {
  const double a = magnitude_of(x);
  const ExpArgument r = exp_argument(a > 711 ? 711.0 : a, 0);
  const Pair p = exp_pair(r.hi, r.lo), q = quotient({1, 0}, p);
  const double down = power_of_two(1023 - 2 * (a > 300 ? 400 : r.n));
  const double y = scaled(sided(add(p, {q.hi * down, q.lo * down})), r.n - 1);
  return x == x ? y : quiet_nan();
}

VT_END
