// Host: scans of two vectors of columns at a time. A block of rows of the state stays in registers while a chunk of events
// passes; the results so far pass on, in the first-level cache, from one block of rows to the next.
#pragma once
#include "../reductions/scan.hpp"
#include "panel.hpp"

VT_BEGIN

constexpr int SCAN_VECTORS = 2, SCAN_COLUMNS = SCAN_VECTORS * WIDTH<float>;
#if defined(__AVX512F__)
constexpr int SCAN_ROWS = 8;
#else
constexpr int SCAN_ROWS = 4;
#endif
constexpr int64_t SCAN_CHUNK = 64;

enum class Decay { NONE, ROWS, COLUMNS };

// A chunk of events: operands of its first event, and the elements to that of the next.
struct ScanChunk {
  const float *read, *key, *decay;  // by row; decay by row, `feature` apart, or by column in `wide`
  const float *value, *wide;        // [events][SCAN_COLUMNS], in order
  float* out;                       // the same
  int64_t events, read_step, key_step, decay_step, feature;
};

// s = the decayed s, of row r or of all columns.
template <Decay D> VT_FN Vector<float> decayed(Vector<float> s, const float* rows, int64_t r, const float* columns) {
  if constexpr (D == Decay::ROWS) return spread(rows[r]) * s;
  else if constexpr (D == Decay::COLUMNS) return load_vector(columns) * s;
  else return s;
}

