// Floating-point numbers of N 64-bit limbs, in integer arithmetic alone: what the host's scalar functions fall back to where
// 128 bits don't decide a rounding. Every operation truncates, with a relative error below 2^(2 - 64 N); sums and products
// that fit into 64 N bits are exact.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace vtrain::scalar {

using u64 = uint64_t;
using u128 = unsigned __int128;
using i128 = __int128;

// A finite double without its sign: mantissa * 2^exponent, exactly.
struct Parts {
  u64 mantissa;
  int exponent;
};

inline u64 bits_of(double x) {
  u64 b;
  std::memcpy(&b, &x, 8);
  return b;
}
inline double double_of(u64 b) {
  double x;
  std::memcpy(&x, &b, 8);
  return x;
}
inline bool negative(double x) { return bits_of(x) >> 63; }

inline Parts parts_of(double x) {
  const u64 b = bits_of(x);
  const int e = static_cast<int>(b >> 52 & 0x7ff);
  const u64 fraction = b & 0xfffffffffffffull;
  return e ? Parts{fraction | 1ull << 52, e - 1075} : Parts{fraction, -1074};
}

// sign * m * 2^(e - 64 N); the top bit of m is set, or m is zero.
template <int N> struct Real {
  u64 m[N] = {};
  int64_t e = 0;
  bool negative = false;

  Real() = default;
  explicit Real(u64 integer, int64_t exponent = 0) {
    m[N - 1] = integer;
    e = 64 + exponent;
    normalise();
  }
  static Real of(double x) {
    const Parts p = parts_of(x);
    Real r(p.mantissa, p.exponent);
    r.negative = scalar::negative(x);
    return r;
  }
  template <int M> explicit Real(const Real<M>& wider) : e(wider.e), negative(wider.negative) {
    for (int q = 0; q < N; q++) m[N - 1 - q] = q < M ? wider.m[M - 1 - q] : 0;
  }

  bool zero() const { return m[N - 1] == 0; }
  // Bit number `place` of m, from the top; 0 beyond both ends.
  bool bit(int place) const {
    if (place < 0 || place >= 64 * N) return false;
    return m[N - 1 - place / 64] >> (63 - place % 64) & 1;
  }
  void normalise() {
    int top = N - 1;
    while (top >= 0 && m[top] == 0) top--;
    if (top < 0) return;
    const int shift = __builtin_clzll(m[top]), limbs = N - 1 - top;
    for (int q = N - 1; q >= 0; q--) {
      const int from = q - limbs;
      const u64 high = from >= 0 ? m[from] : 0, low = from >= 1 ? m[from - 1] : 0;
      m[q] = shift ? high << shift | low >> (64 - shift) : high;
    }
    e -= 64 * limbs + shift;
  }
  double approximate() const {  // to about 2^-52; for numbers within a double's range
    const double x = std::ldexp(static_cast<double>(m[N - 1]), static_cast<int>(e) - 64);
    return negative ? -x : x;
  }
};

// Compare magnitudes: negative, zero or positive as |a| is less than, equal to or greater than |b|.
template <int N> int compare(const Real<N>& a, const Real<N>& b) {
  if (a.zero() || b.zero()) return static_cast<int>(!a.zero()) - static_cast<int>(!b.zero());
  if (a.e != b.e) return a.e < b.e ? -1 : 1;
  for (int q = N - 1; q >= 0; q--)
    if (a.m[q] != b.m[q]) return a.m[q] < b.m[q] ? -1 : 1;
  return 0;
}

template <int N> Real<N> operator-(Real<N> a) {
  a.negative = !a.negative;
  return a;
}

// m of b, shifted right by d >= 0 bits.
template <int N> void aligned(const Real<N>& b, int64_t d, u64 (&out)[N]) {
  const int64_t limbs = d / 64;
  const int shift = static_cast<int>(d % 64);
  for (int q = 0; q < N; q++) {
    const int64_t from = q + limbs;
    const u64 low = from < N ? b.m[from] : 0, high = from + 1 < N ? b.m[from + 1] : 0;
    out[q] = shift ? low >> shift | high << (64 - shift) : low;
  }
}

template <int N> Real<N> operator+(const Real<N>& x, const Real<N>& y) {
  if (x.zero()) return y;
  if (y.zero()) return x;
  const bool swap = compare(x, y) < 0;
  const Real<N>&a = swap ? y : x, &b = swap ? x : y;
  const int64_t d = a.e - b.e;
  if (d >= 64 * N) return a;
  u64 other[N];
  aligned(b, d, other);
  Real<N> r = a;
  u64 carry = 0;
  const bool add = a.negative == b.negative;
  for (int q = 0; q < N; q++) {
    const u128 t = add ? static_cast<u128>(a.m[q]) + other[q] + carry : static_cast<u128>(a.m[q]) - other[q] - carry;
    r.m[q] = static_cast<u64>(t);
    carry = static_cast<u64>(t >> 64) & 1;
  }
  if (add && carry) {
    for (int q = 0; q < N; q++) r.m[q] = r.m[q] >> 1 | (q + 1 < N ? r.m[q + 1] : 1ull) << 63;
    r.e++;
    return r;
  }
  r.normalise();
  return r;
}
template <int N> Real<N> operator-(const Real<N>& a, const Real<N>& b) { return a + -b; }

