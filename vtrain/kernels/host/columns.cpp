// Convolution as matrix products: patches to columns and back. Rows of `cols` are (channel, kernel row, kernel column),
// columns (sample, output row, output column).
#include "columns.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace vtrain {
namespace {

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(uint16_t h) { uint32_t b = static_cast<uint32_t>(h) << 16; float x; std::memcpy(&x, &b, 4); return x; }

// Output columns [from, to) that read inside the row, for one kernel column.
inline void inside(const Patches& p, int64_t kx, int64_t& from, int64_t& to) {
  const int64_t shift = p.pad_w - kx * p.dil_w;  // input column = ow * stride - shift
  from = shift <= 0 ? 0 : (shift + p.stride_w - 1) / p.stride_w;
  const int64_t room = p.w - 1 + shift;
  to = room < 0 ? 0 : std::min(p.ow, room / p.stride_w + 1);
  from = std::min(from, p.ow);
  to = std::max(to, from);
}

template <class X, class C> void gather(const Patches& p, const X* x, C* cols) {
  const int64_t area = p.kh * p.kw, rows = p.c * area, width = p.n * p.oh * p.ow;
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    const int64_t c = row / area, ky = row % area / p.kw, kx = row % p.kw;
    int64_t from, to;
    inside(p, kx, from, to);
    C* out = cols + row * width;
    for (int64_t b = 0; b < p.n; b++) {
      const X* plane = x + (b * p.c + c) * p.h * p.w;
      for (int64_t oy = 0; oy < p.oh; oy++, out += p.ow) {
        const int64_t iy = oy * p.stride_h - p.pad_h + ky * p.dil_h;
        if (iy < 0 || iy >= p.h) { std::fill(out, out + p.ow, C(0)); continue; }
        const X* in = plane + iy * p.w - p.pad_w + kx * p.dil_w;
        std::fill(out, out + from, C(0));
        if (p.stride_w == 1) for (int64_t ox = from; ox < to; ox++) out[ox] = static_cast<C>(widen(in[ox]));
        else for (int64_t ox = from; ox < to; ox++) out[ox] = static_cast<C>(widen(in[ox * p.stride_w]));
        std::fill(out + to, out + p.ow, C(0));
      }
    }
  }
}

// Each element's terms are added in ascending order of (kernel row, kernel column).
template <class C> void scatter(const Patches& p, const C* cols, C* x) {
  const int64_t area = p.kh * p.kw, width = p.n * p.oh * p.ow;
#pragma omp parallel for collapse(2) num_threads(p.threads) schedule(static)
  for (int64_t b = 0; b < p.n; b++)
    for (int64_t c = 0; c < p.c; c++) {
      C* plane = x + (b * p.c + c) * p.h * p.w;
      std::fill(plane, plane + p.h * p.w, C(0));
      for (int64_t k = 0; k < area; k++) {
        const int64_t ky = k / p.kw, kx = k % p.kw;
        int64_t from, to;
        inside(p, kx, from, to);
        const C* in = cols + (c * area + k) * width + b * p.oh * p.ow;
        for (int64_t oy = 0; oy < p.oh; oy++, in += p.ow) {
          const int64_t iy = oy * p.stride_h - p.pad_h + ky * p.dil_h;
          if (iy < 0 || iy >= p.h) continue;
          C* out = plane + iy * p.w - p.pad_w + kx * p.dil_w;
          if (p.stride_w == 1) for (int64_t ox = from; ox < to; ox++) out[ox] += in[ox];
          else for (int64_t ox = from; ox < to; ox++) out[ox * p.stride_w] += in[ox];
        }
      }
    }
}

// Per (channel, kernel row, kernel column), the sum of squares of the input elements that this tap reads: rows of the
// input are first added up by kernel row, then each kernel column picks its own columns.
template <class X> void squares_by_tap(const Patches& p, const X* x, double* out) {
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t c = 0; c < p.c; c++) {
    std::vector<double> rows(static_cast<size_t>(p.kh * p.w), 0.0);
    for (int64_t b = 0; b < p.n; b++) {
      const X* plane = x + (b * p.c + c) * p.h * p.w;
      for (int64_t ky = 0; ky < p.kh; ky++)
        for (int64_t oy = 0; oy < p.oh; oy++) {
          const int64_t iy = oy * p.stride_h - p.pad_h + ky * p.dil_h;
          if (iy < 0 || iy >= p.h) continue;
          double* sum = rows.data() + ky * p.w;
          const X* in = plane + iy * p.w;
          for (int64_t ix = 0; ix < p.w; ix++) { const double v = static_cast<double>(widen(in[ix])); sum[ix] += v * v; }
        }
    }
    for (int64_t ky = 0; ky < p.kh; ky++)
      for (int64_t kx = 0; kx < p.kw; kx++) {
        int64_t from, to;
        inside(p, kx, from, to);
        double total = 0;
        for (int64_t ox = from; ox < to; ox++) total += rows[ky * p.w + ox * p.stride_w - p.pad_w + kx * p.dil_w];
        out[(c * p.kh + ky) * p.kw + kx] = total;
      }
  }
}

template <class C> void gather_from(const Patches& p, int type, const void* x, C* cols) {
  if (type == 0) gather(p, static_cast<const float*>(x), cols);
  else if (type == 1) gather(p, static_cast<const uint16_t*>(x), cols);
  else gather(p, static_cast<const double*>(x), cols);
}

}  // namespace

void to_columns(const Patches& p, int type, const void* x, bool f64, void* cols) {
  if (f64) gather_from(p, type, x, static_cast<double*>(cols));
  else gather_from(p, type, x, static_cast<float*>(cols));
}

void from_columns(const Patches& p, bool f64, const void* cols, void* x) {
  if (f64) scatter(p, static_cast<const double*>(cols), static_cast<double*>(x));
  else scatter(p, static_cast<const float*>(cols), static_cast<float*>(x));
}

void tap_squares(const Patches& p, int type, const void* x, double* out) {
  if (type == 0) squares_by_tap(p, static_cast<const float*>(x), out);
  else if (type == 1) squares_by_tap(p, static_cast<const uint16_t*>(x), out);
  else squares_by_tap(p, static_cast<const double*>(x), out);
}

}  // namespace vtrain
