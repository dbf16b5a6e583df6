// Attention of a few queries over many keys: each key and value is read once for all queries of its group, and only
// where it counts. Blocks of keys are worked on by any thread and combined in their order (Dao et al., 2023,
// "Flash-Decoding"), so that a result depends neither on the number of threads nor on which of them was faster.
#pragma once

#include <atomic>
#include <cmath>
#include <memory>

#include "block.h"

namespace attention {

// The result of one block for one query: sums of weighted values, the weights' sum, and the score they are relative to.
struct Partial {
  float* sums;
  float* total;
  float* top;
};

template <class T>
class Decode {
 public:
  explicit Decode(const Call<T>& call) : c(call) {
    lo = c.keys, hi = 0;
    for (int64_t i = 0; i < c.queries; i++) {
      int64_t from, to;
      c.reach(i, from, to);
      if (from < to) lo = std::min(lo, from), hi = std::max(hi, to);
    }
    blocks = hi > lo ? (hi - lo + kBlock - 1) / kBlock : 1;
    padded = (c.value_width + kLanes - 1) / kLanes * kLanes;
    step = (c.width + Dot<T>::kWidth - 1) / Dot<T>::kWidth * Dot<T>::kWidth;
    static thread_local std::vector<float> memory;  // kept: fresh pages cost more than what is computed
    memory.resize(std::max<size_t>(memory.size(), size_t(pieces() * c.rows() * (padded + 2))));
    scratch = memory.data();
    left = std::make_unique<std::atomic<int64_t>[]>(c.batches * c.groups);
    for (int64_t x = 0; x < c.batches * c.groups; x++) left[x] = blocks;
  }

  int64_t pieces() const { return c.batches * c.groups * blocks; }

  // One thread's part: takes pieces until there are none.
  void work() {
    Counting keys;
    std::vector<T> q(kRows * step, narrow<T>(0));
    for (int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces();) {
      const int64_t group = piece / blocks;
      block(group / c.groups, group % c.groups, piece % blocks, keys, q.data());
      if (left[group].fetch_sub(1, std::memory_order_acq_rel) == 1) combine(group / c.groups, group % c.groups);
    }
  }

 private:
  Partial partial(int64_t b, int64_t g, int64_t block, int64_t row) const {
    float* at = scratch + (((b * c.groups + g) * blocks + block) * c.rows() + row) * (padded + 2);
    return {at, at + padded, at + padded + 1};
  }

  void block(int64_t b, int64_t g, int64_t number, Counting& keys, T* q) const {
    const int64_t from = lo + number * kBlock, to = std::min(hi, from + kBlock), share = c.heads / c.groups;
    keys.found = 0;
    if (from < to) count(c, b, g, from, to, keys);
    float scores[kRows * kBlock];
    for (int64_t start = 0; start < c.rows(); start += kRows) {
      const int64_t rows = std::min(kRows, c.rows() - start);
      if (keys.found) {
        for (int64_t r = 0; r < rows; r++)
          std::memcpy(q + r * step, c.q.at(b, g * share + (start + r) / c.queries, (start + r) % c.queries), c.width * sizeof(T));
        products(q, step, rows, c.k.at(b, g, 0), c.k.key, keys, c.width, scores);
      }
      for (int64_t r = 0; r < rows; r++) {
        const Partial to = partial(b, g, number, start + r);
        const int64_t head = (start + r) / c.queries, i = (start + r) % c.queries;
        const uint8_t* own = keys.found ? &keys.each[mask_row(c, head, i) * kBlock] : nullptr;
        *to.total = keys.found ? weigh(c, b, g * share + head, i, keys, own, from, scores + r * kBlock, *to.top) : 0;
      }
      if (keys.found) values(b, g, rows, keys, scores, partial(b, g, number, start).sums);
    }
  }

