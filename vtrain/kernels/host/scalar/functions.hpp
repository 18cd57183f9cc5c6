// The functions of real numbers that Python takes from the C library, correctly rounded (to nearest, ties to even): one
// result on every machine. Arguments and results are IEEE doubles; special values are those of C99, Annex F.
#pragma once
#include <cstdint>
#include <vector>

namespace vtrain::scalar {

using Unary = double (*)(double);
using Binary = double (*)(double, double);
// An inner loop of NumPy's universal functions: arguments, number of elements, steps in bytes, unused.
using Loop = void (*)(char**, const intptr_t*, const intptr_t*, void*);

// One function, by its name in C. `unary` or `binary` computes it; `entry` is what a caller of the C library's function may
// call in its place (of the C function's type), and counts its calls in `calls`. `float64` and `float32` are loops of it; a
// float32 result is the double rounded once more. What has no `unary` or `binary` is another form of a function: of float32,
// or both sin and cos.
struct Function {
  const char* name;
  Unary unary;
  Binary binary;
  void* entry;
  const uint64_t* calls;
  Loop float64, float32;
};

const std::vector<Function>& functions();

// Makes every function skip its first try in 128 bits. For tests.
void set_slow(bool slow);

// Makes what the functions look up: about 3 ms; without it the first call does.
void prepare();

}  // namespace vtrain::scalar
