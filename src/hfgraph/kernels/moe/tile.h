// Some outputs of a product of a matrix with a few vectors. Each element of the matrix is read once for up to four vectors.
#pragma once

#include <algorithm>

#include "../lanes.h"

namespace moe {

using namespace lanes;

constexpr int64_t kTile = 32;    // outputs of one tile; their rows lie in the first two caches while vectors pass by
constexpr int64_t kVectors = 4;  // vectors multiplied at once

// (rows, width), either dim dense.
template <class T>
struct Matrix {
  const T* data;
  int64_t row, column;  // strides
  const T* at(int64_t r) const { return data + r * row; }
};

// Four rows, N vectors, both dense: element (r, v) of the result in lane 4 r + v.
template <class T, int N>
INLINE Floats dots(const T* const (&rows)[4], const T* const (&vectors)[kVectors], int64_t width) {
  using D = Dot<T>;
  Floats total[16] = {};
  int64_t i = 0;
  for (; i + D::kWidth <= width; i += D::kWidth) {
    typename D::Operand v[N];
    for (int n = 0; n < N; n++) v[n] = D::get(vectors[n] + i, D::kWidth);
    for (int r = 0; r < 4; r++) {
      const auto w = D::get(rows[r] + i, D::kWidth);
      for (int n = 0; n < N; n++) total[4 * r + n] = D::add(total[4 * r + n], w, v[n]);
    }
  }
  if (i < width)
    for (int r = 0; r < 4; r++)
      for (int n = 0; n < N; n++) total[4 * r + n] = D::add(total[4 * r + n], D::get(rows[r] + i, width - i), D::get(vectors[n] + i, width - i));
  return sums(total);
}

template <class T>
void by_rows(const Matrix<T>& m, int64_t from, int64_t count, const T* const (&vectors)[kVectors], int64_t many, int64_t width, float* out,
             int64_t step) {
  for (int64_t f = 0; f < count; f += 4) {
    const T* rows[4];
    for (int64_t r = 0; r < 4; r++) rows[r] = m.at(from + std::min(f + r, count - 1));
    const Floats found = many == 1   ? dots<T, 1>(rows, vectors, width)
                         : many == 2 ? dots<T, 2>(rows, vectors, width)
                                     : dots<T, 4>(rows, vectors, width);
    for (int64_t r = 0; r < std::min<int64_t>(4, count - f); r++)
      for (int64_t v = 0; v < many; v++) out[v * step + f + r] = found[4 * r + v];
  }
}

// Two times sixteen outputs whose weights lie side by side.
template <class T, int N>
INLINE void along(const T* weights, int64_t column, int64_t count, const T* const (&vectors)[kVectors], int64_t width, float* out, int64_t step) {
  Floats total[N][2] = {};
  const int64_t first = std::min(count, kLanes), second = count - first;
  for (int64_t i = 0; i < width; i++) {
    const T* w = weights + i * column;
    const Floats a = load(w, first), b = second ? load(w + kLanes, second) : Floats{};
    for (int n = 0; n < N; n++) {
      const float v = widen(vectors[n][i]);
      total[n][0] += a * v;
      total[n][1] += b * v;
    }
  }
  for (int n = 0; n < N; n++)
    for (int64_t f = 0; f < count; f++) out[n * step + f] = total[n][f / kLanes][f % kLanes];
}

template <class T>
void by_columns(const Matrix<T>& m, int64_t from, int64_t count, const T* const (&vectors)[kVectors], int64_t many, int64_t width, float* out,
                int64_t step) {
  for (int64_t f = 0; f < count; f += 2 * kLanes) {
    const int64_t some = std::min(count - f, 2 * kLanes);
    const T* weights = m.data + from + f;
    many == 1   ? along<T, 1>(weights, m.column, some, vectors, width, out + f, step)
    : many == 2 ? along<T, 2>(weights, m.column, some, vectors, width, out + f, step)
                : along<T, 4>(weights, m.column, some, vectors, width, out + f, step);
  }
}

// out[v * step + f]: row `from` + f of the matrix times vector v, for `count` rows and `many` vectors; there may be room for kVectors.
template <class T>
INLINE void tile(const Matrix<T>& m, int64_t from, int64_t count, const T* const (&vectors)[kVectors], int64_t many, int64_t width, float* out,
                 int64_t step) {
  m.column == 1 ? by_rows(m, from, count, vectors, many, width, out, step) : by_columns(m, from, count, vectors, many, width, out, step);
}

}  // namespace moe
