// Sixteen floats at a time, in the vector extensions that GCC and Clang share: one text for every processor, and the compiler
// splits what the processor at hand does not have. Intrinsics stand only where an instruction has no spelling in C++.
#pragma once

#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // everything here is inlined: no vector crosses a call

namespace lanes {

constexpr int64_t kLanes = 16;
using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));

struct BFloat16 {
  uint16_t bits;
};

#define INLINE inline __attribute__((always_inline))

INLINE Floats broadcast(float x) { return x - Floats{}; }
INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }  // b where a is NaN

template <class To, class From>
INLINE To cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

INLINE float widen(float x) { return x; }
INLINE float widen(BFloat16 x) { return cast<float>(uint32_t(x.bits) << 16); }
INLINE Floats widen(Halves x) { return cast<Floats>(__builtin_convertvector(x, Words) << 16); }

template <class T>
INLINE T narrow(float x);
template <>
INLINE float narrow<float>(float x) { return x; }
template <>
INLINE BFloat16 narrow<BFloat16>(float x) {  // to nearest, ties to even
  const uint32_t bits = cast<uint32_t>(x);
  if (x != x) return {uint16_t((bits >> 16) | 0x40)};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// As many of `kLanes` elements as there are, zeros after them; nothing is read past them.
INLINE Floats load(const float* from, int64_t there = kLanes) {
  Floats x{};
  std::memcpy(&x, from, there >= kLanes ? sizeof(x) : there * sizeof(float));
  return x;
}
INLINE Floats load(const BFloat16* from, int64_t there = kLanes) {
  Halves x{};
  std::memcpy(&x, from, there >= kLanes ? sizeof(x) : there * sizeof(BFloat16));
  return widen(x);
}
INLINE void store(float* to, Floats x) { std::memcpy(to, &x, sizeof(x)); }

// What one step of a dot product takes: `Dot<T>::Operand` holds `kWidth` elements.
template <class T>
struct Dot {
  using Operand = Floats;
  static constexpr int64_t kWidth = kLanes;
  static INLINE Operand get(const T* from, int64_t there) { return load(from, there); }
  static INLINE Floats add(Floats sum, Operand a, Operand b) { return sum + a * b; }
};

#ifdef __AVX512BF16__
template <>
struct Dot<BFloat16> {  // pairs of products, exact, added in float32
  using Operand = __m512bh;
  static constexpr int64_t kWidth = 32;
  static INLINE Operand get(const BFloat16* from, int64_t there) {
    const __mmask32 some = there >= kWidth ? ~__mmask32(0) : (__mmask32(1) << there) - 1;
    return cast<Operand>(_mm512_maskz_loadu_epi16(some, from));
  }
  static INLINE Floats add(Floats sum, Operand a, Operand b) { return cast<Floats>(_mm512_dpbf16_ps(cast<__m512>(sum), a, b)); }
};
#endif

// Lane i: a[i] + a[i + step] where bit `step` of i is clear, b[i - step] + b[i] where it is set.
#define HALVE(step, a, b)                                                                                                  \
  (__builtin_shufflevector(a, b, PICK(step, 0), PICK(step, 1), PICK(step, 2), PICK(step, 3), PICK(step, 4), PICK(step, 5), \
                           PICK(step, 6), PICK(step, 7), PICK(step, 8), PICK(step, 9), PICK(step, 10), PICK(step, 11),     \
                           PICK(step, 12), PICK(step, 13), PICK(step, 14), PICK(step, 15)) +                               \
   __builtin_shufflevector(a, b, TURN(step, 0), TURN(step, 1), TURN(step, 2), TURN(step, 3), TURN(step, 4), TURN(step, 5), \
                           TURN(step, 6), TURN(step, 7), TURN(step, 8), TURN(step, 9), TURN(step, 10), TURN(step, 11),     \
                           TURN(step, 12), TURN(step, 13), TURN(step, 14), TURN(step, 15)))
#define PICK(step, i) (((i) & (step)) ? (i) + 16 : (i))
#define TURN(step, i) (((i) & (step)) ? ((i) ^ (step)) + 16 : ((i) ^ (step)))

// Lane i of the result: the sum of the lanes of x[i]. Overwrites x.
INLINE Floats sums(Floats (&x)[16]) {
  for (int i = 0; i < 8; i++) x[i] = HALVE(1, x[2 * i], x[2 * i + 1]);
  for (int i = 0; i < 4; i++) x[i] = HALVE(2, x[2 * i], x[2 * i + 1]);
  for (int i = 0; i < 2; i++) x[i] = HALVE(4, x[2 * i], x[2 * i + 1]);
  return HALVE(8, x[0], x[1]);
}

INLINE float largest(Floats x) {
  float found = x[0];
  for (int i = 1; i < kLanes; i++) found = x[i] > found ? x[i] : found;
  return found;
}
INLINE float sum(Floats x) {
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; i++) x[i] += x[i + step];
  return x[0];
}

// exp, within two units in the last place; zero below -87, NaN for NaN. Not for more than 88.
INLINE Floats exp(Floats x) {
  const Floats round = broadcast(12582912.0f);
  const Floats shifted = x * 1.44269504f + round;
  const Floats n = shifted - round;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats y = broadcast(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  const Ints power = (cast<Ints>(shifted) - cast<Ints>(round) + 127) << 23;
  return x < -87.0f ? Floats{} : y * cast<Floats>(power);
}

// tanh, within a few units in the last place.
INLINE Floats tanh(Floats x) {
  const Floats size = x < 0.0f ? -x : x;
  const Floats far = 1.0f - 2.0f / (exp(size > 10.0f ? broadcast(20.0f) : size * 2.0f) + 1.0f);
  const Floats z = x * x;
  Floats y = broadcast(-5.70498872745e-3f);
  y = y * z + 2.06390887954e-2f;
  y = y * z - 5.37397155531e-2f;
  y = y * z + 1.33314422036e-1f;
  y = y * z - 3.33332819422e-1f;
  y = y * z * x + x;
  return size < 0.625f || x != x ? y : x < 0.0f ? -far : far;
}

}  // namespace lanes
