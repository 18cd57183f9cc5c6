// atan, asin and acos: the angle of a point in the first quadrant.
//
// The angle of (q, p) is that of t = p / q, of 1/t with pi/2 if p > q; above tan(pi/8) it is pi/4 and the angle of
// (t - 1) / (t + 1). t is a pair, |t| <= 0.415, and atan t = t + t z P(z), z = t^2, P of degree 12 (error 2^-58): all that
// rounds is below 0.06 of the result, and the last addition. Measured: at most 0.89 units.
#pragma once
#include "dd.hpp"

VT_BEGIN

VT_FN Pair half_pi() { return {0x1.921fb54442d18p+0, 0x1.1a62633145c07p-54}; }

// atan t for |t| <= 0.415.
VT_FN Pair atan_near(Pair t) {
  const double z = t.hi * t.hi;
  const double p = horner(z, -0x1.5555555555555p-2, 0x1.9999999999997p-3, -0x1.24924924920acp-3, 0x1.c71c71c6ddb13p-4,
                          -0x1.745d173561ae0p-4, 0x1.3b13aea970e58p-4, -0x1.1110ceddb22d4p-4, 0x1.e1d8e89291b11p-5,
                          -0x1.aebd143c55935p-5, 0x1.829c9a4614cf9p-5, -0x1.503b1df321022p-5, 0x1.f5ea203922642p-6,
                          -0x1.c807c7fd7eaccp-7);
  return sum_ordered(t.hi, t.hi * z * p + t.lo * (1 - z * (1 - z)));
}

// The angle of (q, p), neither negative, not both 0.
VT_FN Pair angle(Pair p, Pair q) {
  const bool steep = p.hi > q.hi;
  const Pair above = select(steep, q, p), below = select(steep, p, q);
  const bool turn = above.hi > 0x1.a827999fcef32p-2 * below.hi;
  const Pair n = select(turn, add(above, negative(below)), above), d = select(turn, add(above, below), below);
  const Pair near = atan_near(quotient(n, d));
  const Pair first = select(turn, add({0x1.921fb54442d18p-1, 0x1.1a62633145c07p-55}, near), near);
  return select(steep, add(half_pi(), negative(first)), first);
}

// Below 1.4 2^-26 atan x is x - x^3/3; beyond 2^64 it rounds to pi/2.
VT_FN double m_atan(double x) {
  const double a = magnitude_of(x);
  const double y = with_sign(sided(angle({a < 0x1p64 ? a : 0x1p64, 0}, {1, 0})), x);
  return x == x ? (a < 0x1.6p-26 ? next_inward(x) : y) : quiet_nan();
}

// sqrt(1 - a^2), 0 <= a <= 1; NaN above.
VT_FN Pair other_leg(double a) {
  const Pair square = product(a, a), rest = sum(1, -square.hi);
  return square_root(sum_ordered(rest.hi, rest.lo - square.lo));
}

// Below 1.1 2^-25 asin x is x + x^3/6.
VT_FN double m_asin(double x) {
  const double a = magnitude_of(x);
  const double y = with_sign(sided(angle({a, 0}, other_leg(a))), x);
  return a <= 1 ? (a < 0x1.2p-25 ? next_outward(x) : y) : quiet_nan();
}

// pi less the angle of -x for x < 0.
VT_FN double m_acos(double x) {
  const double a = magnitude_of(x);
  const Pair near = angle(other_leg(a), {a, 0}), pi = {2 * half_pi().hi, 2 * half_pi().lo};
  const Pair y = select(x < 0, add(pi, negative(near)), near);
  return a <= 1 ? sided(y) : quiet_nan();
}

VT_END
