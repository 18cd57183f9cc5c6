// Host: attention in strips of queries, whose scores stay in the second-level cache (see reductions/attention.hpp).
//
// Scores of a strip lie in panels of 32 keys: panel[key / 32][query][key % 32]. So a row of a panel is a warp's lanes, and a
// panel is a factor of the products that add over queries (dk, dv); for those that add over keys (out, dq) the strip is
// transposed once. A backward pass takes a head's strips in ascending order, and so its queries.
#pragma once
#include "../reductions/attention.hpp"
#include "panel.hpp"

VT_BEGIN

constexpr int64_t STRIP_ROWS = 48, PANEL = 32;
inline int64_t in_units(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// A head's operands as the products want them, and a strip's scores; parts of one piece of scratch memory.
struct StripMemory {
  int64_t keys, d, width;                 // those within reach, in whole panels; with room for a block of rows of a product
  float *k_turned, *v_turned, *k, *v;     // panels [keys / 32][d][32]; rows [keys][d]
  float *scores, *slopes, *turned;        // panels, and [keys][48]
  float *q_turned, *g_turned, *q, *g;     // [d][48] and [48][d] of the strip
  float *acc, *dk, *dv;                   // [48][d or width], and [d][keys], [width][keys]

  StripMemory(Scratch& memory, const AttentionArgs& a, int64_t count, bool back)
      : keys(count), d(in_units(a.d + 12, PANEL)), width(in_units(a.width + 12, PANEL)) {
    const int64_t wide = most(d, width);
    const int64_t sizes[] = {keys * a.d,       back ? keys * a.width : 0, back ? keys * d : 0, back ? 0 : keys * width,
                             keys * STRIP_ROWS, back ? keys * STRIP_ROWS : 0, keys * STRIP_ROWS,
                             a.d * STRIP_ROWS,  a.width * STRIP_ROWS,      STRIP_ROWS * d,       STRIP_ROWS * width,
                             STRIP_ROWS * wide, back ? d * keys : 0,       back ? width * keys : 0};
    float** const parts[] = {&k_turned, &v_turned, &k, &v, &scores, &slopes, &turned,
                             &q_turned, &g_turned, &q, &g, &acc,    &dk,     &dv};
    int64_t total = PANEL;
    for (int64_t size : sizes) total += in_units(size, 16);
    float* at = memory.get<float>(total);
    for (int i = 0; i < 14; i++) *parts[i] = at, at += in_units(sizes[i], 16);
  }
};

// to[row][c] = from(row, c) * scale, `pitch` apart, zeros beyond; whether all are finite.
inline bool copy_rows(const float* from, int64_t step, int64_t rows, int64_t n, float scale, float* to, int64_t pitch) {
  bool finite = true;
  for (int64_t r = 0; r < rows; r++, from += step, to += pitch) {
#pragma GCC ivdep
    for (int64_t c = 0; c < n; c++) to[c] = from[c] * scale;
    for (int64_t c = n; c < pitch; c++) to[c] = 0.0f;
    finite &= all_finite(to, n);
  }
  return finite;
}

// Panels [rows / 32][n][32] of rows; the same.
inline bool turn_rows(const float* from, int64_t step, int64_t rows, int64_t n, float scale, float* to) {
  bool finite = true;
  for (int64_t r = 0; r < rows; r += PANEL, from += PANEL * step, to += n * PANEL) {
    pack_transposed(from, step, static_cast<int>(least(rows - r, PANEL)), n, to, static_cast<int>(PANEL));
    for (int64_t i = 0; i < n * PANEL; i++) to[i] = to[i] * scale;
    finite &= all_finite(to, n * PANEL);
  }
  return finite;
}

// acc[rows][columns] += a[terms][rows] b[terms][columns], columns a multiple of 32.
inline void multiply_strip(int64_t rows, int64_t columns, const float* a, const float* b, Pitch pitch, int64_t terms,
                           float* acc, int64_t stride) {
  constexpr int R = Registers<float>::ROWS, C = Registers<float>::COLUMNS;
  for (int64_t j = 0; j < columns; j += C)
    for (int64_t i = 0; i < rows; i += R)
      multiply_rows<float>(static_cast<int>(least(rows - i, R)), a + i, b + j, pitch, terms, acc + i * stride + j, stride);
}

class Strips {
 public:
  // For the queries from `from` to below `to`.
  Strips(const AttentionHead& head, Scratch& scratch, int64_t from, int64_t to, bool back)
      : head_(head), a_(head.a), from_(from), to_(to), base_(head.first(from) / PANEL),
        m_(scratch, a_, most(in_units(head.end(to - 1), PANEL) - base_ * PANEL, 0), back) {
    // Keys from key_ on; the first panel has room for some before.
    key_ = most(base_ * PANEL, most(head.offset, 0));
    count_ = most(least(base_ * PANEL + m_.keys, head.offset + a_.keys) - key_, 0);
    const float ks = static_cast<float>(a_.k_scale);
    const float *k = head.k + (key_ - head.offset) * a_.k_row, *v = head.v + (key_ - head.offset) * a_.v_row;
    finite_ = turn_keys(k, a_.k_row, a_.d, ks, m_.k_turned);
    if (back) {
      finite_ &= turn_keys(v, a_.v_row, a_.width, 1.0f, m_.v_turned);
      copy_keys(k, a_.k_row, a_.d, ks, m_.k, m_.d);
      finite_ &= rows_are_finite(head.q, a_.q_row, a_.d) & rows_are_finite(head.g, a_.g_row, a_.width);
      zero(m_.dk, m_.d * m_.keys);
      zero(m_.dv, m_.width * m_.keys);
    } else {
      finite_ &= copy_keys(v, a_.v_row, a_.width, 1.0f, m_.v, m_.width);
    }
  }

  void forward() {
    for (int64_t t = from_; t < to_; t += STRIP_ROWS) {
      if (finite_) forward_strip(t, least(to_ - t, STRIP_ROWS));
      else for (int64_t i = t; i < least(to_, t + STRIP_ROWS); i++) attend(head_, i);
    }
  }

  void backward() {
    if (!finite_) {
      for (int64_t t = 0; t < a_.queries; t++) attend_back_to_query(head_, t);
      for (int64_t j = 0; j < a_.keys; j++) attend_back_to_key(head_, head_.offset + j);
      return;
    }
    for (int64_t t = 0; t < a_.queries; t += STRIP_ROWS) backward_strip(t, least(a_.queries - t, STRIP_ROWS));
    write_keys(m_.dk, a_.d, static_cast<float>(a_.k_scale), a_.dk);
    write_keys(m_.dv, a_.width, 1.0f, a_.dv);
  }

 private:
  static void zero(float* p, int64_t n) { for (int64_t i = 0; i < n; i++) p[i] = 0.0f; }
  // Places of keys in memory that hold none: before the first one, and after the last one.
  int64_t before() const { return key_ - base_ * PANEL; }
  bool copy_keys(const float* from, int64_t step, int64_t n, float scale, float* to, int64_t pitch) const {
    zero(to, before() * pitch);
    zero(to + (before() + count_) * pitch, (m_.keys - before() - count_) * pitch);
    return copy_rows(from, step, count_, n, scale, to + before() * pitch, pitch);
  }
  // Panels of keys; the first one may be cut.
  bool turn_keys(const float* from, int64_t step, int64_t n, float scale, float* to) const {
    if (!before()) return turn_rows(from, step, count_, n, scale, to);
    const int64_t head = least(PANEL - before(), count_);
    zero(to, n * PANEL);
    for (int64_t r = 0; r < head; r++)
      for (int64_t c = 0; c < n; c++) to[c * PANEL + before() + r] = from[r * step + c] * scale;
    const bool finite = all_finite(to, n * PANEL);
    return finite & turn_rows(from + head * step, step, count_ - head, n, scale, to + n * PANEL);
  }
  bool rows_are_finite(const float* p, int64_t step, int64_t n) const {
    bool finite = true;
    for (int64_t t = 0; t < a_.queries; t++) finite &= all_finite(p + t * step, n);
    return finite;
  }

  // Panels that a strip's queries reach.
  void reach(int64_t t, int64_t rows) {
    const int64_t last = base_ + m_.keys / PANEL;
    low_ = least(head_.first(t) / PANEL, last);
    high_ = most(least(in_units(head_.end(t + rows - 1), PANEL) / PANEL, last), low_);
  }
  float* row(float* panels, int64_t panel, int64_t r) const { return panels + ((panel - base_) * STRIP_ROWS + r) * PANEL; }

  // x[key] = value for the keys of a panel that query t does not see.
  void exclude(int64_t t, int64_t panel, float* x, float value) const {
    const int64_t j0 = panel * PANEL, from = head_.first(t) - j0, to = head_.end(t) - j0;
    if (from <= 0 && to >= PANEL && !a_.mask) return;
    for (int64_t q = 0; q < PANEL; q++)
      if (q < from || q >= to || !head_.sees(t, j0 + q)) x[q] = value;
  }

  // Products over d (or width) of the strip's rows with all keys within reach.
  void products(int64_t rows, int64_t n, const float* strip, const float* keys, float* panels) const {
    for (int64_t p = low_; p < high_; p++) {
      zero(row(panels, p, 0), STRIP_ROWS * PANEL);
      multiply_strip(rows, PANEL, strip, keys + (p - base_) * n * PANEL, {STRIP_ROWS, PANEL}, n, row(panels, p, 0), PANEL);
    }
  }

  void load_queries(int64_t t, int64_t rows) {
    pack_transposed(head_.q + t * a_.q_row, a_.q_row, static_cast<int>(rows), a_.d, m_.q_turned, static_cast<int>(STRIP_ROWS));
    const float scale = static_cast<float>(a_.q_scale);
    for (int64_t i = 0; i < a_.d * STRIP_ROWS; i++) m_.q_turned[i] = m_.q_turned[i] * scale;
  }

  // Scores of query t, the strip's row r, with bias; -inf where it does not see. The largest.
  float finish_scores(int64_t t, int64_t r) const {
    Lanes<float> best;
    best.fill(-static_cast<float>(infinity()));
    for (int64_t p = low_; p < high_; p++) {
      float* x = row(m_.scores, p, r);
      if (a_.bias)
        for (int64_t q = 0; q < PANEL; q++)
          if (p * PANEL + q >= key_ && p * PANEL + q < key_ + count_) x[q] = head_.biased(x[q], t, p * PANEL + q);
      exclude(t, p, x, -static_cast<float>(infinity()));
      VT_EACH(q) best.v[q] = larger_score(best.v[q], x[q]);
    }
    return fold(best.v, larger_score) + 0.0f;
  }

  // p of row r from its scores; what is not seen, and all of a query that sees nothing, becomes 0.
  float weigh(int64_t t, int64_t r, float top, float total) const {
    const bool blind = top == -static_cast<float>(infinity()), plain = top - top == 0.0f;
    for (int64_t p = low_; p < high_; p++) {
      float* x = row(m_.scores, p, r);
      if (blind) VT_EACH(q) x[q] = 0.0f;
      else VT_EACH(q) x[q] = exp_float(x[q] - top);
      if (!plain) exclude(t, p, x, 0.0f);
    }
    if (blind) return 0.0f;
    if (!total) total = sum_of(m_.scores, r);
    for (int64_t p = low_; p < high_; p++) {
      float* x = row(m_.scores, p, r);
      VT_EACH(q) x[q] = x[q] / total;
      if (!plain) exclude(t, p, x, 0.0f);
    }
    return total;
  }

  // x = x n for a panel of query t's keys: the words of nine blocks cover 32 neighbours. The first key may come after them.
  void drop(int64_t t, int64_t panel, float* x) const {
    if (!a_.drops) return;
    const int64_t word = head_.word(t, panel * PANEL), from = word & 3, block = (word - from) / 4;
    const Draw draw = head_.draw();
    uint32_t words[4][16], flat[64];
#pragma GCC ivdep
    for (int b = 0; b < 16; b++) {
      const PhiloxBlock found = philox(draw, static_cast<uint32_t>(block + b));
      words[0][b] = found.word[0], words[1][b] = found.word[1], words[2][b] = found.word[2], words[3][b] = found.word[3];
    }
    for (int b = 0; b < 9; b++)
      for (int i = 0; i < 4; i++) flat[b * 4 + i] = words[i][b];
    const float kept = static_cast<float>(a_.kept);
    VT_EACH(q) x[q] = x[q] * (static_cast<int64_t>(flat[from + q]) < a_.threshold ? kept : 0.0f);
  }

  float sum_of(const float* panels, int64_t r) const {
    LaneSum sum;
    for (int64_t p = low_; p < high_; p++) {
      const float* x = panels + ((p - base_) * STRIP_ROWS + r) * PANEL;
      sum.feed(p * PANEL, high_ * PANEL, [&](int q) { return static_cast<double>(x[q]); });
    }
    return static_cast<float>(sum.total());
  }

  // turned[key][query] of the strip's panels.
  void turn(const float* panels) const {
    for (int64_t p = low_; p < high_; p++)
      for (int64_t r = 0; r < STRIP_ROWS; r += 4)
        for (int64_t q = 0; q < PANEL; q += 4)
          transpose_4x4(panels + ((p - base_) * STRIP_ROWS + r) * PANEL + q, PANEL,
                        m_.turned + ((p - base_) * PANEL + q) * STRIP_ROWS + r, STRIP_ROWS);
  }

  // acc[row][c] = chains over the keys within reach of turned[key][row] * keys[key][c].
  void add_over_keys(int64_t rows, const float* keys, int64_t pitch) const {
    constexpr int64_t SOME = 256;  // keys whose rows stay in the first-level cache
    zero(m_.acc, STRIP_ROWS * pitch);
    const int64_t end = (high_ - base_) * PANEL;
    for (int64_t j = (low_ - base_) * PANEL; j < end; j += SOME)
      multiply_strip(rows, pitch, m_.turned + j * STRIP_ROWS, keys + j * pitch, {STRIP_ROWS, pitch},
                     least(end - j, SOME), m_.acc, pitch);
  }

  void forward_strip(int64_t t, int64_t rows) {
    reach(t, rows);
    load_queries(t, rows);
    products(rows, a_.d, m_.q_turned, m_.k_turned, m_.scores);
    for (int64_t r = 0; r < rows; r++) {
      const int64_t at = head_.piece * a_.queries + t + r;
      a_.top[at] = finish_scores(t + r, r);
      a_.total[at] = weigh(t + r, r, a_.top[at], 0.0f);
    }
    for (int64_t r = 0; r < rows && a_.drops; r++)
      for (int64_t p = low_; p < high_; p++) drop(t + r, p, row(m_.scores, p, r));
    turn(m_.scores);
    add_over_keys(rows, m_.v, m_.width);
    for (int64_t r = 0; r < rows; r++) {
      float* out = a_.out + (head_.piece * a_.queries + t + r) * a_.width;
      for (int64_t c = 0; c < a_.width; c++) out[c] = m_.acc[r * m_.width + c] + 0.0f;
    }
  }

  // dp into ds: dp p - p D.
  void differentiate(int64_t t, int64_t r) const {
    for (int64_t p = low_; p < high_; p++) {
      float *x = row(m_.slopes, p, r), *w = row(m_.scores, p, r);
      drop(t, p, x);
      VT_EACH(q) x[q] = x[q] * w[q];
      exclude(t, p, x, 0.0f);
    }
    const bool blind = head_.blind(t);
    const float delta = blind ? 0.0f : sum_of(m_.slopes, r);
    a_.delta[head_.piece * a_.queries + t] = delta;
    for (int64_t p = low_; p < high_; p++) {
      float *x = row(m_.slopes, p, r), *w = row(m_.scores, p, r);
      if (blind) VT_EACH(q) x[q] = 0.0f;
      else VT_EACH(q) {
        const float back = w[q] * delta;
        x[q] = x[q] - back;
      }
      exclude(t, p, x, 0.0f);
      drop(t, p, w);
    }
  }

  void backward_strip(int64_t t, int64_t rows) {
    reach(t, rows);
    load_queries(t, rows);
    products(rows, a_.d, m_.q_turned, m_.k_turned, m_.scores);
    pack_transposed(head_.g + t * a_.g_row, a_.g_row, static_cast<int>(rows), a_.width, m_.g_turned, static_cast<int>(STRIP_ROWS));
    products(rows, a_.width, m_.g_turned, m_.v_turned, m_.slopes);
    copy_rows(head_.q + t * a_.q_row, a_.q_row, rows, a_.d, static_cast<float>(a_.q_scale), m_.q, m_.d);
    copy_rows(head_.g + t * a_.g_row, a_.g_row, rows, a_.width, 1.0f, m_.g, m_.width);
    for (int64_t r = 0; r < rows; r++) {
      const int64_t at = head_.piece * a_.queries + t + r;
      finish_scores(t + r, r);
      weigh(t + r, r, a_.top[at], a_.total[at]);
      differentiate(t + r, r);
    }
    turn(m_.slopes);
    add_over_keys(rows, m_.k, m_.d);
    for (int64_t r = 0; r < rows; r++) {
      float* dq = a_.dq + (head_.piece * a_.queries + t + r) * a_.d;
      for (int64_t c = 0; c < a_.d; c++) dq[c] = (m_.acc[r * m_.d + c] + 0.0f) * static_cast<float>(a_.q_scale);
    }
    for (int64_t p = low_; p < high_; p++) {
      multiply_strip(a_.d, PANEL, m_.q, row(m_.slopes, p, 0), {m_.d, PANEL}, rows, m_.dk + (p - base_) * PANEL, m_.keys);
      multiply_strip(a_.width, PANEL, m_.g, row(m_.scores, p, 0), {m_.width, PANEL}, rows, m_.dv + (p - base_) * PANEL, m_.keys);
    }
  }

  // to[key][c] = (from[c][key] + 0) * scale.
  void write_keys(const float* from, int64_t n, float scale, float* to) const {
    to += head_.piece * a_.keys * n;
    const int64_t first = least(key_ - head_.offset, a_.keys);
    zero(to, first * n);  // keys out of every query's reach
    zero(to + (first + count_) * n, (a_.keys - first - count_) * n);
    to += first * n, from += before();
    for (int64_t j = 0; j < count_; j++)
      for (int64_t c = 0; c < n; c++) to[j * n + c] = (from[c * m_.keys + j] + 0.0f) * scale;
  }

  const AttentionHead& head_;
  const AttentionArgs& a_;
  int64_t from_, to_, base_;
  StripMemory m_;
  int64_t key_ = 0, count_ = 0;
  bool finite_ = true;
  int64_t low_ = 0, high_ = 0;
};

// Pieces are heads, or parts of their queries where there are few.
inline void attention(const Grid& grid, const AttentionArgs& a) {
  const int64_t heads = a.batch * a.heads, strips = in_units(a.queries, STRIP_ROWS) / STRIP_ROWS;
  const int64_t parts = heads ? most(least(strips, 4 * grid.blocks() / heads), 1) : 1;
  const int64_t each = in_units(strips, parts) / parts * STRIP_ROWS;
  grid.each(heads * parts, [&](int64_t piece, Scratch& scratch) {
    const AttentionHead head(a, piece / parts);
    const int64_t from = piece % parts * each;
    if (from < a.queries) Strips(head, scratch, from, least(a.queries, from + each), false).forward();
  });
}

inline void attention_backward(const Grid& grid, const AttentionArgs& a) {
  grid.each(a.batch * a.heads, [&](int64_t piece, Scratch& scratch) {
    const AttentionHead head(a, piece);
    Strips(head, scratch, 0, a.queries, true).backward();
  });
}

VT_END
