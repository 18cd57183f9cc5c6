// Scans of a matrix-valued state: linear attention and its kin, and their gradients (numerics §3).
//
// The state S has `rows` x `columns` elements. Keys change it and readers look at it, in an order of events that depends on
// positions alone:
//
//   key j:      S[r][c] = fused(key_j[r], value_j[c], decay_j S[r][c])      the product is rounded; none without a decay
//   reader t:   y_t[c]  = chain(r: read_t[r] S[r][c]) + 0                   fused multiply-adds, r ascending, from +0
//
// A reader comes after the keys that it reaches: those up to its own position less `span` (a lag); or those before the block
// of `span` positions in front of its own; or all. So an element of the state is one chain over positions and an element of
// the result one chain over rows: chunks, blocks, threads and cuts are free.
//
// Backwards in time the same sequence gives gradients: a reader's event adds read_t[r] dy_t[c] to the state's gradient, and
// a key's event looks at it and then multiplies it by the key's decay. Then `read` and `out` belong to keys, `key` and
// `value` to readers. With rows and columns exchanged the state is turned, and the decay lies along the columns.
#pragma once
#include "../tile/grid.hpp"
#include "../tile/lanes.hpp"

VT_BEGIN

struct ScanArgs {
  const float *read, *key, *value;  // [batch, heads, length, rows], the same, [batch, heads, length, columns]
  const float *decay;               // by key's position and row or column; or null
  const float *first;               // the state before all, [batch, heads, rows, columns]; or null: zero
  float *out, *state;               // dense, [batch, heads, length, columns] and [batch, heads, rows, columns]
  int64_t batch, heads, length, rows, columns;
  int64_t read_batch, read_head, read_row, key_batch, key_head, key_row, value_batch, value_head, value_row;
  int64_t decay_batch, decay_head, decay_row, decay_feature;
  int64_t first_batch, first_head, first_row, first_column;
  int64_t reach, span;              // 0: a lag of `span`, 1: blocks of `span`, 2: all
  int64_t backwards, across;        // across: the decay lies along the columns
};

// Events that follow each other: keys from `keys` on, readers from `readers` on, one of each a time; -1: none.
struct Segment {
  int64_t count, keys, readers;
};

// The order of events, forward in time.
struct Events {
  int64_t length, reach, span;
  VT_FN int64_t segments() const { return reach == 0 ? 3 : reach == 2 ? 2 : 2 * ((length + span - 1) / span) + 1; }
  VT_FN Segment segment(int64_t i) const {
    if (reach == 2) return i == 0 ? Segment{length, 0, -1} : Segment{length, -1, 0};
    if (reach == 0) {
      const int64_t lag = span < length ? span : length;
      return i == 0 ? Segment{lag, -1, 0} : i == 1 ? Segment{length - lag, 0, lag} : Segment{lag, length - lag, -1};
    }
    const int64_t block = i / 2, blocks = (length + span - 1) / span;
    if (i == 2 * blocks) {  // what no reader reached
      const int64_t from = blocks > 2 ? (blocks - 2) * span : 0;
      return {length - from, from, -1};
    }
    if (i % 2 == 0) return block < 2 ? Segment{0, -1, -1} : Segment{span, (block - 2) * span, -1};
    const int64_t left = length - block * span;
    return {left < span ? left : span, -1, block * span};
  }
};

// One head's operands.
struct ScanHead {
  const ScanArgs& a;
  const float *read, *key, *value, *decay, *first;
  float *out, *state;
  VT_FN ScanHead(const ScanArgs& args, int64_t at) : a(args) {
    const int64_t b = at / a.heads, h = at % a.heads;
    read = a.read + b * a.read_batch + h * a.read_head;
    key = a.key + b * a.key_batch + h * a.key_head;
    value = a.value + b * a.value_batch + h * a.value_head;
    decay = a.decay ? a.decay + b * a.decay_batch + h * a.decay_head : nullptr;
    first = a.first ? a.first + b * a.first_batch + h * a.first_head : nullptr;
    out = a.out + at * a.length * a.columns;
    state = a.state + at * a.rows * a.columns;
  }
  VT_FN float start(int64_t r, int64_t c) const { return first ? first[r * a.first_row + c * a.first_column] : 0.0f; }
  VT_FN float decayed(float s, int64_t j, int64_t r, int64_t c) const {
    return decay ? decay[j * a.decay_row + (a.across ? c : r) * a.decay_feature] * s : s;
  }
};

// An event for one column, whose state lies in memory: what a device runs, a lane a column.
VT_FN void scan_event(const ScanHead& head, int64_t key, int64_t reader, int64_t c) {
  const ScanArgs& a = head.a;
  const bool back = a.backwards != 0;
  const int64_t writer = back ? reader : key, looker = back ? key : reader;
  const float value = writer >= 0 ? head.value[writer * a.value_row + c] : 0.0f;
  float y = 0.0f;
  for (int64_t r = 0; r < a.rows; r++) {
    float s = head.state[r * a.columns + c];
    if (!back && key >= 0) s = head.decayed(s, key, r, c);
    if (writer >= 0) s = fused(head.key[writer * a.key_row + r], value, s);
    if (looker >= 0) y = fused(head.read[looker * a.read_row + r], s, y);
    if (back && key >= 0) s = head.decayed(s, key, r, c);
    head.state[r * a.columns + c] = s;
  }
  if (looker >= 0) head.out[looker * a.columns + c] = y + 0.0f;
}

VT_FN void scan_column(const ScanHead& head, int64_t c) {
  const ScanArgs& a = head.a;
  for (int64_t r = 0; r < a.rows; r++) head.state[r * a.columns + c] = head.start(r, c);
  const Events events{a.length, a.reach, a.span};
  const int64_t n = events.segments();
  for (int64_t i = 0; i < n; i++) {
    const Segment s = events.segment(a.backwards ? n - 1 - i : i);
    for (int64_t e = 0; e < s.count; e++) {
      const int64_t at = a.backwards ? s.count - 1 - e : e;
      scan_event(head, s.keys < 0 ? -1 : s.keys + at, s.readers < 0 ? -1 : s.readers + at, c);
    }
  }
}

VT_END
