// Attention of a few queries over many keys: each key and value is read once for all queries of its group, and only
// where it counts. Blocks of keys are worked on by any thread and combined in their order (Dao et al., 2023,
// "Flash-Decoding"), so that a result depends neither on the number of threads nor on which of them was faster.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "../lanes.h"

namespace attention {

using namespace lanes;

constexpr int64_t kBlock = 128;  // keys of one piece of work: theirs and their values' rows fit the first cache
constexpr int64_t kRows = 16;    // queries whose scores are held at once
constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr float kLow = -1e30f;  // a bias or score this low erases what it is added to

// A tensor over (batch, head, query, key); a stride is 0 where it is broadcast.
template <class T>
struct View {
  const T* data = nullptr;
  int64_t batch = 0, head = 0, query = 0, key = 0;
  const T* at(int64_t b, int64_t h, int64_t i) const { return data + b * batch + h * head + i * query; }
  explicit operator bool() const { return data != nullptr; }
};

template <class T>
struct Call {
  int64_t batches, heads, groups, queries, keys, width, value_width;
  View<T> q, k, v, bias;
  View<uint8_t> mask;  // not zero: attended to
  const T* sinks;
  int64_t sinks_step;
  std::vector<float> slopes;
  float scale, softcap, masked;  // `masked` is kNone where a masked key does not count at all
  int64_t first, left, right, chunk;
  T* out;  // contiguous

  int64_t rows() const { return heads / groups * queries; }

  // The keys [lo, hi) that the positions allow query i.
  void reach(int64_t i, int64_t& lo, int64_t& hi) const {
    const int64_t p = first + i;
    lo = left >= 0 ? std::max<int64_t>(0, p - left) : 0;
    hi = right >= 0 ? std::min(keys, p + right + 1) : keys;
    if (chunk > 0) {
      const int64_t own = (p >= 0 ? p / chunk : -((-p + chunk - 1) / chunk)) * chunk;
      lo = std::max(lo, own);
      hi = std::min(hi, own + chunk);
    }
    hi = std::max(hi, lo);
  }

