// Exponential functions, logarithms, hyperbolic functions and their inverses, the error function: correctly rounded.
#include "ziv.hpp"

namespace vtrain::scalar {

namespace {

int above_zero(int64_t e) { return e > 0 ? static_cast<int>(e) : 0; }

}  // namespace

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

namespace {

// What log, log2 and log10 share: false where x is no positive finite number but 1, with the result in `out`.
bool ordinary_log(double x, double& out) {
  if (is_nan(x)) return out = x + x, false;
  if (x == 0) return out = pole(true), false;
  if (x < 0) return out = invalid(), false;
  if (!finite(x) || x == 1) return out = x == 1 ? 0.0 : x, false;
  return true;
}

}  // namespace

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

namespace {

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

}  // namespace

double f_log1p(double x) {
  if (is_nan(x)) return x + x;
  if (x == -1) return pole(true);
  if (x < -1) return invalid();
  if (!finite(x) || std::fabs(x) < 0x1p-54) return x;
  double out;
  if (quick() && std::fabs(x) < 0x1p53 && round_absolute(quick_log1p(x), 110, out)) return out;
  return decide([x](auto n) { return real_log(Real<n()>(1) + Real<n()>::of(x)); });
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

}  // namespace vtrain::scalar