template <int N> Real<N> operator*(const Real<N>& a, const Real<N>& b) {
  Real<N> r;
  if (a.zero() || b.zero()) return r;
  u64 p[2 * N] = {};
  for (int i = 0; i < N; i++) {
    u64 carry = 0;
    if (a.m[i])
      for (int j = 0; j < N; j++) {
        const u128 t = static_cast<u128>(a.m[i]) * b.m[j] + p[i + j] + carry;
        p[i + j] = static_cast<u64>(t);
        carry = static_cast<u64>(t >> 64);
      }
    p[i + N] = carry;
  }
  const bool shift = !(p[2 * N - 1] >> 63);
  for (int q = 0; q < N; q++) r.m[q] = shift ? p[N + q] << 1 | p[N + q - 1] >> 63 : p[N + q];
  r.e = a.e + b.e - shift;
  r.negative = a.negative != b.negative;
  return r;
}

// a / d, for 0 < d < 2^32.
template <int N> Real<N> operator/(Real<N> a, uint32_t d) {
  u64 rest = 0, below = 0;
  for (int q = N - 1; q >= -1; q--) {  // one limb more than N, for what normalising brings up
    const u64 limb = q >= 0 ? a.m[q] : 0;
    const u64 upper = rest << 32 | limb >> 32, high = upper / d;
    const u64 lower = (upper % d) << 32 | (limb & 0xffffffffull), low = lower / d;
    rest = lower % d;
    (q >= 0 ? a.m[q] : below) = high << 32 | low;
  }
  if (a.zero()) {  // the quotient may lack up to 32 leading bits, never a whole limb
    return a;
  }
  const int shift = __builtin_clzll(a.m[N - 1]);
  if (shift) {
    for (int q = N - 1; q > 0; q--) a.m[q] = a.m[q] << shift | a.m[q - 1] >> (64 - shift);
    a.m[0] = a.m[0] << shift | below >> (64 - shift);
    a.e -= shift;
  }
  return a;
}

// Newton's iteration from 52 bits: how often they must double.
constexpr int doublings(int bits, int have = 50) { return have >= bits ? 0 : 1 + doublings(bits, 2 * have - 2); }

template <int N> Real<N> reciprocal(const Real<N>& b) {
  Real<N> scaled = b;
  scaled.e = 0, scaled.negative = false;
  Real<N> r = Real<N>::of(1.0 / scaled.approximate());
  const Real<N> two(2);
  for (int q = 0; q < doublings(64 * N); q++) r = r * (two - scaled * r);
  r.e -= b.e;
  r.negative = b.negative;
  return r;
}
template <int N> Real<N> operator/(const Real<N>& a, const Real<N>& b) { return a * reciprocal(b); }

// The square root of a >= 0.
template <int N> Real<N> root(const Real<N>& a) {
  if (a.zero()) return a;
  Real<N> scaled = a;
  const int64_t half = (a.e - (a.e & 1)) / 2;
  scaled.e = a.e & 1;
  Real<N> r = Real<N>::of(1.0 / std::sqrt(scaled.approximate()));
  const Real<N> three(3);
  for (int q = 0; q < doublings(64 * N); q++) {
    r = r * (three - scaled * r * r);
    r.e--;
  }
  r = r * scaled;
  r.e += half;
  return r;
}

// Multiplied by 2^k.
template <int N> Real<N> scaled(Real<N> a, int64_t k) {
  a.e += k;
  return a;
}

// The double nearest to a, which is known with a relative error below 2^-known. False where that does not decide between two
// doubles: a lies too near to the middle between them. Bits of m beyond `known` are not looked at.
template <int N> bool round_nearest(const Real<N>& a, int known, double& out) {
  const u64 sign = static_cast<u64>(a.negative) << 63;
  if (a.zero() || a.e < -1075) return out = double_of(sign), true;
  if (a.e > 1024) return out = double_of(sign | 0x7ffull << 52), true;
  const int precision = a.e >= -1021 ? 53 : static_cast<int>(a.e + 1074);  // bits that the double keeps; -1, 0: none
  const bool half = a.bit(precision);
  bool decided = false;
  for (int place = precision + 1; place < known && !decided; place++) decided = a.bit(place) != !half;
  if (!decided) return false;
  const u64 kept = precision > 0 ? a.m[N - 1] >> (64 - precision) : 0;
  // The exponent field is added, so that a carry goes into it; a subnormal's is zero.
  const u64 field = precision == 53 ? static_cast<u64>(a.e + 1021) << 52 : 0;
  out = double_of(sign | (field + kept + half));
  return true;
}

}  // namespace vtrain::scalar
