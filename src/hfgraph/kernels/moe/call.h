// What one call multiplies: matrices as strided views, each token's choices, and which rows of the sorted order belong to which expert.
#pragma once

#include <vector>

#include "gate.h"
#include "tile.h"

namespace moe {

// A matrix and perhaps a bias for each expert.
template <class T>
struct Weights {
  const T* data;
  int64_t expert, row, column;  // strides
  const T* bias;
  int64_t bias_expert;
  Matrix<T> of(int64_t e) const { return {data + e * expert, row, column}; }
  const T* bias_of(int64_t e) const { return bias ? bias + e * bias_expert : nullptr; }
};

template <class T>
struct Call {
  int64_t tokens, choices, experts, hidden, inner;
  const T* x;
  int64_t x_step;
  std::vector<int64_t> ids;    // of each pair of a token and a choice
  std::vector<float> weights;  // of each pair
  bool rounds, weights_first;  // `rounds`: a weighted result is rounded to T
  Weights<T> first, second;
  Gate gate;
  T* out;  // contiguous

  int64_t pairs() const { return tokens * choices; }
};

// Pairs sorted by expert: rows start[e] to start[e + 1] are those of expert e, in the order of tokens. Those of no expert come last.
struct Order {
  std::vector<int64_t> start, pair, row;  // pair of a row, row of a pair

  Order(const std::vector<int64_t>& ids, int64_t experts) : start(experts + 2, 0), pair(ids.size()), row(ids.size()) {
    for (const int64_t e : ids) start[e + 1]++;
    for (int64_t e = 0; e <= experts; e++) start[e + 1] += start[e];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (size_t p = 0; p < ids.size(); p++) {
      row[p] = next[ids[p]]++;
      pair[row[p]] = int64_t(p);
    }
  }
  int64_t rows(int64_t e) const { return start[e + 1] - start[e]; }
};

}  // namespace moe
