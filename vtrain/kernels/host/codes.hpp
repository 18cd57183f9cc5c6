// Decision codes (numerics §4): how an entry is written so that any auditor whose y' lies within w of y decodes it.
//
// Let k(x) be the ordered integer of round(x). The trainer logs v = k(y) where L = k(y - w) != H = k(y + w).
//
// Narrow entry: v - L <= 1 and H - v <= 1. The code is v mod 4. Rounding is monotone, so |y' - y| <= w gives
//   L <= k(y') <= H, hence |k(y') - v| <= 1; of the integers k(y') - 1, k(y'), k(y') + 1 exactly one is v mod 4.
// Wide entry: anything else. The whole value is logged.
// Ternary digit: 0 down, 1 not in doubt, 2 up. Logged only where H = L + 1 and y - 3w > value(L), y + 3w < value(H).
//   The one rounding boundary B between L and H has |y - B| <= w, so |y' - B| <= 2w, and value(L) < y' < value(H). If
//   k(y') = H then y' < value(k(y')): the pair is (k(y') - 1, k(y')); if k(y') = L then y' > value(k(y')): the pair is
//   (k(y'), k(y') + 1). Both are (L, H): down means L, up means H.
#pragma once
#include <vector>

#include "settle.hpp"

namespace vtrain {

enum Encoding : int { SPARSE = 0, TERNARY = 1, AUTO = 2 };

struct Columns {
  std::vector<uint64_t> sites;
  std::vector<uint8_t> gaps, codes;
  std::vector<uint32_t> values;
};

inline bool narrow(const Entry& e) { return e.value - e.low <= 1 && e.high - e.value <= 1; }

inline void put_gap(std::vector<uint8_t>& out, uint64_t gap) {
  while (gap >= 0x80) { out.push_back(static_cast<uint8_t>(gap) | 0x80); gap >>= 7; }
  out.push_back(static_cast<uint8_t>(gap));
}

// Gaps count from -1: the first is index + 1, none is 0, so a list in which an index repeats can't be written.
template <class Want>
uint64_t put_gaps(std::vector<uint8_t>& out, const std::vector<std::vector<Entry>>& parts, Want want) {
  uint64_t count = 0, last = ~uint64_t(0);
  for (const auto& part : parts)
    for (const Entry& e : part)
      if (want(e)) { put_gap(out, e.index - last); last = e.index; count++; }
  return count;
}

inline void put_values(Columns& c, const std::vector<std::vector<Entry>>& parts, bool ternary, const Format& f) {
  for (const auto& part : parts)
    for (const Entry& e : part)
      if (ternary ? !e.ternary : !narrow(e)) c.values.push_back(encode_value(e.value, f));
}

inline void put_sparse_codes(std::vector<uint8_t>& out, const std::vector<std::vector<Entry>>& parts) {
  unsigned fill = 4;
  for (const auto& part : parts)
    for (const Entry& e : part) {
      if (!narrow(e)) continue;
      if (fill == 4) { out.push_back(0); fill = 0; }
      out.back() |= static_cast<uint8_t>((e.value & 3) << (2 * fill++));
    }
}

inline uint64_t put_ternary_codes(std::vector<uint8_t>& out, const std::vector<std::vector<Entry>>& parts, uint64_t numel) {
  std::vector<uint8_t> digits(numel, 1);
  uint64_t count = 0;
  for (const auto& part : parts)
    for (const Entry& e : part)
      if (e.ternary) { digits[e.index] = e.value == e.high ? 2 : 0; count++; }
  static constexpr unsigned weight[5] = {1, 3, 9, 27, 81};
  for (uint64_t i = 0; i < numel; i += 5) {
    unsigned byte = 0;
    for (uint64_t q = 0; q < 5; q++) byte += weight[q] * (i + q < numel ? digits[i + q] : 1u);
    out.push_back(static_cast<uint8_t>(byte));
  }
  return count;
}

// Bytes of both encodings, to choose the smaller one.
inline bool ternary_is_smaller(const std::vector<std::vector<Entry>>& parts, uint64_t numel) {
  uint64_t entries = 0, wide_sparse = 0, wide_ternary = 0;
  for (const auto& part : parts)
    for (const Entry& e : part) { entries++; wide_sparse += !narrow(e); wide_ternary += !e.ternary; }
  uint64_t gap = entries * 128 < numel ? 2 : 1;
  return numel / 5 + wide_ternary * (4 + gap) < entries * gap + (entries - wide_sparse) / 4 + wide_sparse * 4;
}

inline void put_site(Columns& c, uint64_t seq, uint64_t numel, const std::vector<std::vector<Entry>>& parts,
                     const Format& f, int encoding) {
  bool ternary = encoding == TERNARY || (encoding == AUTO && ternary_is_smaller(parts, numel));
  size_t gaps_before = c.gaps.size();
  uint64_t short_codes, wide;
  if (ternary) {
    short_codes = put_ternary_codes(c.codes, parts, numel);
    wide = put_gaps(c.gaps, parts, [](const Entry& e) { return !e.ternary; });
  } else {
    short_codes = put_gaps(c.gaps, parts, [](const Entry& e) { return narrow(e); });
    wide = put_gaps(c.gaps, parts, [](const Entry& e) { return !narrow(e); });
    put_sparse_codes(c.codes, parts);
  }
  put_values(c, parts, ternary, f);
  const uint64_t row[6] = {seq, numel, static_cast<uint64_t>(ternary), short_codes, wide, c.gaps.size() - gaps_before};
  c.sites.insert(c.sites.end(), row, row + 6);
}

// ---- reading: every byte comes from a stranger -------------------------------------------------------------------

enum Fault : int { OK = 0, BAD_GAP = 1, BAD_INDEX = 2, BAD_COUNT = 3, BAD_VALUE = 4, BAD_DIGIT = 5, OUTSIDE = 6 };

struct SiteBytes {
  uint64_t numel, encoding, narrow, wide;
  const uint8_t *gaps, *codes;
  const uint32_t* values;
  uint64_t gap_bytes, code_bytes;
};

struct Verdict {
  uint64_t corrections = 0;
  int fault = OK;
  uint64_t index = 0;
  double y = 0, w = 0, logged = 0;
};

inline bool get_gap(const uint8_t*& p, const uint8_t* end, uint64_t& gap) {
  gap = 0;
  for (int shift = 0; shift < 63; shift += 7) {
    if (p == end) return false;
    uint8_t b = *p++;
    gap |= static_cast<uint64_t>(b & 0x7f) << shift;
    if (!(b & 0x80)) return b != 0 || shift == 0;  // one spelling for each number
  }
  return false;
}

class Replay {
 public:
  Replay(const Job& job, const Scale& scale) : g(job), s(scale) {}