  // What is added to the score of key j, rounded where the reference rounds; h is the head.
  float added(const T* bias_row, int64_t h, int64_t j) const {
    if (slopes.empty()) return widen(bias_row[j * bias.key]);
    const float alibi = widen(narrow<T>(slopes[h] * float(j - (keys - 1))));
    return bias_row ? widen(narrow<T>(widen(bias_row[j * bias.key]) + alibi)) : alibi;
  }
  bool adds() const { return bias || !slopes.empty(); }
};

// --- one block ----------------------------------------------------------------------------------------

// Which keys of a block count for any query and, where queries differ, for each row of the mask: one row for all heads
// where they share it.
struct Counting {
  std::vector<uint8_t> each;  // (rows of the mask, kBlock)
  int32_t index[kBlock + 16];
  int64_t found;
  bool differs;
};

template <class T>
int64_t mask_row(const Call<T>& c, int64_t head, int64_t i) {
  return c.mask.head ? head * c.queries + i : i;
}

// Sets ok[j] for the keys from + j: whether query i of head h sees them.
template <class T>
void allow(const Call<T>& c, int64_t b, int64_t h, int64_t i, int64_t from, int64_t n, uint8_t* ok) {
  int64_t lo, hi;
  c.reach(i, lo, hi);
  lo = std::clamp<int64_t>(lo - from, 0, n), hi = std::clamp<int64_t>(hi - from, lo, n);
  std::memset(ok, 0, n);
  std::memset(ok + lo, 1, hi - lo);
  if (c.mask) {
    const uint8_t* row = c.mask.at(b, h, i) + from * c.mask.key;
    if (c.mask.key == 1)
      std::memcpy(ok + lo, row + lo, hi - lo);
    else
      for (int64_t j = lo; j < hi; j++) ok[j] = row[j * c.mask.key] != 0;
  }
  if (c.bias && !c.bias.head) {
    const T* row = c.bias.at(b, h, i) + from * c.bias.key;
    for (int64_t j = lo; j < hi; j++)
      if (widen(row[j * c.bias.key]) <= kLow) ok[j] = 0;
  }
}

template <class T>
void count(const Call<T>& c, int64_t b, int64_t g, int64_t from, int64_t to, Counting& out) {
  const int64_t share = c.heads / c.groups, rows = (c.mask.head ? share : 1) * c.queries, n = to - from;
  out.each.resize((rows + 1) * kBlock);
  uint8_t* any = &out.each[rows > 1 ? rows * kBlock : 0];  // of one row, the row itself
  std::memset(any, 0, kBlock);
  for (int64_t r = 0; r < rows; r++) {
    uint8_t* ok = &out.each[r * kBlock];
    allow(c, b, g * share + r / c.queries, r % c.queries, from, n, ok);
    for (int64_t j = 0; rows > 1 && j < n; j++) any[j] |= ok[j];
  }
  out.found = 0;
  out.differs = false;
  for (int64_t j = 0; j < n; j++) {  // without a branch
    out.index[out.found] = int32_t(from + j);
    out.found += any[j] != 0;
  }
  for (int64_t r = 0; r < rows && rows > 1; r++) out.differs |= std::memcmp(any, &out.each[r * kBlock], n) != 0;
  for (int64_t t = out.found; out.found && t % 16; t++) out.index[t] = out.index[out.found - 1];
}

// Products of `rows` queries and the keys that count; `q` is packed, in rows of whole steps, zeros at their ends.
template <class T>
void products(const T* q, int64_t step, int64_t rows, const T* k, int64_t key_step, const Counting& keys, int64_t width, float* scores) {
  using D = Dot<T>;
  for (int64_t t = 0; t < keys.found; t += 16) {
    const T* at[16];
    for (int x = 0; x < 16; x++) at[x] = k + keys.index[t + x] * key_step;
    for (int64_t r = 0; r < rows; r++) {
      Floats part[16] = {};
      int64_t d = 0;
      for (; d + D::kWidth <= width; d += D::kWidth) {
        const auto query = D::get(q + r * step + d, D::kWidth);
#pragma GCC unroll 16
        for (int x = 0; x < 16; x++) part[x] = D::add(part[x], query, D::get(at[x] + d, D::kWidth));
      }
      if (d < width) {
        const auto query = D::get(q + r * step + d, D::kWidth);
        for (int x = 0; x < 16; x++) part[x] = D::add(part[x], query, D::get(at[x] + d, width - d));
      }
      store(scores + r * kBlock + t, sums(part));
    }
  }
}

// Products to weights, in place: returns their sum, and sets the score that they are relative to.
template <class T>
float weigh(const Call<T>& c, int64_t b, int64_t h, int64_t i, const Counting& keys, const uint8_t* own, int64_t from, float* scores, float& top) {
  const int64_t n = keys.found, whole = (n + 15) / 16 * 16;
  for (int64_t t = 0; t < whole; t += 16) {
    Floats s = load(scores + t) * c.scale;
    if (c.softcap != 0) s = tanh(s / c.softcap) * c.softcap;
    store(scores + t, s);
  }
  if (c.adds()) {
    const T* row = c.bias ? c.bias.at(b, h, i) : nullptr;
    for (int64_t t = 0; t < n; t++) scores[t] += c.added(row, h, keys.index[t]);
  }
  if (keys.differs)
    for (int64_t t = 0; t < n; t++) scores[t] = own[keys.index[t] - from] ? scores[t] : kNone;
  for (int64_t t = n; t < whole; t++) scores[t] = kNone;
  Floats most = broadcast(kNone), total{};
  for (int64_t t = 0; t < whole; t += 16) most = larger(load(scores + t), most);
  top = std::max(largest(most), std::numeric_limits<float>::lowest());  // -inf - -inf is no number
  for (int64_t t = 0; t < whole; t += 16) {
    const Floats w = exp(load(scores + t) - top);
    store(scores + t, w);
    total += w;
  }
  return sum(total);
}

// Weighted sums of values: `R` rows, `C` vectors of columns of which the last may be `there` wide.
template <class T, int R, int C>
void add_up(const float* weights, const T* v, int64_t key_step, const Counting& keys, int64_t there, float* out, int64_t out_step) {
  Floats sum[R][C] = {};
  for (int64_t t = 0; t < keys.found; t++) {
    const T* from = v + keys.index[t] * key_step;
    Floats value[C];
#pragma GCC unroll 4
    for (int e = 0; e < C; e++) value[e] = C > 1 ? load(from + e * kLanes) : load(from, there);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int e = 0; e < C; e++) sum[r][e] += value[e] * weights[r * kBlock + t];
  }
  for (int r = 0; r < R; r++)
    for (int e = 0; e < C; e++) store(out + r * out_step + e * kLanes, sum[r][e]);
}

template <class T, int C>
void add_up(int64_t rows, const float* weights, const T* v, int64_t key_step, const Counting& keys, int64_t there, float* out, int64_t out_step) {
  for (int64_t r = 0; r < rows; r += 4) {
    const float* w = weights + r * kBlock;
    float* to = out + r * out_step;
    switch (rows - r) {
      case 1: add_up<T, 1, C>(w, v, key_step, keys, there, to, out_step); break;
      case 2: add_up<T, 2, C>(w, v, key_step, keys, there, to, out_step); break;
      case 3: add_up<T, 3, C>(w, v, key_step, keys, there, to, out_step); break;
      default: add_up<T, 4, C>(w, v, key_step, keys, there, to, out_step);
    }
  }
}

// --- all blocks ---------------------------------------------------------------------------------------

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
