// Host: panels of a product's factors. pack(f, r0, rows, k0, terms, to, width): to[k * width + r] = f(r0 + r, k0 + k), and
// 0 for r >= rows.
#pragma once
#include "../reductions/operand.hpp"
#include "vector.hpp"

VT_BEGIN

// 4 x 4 block: to[c * stride + r] = from[r * pitch + c].
VT_FN void transpose_4x4(const float* from, int64_t pitch, float* to, int64_t stride) {
  typedef float v4 __attribute__((vector_size(16)));
  typedef int i4 __attribute__((vector_size(16)));
  v4 r0, r1, r2, r3;
  __builtin_memcpy(&r0, from, 16);
  __builtin_memcpy(&r1, from + pitch, 16);
  __builtin_memcpy(&r2, from + 2 * pitch, 16);
  __builtin_memcpy(&r3, from + 3 * pitch, 16);
  const v4 a = __builtin_shuffle(r0, r1, i4{0, 4, 1, 5}), b = __builtin_shuffle(r0, r1, i4{2, 6, 3, 7});
  const v4 c = __builtin_shuffle(r2, r3, i4{0, 4, 1, 5}), d = __builtin_shuffle(r2, r3, i4{2, 6, 3, 7});
  const v4 y0 = __builtin_shuffle(a, c, i4{0, 1, 4, 5}), y1 = __builtin_shuffle(a, c, i4{2, 3, 6, 7});
  const v4 y2 = __builtin_shuffle(b, d, i4{0, 1, 4, 5}), y3 = __builtin_shuffle(b, d, i4{2, 3, 6, 7});
  __builtin_memcpy(to, &y0, 16);
  __builtin_memcpy(to + stride, &y1, 16);
  __builtin_memcpy(to + 2 * stride, &y2, 16);
  __builtin_memcpy(to + 3 * stride, &y3, 16);
}

VT_FN void transpose_4x4(const float* from, int64_t pitch, double* to, int64_t stride) {
  for (int r = 0; r < 4; r++)
    for (int c = 0; c < 4; c++) to[c * stride + r] = static_cast<double>(from[r * pitch + c]);
}

// Terms next to each other in memory, rows `pitch` apart.
template <class Acc>
VT_FN void pack_transposed(const float* from, int64_t pitch, int rows, int64_t terms, Acc* to, int width) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t k = 0;
    for (; k + 4 <= terms; k += 4) transpose_4x4(from + r * pitch + k, pitch, to + k * width + r, width);
    for (; k < terms; k++)
      for (int q = r; q < r + 4; q++) to[k * width + q] = static_cast<Acc>(from[q * pitch + k]);
  }
  for (; r < width; r++)
    for (int64_t k = 0; k < terms; k++) to[k * width + r] = r < rows ? static_cast<Acc>(from[r * pitch + k]) : Acc(0);
}

// Terms `pitch` apart, rows `step` apart.
template <class Acc>
VT_FN void pack_straight(const float* from, int64_t pitch, int64_t step, int rows, int64_t terms, Acc* to, int width) {
  for (int64_t k = 0; k < terms; k++, from += pitch, to += width) {
    if (step == 1 && rows == width) for (int r = 0; r < width; r++) to[r] = static_cast<Acc>(from[r]);
    else {
      for (int r = 0; r < rows; r++) to[r] = static_cast<Acc>(from[r * step]);
      for (int r = rows; r < width; r++) to[r] = Acc(0);
    }
  }
}

template <class Acc>
void pack(const Strided& f, int64_t r0, int rows, int64_t k0, int64_t terms, Acc* to, int width) {
  const float* from = f.p + r0 * f.rs + k0 * f.ks;
  if (f.ks == 1) pack_transposed(from, f.rs, rows, terms, to, width);
  else pack_straight(from, f.ks, f.rs, rows, terms, to, width);
}

template <class Acc>
void pack(const Split& f, int64_t r0, int rows, int64_t k0, int64_t terms, Acc* to, int width) {
  for (int64_t done = 0; done < terms;) {
    const int64_t k = k0 + done, left = f.area - k % f.area, run = left < terms - done ? left : terms - done;
    pack_transposed(f.p + r0 * f.rs + k / f.area * f.ns + k % f.area, f.rs, rows, run, to + done * width, width);
    done += run;
  }
}

