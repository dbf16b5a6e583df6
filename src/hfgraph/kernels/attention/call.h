// What one call attends to: tensors as strided views, and the attributes of the op.
#pragma once

#include <algorithm>
#include <limits>
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

}  // namespace attention
