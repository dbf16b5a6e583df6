// Some outputs of a product of a matrix with a few vectors. Each element of the matrix is read from memory once for all of them.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../lanes.h"

namespace moe {

using namespace lanes;

constexpr int64_t kTile = 16;   // outputs of one tile where rows of the matrix are dense
constexpr int64_t kWide = 256;  // where columns are: their rows are read in runs as long as this
constexpr int64_t kMost = 16;   // vectors at most; with more, an expert is for a matrix product of its own

// What products are computed in: bfloat16 where the processor multiplies it, else float.
template <class T>
struct Computed {
  using Type = float;
};
#ifdef __AVX512BF16__
template <>
struct Computed<BFloat16> {
  using Type = BFloat16;
};
#endif

// Vectors as wide as a register, and how many rows and vectors are multiplied at once: as many sums as registers hold. Compilers keep
// wider vectors in memory.
#ifdef __AVX512F__
constexpr int64_t kNative = 16;
constexpr int kRows = 4, kVectors = 4;
#else
constexpr int64_t kNative = 8;
constexpr int kRows = 2, kVectors = 4;
#endif
using Native = float __attribute__((vector_size(4 * kNative)));
using Quad = float __attribute__((vector_size(16)));

INLINE Native native(const float* from, int64_t there) {
  Native x{};
  std::memcpy(&x, from, there >= kNative ? sizeof(x) : there * sizeof(float));
  return x;
}
INLINE Native native(const BFloat16* from, int64_t there) {
  using Half = uint16_t __attribute__((vector_size(2 * kNative)));
  using Word = uint32_t __attribute__((vector_size(4 * kNative)));
  Half x{};
  std::memcpy(&x, from, there >= kNative ? sizeof(x) : there * sizeof(BFloat16));
  return cast<Native>(__builtin_convertvector(x, Word) << 16);
}
INLINE float total_of(Native x) {
  Quad q[kNative / 4];
  std::memcpy(q, &x, sizeof(x));
  for (int64_t i = 1; i < kNative / 4; i++) q[0] += q[i];
  return (q[0][0] + q[0][1]) + (q[0][2] + q[0][3]);
}

// One step of a product in C.
template <class C>
struct Step {
  using Operand = Native;
  using Sum = Native;
  static constexpr int64_t kWidth = kNative;
  template <class W>
  static INLINE Operand get(const W* from, int64_t there) { return native(from, there); }
  static INLINE Sum add(Sum sum, Operand a, Operand b) { return sum + a * b; }
  static INLINE float total(Sum sum) { return total_of(sum); }
};
#ifdef __AVX512BF16__
template <>
struct Step<BFloat16> : Dot<BFloat16> {
  using Sum = Floats;
  static INLINE float total(Sum sum) { return total_of(sum); }
};
#endif

// (rows, width), either dim dense.
template <class T>
struct Matrix {
  const T* data;
  int64_t row, column;  // strides
};

// out[v * step + r]: row r times vector v.
template <class C, class W, int R, int N>
INLINE void dots(const W* rows, int64_t row, const C* vectors, int64_t width, float* out, int64_t step) {
  using S = Step<C>;
  typename S::Sum total[R][N] = {};
#define ADD(there)                                                                                  \
  typename S::Operand v[N];                                                                         \
  for (int n = 0; n < N; n++) v[n] = S::get(vectors + n * width + i, there);                        \
  for (int r = 0; r < R; r++) {                                                                     \
    const auto w = S::get(rows + r * row + i, there);                                               \
    for (int n = 0; n < N; n++) total[r][n] = S::add(total[r][n], w, v[n]);                         \
  }
  int64_t i = 0;
  for (; i + S::kWidth <= width; i += S::kWidth) { ADD(S::kWidth) }
  if (i < width) { ADD(width - i) }
#undef ADD
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) out[n * step + r] = S::total(total[r][n]);
}

// R rows with all vectors.
template <class C, class W, int R>
INLINE void block(const W* rows, int64_t row, const C* vectors, int64_t many, int64_t width, float* out, int64_t step) {
  int64_t v = 0;
  for (; v + kVectors <= many; v += kVectors) dots<C, W, R, kVectors>(rows, row, vectors + v * width, width, out + v * step, step);
  for (; v + 2 <= many; v += 2) dots<C, W, R, 2>(rows, row, vectors + v * width, width, out + v * step, step);
  for (; v < many; v++) dots<C, W, R, 1>(rows, row, vectors + v * width, width, out + v * step, step);
}

