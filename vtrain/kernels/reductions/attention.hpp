// Softmax attention, forward and backward, without its matrix of scores in memory (numerics §3).
//
// For query t (at position start + t) and the keys j that it may see, in ascending order, numbered by their positions, the first
// one that is given being `offset`. A batch entry may begin with padding: its positions count from behind it, and what lies
// before position 0 is not seen.
//
//   s(j) = chain(c: (q[c] q_scale) (k[j][c] k_scale)) + bias[j]         m = max s,  e(j) = exp(s(j) - m)
//   l    = float(sum of e, as sum.hpp has it, the term of key j in place j)     p(j) = e(j) / l
//   o[v] = chain(j: p(j) v[j][v]) + 0
//   dp(j) = chain(v: do[v] v[j][v])    D = float(sum of dp(j) p(j))    ds(j) = dp(j) p(j) - p(j) D
//   dq[c] = (chain(j: ds(j) k[j][c] k_scale) + 0) q_scale    dk[j][c] = (chain(t: ds(j) q[c] q_scale) + 0) k_scale
//   dv[j][v] = chain(t: p(j) do[v]) + 0
//
// With dropout, p(j) n(j) stands in place of p(j) for o and dv, and dp(j) n(j) in place of dp(j) elsewhere: n is `kept` where the
// draw's word (head, t, j), counted in this order, is below `threshold`, else 0.
//
// Every operation is rounded to float; chains are of fused multiply-adds from +0, as in product.hpp; t ascends in dk and dv.
// What a query may not see is left out, not weighted by zero: with finite operands both have the same bits, as adding
// an exact zero changes nothing but the sign of a zero, which the last + 0 fixes. A query that sees no key, or only
// scores of -inf, gives 0, and no gradient. These are the bits of the operations one after the other, but for that and for
// the signs of zeros. Strips, tiles, threads and grids are free.
#pragma once
#include "../math/floats.hpp"
#include "../math/philox.hpp"
#include "sum.hpp"

VT_BEGIN

struct AttentionArgs {
  const float *q, *k, *v;       // [batch, heads, queries, d], [batch, heads / group, keys, d], the same of `width`
  const int64_t* padding;       // positions of each batch entry that are none; or null
  const float* bias;            // added to scores; or null
  const uint8_t* mask;          // 0: not seen; or null
  const float* grad;            // of out; forward: null
  float *out, *top, *total;     // [batch, heads, queries, width]; m and l, [batch, heads, queries]
  float *delta, *dq, *dk, *dv;  // D; gradients, dense, dk and dv for each query's head
  int64_t batch, heads, group, queries, keys, d, width;
  int64_t q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, g_batch, g_head, g_row;
  int64_t m_batch, m_head, m_row, m_key;     // strides of bias or mask
  int64_t offset, start, causal, window, block;  // window: keys that a query sees, its own the last; block: its own and the one before
  int64_t part;                              // backward: 0 all, 1 dq and D, 2 dk and dv from D
  int64_t drops, threshold, draw_key, draw_site, draw_step;  // dropout, if `drops`
  double q_scale, k_scale, kept;
};

// One head of one batch entry: its operands, and what its queries see.
struct AttentionHead {
  const AttentionArgs& a;
  int64_t piece;  // batch entry and head
  const float *q, *k, *v, *g;
  int64_t masks, offset, start;  // positions of the first key and query, without padding

