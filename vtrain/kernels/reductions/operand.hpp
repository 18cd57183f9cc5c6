// Factors of a product as functions of (row, term): nothing is materialised (numerics §3).
//
// Each is float; the product reads it elementwise on a device and packs whole panels of it on the host (host/pack.hpp).
// `shifted(b)` is the factor of batch entry or group b.
#pragma once
#include "../config.hpp"

VT_BEGIN

// A matrix with any strides: (r, k) -> p[r * rs + k * ks].
struct Strided {
  const float* p;
  int64_t rs, ks, batch;
  VT_FN float at(int64_t r, int64_t k) const { return p[r * rs + k * ks]; }
  VT_FN Strided shifted(int64_t b) const { return {p + b * batch, rs, ks, batch}; }
};

// Terms in two levels, k = (sample, position): p[r * rs + sample * ns + position], `area` positions a sample.
struct Split {
  const float* p;
  int64_t rs, area, ns, batch;
  VT_FN float at(int64_t r, int64_t k) const { return p[r * rs + k / area * ns + k % area]; }
  VT_FN Split shifted(int64_t b) const { return {p + b * batch, rs, area, ns, batch}; }
};

// One axis of a convolution: position q reads source (q * scale + offset + tap * step) / divisor, where that is whole and
// in [0, size); elsewhere 0. Forward: scale = stride, offset = -padding, step = dilation. Gradient of the input: divisor =
// stride, offset = padding, step = -dilation.
struct Axis {
  int64_t scale, offset, step, divisor, size, taps, positions;
  VT_FN int64_t source(int64_t q, int64_t tap) const {  // -1 where there is none
    const int64_t x = q * scale + offset + tap * step;
    if (x < 0 || x % divisor) return -1;
    return x / divisor < size ? x / divisor : -1;
  }
};

// Patches of image[n, c, y.size, x.size]: row r = (sample, y position, x position), term k = (channel, y tap, x tap).
struct Patches {
  const float* p;
  int64_t sample, batch;  // elements from one sample to the next; from one group of channels to the next
  Axis y, x;
  VT_FN float at(int64_t r, int64_t k) const {
    const int64_t area = y.positions * x.positions, kernel = y.taps * x.taps;
    const int64_t row = y.source(r % area / x.positions, k % kernel / x.taps);
    const int64_t column = x.source(r % x.positions, k % x.taps);
    if (row < 0 || column < 0) return 0.0f;
    return p[r / area * sample + (k / kernel * y.size + row) * x.size + column];
  }
  VT_FN Patches shifted(int64_t b) const { return {p + b * batch, sample, batch, y, x}; }
};

// The same with rows and terms exchanged: row (channel, y tap, x tap), term (sample, position).
struct Taps {
  Patches patches;
  VT_FN float at(int64_t r, int64_t k) const { return patches.at(k, r); }
  VT_FN Taps shifted(int64_t b) const { return {patches.shifted(b)}; }
};

// Where a product goes: element (i, j) to y[i * ld + j / run * ns + j % run], as alpha * chain + beta * bias in float, each
// operation rounded.
struct Target {
  float* y;
  int64_t ld, run, ns, batch;
  float alpha, beta;
  const float* bias;  // null: no bias; element (i, j) at bias[i * bi + j * bj]
  int64_t bi, bj, bias_batch;
  VT_FN float* address(int64_t i, int64_t j) const { return y + i * ld + j / run * ns + j % run; }
  VT_FN float finished(float chain, int64_t i, int64_t j) const {
    const float scaled = alpha * chain;
    return bias ? scaled + beta * bias[i * bi + j * bj] : scaled;
  }
  VT_FN Target shifted(int64_t b) const {
    Target t = *this;
    t.y += b * batch;
    if (bias) t.bias += b * bias_batch;
    return t;
  }
};

VT_END
