// The parts of a mixture of experts, each for some rows of the sorted order. Experts with few rows are multiplied tile by tile: their
// matrices are read once for all of them. What is computed does not depend on which thread computes which part.
#pragma once

#include "call.h"

namespace moe {

// Rows in the sorted order: tokens as the first product takes them, what the second takes, and what it gives.
template <class T>
struct Rows {
  using C = typename Computed<T>::Type;
  C *tokens, *inner, *results;
};

template <class T>
class Experts {
 public:
  using C = typename Computed<T>::Type;
  Experts(const Call<T>& call, const Order& order, const Rows<T>& rows) : c(call), order(order), rows(rows) {}

  // Outputs of one tile of a product.
  static int64_t tile(const Weights<T>& w) { return w.column == 1 ? kTile : kWide; }

  void fetch(int64_t row) const {
    const int64_t pair = order.pair[row];
    const T* x = c.x + pair / c.choices * c.x_step;
    C* to = rows.tokens + row * c.hidden;
    const float weight = c.weights_first ? c.weights[pair] : 1.0f;
    for (int64_t i = 0; i < c.hidden; i++) to[i] = exactly(narrow<T>(widen(x[i]) * weight));
  }

  // `inner` of all rows of an expert, for a tile of features from `from` on.
  void up(int64_t e, int64_t from) const {
    constexpr int64_t step = 2 * kWide;
    static thread_local std::vector<float> memory(2 * kMost * step);
    const int64_t count = std::min(tile(c.first), c.inner - from), start = order.start[e], many = order.rows(e);
    float *products = memory.data(), *other = products + kMost * step;
    const Matrix<T> m = c.first.of(e);
    const C* tokens = rows.tokens + start * c.hidden;
    const bool pairs = c.gate.gated && c.gate.interleaved;
    multiply<C>(m, pairs ? 2 * from : from, pairs ? 2 * count : count, tokens, many, c.hidden, products, step);
    if (c.gate.gated && !pairs) multiply<C>(m, c.inner + from, count, tokens, many, c.hidden, other, step);
    for (int64_t v = 0; v < many; v++)
      activate(e, from, count, products + v * step, pairs ? products + v * step + 1 : other + v * step, rows.inner + (start + v) * c.inner + from);
  }

  // `inner` of one row, from a whole row of the first product.
  void gate_row(int64_t e, int64_t row, const C* product) const {
    const bool pairs = c.gate.gated && c.gate.interleaved;
    activate(e, 0, c.inner, product, pairs ? product + 1 : product + c.inner, rows.inner + row * c.inner);
  }

  // `results` of all rows of an expert, for a tile of features from `from` on.
  void down(int64_t e, int64_t from) const {
    constexpr int64_t step = kWide;
    float found[kMost * step];
    const int64_t count = std::min(tile(c.second), c.hidden - from), start = order.start[e], many = order.rows(e);
    multiply<C>(c.second.of(e), from, count, rows.inner + start * c.inner, many, c.inner, found, step);
    for (int64_t v = 0; v < many; v++)
      for (int64_t f = 0; f < count; f++) rows.results[(start + v) * c.hidden + from + f] = exactly(narrow<T>(found[v * step + f]));
  }

  // A token's weighted results, added up in the order of its choices.
  void combine(int64_t token) const {
    for (int64_t from = 0; from < c.hidden; from += kLanes) {
      const int64_t there = std::min(kLanes, c.hidden - from);
      Floats total{};
      for (int64_t pair = token * c.choices; pair < (token + 1) * c.choices; pair++) {
        Floats y = rounded<T>(load(rows.results + order.row[pair] * c.hidden + from, there));
        if (const T* bias = c.second.bias_of(c.ids[pair])) y = rounded<T>(y + load(bias + from, there));
        if (!c.weights_first) y = c.rounds ? rounded<T>(y * c.weights[pair]) : y * c.weights[pair];
        total += y;
      }
      for (int64_t i = 0; i < there; i++) c.out[token * c.hidden + from + i] = narrow<T>(total[i]);
    }
  }

 private:
  // A value of T in what products are computed in.
  static INLINE C exactly(T x) {
    if constexpr (std::is_same_v<C, T>) return x;
    else return widen(x);
  }

  // The activation of some features, from products that may not be rounded yet; those of gates and ups may alternate.
  template <class P>
  void activate(int64_t e, int64_t from, int64_t count, const P* gates, const P* ups, C* to) const {
    const T* bias = c.first.bias_of(e);
    const bool pairs = c.gate.gated && c.gate.interleaved;
    const auto taken = [&](const P* products, int64_t f, int64_t first, int64_t there) {
      Floats x{}, b{};
      if (!pairs) x = load(products + f, there);
      for (int64_t i = 0; pairs && i < there; i++) x[i] = widen(products[2 * (f + i)]);
      x = rounded<T>(x);
      if (!bias) return x;
      for (int64_t i = 0; i < there; i++) b[i] = widen(bias[pairs ? 2 * (from + f + i) + first : first + from + f + i]);
      return rounded<T>(x + b);
    };
    for (int64_t f = 0; f < count; f += kLanes) {
      const int64_t there = std::min(kLanes, count - f);
      const Floats g = taken(gates, f, 0, there);
      const Floats y = c.gate.gated ? gated<T>(g, taken(ups, f, pairs ? 1 : c.inner, there), c.gate) : activated<T>(g, c.gate);
      for (int64_t i = 0; i < there; i++) to[f + i] = exactly(narrow<T>(y[i]));
    }
  }

  const Call<T>& c;
  const Order& order;
  const Rows<T> rows;
};

}  // namespace moe
