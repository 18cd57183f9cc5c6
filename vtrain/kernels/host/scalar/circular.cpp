// Circular functions and their inverses, correctly rounded.
#include "ziv.hpp"

namespace vtrain::scalar {

namespace {

// sin(|x|) (offset 0) or cos(|x|) (offset 1) of TINY <= |x| < 2^30, wrong by less than 2^-121.
Real<2> quick_sine(double x, int offset) {
  const Angle a = fixed_reduce(x);
  u128 sine, cosine;
  fixed_circle(a.theta, sine, cosine);
  const int q = (a.quadrants + offset) & 3;
  const bool odd = q & 1;
  return real_of(odd ? cosine : sine, 127, ((q & 2) != 0) != (!odd && a.below));
}

// sin or cos of finite x, |x| >= TINY.
double circle(double x, int offset) {
  if (quick() && std::fabs(x) < 0x1p30) {
    Real<2> r = quick_sine(x, offset);
    if (offset == 0 && negative(x)) r = -r;
    double out;
    if (round_absolute(r, 121, out)) return out;
  }
  return decide([x, offset](auto n) { return real_sine<n()>(x, offset); });
}

}  // namespace

double f_sin(double x) {
  if (!finite(x)) return is_nan(x) ? x + x : invalid();
  return std::fabs(x) < TINY ? x : circle(x, 0);
}

double f_cos(double x) {
  if (!finite(x)) return is_nan(x) ? x + x : invalid();
  return std::fabs(x) < TINY ? 1.0 : circle(x, 1);
}

double f_tan(double x) {
  if (!finite(x)) return is_nan(x) ? x + x : invalid();
  if (std::fabs(x) < TINY) return x;
  if (quick() && std::fabs(x) < 0x1p30) {
    const Real<2> sine = quick_sine(x, 0), cosine = quick_sine(x, 1);
    const int64_t smaller = sine.e < cosine.e ? sine.e : cosine.e;
    double out;
    if (!sine.zero() && !cosine.zero() && round_nearest(negative(x) ? -(sine / cosine) : sine / cosine, static_cast<int>(smaller) + 117, out))
      return out;
  }
  return decide([x](auto n) { return real_tan<n()>(x); });
}

namespace {

// The angle whose tangent is y / x, for y, x > 0: wrong by less than 2^-119.
Real<2> quick_angle(const Real<2>& y, const Real<2>& x) {
  const bool steep = compare(y, x) > 0;
  const Real<2> a = fixed_atan(steep ? x / y : y / x);
  return steep ? real_of(tables().half_pi, 127, false) - a : a;
}
Real<2> quick_angle(double y, double x) { return quick_angle(Real<2>::of(y), Real<2>::of(x)); }

// The other side of a right triangle with one side a < 1 and hypotenuse 1.
Real<2> other_side(double a) {
  const Real<2> one(1), side = Real<2>::of(a);
  return root((one - side) * (one + side));
}

}  // namespace

double f_asin(double x) {
  if (is_nan(x)) return x + x;
  if (std::fabs(x) > 1) return invalid();
  if (std::fabs(x) < TINY) return x;
  const double size = std::fabs(x);
  double out;
  if (quick() && size < 1 && round_absolute(quick_angle(Real<2>::of(size), other_side(size)), 118, out)) return std::copysign(out, x);
  return decide([x](auto n) {
    using R = Real<n()>;
    const R one(1), a = R::of(std::fabs(x));
    const R y = std::fabs(x) == 1 ? scaled(R(constants().pi), -1) : real_atan(a / root((one - a) * (one + a)));
    return negative(x) ? -y : y;
  });
}

double f_acos(double x) {
  if (is_nan(x)) return x + x;
  if (std::fabs(x) > 1) return invalid();
  if (x == 1) return 0.0;
  const double size = std::fabs(x);
  if (quick() && size < 1 && size > 0x1p-60) {
    Real<2> a = quick_angle(other_side(size), Real<2>::of(size));
    if (negative(x)) a = real_of(tables().half_pi, 126, false) - a;
    double out;
    if (round_absolute(a, 118, out)) return out;
  }
  return decide([x](auto n) {
    using R = Real<n()>;
    const R one(1), a = R::of(std::fabs(x)), pi(constants().pi);
    if (a.zero()) return scaled(pi, -1);
    const R y = real_atan(root((one - a) * (one + a)) / a);
    return negative(x) ? pi - y : y;
  });
}

double f_atan(double x) {
  if (is_nan(x)) return x + x;
  if (std::fabs(x) < TINY) return x;
  double out;
  if (quick() && finite(x) && round_absolute(quick_angle(std::fabs(x), 1.0), 118, out)) return std::copysign(out, x);
  return decide([x](auto n) {
    using R = Real<n()>;
    const R y = finite(x) ? real_atan(R::of(std::fabs(x))) : scaled(R(constants().pi), -1);
    return negative(x) ? -y : y;
  });
}

namespace {

// e with 2^(e - 1) <= |x| < 2^e, for x other than 0.
int exponent_of(double x) {
  const Parts p = parts_of(x);
  return p.exponent + 64 - __builtin_clzll(p.mantissa);
}

}  // namespace

double f_atan2(double y, double x) {
  if (is_nan(x) || is_nan(y)) return x + y;
  const bool flat = y == 0 || (!finite(x) && finite(y));            // 0 or pi
  const bool steep = !flat && (x == 0 || (!finite(y) && finite(x)));  // pi / 2
  if (flat && !negative(x)) return std::copysign(0.0, y);
  if (!flat && !steep && finite(x) && !negative(x)) {
    const bool tiny = exponent_of(y) - exponent_of(x) < -60;
    const Real<4> q = tiny ? Real<4>::of(std::fabs(y)) / Real<4>::of(x) : Real<4>();
    if (tiny) {  // q less a third of its cube: a middle is below itself, and nothing else is nearer to one than 2^-110
      double out;
      if (!round_nearest(q, 200, out)) out = from_middle(q, -1);
      return std::copysign(out, y);
    }
  }
  if (quick() && !flat && !steep && finite(x)) {
    Real<2> a = quick_angle(std::fabs(y), std::fabs(x));
    if (negative(x)) a = real_of(tables().half_pi, 126, false) - a;
    double out;
    if (round_absolute(a, 118, out)) return std::copysign(out, y);
  }
  return decide([=](auto n) {
    using R = Real<n()>;
    const R pi(constants().pi);
    R a;
    if (flat) a = pi;
    else if (steep) a = scaled(pi, -1);
    else if (!finite(x)) a = scaled(negative(x) ? pi + scaled(pi, 1) : pi, -2);
    else {
      a = real_atan(R::of(std::fabs(y)) / R::of(std::fabs(x)));
      if (negative(x)) a = pi - a;
    }
    return negative(y) ? -a : a;
  });
}

}  // namespace vtrain::scalar