  Verdict run(const SiteBytes& log) {
    const uint64_t numel = static_cast<uint64_t>(g.batch * g.rows * g.cols);
    const uint8_t *p = log.gaps, *end = log.gaps + log.gap_bytes;
    if (log.numel != numel || log.encoding > TERNARY) return fail(BAD_COUNT, 0);
    if (log.narrow > numel || log.wide > numel) return fail(BAD_COUNT, 0);  // before arithmetic on them can wrap
    uint64_t want = log.encoding == TERNARY ? (numel + 4) / 5 : (log.narrow + 3) / 4;
    if (log.code_bytes != want) return fail(BAD_COUNT, 0);
    if (log.encoding == TERNARY) digits(log, numel);
    else short_codes(p, end, numel, log);
    Short taken(log);
    indices(p, end, numel, log.wide, [&](uint64_t i, uint64_t q) {
      if (taken.has(i)) fail(BAD_INDEX, i);  // an element is decided once
      else whole(i, log.values[q]);
    });
    if (v.fault == OK && p != end) return fail(BAD_COUNT, 0);
    return v;
  }

 private:
  const Job& g;
  const Scale& s;
  Verdict v;

  Verdict fail(int fault, uint64_t index) {
    if (v.fault == OK) { v.fault = fault; v.index = index; }
    return v;
  }

  // Which elements have a short code; asked in ascending order, after the short codes have been read without a fault.
  class Short {
   public:
    explicit Short(const SiteBytes& log) : log_(log), p_(log.gaps), left_(log.narrow) {}
    bool has(uint64_t i) {
      if (log_.encoding == TERNARY) {
        static constexpr unsigned weight[5] = {1, 3, 9, 27, 81};
        return log_.codes[i / 5] / weight[i % 5] % 3 != 1;
      }
      uint64_t gap;
      while (left_ && (at_ == ~uint64_t(0) || at_ < i) && get_gap(p_, log_.gaps + log_.gap_bytes, gap)) { at_ += gap; left_--; }
      return at_ == i;
    }

