// Many blocks of memory copied, or compared, in one parallel region.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace vtrain {

struct Block {
  char* mine;         // the copy
  const char* theirs; // what it is, or was, a copy of
  size_t size;        // bytes
};

// theirs to mine; blocks do not overlap.
void copy_blocks(const std::vector<Block>& blocks, int threads);

// Numbers of the blocks whose bytes differ, in order.
std::vector<size_t> differing_blocks(const std::vector<Block>& blocks, int threads);

}  // namespace vtrain
