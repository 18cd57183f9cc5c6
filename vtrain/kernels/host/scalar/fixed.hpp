// exp, log, sin and cos in 128-bit fixed point, in integer arithmetic alone: the first try of the host's scalar functions,
// which decides all but about one rounding in 2^40. A product of two numbers below 1 is truncated, by less than 3 units of
// 2^-128; what the functions give is wrong by less than a few dozen of their units, as said at each.
#pragma once
#include "real.hpp"

namespace vtrain::scalar {

// Angles, exponents and logarithms: signed, 116 bits of fraction.
constexpr int FRACTION = 116;

constexpr u64 ONE64 = ~0ull;  // 1, less a unit: 1 / k is ONE / k
constexpr u128 ONE = ~static_cast<u128>(0);

inline u128 wide(u64 high, u64 low) { return static_cast<u128>(high) << 64 | low; }
inline u64 high_half(u128 a) { return static_cast<u64>(a >> 64); }

// a b / 2^128.
inline u128 multiply_high(u128 a, u128 b) {
  const u64 a1 = high_half(a), a0 = static_cast<u64>(a), b1 = high_half(b), b0 = static_cast<u64>(b);
  return static_cast<u128>(a1) * b1 + high_half(static_cast<u128>(a1) * b0) + high_half(static_cast<u128>(a0) * b1);
}
// a b / 2^64, for 64-bit fractions.
inline u64 multiply_high(u64 a, u64 b) { return high_half(static_cast<u128>(a) * b); }

// A Real's bits from 2^-1 down to 2^-fraction; for 0 <= x < 2^(128 - fraction).
template <int N> u128 fixed_of(const Real<N>& x, int fraction) {
  if (x.zero()) return 0;
  const u128 top = wide(x.m[N - 1], x.m[N - 2]);
  const int64_t shift = 128 - fraction - x.e;  // top is x 2^(128 - e)
  return shift >= 128 ? 0 : top >> shift;
}

// value 2^-fraction, as a number to round.
inline Real<2> real_of(u128 value, int fraction, bool sign) {
  Real<2> r;
  r.m[1] = high_half(value), r.m[0] = static_cast<u64>(value);
  r.e = 128 - fraction;
  r.negative = sign;
  r.normalise();
  return r;
}

struct Tables {
  u128 exp_coarse[64], exp_fine[64];        // exp(i / 64), exp(j / 4096): 126 bits of fraction
  i128 log_coarse[96];                      // log(c / 256) by i - 88, c = ceil(32768 / i): FRACTION
  u128 log_fine[72];                        // -log(d / 2^18), d = ceil(2^30 / (4096 + j)): FRACTION
  u128 sine[64], cosine[64], atan[65];      // of i / 64: 127 bits of fraction
  u128 ln2, log2e, log10e, half_pi;         // 128 (ln2), 127 bits of fraction; 1 / ln 10: 128
  u64 two_over_pi[3];                       // 192 bits of fraction, lowest limb first
};
const Tables& tables();

// k ln2, k >= 0 below 2^12: FRACTION bits, one unit short at most.
inline u128 times_ln2(u64 k) {
  const u128 a = tables().ln2, low = static_cast<u128>(k) * static_cast<u64>(a), high = static_cast<u128>(k) * high_half(a);
  constexpr int shift = 128 - FRACTION;
  return (high << (64 - shift)) + (low >> shift);
}

// exp(r) for 0 <= r < ln2 (128 bits of fraction): 126 bits of fraction, wrong by less than 2^6 units.
inline u128 exp_fraction(u128 r) {
  const Tables& t = tables();
  const int i = static_cast<int>(r >> 122), j = static_cast<int>(r >> 116) & 63;
  const u128 s = r & ((static_cast<u128>(1) << 116) - 1);
  const u64 s64 = high_half(s);
  // s^5 / 5! (1 + s / 6 (1 + s / 7 (1 + s / 8))), as a factor of s^4 / 4!
  const u64 g = ONE64 / 120 + multiply_high(s64, ONE64 / 720 + multiply_high(s64, ONE64 / 5040 + multiply_high(s64, ONE64 / 40320)));
  const u128 c4 = ONE / 24 + multiply_high(s, wide(g, 0));
  const u128 c3 = ONE / 6 + multiply_high(s, c4);
  const u128 c2 = ONE / 2 + multiply_high(s, c3);
  const u128 less_one = s + multiply_high(s, multiply_high(s, c2));
  const u128 base = multiply_high(t.exp_coarse[i], t.exp_fine[j]) << 2;
  return base + multiply_high(base, less_one);
}

// exp(t), t of FRACTION bits below 2^11 in magnitude, by fraction and exponent: wrong by less than 2^-111, relatively, more
// than t is absolutely.
inline Real<2> fixed_exp(i128 t) {
  const double about = static_cast<double>(static_cast<int64_t>(t >> 64)) * 0x1p-52;
  int64_t k = static_cast<int64_t>(about * 1.4426950408889634);  // or one less
  i128 r = t - (k < 0 ? -static_cast<i128>(times_ln2(static_cast<u64>(-k))) : static_cast<i128>(times_ln2(static_cast<u64>(k))));
  const i128 ln2 = static_cast<i128>(times_ln2(1));
  if (r < 0) r += ln2, k--;
  if (r >= ln2) r -= ln2, k++;
  return scaled(real_of(exp_fraction(static_cast<u128>(r) << (128 - FRACTION)), 126, false), k);
}

// log(m) for m = a 2^-53 between 0.707 and 1.4143: FRACTION bits, wrong by less than 2^4 units.
inline i128 log_fraction(u64 a) {
  const Tables& t = tables();
  const int i = static_cast<int>(a >> 46);
  const u64 c = (32768 + static_cast<u64>(i) - 1) / static_cast<u64>(i), first = a * c;  // 61 bits of fraction, from 1 on
  const u64 j = (first - (1ull << 61)) >> 49;
  const u64 d = ((1ull << 30) + 4096 + j - 1) / (4096 + j);
  const u128 z = (static_cast<u128>(first) * d - (static_cast<u128>(1) << 79)) << 49;  // exact; below 2^-11.9
  const u64 z64 = high_half(z);
  const u64 g = ONE64 / 5 - multiply_high(z64, ONE64 / 6 - multiply_high(z64, ONE64 / 7 - multiply_high(z64, ONE64 / 8 - multiply_high(z64, ONE64 / 9))));
  const u128 c4 = ONE / 4 - multiply_high(z, wide(g, 0));
  const u128 c3 = ONE / 3 - multiply_high(z, c4);
  const u128 c2 = ONE / 2 - multiply_high(z, c3);
  const u128 series = z - multiply_high(z, multiply_high(z, c2));
  return static_cast<i128>(series >> (128 - FRACTION)) + static_cast<i128>(t.log_fine[j]) - t.log_coarse[i - 88];
}

// x = 2^k m, m between sqrt(1/2) and sqrt(2), for finite x > 0.
struct Split {
  i128 log_m;
  int k;
};
inline Split split_log(double x) {
  Parts p = parts_of(x);
  const int up = __builtin_clzll(p.mantissa) - 11;
  p.mantissa <<= up, p.exponent -= up;
  const bool halve = p.mantissa > 0x16a09e667f3bccull;
  return {log_fraction(halve ? p.mantissa : p.mantissa << 1), p.exponent + 52 + halve};
}

// log(x): FRACTION bits, wrong by less than 2^5 units.
inline i128 fixed_log(double x) {
  const Split s = split_log(x);
  const i128 whole = static_cast<i128>(times_ln2(static_cast<u64>(s.k < 0 ? -s.k : s.k)));
  return (s.k < 0 ? -whole : whole) + s.log_m;
}

// sin and cos of theta below 0.7854, 128 bits of fraction: 127 bits, wrong by less than 2^4 units.
inline void fixed_circle(u128 theta, u128& sine, u128& cosine) {
  const Tables& t = tables();
  const int i = static_cast<int>(theta >> 122);
  const u128 s = theta & ((static_cast<u128>(1) << 122) - 1), q = multiply_high(s, s);  // q below 2^-12
  const u64 q64 = high_half(q);
  // 1 - sin(s) / s = q / 3! - q^2 / 5! + q^3 / 7! - ..., and 1 - cos(s) = q / 2! - q^2 / 4! + ...
  const u64 odd = ONE64 / 39916800 - multiply_high(q64, ONE64 / 6227020800ull);
  const u64 even = ONE64 / 3628800 - multiply_high(q64, ONE64 / 479001600 - multiply_high(q64, ONE64 / 87178291200ull));
  const u128 s9 = ONE / 362880 - multiply_high(q, wide(odd, 0)), c8 = ONE / 40320 - multiply_high(q, wide(even, 0));
  const u128 s7 = ONE / 5040 - multiply_high(q, s9), c6 = ONE / 720 - multiply_high(q, c8);
  const u128 s5 = ONE / 120 - multiply_high(q, s7), c4 = ONE / 24 - multiply_high(q, c6);
  const u128 s3 = ONE / 6 - multiply_high(q, s5), c2 = ONE / 2 - multiply_high(q, c4);
  const u128 fine = s - multiply_high(s, multiply_high(q, s3)), less = multiply_high(q, c2);  // sin(s), 1 - cos(s)
  const u128 a = t.sine[i], b = t.cosine[i];
  sine = a - multiply_high(a, less) + multiply_high(b, fine);
  cosine = b - multiply_high(b, less) - multiply_high(a, fine);
}

// atan(t) for 0 < t <= 1: wrong by less than 2^-121. atan(t) = atan(c) + atan(u), u = (t - c) / (1 + t c), c = i / 64.
inline Real<2> fixed_atan(const Real<2>& t) {
  const u64 i = static_cast<u64>(fixed_of(t, 6));
  const Real<2> c(i, -6);
  const u128 u = fixed_of(i ? (t - c) / (Real<2>(1) + t * c) : t, 128), q = multiply_high(u, u);
  const u64 q64 = high_half(q);
  // 1 - atan(u) / u = q / 3 - q^2 / 5 + q^3 / 7 - ...
  u64 g = ONE64 / 19 - multiply_high(q64, ONE64 / 21);
  for (u64 k = 17; k >= 11; k -= 2) g = ONE64 / k - multiply_high(q64, g);
  u128 f = ONE / 9 - multiply_high(q, wide(g, 0));
  f = ONE / 7 - multiply_high(q, f);
  f = ONE / 5 - multiply_high(q, f);
  f = ONE / 3 - multiply_high(q, f);
  const u128 fine = u - multiply_high(u, multiply_high(q, f));
  return i ? real_of(tables().atan[i] + (fine >> 1), 127, false) : real_of(fine, 128, false);
}

// theta = f pi / 2 with |x| = (quadrants + f) pi / 2, f taken from the nearer multiple; for 2^-27 <= |x| < 2^30.
struct Angle {
  u128 theta;  // 128 bits of fraction, wrong by less than 4 units
  int quadrants;
  bool below;  // theta is to be taken as negative
};
inline Angle fixed_reduce(double x) {
  const Tables& t = tables();
  const Parts p = parts_of(x);
  u64 v[4] = {};
  u64 carry = 0;
  for (int q = 0; q < 3; q++) {
    const u128 product = static_cast<u128>(t.two_over_pi[q]) * p.mantissa + carry;
    v[q] = static_cast<u64>(product);
    carry = high_half(product);
  }
  v[3] = carry;
  // v is |x| 2 / pi with 192 - exponent bits of fraction, 170 or more: those from 2^-1 on are moved to the top
  const int fraction = 192 - p.exponent;  // 171 to 271
  const auto word = [&v](int place) -> u64 {  // 64 bits from bit `place` on
    const int limb = place >> 6, shift = place & 63;
    const u64 low = limb >= 0 && limb < 4 ? v[limb] : 0, high = limb + 1 >= 0 && limb + 1 < 4 ? v[limb + 1] : 0;
    return shift ? low >> shift | high << (64 - shift) : low;
  };
  Angle a;
  a.quadrants = static_cast<int>(word(fraction) & 3);
  u128 f = wide(word(fraction - 64), word(fraction - 128));
  a.below = f >> 127;
  if (a.below) f = -f, a.quadrants++;
  a.theta = multiply_high(f, t.half_pi) << 1;
  return a;
}

}  // namespace vtrain::scalar
