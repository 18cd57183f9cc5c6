// sin, cos and tan for all arguments.
//
// Range reduction (Payne and Hanek 1983): x = M 2^E with an integer M of 53 bits. Of the bits of 2/pi those that make
// M 2^E 2/pi a multiple of 4 are skipped; M times the next 192 bits gives x 2/pi modulo 4 with an error below 2^-137: the
// quadrant, and a fraction of a quarter turn in [-1/2, 1/2]. No double is nearer than 2^-62 to a multiple of pi/2 (Muller
// 2016, section 11.3), so the fraction, as a pair of doubles, has a relative error below 2^-75. Then Taylor polynomials in
// r^2, |r| <= pi/4, of degrees 8 and 7 (errors 2^-64 and 2^-61): only the last addition and terms below 0.1 of the result
// round. Measured error: below 0.77 units in the last place.
#pragma once
#include "dd.hpp"

VT_BEGIN

// Word i of 64 zeros and then the bits of 2/pi after the point.
VT_FN uint64_t two_over_pi(int64_t i) {
  constexpr uint64_t WORDS[] = {
      0x0000000000000000ull, 0xa2f9836e4e441529ull, 0xfc2757d1f534ddc0ull, 0xdb6295993c439041ull,
      0xfe5163abdebbc561ull, 0xb7246e3a424dd2e0ull, 0x06492eea09d1921cull, 0xfe1deb1cb129a73eull,
      0xe88235f52ebb4484ull, 0xe99c7026b45f7e41ull, 0x3991d639835339f4ull, 0x9c845f8bbdf9283bull,
      0x1ff897ffde05980full, 0xef2f118b5a0a6d1full, 0x6d367ecf27cb09b7ull, 0x4f463f669e5fea2dull,
      0x7527bac7ebe5f17bull, 0x3d0739f78a5292eaull, 0x6bfb5fb11f8d5d08ull, 0x56033046fc7b6babull,
      0xf0cfbc209af4361dull,
  };
  return WORDS[i];
}

// 64 bits from bit `at` of those words.
VT_FN uint64_t bits_from(int64_t at) {
  const int64_t word = at / 64, shift = at % 64;
  const uint64_t high = two_over_pi(word) << shift;
  return shift ? high | two_over_pi(word + 1) >> (64 - shift) : high;
}

// x = quadrant pi/2 + r.
struct Turn {
  int64_t quadrant;
  Pair r;
};

// The fraction of a quarter turn high:low / 2^128 <= 1/2, not 0, times pi/2.
VT_FN Pair quarter_turns(uint64_t high, uint64_t low) {
  const int zeros = high ? leading_zeros(high) : 64;
  const uint64_t top = zeros == 0 ? high : zeros == 64 ? low : high << zeros | low >> (64 - zeros);
  const uint64_t rest = zeros == 64 ? 0 : low << zeros;
  const uint64_t tail = top << 53 | rest >> 11;  // what follows the leading 53 bits
  const double unit = power_of_two(static_cast<uint64_t>(1023 - 53 - zeros));
  const double hi = static_cast<double>(top >> 11) * unit;
  const double lo = static_cast<double>(tail >> 11) * (unit * 0x1p-53);
  return multiply({hi, lo}, {0x1.921fb54442d18p+0, 0x1.1a62633145c07p-54});
}

// x at least pi/4, finite.
VT_FN Turn turn_of(double x) {
  const uint64_t b = as_bits(x);
  const int64_t exponent = static_cast<int64_t>(b >> 52) - 1075;  // x = m 2^exponent
  const uint64_t m = (b & 0x000fffffffffffffull) | 0x0010000000000000ull;
  const int64_t at = exponent - 2 + 64;                           // the first bit that counts
  const uint64_t v2 = bits_from(at), v1 = bits_from(at + 64), v0 = bits_from(at + 128);
  const uint64_t p0 = m * v0, p1 = m * v1 + multiply_high(m, v0);
  const uint64_t carry1 = p1 < m * v1, part = m * v2 + multiply_high(m, v1), p2 = part + carry1;
  uint64_t high = p2 << 2 | p1 >> 62, low = p1 << 2 | p0 >> 62;
  int64_t quadrant = static_cast<int64_t>(p2 >> 62);
  const bool above_half = high >> 63;
  if (above_half) {  // count down from the next quadrant
    quadrant++;
    low = ~low + 1;
    high = ~high + (low == 0);
  }
  const Pair r = quarter_turns(high, low);
  return {quadrant & 3, above_half ? Pair{-r.hi, -r.lo} : r};
}

// sin(r + t), |r| <= pi/4, as a pair whose sum is the result.
VT_FN Pair sin_near(Pair a) {
  const double r = a.hi, z = r * r;
  const double s = horner(z, -0x1.5555555555555p-3, 0x1.1111111111111p-7, -0x1.a01a01a01a01ap-13,
                          0x1.71de3a556c734p-19, -0x1.ae64567f544e4p-26, 0x1.6124613a86d09p-33,
                          -0x1.ae7f3e733b81fp-41, 0x1.952c77030ad4ap-49, -0x1.2f49b46814157p-57);
  return {r, r * z * s + a.lo * (1 - 0.5 * z)};
}

// cos(r + t), |r| <= pi/4, likewise.
VT_FN Pair cos_near(Pair a) {
  const Pair square = product(a.hi, a.hi);
  const double z = square.hi, half = 0.5 * z;
  const double c = horner(z, 0x1.5555555555555p-5, -0x1.6c16c16c16c17p-10, 0x1.a01a01a01a01ap-16,
                          -0x1.27e4fb7789f5cp-22, 0x1.1eed8eff8d898p-29, -0x1.93974a8c07c9dp-37,
                          0x1.ae7f3e733b81fp-45, -0x1.6827863b97d97p-53);
  const double one = 1 - half;
  return {one, ((1 - one) - half) + (z * z * c - (0.5 * square.lo + a.hi * a.lo))};
}

// x not negative, finite.
VT_FN Turn turned(double x) { return x < 0x1.921fb54442d18p-1 ? Turn{0, {x, 0}} : turn_of(x); }

// sin of x + shift quarter turns, x not negative.
VT_FN double circular(double x, int64_t shift) {
  if (!(x < infinity())) return quiet_nan();
  const Turn t = turned(x);
  const int64_t quadrant = (t.quadrant + shift) & 3;
  const double y = whole(quadrant & 1 ? cos_near(t.r) : sin_near(t.r));
  return quadrant & 2 ? -y : y;
}

// Below 1.1 2^-25 sin x is x - x^3/6.
VT_FN double m_sin(double x) {
  const double a = magnitude_of(x);
  if (a < 0x1.2p-25) return next_inward(x);
  const double y = circular(a, 0);
  return x < 0 ? -y : y;
}

VT_FN double m_cos(double x) { return circular(magnitude_of(x), 1); }

// sin / cos of the remainder, or -cos / sin, as pairs. Below 1.4 2^-26 tan x is x + x^3/3.
VT_FN double m_tan(double x) {
  const double a = magnitude_of(x);
  if (a < 0x1.6p-26) return next_outward(x);
  if (!(a < infinity())) return quiet_nan();
  const Turn t = turned(a);
  const Pair s = normalised(sin_near(t.r)), c = normalised(cos_near(t.r));
  const double y = sided(normalised(t.quadrant & 1 ? negative(quotient(c, s)) : quotient(s, c)));
  return x < 0 ? -y : y;
}

VT_END