   private:
    const SiteBytes& log_;
    const uint8_t* p_;
    uint64_t left_, at_ = ~uint64_t(0);
  };

  double y_at(uint64_t i) const {
    return (g.y_is_f64 ? static_cast<const double*>(g.y)[i] : static_cast<double>(static_cast<const float*>(g.y)[i])) + g.zero;
  }

  template <class Use> void indices(const uint8_t*& p, const uint8_t* end, uint64_t numel, uint64_t count, Use use) {
    uint64_t last = ~uint64_t(0), gap;
    for (uint64_t q = 0; q < count && v.fault == OK; q++) {
      if (!get_gap(p, end, gap) || gap == 0) { fail(BAD_GAP, last); return; }
      uint64_t i = last + gap;
      if (gap > numel || i >= numel) { fail(BAD_INDEX, i); return; }
      last = i;
      use(i, q);
    }
  }

  void short_codes(const uint8_t*& p, const uint8_t* end, uint64_t numel, const SiteBytes& log) {
    indices(p, end, numel, log.narrow, [&](uint64_t i, uint64_t q) { short_code(i, log.codes[q / 4] >> (2 * (q % 4)) & 3); });
    unsigned used = log.narrow % 4;
    if (v.fault == OK && used && log.codes[log.code_bytes - 1] >> (2 * used)) fail(BAD_COUNT, 0);  // one spelling
  }

  void short_code(uint64_t i, int64_t code) {
    double y = y_at(i);
    int64_t k = ordered(round_format(y, g.format), g.format);
    int64_t delta = ((code - k) & 3);
    if (delta == 2 && y == y) { v.y = y; fail(BAD_VALUE, i); return; }  // two away from either side: no honest trainer wrote it
    accept(i, y, k, k + (delta == 3 ? -1 : delta));
  }

  void whole(uint64_t i, uint32_t word) {
    double y = y_at(i);
    int64_t logged;
    if (!decode_value(word, g.format, logged)) { fail(BAD_VALUE, i); return; }
    accept(i, y, ordered(round_format(y, g.format), g.format), logged);
  }

  void digits(const SiteBytes& log, uint64_t numel) {
    uint64_t seen = 0;
    for (uint64_t i = 0; i < numel && v.fault == OK; i += 5) {
      unsigned byte = log.codes[i / 5];
      if (byte > 242) { fail(BAD_DIGIT, i); return; }
      if (byte == 121) continue;  // 11111 in base 3: nothing in doubt
      for (uint64_t q = 0; q < 5 && v.fault == OK; q++, byte /= 3) {
        unsigned digit = byte % 3;
        if (digit == 1) continue;
        if (i + q >= numel) { fail(BAD_DIGIT, i + q); return; }
        seen++;
        double y = y_at(i + q);
        int64_t k = ordered(round_format(y, g.format), g.format);
        int64_t low = y < from_ordered(k, g.format) ? k - 1 : k;
        accept(i + q, y, k, digit == 2 ? low + 1 : low);
      }
    }
    if (v.fault == OK && seen != log.narrow) fail(BAD_COUNT, 0);
  }

  // numerics §5: the logged value stands only if it is the rounding of a number within w' of y'. NaN has no
  // neighbourhood, and infinity only itself, or else inf - inf would admit everything. A half-width that is 0 admits
  // y' alone, signs of zeros included, and one that is infinite nothing: it is no bound.
  void accept(uint64_t i, double y, int64_t mine, int64_t logged) {
    const Format& f = g.format;
    double w = half_width(s, g, static_cast<int64_t>(i), y);
    double low = y - w, high = y + w;
    int64_t kl = ordered(low != low ? -HUGE_VAL : round_format(low, f), f);
    int64_t kh = ordered(high != high ? HUGE_VAL : round_format(high, f), f);
    if (low == 0) kl = -1;  // an end at zero reaches the zero of either sign
    if (std::isinf(y) || w == 0) kl = kh = mine;
    if (y != y || w != w || (std::isinf(w) && !std::isinf(y)) || logged < kl || logged > kh) {
      v.y = y; v.w = w; v.logged = from_ordered(logged, f);
      fail(OUTSIDE, i);
      return;
    }
    if (logged == mine) return;
    v.corrections++;
    double r = from_ordered(logged, f);
    if (f.container == F32) static_cast<float*>(g.out)[i] = static_cast<float>(r);
    else static_cast<uint16_t*>(g.out)[i] = half_bits(r, f);
  }
};

}  // namespace vtrain
