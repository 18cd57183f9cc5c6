// Blocks of memory copied and compared (host/memory.cpp), for sanitizers to watch: each is a heap block of exactly its size.
//
//   -DBREAK_LENGTH   a copy has room for one byte too few: AddressSanitizer must say so
#include <cstdio>

#include "host/memory.hpp"

using namespace vtrain;

namespace {

#ifdef BREAK_LENGTH
constexpr size_t MISSING = 1;
#else
constexpr size_t MISSING = 0;
#endif

bool one(int threads) {
  std::vector<std::vector<char>> mine, theirs;
  for (const size_t size : {size_t{2}, size_t{63}, size_t{4096}, size_t{4099}, (size_t{1} << 19) + 7, size_t{3} << 20}) {
    mine.emplace_back(size - MISSING);
    theirs.emplace_back(size, static_cast<char>(size % 251 + 1));
  }
  std::vector<Block> blocks{{nullptr, nullptr, 0}};
  for (size_t b = 0; b < mine.size(); b++) blocks.push_back({mine[b].data(), theirs[b].data(), theirs[b].size()});
  if (differing_blocks(blocks, threads).size() != mine.size()) return false;
  copy_blocks(blocks, threads);
  if (mine != theirs || !differing_blocks(blocks, threads).empty()) return false;
  theirs[4].back() ^= 1;
  return differing_blocks(blocks, threads) == std::vector<size_t>{5};
}

}  // namespace

int main() {
  const bool good = one(1) && one(2) && one(5);
  if (!good) std::printf("other bytes\n");
  return good ? 0 : 1;
}
