// Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011), as vtrain/random/philox.py names its streams: word i of a draw is lane
// i % 4 of the block whose counter is (i / 4, site, step, step >> 32), under a key of two words.
#pragma once
#include "../config.hpp"

VT_BEGIN

struct Draw {
  uint64_t key, site, step;
};

struct PhiloxBlock {
  uint32_t word[4];
};

VT_FN PhiloxBlock philox(const Draw& draw, uint32_t block) {
  uint32_t a = block, b = static_cast<uint32_t>(draw.site), c = static_cast<uint32_t>(draw.step);
  uint32_t d = static_cast<uint32_t>(draw.step >> 32), k0 = static_cast<uint32_t>(draw.key);
  uint32_t k1 = static_cast<uint32_t>(draw.key >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t first = static_cast<uint64_t>(a) * 0xD2511F53u, second = static_cast<uint64_t>(c) * 0xCD9E8D57u;
    a = static_cast<uint32_t>(second >> 32) ^ b ^ k0;
    b = static_cast<uint32_t>(second);
    c = static_cast<uint32_t>(first >> 32) ^ d ^ k1;
    d = static_cast<uint32_t>(first);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{a, b, c, d}};
}

VT_FN uint32_t philox_word(const Draw& draw, int64_t i) {
  return philox(draw, static_cast<uint32_t>(i / 4)).word[i % 4];
}

VT_END
