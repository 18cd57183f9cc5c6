// Numbers as bits, and the operations that are one instruction, with a body for each target.
//
//   as_bits(x), as_float(b), as_double(b)
//   multiply_high(a, b)         the upper half of a product of 64-bit integers
//   leading_zeros(x)            how many leading bits of x, not 0, are zero
//   count_ones(x)               how many bits of 32 are set
//   root(x)                     square root, correctly rounded (IEEE 754)
//   fused(a, b, c)              a * b + c with one rounding; FUSES: whether that is one instruction
#pragma once
#include "../config.hpp"
#include VT_BODY(arithmetic)

VT_BEGIN

VT_FN int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
VT_FN int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
VT_FN double infinity() { return as_double(0x7ff0000000000000ull); }
VT_FN double magnitude_of(double x) { return as_double(as_bits(x) & 0x7fffffffffffffffull); }
VT_FN float magnitude_of(float x) { return as_float(as_bits(x) & 0x7fffffffu); }

// a * b + c with one rounding or with two, whichever is fast here. Only where no result shows it: in functions whose float
// results were compared with the exact ones for all inputs, on both kinds of machines (benchmarks/exhaust.py).
VT_FN double multiply_add(double a, double b, double c) { return FUSES ? fused(a, b, c) : a * b + c; }

VT_END
