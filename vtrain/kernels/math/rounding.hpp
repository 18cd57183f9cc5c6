// Rounding to a binary format, as arithmetic on double: exact and the same on every target (numerics §1, §3).
#pragma once
#include "../tile/arithmetic.hpp"

VT_BEGIN

// To nearest, ties to even: p significant bits, least exponent emin, greatest emax. (a + m) - m with m = 1.5 * 2^52 quanta
// rounds to a multiple of the quantum exactly while a < 2^51 quanta, which p <= 24 grants. Overflow becomes infinity.
VT_FN double round_binary(double y, int64_t p, int64_t emin, int64_t emax) {
  const uint64_t b = as_bits(y);
  int64_t e = static_cast<int64_t>((b >> 52) & 0x7ff);  // biased exponent of y
  e = e < emin + 1023 ? emin + 1023 : e;
  e = e > emax + 1024 ? emax + 1024 : e;                // keeps m finite; such y overflow anyway
  const double m = as_double((static_cast<uint64_t>(e - p + 1 + 52) << 52) | 0x8000000000000ull);
  const double limit = as_double(static_cast<uint64_t>(emax + 1 + 1023) << 52);
  const double a = magnitude_of(y);
  double r = (a + m) - m;
  r = a >= 2.0 * limit ? a : r;                         // huge or infinite: decided by the next line
  r = r >= limit ? infinity() : r;
  r = a != a ? a : r;
  return as_double(as_bits(r) | (b & 0x8000000000000000ull));
}

VT_END