  void values(int64_t b, int64_t g, int64_t rows, const Counting& keys, const float* weights, float* out) const {
    const T* v = c.v.at(b, g, 0);
    int64_t e = 0;
    for (; e + 4 * kLanes <= c.value_width; e += 4 * kLanes) add_up<T, 4>(rows, weights, v + e, c.v.key, keys, 0, out + e, padded + 2);
    for (; e + 2 * kLanes <= c.value_width; e += 2 * kLanes) add_up<T, 2>(rows, weights, v + e, c.v.key, keys, 0, out + e, padded + 2);
    for (; e < c.value_width; e += kLanes)
      add_up<T, 1>(rows, weights, v + e, c.v.key, keys, c.value_width - e, out + e, padded + 2);
  }

  void combine(int64_t b, int64_t g) const {
    for (int64_t r = 0; r < c.rows(); r++) {
      const int64_t h = g * (c.heads / c.groups) + r / c.queries, i = r % c.queries;
      T* out = c.out + ((b * c.heads + h) * c.queries + i) * c.value_width;
      const float sink = c.sinks ? widen(c.sinks[h * c.sinks_step]) : kNone;
      float top = sink, total = 0;
      bool any = false;
      for (int64_t n = 0; n < blocks; n++) {
        const Partial one = partial(b, g, n, r);
        if (*one.total == 0) continue;
        top = std::max(top, *one.top);
        any |= std::isnan(*one.total) || *one.top > kLow || !c.bias;
      }
      if (!any) {
        c.sinks ? std::fill(out, out + c.value_width, narrow<T>(0)) : spread(b, g, h, i, out);
        continue;
      }
      Partial sum = partial(b, g, 0, r);
      merge(b, g, r, top, sum.sums, total);
      if (c.sinks) total += std::exp(sink - top);
      for (int64_t e = 0; e < c.value_width; e++) out[e] = narrow<T>(sum.sums[e] / total);
    }
  }

  // All blocks of a query, relative to one score, into the first of them.
  void merge(int64_t b, int64_t g, int64_t r, float top, float* into, float& total) const {
    for (int64_t n = 0; n < blocks; n++) {
      const Partial one = partial(b, g, n, r);
      if (*one.total == 0) {
        if (n == 0) std::fill(into, into + padded, 0.0f);
        continue;
      }
      const float weight = std::exp(*one.top - top);
      total += weight * *one.total;
      for (int64_t e = 0; e < padded; e += kLanes)
        store(into + e, load(one.sums + e) * weight + (n ? load(into + e) : Floats{}));
    }
  }

  // A query without a key that counts. What is masked may still have a score: so low a one that nothing else is left of
  // it, so the keys that have the highest share the query evenly. Where none has one, the result is zero.
  void spread(int64_t b, int64_t g, int64_t h, int64_t i, T* out) const {
    if (c.masked == kNone && !c.bias) return void(std::fill(out, out + c.value_width, narrow<T>(0)));
    const auto score = [&](int64_t j) {
      int64_t from, to;
      c.reach(i, from, to);
      const bool allowed = j >= from && j < to && (!c.mask || c.mask.at(b, h, i)[j * c.mask.key]);
      return !allowed ? c.masked : c.adds() ? c.added(c.bias ? c.bias.at(b, h, i) : nullptr, h, j) : 0.0f;
    };
    float top = kNone, among = 0;
    for (int64_t j = 0; j < c.keys; j++) top = std::max(top, score(j));
    std::vector<float> sum(c.value_width, 0.0f);
    for (int64_t j = 0; j < c.keys; j++) {
      if (top == kNone || score(j) != top) continue;
      among++;
      for (int64_t e = 0; e < c.value_width; e++) sum[e] += widen(c.v.at(b, g, 0)[j * c.v.key + e]);
    }
    for (int64_t e = 0; e < c.value_width; e++) out[e] = narrow<T>(among ? sum[e] / among : 0.0f);
  }

  const Call<T>& c;
  int64_t lo, hi, blocks, padded, step;
  float* scratch;
  std::unique_ptr<std::atomic<int64_t>[]> left;
  std::atomic<int64_t> next{0};
};

}  // namespace attention
