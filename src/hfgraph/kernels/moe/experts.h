// The parts of a mixture of experts, each for some rows of the sorted order. Experts with few rows are multiplied tile by tile: every
// row of their matrices is read once for all of them. What is computed does not depend on which thread computes which part.
#pragma once

#include "call.h"

namespace moe {

template <class T>
class Experts {
 public:
  Experts(const Call<T>& call, const Order& order, T* scaled, T* inner, T* result)
      : c(call), order(order), scaled(scaled), inner(inner), result(result) {}

  // A token as the first product takes it, into `scaled`.
  void scale(int64_t row) const {
    const int64_t pair = order.pair[row];
    const T* x = c.x + pair / c.choices * c.x_step;
    for (int64_t i = 0; i < c.hidden; i++) scaled[row * c.hidden + i] = narrow<T>(widen(x[i]) * c.weights[pair]);
  }

  const T* token(int64_t row) const {
    return scaled ? scaled + row * c.hidden : c.x + order.pair[row] / c.choices * c.x_step;
  }

  // `inner` of all rows of an expert, for kTile features from `from` on.
  void up(int64_t e, int64_t from) const {
    const int64_t count = std::min(kTile, c.inner - from), step = 2 * kTile;
    float gate[kVectors * 2 * kTile], other[kVectors * 2 * kTile], both[kVectors * 2 * kTile];
    const Matrix<T> m = c.first.of(e);
    const T* vectors[kVectors];
    for (int64_t row = order.start[e], last = order.start[e + 1]; row < last; row += kVectors) {
      const int64_t many = std::min(kVectors, last - row);
      for (int64_t v = 0; v < kVectors; v++) vectors[v] = token(row + std::min(v, many - 1));
      if (c.gate.gated && c.gate.interleaved) {
        tile(m, 2 * from, 2 * count, vectors, many, c.hidden, both, step);
        for (int64_t v = 0; v < many; v++)
          for (int64_t f = 0; f < count; f++) gate[v * step + f] = both[v * step + 2 * f], other[v * step + f] = both[v * step + 2 * f + 1];
      } else {
        tile(m, from, count, vectors, many, c.hidden, gate, step);
        if (c.gate.gated) tile(m, c.inner + from, count, vectors, many, c.hidden, other, step);
      }
      for (int64_t v = 0; v < many; v++) activate(e, from, count, gate + v * step, other + v * step, inner + (row + v) * c.inner + from);
    }
  }

  // `inner` of one row, from a whole row of the first product.
  void gate_row(int64_t e, int64_t row, const T* product) const {
    float gate[kTile], other[kTile];
    const bool pairs = c.gate.gated && c.gate.interleaved;
    for (int64_t from = 0; from < c.inner; from += kTile) {
      const int64_t count = std::min(kTile, c.inner - from);
      for (int64_t f = 0; f < count; f++) gate[f] = widen(product[pairs ? 2 * (from + f) : from + f]);
      for (int64_t f = 0; c.gate.gated && f < count; f++) other[f] = widen(product[pairs ? 2 * (from + f) + 1 : c.inner + from + f]);
      activate(e, from, count, gate, other, inner + row * c.inner + from);
    }
  }

  // `result` of all rows of an expert, for kTile features from `from` on.
  void down(int64_t e, int64_t from) const {
    const int64_t count = std::min(kTile, c.hidden - from);
    float found[kVectors * kTile];
    const Matrix<T> m = c.second.of(e);
    const T* vectors[kVectors];
    for (int64_t row = order.start[e], last = order.start[e + 1]; row < last; row += kVectors) {
      const int64_t many = std::min(kVectors, last - row);
      for (int64_t v = 0; v < kVectors; v++) vectors[v] = inner + (row + std::min(v, many - 1)) * c.inner;
      tile(m, from, count, vectors, many, c.inner, found, kTile);
      for (int64_t v = 0; v < many; v++)
        for (int64_t f = 0; f < count; f++) result[(row + v) * c.hidden + from + f] = narrow<T>(found[v * kTile + f]);
    }
  }

  // A token's weighted results, added up in the order of its choices.
  void combine(int64_t token) const {
    for (int64_t from = 0; from < c.hidden; from += kLanes) {
      const int64_t there = std::min(kLanes, c.hidden - from);
      Floats total{};
      for (int64_t pair = token * c.choices; pair < (token + 1) * c.choices; pair++) {
        Floats y = load(result + order.row[pair] * c.hidden + from, there);
        if (const T* bias = c.second.bias_of(c.ids[pair])) y = rounded<T>(y + load(bias + from, there));
        if (!c.weights_first) y = c.rounds ? rounded<T>(y * c.weights[pair]) : y * c.weights[pair];
        total += y;
      }
      for (int64_t i = 0; i < there; i++) c.out[token * c.hidden + from + i] = narrow<T>(total[i]);
    }
  }

 private:
  // The activation of at most kTile features, from products that may not be rounded yet.
  void activate(int64_t e, int64_t from, int64_t count, const float* gate, const float* other, T* to) const {
    const T* bias = c.first.bias_of(e);
    const auto biased = [&](const float* product, int64_t f, int64_t first, int64_t step, int64_t there) {
      Floats x = rounded<T>(load(product + f, there));
      if (!bias) return x;
      Floats b{};
      for (int64_t i = 0; i < there; i++) b[i] = widen(bias[first + (f + i) * step]);
      return rounded<T>(x + b);
    };
    const bool pairs = c.gate.gated && c.gate.interleaved;
    for (int64_t f = 0; f < count; f += kLanes) {
      const int64_t there = std::min(kLanes, count - f), step = pairs ? 2 : 1;
      const Floats g = biased(gate, f, step * from, step, there);
      const Floats y = c.gate.gated ? gated<T>(g, biased(other, f, pairs ? 2 * from + 1 : c.inner + from, step, there), c.gate) : activated<T>(g, c.gate);
      for (int64_t i = 0; i < there; i++) to[f + i] = narrow<T>(y[i]);
    }
  }

  const Call<T>& c;
  const Order& order;
  T *scaled, *inner, *result;
};

}  // namespace moe
