#pragma once
#include <cstdint>

namespace vtrain {

// A convolution's geometry for n samples of x[n, c, h, w] and oh x ow outputs.
struct Patches {
  int64_t n, c, h, w, kh, kw, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, oh, ow;
  int threads;
};

// x[n, c, h, w] (type 0 float, 1 bfloat16, 2 double) to cols[c * kh * kw, n * oh * ow] in C (f64 or float); padding is 0.
void to_columns(const Patches& p, int type, const void* x, bool f64, void* cols);

// out[c * kh * kw] = sum of squares of the input elements that each kernel tap reads.
void tap_squares(const Patches& p, int type, const void* x, double* out);

// The transpose: x[n, c, h, w] = sum of the columns' elements that read it.
void from_columns(const Patches& p, bool f64, const void* cols, void* x);

}  // namespace vtrain
