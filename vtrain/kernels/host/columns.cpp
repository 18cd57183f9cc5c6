// Convolution as matrix products: patches to columns and back. Rows of `cols` are (channel, kernel row, kernel column),
// columns (sample, output row, output column).
#include "columns.hpp"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace vtrain {
namespace {

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(uint16_t h) { uint32_t b = static_cast<uint32_t>(h) << 16; float x; std::memcpy(&x, &b, 4); return x; }

int64_t product(std::initializer_list<int64_t> sizes) {
  int64_t total = 1;
  for (const int64_t size : sizes)
    if (size < 0 || __builtin_mul_overflow(total, size, &total)) throw std::invalid_argument("columns: a size that is none");
  return total;
}

// Bounds beyond which an index could overflow: far above any tensor's size.
constexpr int64_t MOST = int64_t{1} << 40;

void check(const Patches& p) {
  for (const int64_t size : {p.n, p.c, p.h, p.w, p.kh, p.kw, p.pad_h, p.pad_w, p.oh, p.ow})
    if (size < 0 || size > MOST) throw std::invalid_argument("columns: a size that is none");
  for (const int64_t step : {p.stride_h, p.stride_w, p.dil_h, p.dil_w})
    if (step < 1 || step > MOST) throw std::invalid_argument("columns: a stride or dilation that is none");
  for (const int64_t reach : {product({p.oh, p.stride_h}), product({p.ow, p.stride_w}), product({p.kh, p.dil_h}), product({p.kw, p.dil_w})})
    if (reach > MOST) throw std::invalid_argument("columns: positions beyond any tensor");
}

int64_t pixels(const Patches& p) { return product({p.n, p.c, p.h, p.w}); }
int64_t taps(const Patches& p) { return product({p.c, p.kh, p.kw}); }
int64_t entries(const Patches& p) { return product({taps(p), p.n, p.oh, p.ow}); }

void want(const char* what, int64_t count, int64_t wanted) {
  if (count != wanted)
    throw std::invalid_argument(std::string("columns: ") + what + " has " + std::to_string(count) + " elements, want " + std::to_string(wanted));
}

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

void to_columns(const Patches& p, int type, Source x, bool f64, Target cols) {
  check(p);
  want("x", x.count, pixels(p));
  want("cols", cols.count, entries(p));
  if (f64) gather_from(p, type, x.data, static_cast<double*>(cols.data));
  else gather_from(p, type, x.data, static_cast<float*>(cols.data));
}

void from_columns(const Patches& p, bool f64, Source cols, Target x) {
  check(p);
  want("cols", cols.count, entries(p));
  want("x", x.count, pixels(p));
  if (f64) scatter(p, static_cast<const double*>(cols.data), static_cast<double*>(x.data));
  else scatter(p, static_cast<const float*>(cols.data), static_cast<float*>(x.data));
}

void tap_squares(const Patches& p, int type, Source x, Target out) {
  check(p);
  want("x", x.count, pixels(p));
  want("out", out.count, taps(p));
  double* sums = static_cast<double*>(out.data);
  if (type == 0) squares_by_tap(p, static_cast<const float*>(x.data), sums);
  else if (type == 1) squares_by_tap(p, static_cast<const uint16_t*>(x.data), sums);
  else squares_by_tap(p, static_cast<const double*>(x.data), sums);
}

}  // namespace vtrain