// What one tap reads for up to MOST_ROWS patch rows: at offset[r] from the channel's plane in the first sample, if valid[r].
constexpr int MOST_ROWS = 64;
struct Reads {
  int64_t offset[MOST_ROWS];
  float valid[MOST_ROWS];  // 1 or 0, of a float's width so that loops over it and the data have one vector length
  bool together;           // offset[r] is offset[0] + r for all
};

VT_FN void find_reads(const Patches& f, int64_t r0, int rows, int64_t ky, int64_t kx, Reads& reads) {
  const int64_t area = f.y.positions * f.x.positions;
  int64_t sample = r0 / area, y = r0 % area / f.x.positions, x = r0 % f.x.positions;
  reads.together = true;
  for (int r = 0; r < rows; r++) {
    const int64_t row = f.y.source(y, ky), column = f.x.source(x, kx);
    const bool valid = row >= 0 && column >= 0;
    const int64_t outside_y = (y * f.y.scale + f.y.offset + ky * f.y.step) / f.y.divisor;
    const int64_t outside_x = (x * f.x.scale + f.x.offset + kx * f.x.step) / f.x.divisor;
    reads.offset[r] = sample * f.sample + outside_y * f.x.size + outside_x;
    reads.valid[r] = valid ? 1.0f : 0.0f;
    reads.together = reads.together && reads.offset[r] == reads.offset[0] + r;
    if (++x == f.x.positions) {
      x = 0;
      if (++y == f.y.positions) y = 0, sample++;
    }
  }
}

// The reads of each tap that is asked for, worked out once.
class ReadsByTap {
 public:
  ReadsByTap(const Patches& f, int64_t r0, int rows) : f_(f), r0_(r0), rows_(rows) {
    for (int64_t& tap : held_) tap = -1;
  }
  const Reads& of(int64_t tap) {
    const int slot = static_cast<int>(tap % SLOTS);
    if (held_[slot] != tap) {
      find_reads(f_, r0_, rows_, tap / f_.x.taps, tap % f_.x.taps, reads_[slot]);
      held_[slot] = tap;
    }
    return reads_[slot];
  }

 private:
  static constexpr int SLOTS = 64;
  const Patches& f_;
  int64_t r0_;
  int rows_;
  Reads reads_[SLOTS];
  int64_t held_[SLOTS];
};

template <class Acc>
void pack(const Patches& f, int64_t r0, int rows, int64_t k0, int64_t terms, Acc* to, int width) {
  const int64_t kernel = f.y.taps * f.x.taps, plane = f.y.size * f.x.size;
  ReadsByTap taps(f, r0, rows);
  for (int64_t k = k0; k < k0 + terms; k++, to += width) {
    const Reads& reads = taps.of(k % kernel);
    const float* channel = f.p + k / kernel * plane;
    if (reads.together) {
      const float* from = channel + reads.offset[0];
      for (int r = 0; r < rows; r++) to[r] = reads.valid[r] != 0.0f ? static_cast<Acc>(from[r]) : Acc(0);
    } else {
      for (int r = 0; r < rows; r++) to[r] = reads.valid[r] != 0.0f ? static_cast<Acc>(channel[reads.offset[r]]) : Acc(0);
    }
    for (int r = rows; r < width; r++) to[r] = Acc(0);
  }
}

template <class Acc>
void pack(const Taps& f, int64_t r0, int rows, int64_t k0, int64_t terms, Acc* to, int width) {
  const Patches& p = f.patches;
  const int64_t kernel = p.y.taps * p.x.taps, plane = p.y.size * p.x.size;
  for (int64_t done = 0; done < terms; done += MOST_ROWS, to += MOST_ROWS * width) {
    const int some = terms - done < MOST_ROWS ? static_cast<int>(terms - done) : MOST_ROWS;
    ReadsByTap taps(p, k0 + done, some);
    for (int r = 0; r < rows; r++) {
      const Reads& reads = taps.of((r0 + r) % kernel);
      const float* channel = p.p + (r0 + r) / kernel * plane;
      for (int k = 0; k < some; k++)
        to[k * width + r] = reads.valid[k] != 0.0f ? static_cast<Acc>(channel[reads.offset[k]]) : Acc(0);
    }
    for (int r = rows; r < width; r++)
      for (int k = 0; k < some; k++) to[k * width + r] = Acc(0);
  }
}

VT_END