// R rows from `r0` on of two vectors of columns of the state.
template <int R, bool Write, bool Look, Decay D, bool Back>
VT_FN void scan_rows(const ScanChunk& c, int64_t r0, float* state) {
  Vector<float> s[R][SCAN_VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < SCAN_VECTORS; v++) s[r][v] = load_vector(state + r * SCAN_COLUMNS + v * WIDTH<float>);
  const float *read = c.read + r0, *key = c.key + r0, *rows = c.decay + (D == Decay::ROWS ? r0 * c.feature : 0);
  for (int64_t e = 0; e < c.events; e++, read += c.read_step, key += c.key_step, rows += c.decay_step) {
    Vector<float> x[SCAN_VECTORS], y[SCAN_VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < SCAN_VECTORS; v++) {
      if constexpr (Write) x[v] = load_vector(c.value + e * SCAN_COLUMNS + v * WIDTH<float>);
      if constexpr (Look) y[v] = load_vector(c.out + e * SCAN_COLUMNS + v * WIDTH<float>);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int v = 0; v < SCAN_VECTORS; v++) {
        const float* columns = c.wide + e * SCAN_COLUMNS + v * WIDTH<float>;
        if constexpr (!Back) s[r][v] = decayed<D>(s[r][v], rows, r * c.feature, columns);
        if constexpr (Write) s[r][v] = fused(spread(key[r]), x[v], s[r][v]);
        if constexpr (Look) y[v] = fused(spread(read[r]), s[r][v], y[v]);
        if constexpr (Back) s[r][v] = decayed<D>(s[r][v], rows, r * c.feature, columns);
      }
    if constexpr (Look) {
#pragma GCC unroll 2
      for (int v = 0; v < SCAN_VECTORS; v++) store_vector(c.out + e * SCAN_COLUMNS + v * WIDTH<float>, y[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < SCAN_VECTORS; v++) store_vector(state + r * SCAN_COLUMNS + v * WIDTH<float>, s[r][v]);
}

template <bool Write, bool Look, Decay D, bool Back> void scan_all_rows(const ScanChunk& c, int64_t rows, float* state) {
  int64_t r = 0;
  for (; r + SCAN_ROWS <= rows; r += SCAN_ROWS) scan_rows<SCAN_ROWS, Write, Look, D, Back>(c, r, state + r * SCAN_COLUMNS);
  for (; r < rows; r++) scan_rows<1, Write, Look, D, Back>(c, r, state + r * SCAN_COLUMNS);
}

using ScanFn = void (*)(const ScanChunk&, int64_t, float*);
template <Decay D, bool Back> ScanFn scan_of(bool write, bool look) {
  if (write && look) return scan_all_rows<true, true, D, Back>;
  return write ? scan_all_rows<true, false, D, Back> : scan_all_rows<false, true, D, Back>;
}

// Two vectors of columns from c0 on, of one head.
class ColumnScan {
 public:
  ColumnScan(const ScanHead& head, int64_t c0, Scratch& memory) : h_(head), a_(head.a), c0_(c0) {
    width_ = a_.columns - c0 < SCAN_COLUMNS ? a_.columns - c0 : SCAN_COLUMNS;
    state_ = memory.get<float>((a_.rows + 3 * SCAN_CHUNK) * SCAN_COLUMNS);
    value_ = state_ + a_.rows * SCAN_COLUMNS;
    wide_ = value_ + SCAN_CHUNK * SCAN_COLUMNS;
    out_ = wide_ + SCAN_CHUNK * SCAN_COLUMNS;
  }

  void run() {
    for (int64_t r = 0; r < a_.rows; r++)
      for (int64_t c = 0; c < SCAN_COLUMNS; c++) state_[r * SCAN_COLUMNS + c] = c < width_ ? h_.start(r, c0_ + c) : 0.0f;
    const Events events{a_.length, a_.reach, a_.span};
    const int64_t n = events.segments();
    for (int64_t i = 0; i < n; i++) segment(events.segment(a_.backwards ? n - 1 - i : i));
    for (int64_t r = 0; r < a_.rows; r++)
      for (int64_t c = 0; c < width_; c++) h_.state[r * a_.columns + c0_ + c] = state_[r * SCAN_COLUMNS + c];
  }

 private:
  void segment(const Segment& s) {
    for (int64_t done = 0; done < s.count; done += SCAN_CHUNK) {
      const int64_t some = s.count - done < SCAN_CHUNK ? s.count - done : SCAN_CHUNK;
      const int64_t at = a_.backwards ? s.count - 1 - done : done;
      chunk(s.keys < 0 ? -1 : s.keys + at, s.readers < 0 ? -1 : s.readers + at, some);
    }
  }

  // Rows of an operand for the chunk's events, `step` apart.
  void gather(const float* from, int64_t step, int64_t feature, int64_t events, float* to) const {
    for (int64_t e = 0; e < events; e++, from += step, to += SCAN_COLUMNS) {
      for (int64_t c = 0; c < width_; c++) to[c] = from[c * feature];
      for (int64_t c = width_; c < SCAN_COLUMNS; c++) to[c] = 0.0f;
    }
  }

  void chunk(int64_t key, int64_t reader, int64_t events) {
    const bool back = a_.backwards != 0;
    const int64_t writer = back ? reader : key, looker = back ? key : reader, way = back ? -1 : 1;
    const bool write = writer >= 0, look = looker >= 0, decays = h_.decay && key >= 0;
    ScanChunk c{};
    c.events = events;
    c.read = h_.read + (look ? looker : 0) * a_.read_row;
    c.key = h_.key + (write ? writer : 0) * a_.key_row;
    c.decay = decays ? h_.decay + key * a_.decay_row : h_.key;
    c.value = value_, c.wide = wide_, c.out = out_;
    c.read_step = way * a_.read_row, c.key_step = way * a_.key_row;
    c.decay_step = decays ? way * a_.decay_row : 0, c.feature = a_.decay_feature;
    if (write) gather(h_.value + writer * a_.value_row + c0_, way * a_.value_row, 1, events, value_);
    if (decays && a_.across)
      gather(c.decay + c0_ * a_.decay_feature, way * a_.decay_row, a_.decay_feature, events, wide_);
    if (look) for (int64_t i = 0; i < events * SCAN_COLUMNS; i++) out_[i] = 0.0f;
    which(decays, back)(write, look)(c, a_.rows, state_);
    if (look)
      for (int64_t e = 0; e < events; e++) {
        float* y = h_.out + (looker + way * e) * a_.columns + c0_;
        for (int64_t q = 0; q < width_; q++) y[q] = out_[e * SCAN_COLUMNS + q] + 0.0f;
      }
  }

  auto which(bool decays, bool back) const -> ScanFn (*)(bool, bool) {
    if (!decays) return scan_of<Decay::NONE, false>;
    if (a_.across) return back ? scan_of<Decay::COLUMNS, true> : scan_of<Decay::COLUMNS, false>;
    return back ? scan_of<Decay::ROWS, true> : scan_of<Decay::ROWS, false>;
  }

  const ScanHead& h_;
  const ScanArgs& a_;
  int64_t c0_, width_;
  float *state_, *value_, *wide_, *out_;
};

inline void scan(const Grid& grid, const ScanArgs& a) {
  const int64_t groups = (a.columns + SCAN_COLUMNS - 1) / SCAN_COLUMNS;
  grid.each(a.batch * a.heads * groups, [&](int64_t piece, Scratch& memory) {
    const ScanHead head(a, piece / groups);
    ColumnScan(head, piece % groups * SCAN_COLUMNS, memory).run();
  });
}

VT_END
