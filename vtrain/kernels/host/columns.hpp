#pragma once
#include <cstdint>

namespace vtrain {

// A convolution's geometry for n samples of x[n, c, h, w] and oh x ow outputs. The outputs may be fewer than fit into x.
struct Patches {
  int64_t n, c, h, w, kh, kw, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, oh, ow;
  int threads;
};

// Arrays with their numbers of elements. Each function throws std::invalid_argument where a geometry is none, or where an
// array is not as long as the geometry says.
struct Source { const void* data; int64_t count; };
struct Target { void* data; int64_t count; };

// x[n, c, h, w] (type 0 float, 1 bfloat16, 2 double) to cols[c * kh * kw, n * oh * ow] in C (f64 or float); padding is 0.
void to_columns(const Patches& p, int type, Source x, bool f64, Target cols);

// out[c * kh * kw] = sum of squares of the input elements that each kernel tap reads.
void tap_squares(const Patches& p, int type, Source x, Target out);

// The transpose: x[n, c, h, w] = sum of the columns' elements that read it.
void from_columns(const Patches& p, bool f64, Source cols, Target x);

}  // namespace vtrain
