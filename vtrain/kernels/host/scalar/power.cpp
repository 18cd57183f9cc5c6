// Powers and hypotenuses, correctly rounded; with their results in the very middle between two doubles.
#include "ziv.hpp"

namespace vtrain::scalar {

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

namespace {

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

}  // namespace

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

}  // namespace vtrain::scalar
