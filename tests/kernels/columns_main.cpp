// Columns of patches (host/columns.cpp) against their definition, on hard geometries, for sanitizers to watch: each array is
// a heap block of exactly its size. Prints how many geometries were tried.
//
//   -DBREAK_LENGTH   an array is one element too short: the function must say so, before it is touched
//   -DBREAK_CHECK    the same, and the function is told that it is not: AddressSanitizer must say so
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "host/columns.hpp"

using namespace vtrain;

namespace {

#if defined(BREAK_LENGTH) || defined(BREAK_CHECK)
constexpr int64_t MISSING = 1;
#else
constexpr int64_t MISSING = 0;
#endif
#ifdef BREAK_CHECK
constexpr int64_t CLAIMED = 1;
#else
constexpr int64_t CLAIMED = 0;
#endif

uint64_t state = 1;
int64_t draw(int64_t low, int64_t high) {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return low + static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(high - low + 1));
}

template <class T> Source source(const std::vector<T>& v) { return {v.data(), static_cast<int64_t>(v.size())}; }
template <class T> Target target(std::vector<T>& v, int64_t more = 0) { return {v.data(), static_cast<int64_t>(v.size()) + more}; }

void want(bool truth, const char* what) {
  if (!truth) throw std::runtime_error(what);
}

// What column (tap, position) of a sample and channel reads; -1: padding.
int64_t read(const Patches& p, int64_t k, int64_t at) {
  const int64_t y = at / p.ow * p.stride_h - p.pad_h + k / p.kw * p.dil_h, x = at % p.ow * p.stride_w - p.pad_w + k % p.kw * p.dil_w;
  return y < 0 || y >= p.h || x < 0 || x >= p.w ? -1 : y * p.w + x;
}

void one(const Patches& p) {
  const int64_t plane = p.h * p.w, kernel = p.kh * p.kw, area = p.oh * p.ow, rows = p.c * kernel, width = p.n * area;
  std::vector<float> x(static_cast<size_t>(p.n * p.c * plane)), cols(static_cast<size_t>(rows * width - MISSING), -1.0f);
  for (float& v : x) v = static_cast<float>(draw(-9, 9));
  to_columns(p, 0, source(x), false, target(cols, CLAIMED));
  std::vector<double> sums(static_cast<size_t>(rows), 0.0), taps(sums.size(), -1.0), wide(cols.begin(), cols.end());
  std::vector<double> counts(x.size(), 0.0), image(x.size(), -1.0);
  for (int64_t row = 0; row < rows; row++)
    for (int64_t b = 0; b < p.n; b++)
      for (int64_t at = 0; at < area; at++) {
        const int64_t from = read(p, row % kernel, at), start = (b * p.c + row / kernel) * plane;
        const float value = from < 0 ? 0.0f : x[static_cast<size_t>(start + from)];
        want(cols[static_cast<size_t>(row * width + b * area + at)] == value, "to_columns");
        sums[static_cast<size_t>(row)] += static_cast<double>(value * value);
        if (from >= 0) counts[static_cast<size_t>(start + from)] += static_cast<double>(value);
      }
  tap_squares(p, 0, source(x), target(taps));
  want(taps == sums, "tap_squares");
  from_columns(p, true, source(wide), target(image));
  want(image == counts, "from_columns");
}

}  // namespace

int main() {
  int tried = 0;
  for (int number = 0; number < 3000; number++) {
    Patches p{draw(0, 2), draw(0, 3), draw(1, 7), draw(1, 7), draw(1, 4), draw(1, 4), draw(1, 4), draw(1, 4),
              draw(0, 6), draw(0, 6), draw(1, 4), draw(1, 4), 0, 0, static_cast<int>(draw(1, 3))};
    const int64_t oh = p.h + 2 * p.pad_h - p.dil_h * (p.kh - 1) - 1, ow = p.w + 2 * p.pad_w - p.dil_w * (p.kw - 1) - 1;
    if (oh < 0 || ow < 0) continue;
    p.oh = draw(0, oh / p.stride_h + 1), p.ow = draw(0, ow / p.stride_w + 1);  // fewer than fit, too
    if (MISSING && p.n * p.c * p.oh * p.ow == 0) continue;
    one(p);
    tried++;
  }
  std::printf("%d geometries\n", tried);
}
