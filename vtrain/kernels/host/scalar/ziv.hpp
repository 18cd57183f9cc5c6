// Correct rounding by Ziv's strategy (1991): compute with a known error; where that leaves open which double is nearest, do it
// again with more bits. First in 128-bit fixed point (fixed.hpp), where there is such a try, then with 192, 512 and 1408
// bits (real.hpp).
//
// The loop ends: a value in the very middle between two doubles is algebraic, so that by Lindemann's and Gelfond and
// Schneider's theorems only pow, exp2 (powers of two below the smallest double), hypot and the quotients in atan2 have such;
// they are met by exact tests. Other values of these functions come no nearer to a middle than some 2^-120, by search
// (Lefevre and Muller, 2001) or, for powers, by what two last bits can differ in; 1312 bits are for all that is not known.
#pragma once
#include <atomic>
#include <limits>
#include <type_traits>
#include <utility>

#include "elementary.hpp"
#include "fixed.hpp"
#include "rounded.hpp"

namespace vtrain::scalar {

inline std::atomic<bool> slow_only{false};
inline bool quick() { return !slow_only.load(std::memory_order_relaxed); }

constexpr double INF = std::numeric_limits<double>::infinity();
constexpr double TINY = 0x1p-27;  // below it, x + c x^3 rounds to x for every |c| <= 1/3

// Arithmetic that the compiler can't do for us, so that the processor's flags say what happened.
inline double opaque(double x) {
  volatile double v = x;
  return v;
}
inline double invalid() { return opaque(0.0) / opaque(0.0); }
inline double pole(bool minus) { return opaque(minus ? -1.0 : 1.0) / opaque(0.0); }
inline double overflow(bool minus) { return opaque(minus ? -0x1p1000 : 0x1p1000) * opaque(0x1p1000); }
inline double underflow(bool minus) { return opaque(minus ? -0x1p-1000 : 0x1p-1000) * opaque(0x1p-1000); }
inline double flagged(double x) { return std::isinf(x) ? overflow(x < 0) : x; }
inline bool finite(double x) { return (bits_of(x) >> 52 & 0x7ff) != 0x7ff; }
inline bool is_nan(double x) { return x != x; }

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
inline bool round_absolute(const Real<2>& r, int bits, double& out) {
  const int64_t known = r.e + bits - 1;
  return !r.zero() && round_nearest(r, static_cast<int>(known < 128 ? known : 128), out);
}
inline u128 magnitude(i128 v) { return v < 0 ? -static_cast<u128>(v) : static_cast<u128>(v); }

// x with FRACTION bits; exact for 2^-54 <= |x| < 2^11.
inline i128 fixed_argument(double x) {
  const Parts p = parts_of(x);
  const int shift = p.exponent + FRACTION;
  const i128 v = static_cast<i128>(static_cast<u128>(p.mantissa) << shift);
  return negative(x) ? -v : v;
}

}  // namespace vtrain::scalar
