// Correct rounding by Ziv's strategy (1991): compute with a known error; where that leaves open which double is nearest, do it
// again with more bits. First in 128-bit fixed point (fixed.hpp), where there is such a try, then with 192, 512 and 1408
// bits (real.hpp).
//
// The loop ends because a value in the very middle between two doubles is met by an exact test: such values are algebraic,
// and by Lindemann's and Gelfond and Schneider's theorems only pow, exp2 (powers of two below the smallest double), hypot and
// quotients in atan2 have them. Values as near to a middle as 2^-1312 without being there don't occur: those of the
// exponential functions and their kin stay 2^-120 away (Lefevre and Muller, 2001), and powers of doubles near 1 differ from
// a middle by a product of few of their last bits.
#include "functions.hpp"

#include <atomic>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "elementary.hpp"
#include "fixed.hpp"

namespace vtrain::scalar {

namespace {

std::atomic<bool> slow_only{false};
bool quick() { return !slow_only.load(std::memory_order_relaxed); }

constexpr double INF = std::numeric_limits<double>::infinity();
constexpr double TINY = 0x1p-27;  // below it, x + c x^3 rounds to x for every |c| <= 1/3

// Arithmetic that the compiler can't do for us, so that the processor's flags say what happened.
double opaque(double x) {
  volatile double v = x;
  return v;
}
double invalid() { return opaque(0.0) / opaque(0.0); }
double pole(bool minus) { return opaque(minus ? -1.0 : 1.0) / opaque(0.0); }
double overflow(bool minus) { return opaque(minus ? -0x1p1000 : 0x1p1000) * opaque(0x1p1000); }
double underflow(bool minus) { return opaque(minus ? -0x1p-1000 : 0x1p-1000) * opaque(0x1p-1000); }
double flagged(double x) { return std::isinf(x) ? overflow(x < 0) : x; }
bool finite(double x) { return (bits_of(x) >> 52 & 0x7ff) != 0x7ff; }
bool is_nan(double x) { return x != x; }

template <int N> using Limbs = std::integral_constant<int, N>;

// a lies in the very middle, or next to it on the side that `side` says (-1 below, 0, 1 above).
template <int N> double from_middle(const Real<N>& a, int side) {
  const int precision = a.e >= -1021 ? 53 : static_cast<int>(a.e + 1074);
  const u64 kept = precision > 0 ? a.m[N - 1] >> (64 - precision) : 0;
  const u64 field = precision == 53 ? static_cast<u64>(a.e + 1021) << 52 : 0;
  const u64 up = side ? side > 0 : kept & 1;
  return double_of(static_cast<u64>(a.negative) << 63 | (field + kept + up));
}
// The middle that a is nearest to: an odd number of units of 2^exponent.
template <int N> Parts middle(const Real<N>& a) {
  const int precision = a.e >= -1021 ? 53 : static_cast<int>(a.e + 1074);
  const u64 kept = precision > 0 ? a.m[N - 1] >> (64 - precision) : 0;
  return {2 * kept + 1, static_cast<int>(a.e) - precision - 1};
}

// The double nearest to f(Limbs<N>()), whose relative error is below 2^(32 + lost - 64 N).
template <class F> double decide(const F& f, int lost = 64) {
  double out;
  if (round_nearest(f(Limbs<3>{}), 192 - 32 - lost, out)) return flagged(out);
  if (round_nearest(f(Limbs<8>{}), 512 - 32 - lost, out)) return flagged(out);
  const Real<22> last = f(Limbs<22>{});
  if (round_nearest(last, 1408 - 32 - lost, out)) return flagged(out);
  return from_middle(last, 0);
}

// The double nearest to r, which is wrong by less than 2^-bits.
bool round_absolute(const Real<2>& r, int bits, double& out) {
  const int64_t known = r.e + bits - 1;
  return !r.zero() && round_nearest(r, static_cast<int>(known < 128 ? known : 128), out);
}
u128 magnitude(i128 v) { return v < 0 ? -static_cast<u128>(v) : static_cast<u128>(v); }

// x with FRACTION bits; exact for 2^-54 <= |x| < 2^11.
i128 fixed_argument(double x) {
  const Parts p = parts_of(x);
  const int shift = p.exponent + FRACTION;
  const i128 v = static_cast<i128>(static_cast<u128>(p.mantissa) << shift);
  return negative(x) ? -v : v;
}

int above_zero(int64_t e) { return e > 0 ? static_cast<int>(e) : 0; }

double f_exp(double x) {
  if (is_nan(x)) return x + x;
  if (x > 710) return finite(x) ? overflow(false) : x;
  if (x < -746) return finite(x) ? underflow(false) : 0.0;
  if (std::fabs(x) < 0x1p-54) return 1.0;
  double out;
  if (quick() && round_nearest(fixed_exp(fixed_argument(x)), 109, out)) return flagged(out);
  return decide([x](auto n) { return real_exp(Real<n()>::of(x)); });
}

double f_exp2(double x) {
  if (is_nan(x)) return x + x;
  if (x >= 1024) return finite(x) ? overflow(false) : x;
  if (x <= -1075) return finite(x) ? underflow(false) : 0.0;
  if (std::fabs(x) < 0x1p-54) return 1.0;
  double out;
  if (x == std::floor(x)) return round_nearest(Real<2>(1, static_cast<int64_t>(x)), 128, out), out;
  if (quick()) {
    const i128 v = fixed_argument(x), t = static_cast<i128>(multiply_high(magnitude(v), tables().ln2));
    if (round_nearest(fixed_exp(v < 0 ? -t : t), 109, out)) return out;
  }
  return decide([x](auto n) { return real_exp(Real<n()>::of(x) * Real<n()>(constants().ln2)); });
}

double f_expm1(double x) {
  if (is_nan(x)) return x + x;
  if (x > 710) return finite(x) ? overflow(false) : x;
  if (x < -45) return -1.0;
  if (std::fabs(x) < 0x1p-54) return x;
  double out;
  if (quick()) {
    const Real<2> e = fixed_exp(fixed_argument(x));
    if (round_absolute(e - Real<2>(1), 109 - above_zero(e.e), out)) return flagged(out);
  }
  return decide([x](auto n) { return real_exp(Real<n()>::of(x)) - Real<n()>(1); });
}

// What log, log2 and log10 share: false where x is no positive finite number but 1, with the result in `out`.
bool ordinary_log(double x, double& out) {
  if (is_nan(x)) return out = x + x, false;
  if (x == 0) return out = pole(true), false;
  if (x < 0) return out = invalid(), false;
  if (!finite(x) || x == 1) return out = x == 1 ? 0.0 : x, false;
  return true;
}

double f_log(double x) {
  double out;
  if (!ordinary_log(x, out)) return out;
  if (quick()) {
    const i128 v = fixed_log(x);
    if (round_absolute(real_of(magnitude(v), FRACTION, v < 0), 111, out)) return out;
  }
  return decide([x](auto n) { return real_log(Real<n()>::of(x)); });
}

double f_log2(double x) {
  double out;
  if (!ordinary_log(x, out)) return out;
  if (quick()) {
    const i128 v = fixed_log(x);
    if (round_absolute(real_of(multiply_high(magnitude(v), tables().log2e), FRACTION - 1, v < 0), 109, out)) return out;
  }
  return decide([x](auto n) { return real_log(Real<n()>::of(x)) / Real<n()>(constants().ln2); });
}

double f_log10(double x) {
  double out;
  if (!ordinary_log(x, out)) return out;
  if (quick()) {
    const i128 v = fixed_log(x);
    if (round_absolute(real_of(multiply_high(magnitude(v), tables().log10e), FRACTION, v < 0), 110, out)) return out;
  }
  return decide([x](auto n) { return real_log(Real<n()>::of(x)) / real_log(Real<n()>(10)); });
}

// log(1 + x) for 2^-54 <= |x| < 2^53, x > -1, wrong by less than 2^-110.
Real<2> quick_log1p(double x) {
  const double near = 1 + x, t = near - x, rest = (1 - t) + (x - (near - t));  // 1 + x = near + rest, exactly (Knuth)
  i128 v = fixed_log(near);
  if (rest != 0) {  // log(1 + u) = u - u^2 / 2 to 2^-160
    const Real<2> u = Real<2>::of(rest) / Real<2>::of(near), less = u - scaled(u * u, -1);
    const i128 size = static_cast<i128>(fixed_of(less, FRACTION));
    v += less.negative ? -size : size;
  }
  return real_of(magnitude(v), FRACTION, v < 0);
}

double f_log1p(double x) {
  if (is_nan(x)) return x + x;
  if (x == -1) return pole(true);
  if (x < -1) return invalid();
  if (!finite(x) || std::fabs(x) < 0x1p-54) return x;
  double out;
  if (quick() && std::fabs(x) < 0x1p53 && round_absolute(quick_log1p(x), 110, out)) return out;
  return decide([x](auto n) { return real_log(Real<n()>(1) + Real<n()>::of(x)); });
}

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

// e with 2^(e - 1) <= |x| < 2^e, for x other than 0.
int exponent_of(double x) {
  const Parts p = parts_of(x);
  return p.exponent + 64 - __builtin_clzll(p.mantissa);
}

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

double f_sinh(double x) {
  if (!finite(x)) return x + x;
  if (std::fabs(x) > 720) return overflow(negative(x));
  if (std::fabs(x) < TINY) return x;
  double out;
  if (quick()) {
    const Real<2> e = fixed_exp(fixed_argument(std::fabs(x)));
    if (round_absolute(scaled(e - reciprocal(e), -1), 109 - above_zero(e.e), out)) return std::copysign(flagged(out), x);
  }
  return decide([x](auto n) {
    const auto e = real_exp(Real<n()>::of(x));
    return scaled(e - reciprocal(e), -1);
  });
}

double f_cosh(double x) {
  if (!finite(x)) return x * x;
  if (std::fabs(x) > 720) return overflow(false);
  if (std::fabs(x) < TINY) return 1.0;
  double out;
  if (quick()) {
    const Real<2> e = fixed_exp(fixed_argument(std::fabs(x)));
    if (round_absolute(scaled(e + reciprocal(e), -1), 109 - above_zero(e.e), out)) return flagged(out);
  }
  return decide([x](auto n) {
    const auto e = real_exp(Real<n()>::of(x));
    return scaled(e + reciprocal(e), -1);
  });
}

double f_tanh(double x) {
  if (is_nan(x)) return x + x;
  if (std::fabs(x) > 22) return std::copysign(1.0, x);
  if (std::fabs(x) < TINY) return x;
  double out;
  if (quick()) {
    const Real<2> e = fixed_exp(fixed_argument(2 * std::fabs(x))), one(1), upper = e - one;
    if (round_nearest(upper / (e + one), static_cast<int>(upper.e - e.e) + 108, out)) return std::copysign(out, x);
  }
  return decide([x](auto n) {
    const auto e = real_exp(Real<n()>::of(2 * x));
    const Real<n()> one(1);
    return (e - one) / (e + one);
  });
}

double f_asinh(double x) {
  if (!finite(x)) return x + x;
  if (std::fabs(x) < TINY) return x;
  return decide([x](auto n) {
    const Real<n()> a = Real<n()>::of(std::fabs(x)), y = real_log(a + root(a * a + Real<n()>(1)));
    return negative(x) ? -y : y;
  });
}

double f_acosh(double x) {
  if (is_nan(x)) return x + x;
  if (x < 1) return invalid();
  if (x == 1 || !finite(x)) return x == 1 ? 0.0 : x;
  return decide([x](auto n) {
    const Real<n()> a = Real<n()>::of(x), one(1);
    return real_log(a + root((a - one) * (a + one)));
  });
}

double f_atanh(double x) {
  if (is_nan(x)) return x + x;
  if (std::fabs(x) > 1) return invalid();
  if (std::fabs(x) == 1) return pole(negative(x));
  if (std::fabs(x) < TINY) return x;
  return decide([x](auto n) {
    const Real<n()> a = Real<n()>::of(x), one(1);
    return scaled(real_log((one + a) / (one - a)), -1);
  });
}

double f_cbrt(double x) {
  if (!finite(x) || x == 0) return x + x;
  const double a = std::fabs(x);
  const auto cube_root = [a](auto n) { return a == 1 ? Real<n()>(1) : real_exp(real_log(Real<n()>::of(a)) / 3u); };
  return std::copysign(decide(cube_root), x);
}

double f_erf(double x) {
  if (is_nan(x)) return x + x;
  if (x == 0 || std::fabs(x) > 6) return x == 0 ? x : std::copysign(1.0, x);
  return decide([x](auto n) {
    const auto y = real_erf(Real<n()>::of(std::fabs(x)));
    return negative(x) ? -y : y;
  });
}

double f_erfc(double x) {
  if (is_nan(x)) return x + x;
  if (x < -6) return 2.0;
  if (x > 28) return finite(x) ? underflow(false) : 0.0;
  if (std::fabs(x) < 0x1p-56) return 1.0;
  const int lost = 64 + (x > 0 ? static_cast<int>(x * x * 1.4427) + 8 : 0);  // what 1 - erf(x) cancels
  const auto f = [x](auto n) {
    const auto y = real_erf(Real<n()>::of(std::fabs(x)));
    return negative(x) ? Real<n()>(1) + y : Real<n()>(1) - y;
  };
  double out;
  if (lost < 80 && round_nearest(f(Limbs<3>{}), 192 - 32 - lost, out)) return out;
  if (lost < 400 && round_nearest(f(Limbs<8>{}), 512 - 32 - lost, out)) return out;
  round_nearest(f(Limbs<22>{}), 1408 - 32 - lost, out);
  return out;
}

double f_hypot(double x, double y) {
  x = std::fabs(x), y = std::fabs(y);
  if (!finite(x) && !is_nan(x)) return x;
  if (!finite(y) && !is_nan(y)) return y;
  if (is_nan(x) || is_nan(y) || x == 0 || y == 0) return x + y;
  if (x < y) std::swap(x, y);
  double out;
  if (quick()) {
    const Real<2> p = Real<2>::of(x), q = Real<2>::of(y);
    if (round_nearest(root(p * p + q * q), 112, out)) return flagged(out);
  }
  const Real<8> a = Real<8>::of(x), b = Real<8>::of(y), squares = a * a + b * b;  // exact, where b counts
  if (a.e - b.e > 60) return x;
  const Real<8> r = root(squares);
  if (round_nearest(r, 470, out)) return flagged(out);
  const Parts p = middle(r);
  const Real<8> m(p.mantissa, p.exponent);
  return flagged(from_middle(r, compare(squares, m * m)));
}

// Whether y is an integer, and an odd one.
struct Kind {
  bool integer, odd;
};
Kind kind_of(double y) {
  const Parts p = parts_of(y);
  const int zeros = __builtin_ctzll(p.mantissa) + p.exponent;
  return {zeros >= 0, zeros == 0};
}

// Whether (m 2^e)^n = c 2^ce exactly, for odd m and c.
bool is_power(u64 m, int64_t e, int64_t n, u64 c, int64_t ce) {
  if (n > 2200 || n < -2200 || e * n != ce) return false;
  if (m == 1) return c == 1;
  if (n < 0) return false;
  u128 power = 1;
  for (int64_t q = 0; q < n; q++) {
    power *= m;
    if (power > c) return false;
  }
  return power == c;
}

// Whether x^y = c 2^ce exactly, for x > 0 other than 1, y other than 0 and odd c. With y = a 2^-k, a odd, x must be a 2^k-th
// power: then its odd part is one, and its exponent a multiple of 2^k.
bool is_middle(double x, double y, Parts middle) {
  Parts p = parts_of(x), q = parts_of(y);
  const int zeros = __builtin_ctzll(p.mantissa), trailing = __builtin_ctzll(q.mantissa);
  u64 m = p.mantissa >> zeros, n = q.mantissa >> trailing;
  int64_t e = p.exponent + zeros;
  int scale = q.exponent + trailing;
  for (; scale < 0; scale++) {
    const u64 s = static_cast<u64>(std::sqrt(static_cast<double>(m)) + 0.5);
    if (s * s != m || e & 1) return false;
    if (m == 1 && e == 0) return false;
    m = s, e /= 2;
  }
  if (scale > 12 || n > 4096) return false;
  const int64_t power = static_cast<int64_t>(n << scale);
  return is_power(m, e, negative(y) ? -power : power, middle.mantissa, middle.exponent);
}

// |y| L 2^0 for L of FRACTION bits, as t of FRACTION bits; |y| below 2^53.
u128 times(double y, u128 l) {
  const Parts p = parts_of(y);
  const u128 low = static_cast<u128>(static_cast<u64>(l)) * p.mantissa, high = static_cast<u128>(high_half(l)) * p.mantissa + high_half(low);
  const int shift = -p.exponent;  // at least 0; the product is high 2^64 + low
  if (shift >= 192) return 0;
  if (shift >= 64) return high >> (shift - 64);
  return (high << (64 - shift)) | (shift ? static_cast<u64>(low) >> shift : static_cast<u64>(low));
}

// x^y for finite x > 0 other than 1 and finite y other than 0, with a sign.
double power(double x, double y, bool minus) {
  const i128 l = fixed_log(x);
  const double about = y * (static_cast<double>(l) * 0x1p-116);  // y log x, to 2^-50
  if (about > 720) return overflow(minus);
  if (about < -760) return underflow(minus);
  if (std::fabs(about) < 0x1p-56) return minus ? -1.0 : 1.0;
  const int above = static_cast<int>(bits_of(y) >> 52 & 0x7ff) - 1022;  // |y| < 2^above
  double out;
  if (quick() && above <= 40) {
    const u128 t = times(y, magnitude(l));
    Real<2> r = fixed_exp((l < 0) != negative(y) ? -static_cast<i128>(t) : static_cast<i128>(t));
    r.negative = minus;
    if (round_nearest(r, 107 - (above > 0 ? above : 0), out)) return flagged(out);
  }
  const auto f = [=](auto n) {
    auto r = real_exp(Real<n()>::of(y) * real_log(Real<n()>::of(x)));
    r.negative = minus;
    return r;
  };
  const auto first = f(Limbs<3>{});
  if (round_nearest(first, 96, out)) return flagged(out);
  if (is_middle(x, y, middle(first))) return from_middle(first, 0);
  return decide(f);
}

double f_pow(double x, double y) {
  if (y == 0 || x == 1) return 1.0;
  if (is_nan(x) || is_nan(y)) return x + y;
  const double size = std::fabs(x);
  if (!finite(y)) {
    if (size == 1) return 1.0;
    return (size > 1) == (y > 0) ? INF : 0.0;
  }
  const Kind kind = kind_of(y);
  const bool minus = negative(x) && kind.odd;
  if (x == 0) {
    if (y < 0) return pole(minus);
    return minus ? -0.0 : 0.0;
  }
  if (!finite(x)) {
    if (y < 0) return minus ? -0.0 : 0.0;
    return minus ? -INF : INF;
  }
  if (x < 0 && !kind.integer) return invalid();
  if (size == 1) return minus ? -1.0 : 1.0;
  return power(size, y, minus);
}

// ---- what a caller of the C library's functions calls instead -----------------------------------------------------------
template <int ID> struct Counter {
  static std::atomic<uint64_t> calls;
  static void count() { calls.store(calls.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed); }
};
template <int ID> std::atomic<uint64_t> Counter<ID>::calls{0};

template <int ID, Unary F, class T> T entry(T x) {
  Counter<ID>::count();
  return static_cast<T>(F(static_cast<double>(x)));
}
template <int ID, Binary F, class T> T entry(T x, T y) {
  Counter<ID>::count();
  return static_cast<T>(F(static_cast<double>(x), static_cast<double>(y)));
}
void entry_sincos(double x, double* sine, double* cosine) {
  Counter<-1>::count();
  *sine = f_sin(x), *cosine = f_cos(x);
}

template <int ID, Unary F, class T> void unary_loop(char** at, const intptr_t* n, const intptr_t* step, void*) {
  for (intptr_t q = 0; q < *n; q++) {
    T x;
    std::memcpy(&x, at[0] + q * step[0], sizeof x);
    const T y = entry<ID, F, T>(x);
    std::memcpy(at[1] + q * step[1], &y, sizeof y);
  }
}
template <int ID, Binary F, class T> void binary_loop(char** at, const intptr_t* n, const intptr_t* step, void*) {
  for (intptr_t q = 0; q < *n; q++) {
    T x, y;
    std::memcpy(&x, at[0] + q * step[0], sizeof x);
    std::memcpy(&y, at[1] + q * step[1], sizeof y);
    const T z = entry<ID, F, T>(x, y);
    std::memcpy(at[2] + q * step[2], &z, sizeof z);
  }
}

static_assert(sizeof(std::atomic<uint64_t>) == sizeof(uint64_t));
template <int ID> const uint64_t* calls_of() { return reinterpret_cast<const uint64_t*>(&Counter<ID>::calls); }

// A function for double, and its form for float, which is called by the next name and counted apart.
template <int ID, Unary F> void add(std::vector<Function>& all, const char* name, const char* single) {
  all.push_back({name, F, nullptr, reinterpret_cast<void*>(static_cast<Unary>(&entry<ID, F, double>)), calls_of<ID>(),
                 &unary_loop<ID, F, double>, &unary_loop<ID, F, float>});
  all.push_back({single, nullptr, nullptr, reinterpret_cast<void*>(static_cast<float (*)(float)>(&entry<100 + ID, F, float>)),
                 calls_of<100 + ID>(), nullptr, nullptr});
}
template <int ID, Binary F> void add(std::vector<Function>& all, const char* name, const char* single) {
  all.push_back({name, nullptr, F, reinterpret_cast<void*>(static_cast<Binary>(&entry<ID, F, double>)), calls_of<ID>(),
                 &binary_loop<ID, F, double>, &binary_loop<ID, F, float>});
  all.push_back({single, nullptr, nullptr, reinterpret_cast<void*>(static_cast<float (*)(float, float)>(&entry<100 + ID, F, float>)),
                 calls_of<100 + ID>(), nullptr, nullptr});
}

std::vector<Function> all_functions() {
  std::vector<Function> all;
  add<0, f_exp>(all, "exp", "expf");
  add<1, f_exp2>(all, "exp2", "exp2f");
  add<2, f_expm1>(all, "expm1", "expm1f");
  add<3, f_log>(all, "log", "logf");
  add<4, f_log2>(all, "log2", "log2f");
  add<5, f_log10>(all, "log10", "log10f");
  add<6, f_log1p>(all, "log1p", "log1pf");
  add<7, f_sin>(all, "sin", "sinf");
  add<8, f_cos>(all, "cos", "cosf");
  add<9, f_tan>(all, "tan", "tanf");
  add<10, f_asin>(all, "asin", "asinf");
  add<11, f_acos>(all, "acos", "acosf");
  add<12, f_atan>(all, "atan", "atanf");
  add<13, f_sinh>(all, "sinh", "sinhf");
  add<14, f_cosh>(all, "cosh", "coshf");
  add<15, f_tanh>(all, "tanh", "tanhf");
  add<16, f_asinh>(all, "asinh", "asinhf");
  add<17, f_acosh>(all, "acosh", "acoshf");
  add<18, f_atanh>(all, "atanh", "atanhf");
  add<19, f_cbrt>(all, "cbrt", "cbrtf");
  add<20, f_erf>(all, "erf", "erff");
  add<21, f_erfc>(all, "erfc", "erfcf");
  add<22, f_pow>(all, "pow", "powf");
  add<23, f_atan2>(all, "atan2", "atan2f");
  add<24, f_hypot>(all, "hypot", "hypotf");
  all.push_back({"sincos", nullptr, nullptr, reinterpret_cast<void*>(&entry_sincos), calls_of<-1>(), nullptr, nullptr});
  return all;
}

}  // namespace

const std::vector<Function>& functions() {
  static const std::vector<Function> all = all_functions();
  return all;
}

void set_slow(bool slow) { slow_only.store(slow); }

void prepare() { tables(); }

const Constants& constants() {
  static const Constants made = [] {
    using R = Real<WIDE>;
    Constants c;
    c.pi = scaled(inverse_series<WIDE>(5, true), 4) - scaled(inverse_series<WIDE>(239, true), 2);  // Machin
    c.ln2 = R(18) * inverse_series<WIDE>(26, false) - scaled(inverse_series<WIDE>(4801, false), 1) +
            scaled(inverse_series<WIDE>(8749, false), 3);
    c.two_over_pi = scaled(reciprocal(c.pi), 1);
    return c;
  }();
  return made;
}

const Tables& tables() {
  static const Tables made = [] {
    using R = Real<4>;
    Tables t;
    for (int i = 0; i < 64; i++) {
      const R a(static_cast<u64>(i), -6);
      R sine, cosine;
      real_circle(a, sine, cosine);
      t.atan[i] = fixed_of(real_atan(a), 127);
      t.exp_coarse[i] = fixed_of(real_exp(a), 126);
      t.exp_fine[i] = fixed_of(real_exp(R(static_cast<u64>(i), -12)), 126);
      t.sine[i] = fixed_of(sine, 127);
      t.cosine[i] = i ? fixed_of(cosine, 127) : static_cast<u128>(1) << 127;
    }
    t.atan[64] = fixed_of(real_atan(R(1)), 127);
    for (u64 i = 88; i < 184; i++) {
      const R log = real_log(R((32768 + i - 1) / i, -8));
      const i128 size = static_cast<i128>(fixed_of(log, FRACTION));
      t.log_coarse[i - 88] = log.negative ? -size : size;
    }
    for (u64 j = 0; j < 72; j++) t.log_fine[j] = fixed_of(real_log(R(((1ull << 30) + 4096 + j - 1) / (4096 + j), -18)), FRACTION);
    t.ln2 = fixed_of(R(constants().ln2), 128);
    t.log2e = fixed_of(reciprocal(R(constants().ln2)), 127);
    t.log10e = fixed_of(reciprocal(real_log(R(10))), 128);
    t.half_pi = fixed_of(scaled(R(constants().pi), -1), 127);
    for (int q = 0; q < 3; q++) t.two_over_pi[2 - q] = constants().two_over_pi.m[WIDE - 1 - q];
    return t;
  }();
  return made;
}

}  // namespace vtrain::scalar