  VT_FN AttentionHead(const AttentionArgs& args, int64_t at) : a(args), piece(at) {
    const int64_t b = at / a.heads, h = at % a.heads;
    q = a.q + b * a.q_batch + h * a.q_head;
    k = a.k + b * a.k_batch + h / a.group * a.k_head;
    v = a.v + b * a.v_batch + h / a.group * a.v_head;
    g = a.grad ? a.grad + b * a.g_batch + h * a.g_head : nullptr;
    masks = b * a.m_batch + h * a.m_head;
    const int64_t none = a.padding ? a.padding[b] : 0;
    offset = a.offset - none, start = a.start - none;
  }
  // Keys from first to below end are within a query's reach.
  VT_FN int64_t first(int64_t t) const {
    const int64_t at = start + t, back = a.window ? at - a.window + 1 : a.block ? (at / a.block - 1) * a.block : 0;
    return most(back, most(offset, 0));
  }
  VT_FN int64_t end(int64_t t) const {
    const int64_t all = offset + a.keys;
    return a.causal ? most(least(start + t + 1, all), most(offset, 0)) : all;
  }
  // Queries that have a key within reach, the same way.
  VT_FN int64_t first_query(int64_t j) const { return a.causal ? most(j - start, 0) : 0; }
  VT_FN int64_t end_query(int64_t j) const {
    const int64_t to = a.window ? j + a.window : a.block ? (j / a.block + 2) * a.block : start + a.queries;
    return most(least(to - start, a.queries), 0);
  }
  VT_FN bool sees(int64_t t, int64_t j) const {
    return j >= first(t) && j < end(t) && (!a.mask || a.mask[masks + t * a.m_row + (j - offset) * a.m_key] != 0);
  }
  VT_FN float q_at(int64_t t, int64_t c) const { return q[t * a.q_row + c] * static_cast<float>(a.q_scale); }
  VT_FN float k_at(int64_t j, int64_t c) const { return k[(j - offset) * a.k_row + c] * static_cast<float>(a.k_scale); }
  VT_FN float v_at(int64_t j, int64_t c) const { return v[(j - offset) * a.v_row + c]; }
  VT_FN float biased(float chain, int64_t t, int64_t j) const {
    return a.bias ? chain + a.bias[masks + t * a.m_row + (j - offset) * a.m_key] : chain;
  }
  VT_FN float score(int64_t t, int64_t j) const {
    float s = 0.0f;
    for (int64_t c = 0; c < a.d; c++) s = fused(q_at(t, c), k_at(j, c), s);
    return biased(s, t, j);
  }
  VT_FN float slope(int64_t t, int64_t j) const {  // dp, with dropout
    float s = 0.0f;
    for (int64_t c = 0; c < a.width; c++) s = fused(g[t * a.g_row + c], v_at(j, c), s);
    return dropped(s, t, j);
  }
  VT_FN float weight(int64_t t, int64_t j) const {  // p
    const int64_t row = piece * a.queries + t;
    return exp_float(score(t, j) - a.top[row]) / a.total[row];
  }
  VT_FN Draw draw() const {
    return {static_cast<uint64_t>(a.draw_key), static_cast<uint64_t>(a.draw_site), static_cast<uint64_t>(a.draw_step)};
  }
  VT_FN int64_t word(int64_t t, int64_t j) const { return (piece * a.queries + t) * a.keys + j - offset; }
  VT_FN float dropped(float x, int64_t t, int64_t j) const {  // x n
    if (!a.drops) return x;
    const bool stays = static_cast<int64_t>(philox_word(draw(), word(t, j))) < a.threshold;
    return x * (stays ? static_cast<float>(a.kept) : 0.0f);
  }
  VT_FN bool blind(int64_t t) const { return a.top[piece * a.queries + t] == -static_cast<float>(infinity()); }
};

VT_FN float larger_score(float a, float b) { return (a > b) | (a != a) ? a : b; }
VT_FN float score_gradient(float p, float slope, float delta) {
  const float gy = slope * p, back = p * delta;
  return gy - back;
}

// The same for any operands, a warp a row: what a device runs, and the host where an operand is not finite.
constexpr int CHUNKS = 8;  // of 32 columns that a warp adds up at once

// out[c] = finish(chain over i in [from, to) with seen(i): x(i) * at(i, c)) for c < width; x is computed a lane each.
template <class Seen, class X, class At, class Finish>
VT_FN void weighted_chains(int64_t from, int64_t to, int64_t width, const Seen& seen, const X& x, const At& at,
                           const Finish& finish) {
  for (int64_t c0 = 0; c0 < width; c0 += CHUNKS * LANES) {
    Lanes<float> acc[CHUNKS];
    for (int u = 0; u < CHUNKS; u++) acc[u].fill(0.0f);
    for (int64_t base = from; base < to; base += LANES) {
      Lanes<float> value;
      Lanes<int> held;
      value.load(to - base, 0.0f, [&](int lane) { return seen(base + lane) ? x(base + lane) : 0.0f; });
      held.load(to - base, 0, [&](int lane) { return seen(base + lane) ? 1 : 0; });
      for (int lane = 0; lane < LANES && base + lane < to; lane++) {
        if (!of_lane(held.v, lane)) continue;
        const float factor = of_lane(value.v, lane);
        for (int u = 0; u < CHUNKS; u++)
          each_lane(width - c0 - u * LANES, [&](int q) {
            acc[u].v[q] = fused(factor, at(base + lane, c0 + u * LANES + lane_of(q)), acc[u].v[q]);
          });
      }
    }
    for (int u = 0; u < CHUNKS; u++)
      acc[u].each(width - c0 - u * LANES, [&](int lane, float y) { finish(c0 + u * LANES + lane, y + 0.0f); });
  }
}

