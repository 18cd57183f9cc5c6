// Float formats as arithmetic on double: exact, branch-light, the same on every target (numerics §1, §3).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../math/rounding.hpp"

namespace vtrain {

enum Container : int { F32 = 0, BF16 = 1, F16 = 2 };  // how elements of T lie in memory

// A binary format: p significant bits, exponents emin..emax of normal numbers, subnormals, infinities.
struct Format {
  int container;
  int p, emin, emax;
  int bits() const { return p + (emax == 15 ? 5 : 8); }
  bool is_f32() const { return container == F32 && p == 24 && emin == -126; }
  bool operator==(const Format& o) const {
    return container == o.container && p == o.p && emin == o.emin && emax == o.emax;
  }
};

static inline uint64_t bits_of(double x) { uint64_t b; std::memcpy(&b, &x, 8); return b; }
static inline uint32_t bits_of(float x) { uint32_t b; std::memcpy(&b, &x, 4); return b; }
static inline double double_of(uint64_t b) { double x; std::memcpy(&x, &b, 8); return x; }
static inline float float_of(uint32_t b) { float x; std::memcpy(&x, &b, 4); return x; }

static inline double round_format(double y, const Format& f) {
  return VT_CAT(in_, VTRAIN_VARIANT)::round_binary(y, f.p, f.emin, f.emax);
}

// Position of |r| among the format's non-negative values: the IEEE encoding without its sign. r is representable.
static inline uint32_t magnitude(double r, const Format& f) {
  double a = std::fabs(r);
  if (a != a) return ((static_cast<uint32_t>(f.emax - f.emin + 2) << (f.p - 1)) | (1u << (f.p - 2)));
  if (std::isinf(a)) return static_cast<uint32_t>(f.emax - f.emin + 2) << (f.p - 1);
  if (a < std::ldexp(1.0, f.emin)) return static_cast<uint32_t>(std::ldexp(a, f.p - 1 - f.emin));
  uint64_t b = bits_of(a);
  int e = static_cast<int>(b >> 52) - 1023;
  uint32_t frac = static_cast<uint32_t>((b & 0xfffffffffffffull) >> (52 - (f.p - 1)));
  return (static_cast<uint32_t>(e - f.emin + 1) << (f.p - 1)) + frac;
}

// Order-preserving integer of a representable value; -0 is -1 and +0 is 0, so that they differ.
static inline int64_t ordered(double r, const Format& f) {
  int64_t m = magnitude(r, f);
  return std::signbit(r) ? ~m : m;
}

static inline double from_ordered(int64_t k, const Format& f) {
  bool neg = k < 0;
  int64_t m = neg ? ~k : k;
  int64_t e = m >> (f.p - 1), frac = m & ((int64_t(1) << (f.p - 1)) - 1);
  double a;
  if (e == 0) a = std::ldexp(static_cast<double>(frac), f.emin - f.p + 1);
  else if (e > f.emax - f.emin + 1) a = frac ? NAN : HUGE_VAL;
  else a = std::ldexp(static_cast<double>(frac + (int64_t(1) << (f.p - 1))), static_cast<int>(e) - 1 + f.emin - f.p + 1);
  return neg ? -a : a;
}

static inline uint32_t encode_value(int64_t k, const Format& f) {
  uint32_t sign = k < 0 ? 1u << (f.bits() - 1) : 0u;
  return sign | static_cast<uint32_t>(k < 0 ? ~k : k);
}

// False where the word is no value of the format (a stray high bit) or a NaN.
static inline bool decode_value(uint32_t word, const Format& f, int64_t& k) {
  if (f.bits() < 32 && (word >> f.bits())) return false;
  uint32_t sign = word >> (f.bits() - 1) & 1u;
  uint32_t m = word & ((1u << (f.bits() - 1)) - 1u);
  if (m > (static_cast<uint32_t>(f.emax - f.emin + 2) << (f.p - 1))) return false;
  k = sign ? ~static_cast<int64_t>(m) : static_cast<int64_t>(m);
  return true;
}

// Storing a representable value r.
static inline void store(float* out, double r, const Format&) { *out = static_cast<float>(r); }
static inline uint16_t half_bits(double r, const Format& f) {
  uint32_t m = magnitude(r, f);
  return static_cast<uint16_t>(m | (std::signbit(r) ? 0x8000u : 0u));
}

}  // namespace vtrain
