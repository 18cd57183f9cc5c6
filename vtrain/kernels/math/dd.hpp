// Double-double numbers: the unevaluated sum of two doubles, about 106 bits (Dekker 1971).
#pragma once
#include "bits.hpp"

VT_BEGIN

struct Pair {
  double hi, lo;
};

// a + b exactly, for |a| >= |b| or a = 0.
VT_FN Pair sum_ordered(double a, double b) {
  const double s = a + b;
  return {s, b - (s - a)};
}

// a + b exactly.
VT_FN Pair sum(double a, double b) {
  const double s = a + b, t = s - a;
  return {s, (a - (s - t)) + (b - t)};
}

// x rounded to its 26 leading bits; what is left has 26 bits too.
VT_FN double leading_bits(double x) {
  return as_double((as_bits(x) + 0x4000000ull) & 0xfffffffff8000000ull);
}

// a b exactly, unless a b or its error is below the normal range. Both ways give the same bits: the error is exact.
VT_FN Pair product(double a, double b) {
  const double p = a * b;
  if (FUSES) return {p, fused(a, b, -p)};
  const double ah = leading_bits(a), al = a - ah, bh = leading_bits(b), bl = b - bh;
  return {p, (((ah * bh - p) + ah * bl) + al * bh) + al * bl};
}

VT_FN double whole(Pair a) { return a.hi + a.lo; }
VT_FN Pair negative(Pair a) { return {-a.hi, -a.lo}; }
VT_FN Pair select(bool first, Pair a, Pair b) { return {first ? a.hi : b.hi, first ? a.lo : b.lo}; }

// The functions of pairs below have relative errors of a few 2^-104, where nothing cancels.
VT_FN Pair normalised(Pair a) { return sum_ordered(a.hi, a.lo); }

// A normalised pair as a double within one unit in the last place, on the pair's side of every number of at most 25 bits:
// so that rounding it again to a format of up to 24 bits rounds the pair. For what is no such number itself.
VT_FN double sided(Pair a) {
  const uint64_t b = as_bits(a.hi);
  const bool at = ((b & 0x0fffffff) == 0) & (a.lo != 0), inward = (a.lo < 0) != (a.hi < 0);
  return as_double(at ? (inward ? b - 1 : b + 1) : b);
}

VT_FN Pair add(Pair a, Pair b) {
  const Pair s = sum(a.hi, b.hi);
  return sum_ordered(s.hi, s.lo + (a.lo + b.lo));
}

VT_FN Pair multiply(Pair a, Pair b) {
  const Pair p = product(a.hi, b.hi);
  return sum_ordered(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
}

// a / b, given 1 / b.hi to a few units in the last place: the remainder of a first quotient corrects it.
VT_FN Pair quotient(Pair a, Pair b, double reciprocal) {
  const double q = a.hi * reciprocal;
  const Pair p = product(q, b.hi);
  const double remainder = ((a.hi - p.hi) - p.lo) + (a.lo - q * b.lo);
  return {q, remainder * reciprocal};
}
VT_FN Pair quotient(Pair a, Pair b) { return quotient(a, b, 1 / b.hi); }

VT_FN Pair square_root(Pair a) {
  const double s = root(a.hi);
  const Pair p = product(s, s);
  return {s, s == 0 ? 0.0 : ((a.hi - p.hi) - p.lo + a.lo) / (2 * s)};
}

VT_END
