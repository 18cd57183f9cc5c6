// Device: a block is a thread block; scratch is the shared memory that a tile declares itself.
#pragma once
#include "../tile/lanes.hpp"

VT_BEGIN

struct Scratch {};

struct Grid {
  VT_FN int64_t blocks() const { return gridDim.x; }
  template <class F> VT_FN void each(int64_t count, const F& f) const {
    Scratch memory;
    for (int64_t piece = blockIdx.x; piece < count; piece += gridDim.x) f(piece, memory);
  }
  template <class F> VT_FN void warps(int64_t count, int64_t, const F& f) const {
    const int64_t per = blockDim.x / LANES, first = blockIdx.x * per + threadIdx.x / LANES;
    for (int64_t piece = first; piece < count; piece += gridDim.x * per) f(piece);
  }
};

VT_END