// Rows of bfloat16 in float, each `width` after the one before.
inline void widen_rows(const BFloat16* rows, int64_t row, int64_t count, int64_t width, float* to) {
  for (int64_t r = 0; r < count; r++) {
    int64_t i = 0;
    for (; i + kNative <= width; i += kNative) {
      const Native x = native(rows + r * row + i, kNative);
      std::memcpy(to + r * width + i, &x, sizeof(x));
    }
    for (; i < width; i++) to[r * width + i] = widen(rows[r * row + i]);
  }
}

template <class C, class T>
void by_rows(const Matrix<T>& m, int64_t from, int64_t count, const C* vectors, int64_t many, int64_t width, float* out, int64_t step) {
  static thread_local std::vector<float> widened;
  // Widened once for all vectors, where there are enough of them.
  const bool ahead = !std::is_same_v<C, T> && many > 2;
  const int64_t rows_at_once = many == 1 ? 4 : kRows;
  if (ahead) widened.resize(std::max<size_t>(widened.size(), size_t(kRows * width)));
  for (int64_t f = 0; f < count; f += rows_at_once) {
    const T* rows = m.data + (from + f) * m.row;
    const int64_t some = std::min(rows_at_once, count - f);
    if constexpr (!std::is_same_v<C, T>) {
      if (ahead) {
        widen_rows(rows, m.row, some, width, widened.data());
        if (some == kRows) block<C, C, kRows>(widened.data(), width, vectors, many, width, out + f, step);
        else for (int64_t r = 0; r < some; r++) block<C, C, 1>(widened.data() + r * width, width, vectors, many, width, out + f + r, step);
        continue;
      }
    }
    if (some < rows_at_once) for (int64_t r = 0; r < some; r++) block<C, T, 1>(rows + r * m.row, m.row, vectors, many, width, out + f + r, step);
    else if (many == 1) dots<C, T, 4, 1>(rows, m.row, vectors, width, out + f, step);
    else block<C, T, kRows>(rows, m.row, vectors, many, width, out + f, step);
  }
}

// Outputs whose weights lie side by side, N vectors: four of the matrix' runs at a time are added to `out`.
template <class C, class T, int N>
INLINE void along(const T* weights, int64_t column, int64_t count, const C* vectors, int64_t width, float* out, int64_t step) {
  for (int n = 0; n < N; n++) std::fill(out + n * step, out + n * step + (count + kLanes - 1) / kLanes * kLanes, 0.0f);
  for (int64_t i = 0; i < width; i += 4) {
    const T* runs[4];
    float v[N][4];
    for (int k = 0; k < 4; k++) {
      const int64_t at = std::min(i + k, width - 1);
      runs[k] = weights + at * column;
      for (int n = 0; n < N; n++) v[n][k] = i + k < width ? widen(vectors[n * width + at]) : 0.0f;
    }
    const auto add = [&](int64_t f, int64_t there) __attribute__((always_inline)) {
      Floats w[4];
      for (int k = 0; k < 4; k++) w[k] = load(runs[k] + f, there);
      for (int n = 0; n < N; n++) {
        Floats total = load(out + n * step + f);
        for (int k = 0; k < 4; k++) total += w[k] * v[n][k];
        store(out + n * step + f, total);
      }
    };
    int64_t f = 0;
    for (; f + kLanes <= count; f += kLanes) add(f, kLanes);
    if (f < count) add(f, count - f);
  }
}

template <class C, class T>
void by_columns(const Matrix<T>& m, int64_t from, int64_t count, const C* vectors, int64_t many, int64_t width, float* out, int64_t step) {
  const T* weights = m.data + from;
  int64_t v = 0;
  for (; v + 4 <= many; v += 4) along<C, T, 4>(weights, m.column, count, vectors + v * width, width, out + v * step, step);
  for (; v + 2 <= many; v += 2) along<C, T, 2>(weights, m.column, count, vectors + v * width, width, out + v * step, step);
  for (; v < many; v++) along<C, T, 1>(weights, m.column, count, vectors + v * width, width, out + v * step, step);
}

// out[v * step + f]: row `from` + f of the matrix times vector v of (many, width); `step` a multiple of kLanes.
template <class C, class T>
void multiply(const Matrix<T>& m, int64_t from, int64_t count, const C* vectors, int64_t many, int64_t width, float* out, int64_t step) {
  m.column == 1 ? by_rows(m, from, count, vectors, many, width, out, step) : by_columns(m, from, count, vectors, many, width, out, step);
}

}  // namespace moe