// The sum over a query's keys of f(j), 0 where it does not see one, by the keys' places.
template <class F> VT_FN float key_sum(const AttentionHead& head, int64_t t, const F& f) {
  LaneSum sum;
  const int64_t end = head.end(t);
  for (int64_t base = head.first(t) / LANES * LANES; base < end; base += LANES)
    sum.feed(base, end, [&](int q) {
      const int64_t j = base + lane_of(q);
      return head.sees(t, j) ? static_cast<double>(f(j)) : 0.0;
    });
  return static_cast<float>(sum.total());
}

VT_FN void attend(const AttentionHead& head, int64_t t) {
  const AttentionArgs& a = head.a;
  const int64_t row = head.piece * a.queries + t, end = head.end(t);
  Lanes<float> best;
  best.fill(-static_cast<float>(infinity()));
  for (int64_t base = head.first(t); base < end; base += LANES)
    each_lane(end - base, [&](int q) {
      const int64_t j = base + lane_of(q);
      if (head.sees(t, j)) best.v[q] = larger_score(best.v[q], head.score(t, j));
    });
  const float top = fold(best.v, larger_score) + 0.0f;
  const bool blind = top == -static_cast<float>(infinity());
  const float total = blind ? 0.0f : key_sum(head, t, [&](int64_t j) { return exp_float(head.score(t, j) - top); });
  weighted_chains(
      head.first(t), end, a.width, [&](int64_t j) { return !blind && head.sees(t, j); },
      [&](int64_t j) { return head.dropped(exp_float(head.score(t, j) - top) / total, t, j); },
      [&](int64_t j, int64_t c) { return head.v_at(j, c); },
      [&](int64_t c, float y) { a.out[row * a.width + c] = y; });
  if (lane_of(0) == 0) {
    a.top[row] = top;
    a.total[row] = total;
  }
}

VT_FN void attend_back_to_query(const AttentionHead& head, int64_t t) {
  const AttentionArgs& a = head.a;
  const int64_t row = head.piece * a.queries + t;
  const bool blind = head.blind(t);
  const float delta = blind ? 0.0f : key_sum(head, t, [&](int64_t j) { return head.slope(t, j) * head.weight(t, j); });
  weighted_chains(
      head.first(t), head.end(t), a.d, [&](int64_t j) { return !blind && head.sees(t, j); },
      [&](int64_t j) { return score_gradient(head.weight(t, j), head.slope(t, j), delta); },
      [&](int64_t j, int64_t c) { return head.k_at(j, c); },
      [&](int64_t c, float y) { a.dq[row * a.d + c] = y * static_cast<float>(a.q_scale); });
  if (lane_of(0) == 0) a.delta[row] = delta;
}

VT_FN void attend_back_to_key(const AttentionHead& head, int64_t j) {
  const AttentionArgs& a = head.a;
  const int64_t row = head.piece * a.keys + j - head.offset, from = head.first_query(j), end = head.end_query(j);
  const auto seen = [&](int64_t t) { return !head.blind(t) && head.sees(t, j); };
  weighted_chains(
      from, end, a.d, seen,
      [&](int64_t t) { return score_gradient(head.weight(t, j), head.slope(t, j), a.delta[head.piece * a.queries + t]); },
      [&](int64_t t, int64_t c) { return head.q_at(t, c); },
      [&](int64_t c, float y) { a.dk[row * a.d + c] = y * static_cast<float>(a.k_scale); });
  weighted_chains(
      from, end, a.width, seen, [&](int64_t t) { return head.dropped(head.weight(t, j), t, j); },
      [&](int64_t t, int64_t c) { return head.g[t * a.g_row + c]; },
      [&](int64_t c, float y) { a.dv[row * a.width + c] = y; });
}

VT_END
