#include "memory.hpp"

#include <algorithm>
#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace vtrain {
namespace {

constexpr size_t PIECE = size_t{1} << 19;  // what a thread takes at a time
constexpr size_t FEW = size_t{1} << 21;    // up to which waking other threads costs more than they save

struct Piece {
  size_t block, first, size;
};

// Every byte of every block in one piece. Where threads are slow to wake, whoever is awake takes the rest: a region for each
// tensor would wait for them each time.
template <class Work> void for_pieces(const std::vector<Block>& blocks, int threads, const Work& work) {
  std::vector<Piece> pieces;
  size_t total = 0;
  for (size_t b = 0; b < blocks.size(); b++) {
    total += blocks[b].size;
    for (size_t first = 0; first < blocks[b].size; first += PIECE)
      pieces.push_back({b, first, std::min(PIECE, blocks[b].size - first)});
  }
  const int used = total <= FEW ? 1 : threads;
  const int64_t count = static_cast<int64_t>(pieces.size());
#pragma omp parallel for num_threads(used) schedule(dynamic, 1)
  for (int64_t q = 0; q < count; q++) work(pieces[static_cast<size_t>(q)]);
}

// Past the caches, as nobody reads the copy soon: an ordinary store reads each line first, and drives out what is there.
void copy_past(char* to, const char* from, size_t size) {
#if defined(__SSE2__)
  if (size >= 4096 && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    const size_t lines = size / 64;
    for (size_t i = 0; i < lines; i++, to += 64, from += 64) {
      __m128i line[4];
      for (int k = 0; k < 4; k++) line[k] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + k);
      for (int k = 0; k < 4; k++) _mm_stream_si128(reinterpret_cast<__m128i*>(to) + k, line[k]);
    }
    _mm_sfence();
    size -= 64 * lines;
  }
#endif
  std::memcpy(to, from, size);
}

}  // namespace

void copy_blocks(const std::vector<Block>& blocks, int threads) {
  for_pieces(blocks, threads, [&](const Piece& p) {
    const Block& b = blocks[p.block];
    copy_past(b.mine + p.first, b.theirs + p.first, p.size);
  });
}

std::vector<size_t> differing_blocks(const std::vector<Block>& blocks, int threads) {
  std::vector<unsigned char> differs(blocks.size(), 0);
  for_pieces(blocks, threads, [&](const Piece& p) {
    const Block& b = blocks[p.block];
    if (std::memcmp(b.mine + p.first, b.theirs + p.first, p.size) == 0) return;
#pragma omp atomic write
    differs[p.block] = 1;
  });
  std::vector<size_t> found;
  for (size_t b = 0; b < differs.size(); b++)
    if (differs[b]) found.push_back(b);
  return found;
}

}  // namespace vtrain
