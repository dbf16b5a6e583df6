// One block of keys and its queries: which keys count, their scores, weights, and the weighted sums of values.
#pragma once

#include "call.h"

namespace attention {

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

}  // namespace attention
