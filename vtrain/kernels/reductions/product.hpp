// The canonical matrix product: each element is one chain of fused multiply-adds over k in ascending order, from +0.
//
//   chain(i, j) = fused(a(i, k-1), b(j, k-1), ... fused(a(i, 1), b(j, 1), fused(a(i, 0), b(j, 0), +0)))
//   y(i, j)     = alpha * float(chain) + beta * bias(i, j)      in float, each operation rounded; without a bias the first
//
// Acc is float, or double on request (then the chain is rounded to float once). The chain is the definition; tiles,
// packing, threads and blocks are free. a: m rows of k terms; b: n rows of k terms (a matrix b[k, n] is read by its
// columns). Error: |y - exact| <= gamma_k * sum|a||b| (Higham 2002, (3.5), one rounding less a term).
#pragma once
#include "panel.hpp"

VT_BEGIN

struct Extent {
  int64_t m, n, k, batch;
};

template <class Acc, class A, class B>
VT_FN void product(const Grid& grid, const A& a, const B& b, const Target& out, const Extent& e) {
  const PanelTile<Acc> tile(e.m, e.n, e.batch, grid);
  grid.each(e.batch * tile.tiles(), [&](int64_t t, auto& memory) {
    const int64_t entry = t / tile.tiles();
    tile.run(t % tile.tiles(), a.shifted(entry), b.shifted(entry), e.k, out.shifted(entry), memory);
  });
}

VT_END
