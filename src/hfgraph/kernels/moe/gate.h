// What stands between the two products of an expert: the activation, and the gate's product, rounded where the reference rounds.
#pragma once

#include <cmath>
#include <limits>

#include "../lanes.h"

namespace moe {

using namespace lanes;

enum class Activation { kSilu, kGelu, kGeluTanh, kGeluNew, kRelu2, kSwish };

struct Gate {
  Activation activation;
  float alpha, gate_max, act_max, up_min, up_max, up_offset;  // bounds are infinite where there are none
  bool gated, interleaved;
};

// To the precision of T, as storing and loading would.
template <class T>
INLINE Floats rounded(Floats x);
template <>
INLINE Floats rounded<float>(Floats x) { return x; }
template <>
INLINE Floats rounded<BFloat16>(Floats x) {  // to nearest, ties to even; NaN stays NaN
  const Words bits = cast<Words>(x);
  const Words up = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return x == x ? cast<Floats>(up) : x;
}

// NaN where x is NaN.
INLINE Floats at_most(Floats x, float bound) { return x > bound ? broadcast(bound) : x; }
INLINE Floats at_least(Floats x, float bound) { return x < bound ? broadcast(bound) : x; }

// Below, a sigmoid is nothing in float32; its product with minus infinity is NaN, as PyTorch's is.
constexpr float kFar = -88.0f;
INLINE Floats silu(Floats x) { return x < kFar ? x * 0.0f : x / (1.0f + exp(at_most(-x, -kFar))); }
INLINE Floats sigmoid(Floats x) { return x < kFar ? Floats{} : 1.0f / (1.0f + exp(at_most(-x, -kFar))); }

template <class Function>
INLINE Floats each(Floats x, Function function) {
  Floats y;
  for (int i = 0; i < kLanes; i++) y[i] = function(x[i]);
  return y;
}

template <class T>
INLINE Floats activated(Floats x, const Gate& gate) {
  switch (gate.activation) {
    case Activation::kSilu:
      return rounded<T>(silu(x));
    case Activation::kGelu:
      return rounded<T>(each(x, [](float v) { return 0.5f * v * (1.0f + std::erf(v * 0.70710678f)); }));
    case Activation::kGeluTanh:
      return rounded<T>(each(x, [](float v) { return 0.5f * v * (1.0f + std::tanh(0.79788456f * (v + 0.044715f * v * v * v))); }));
    case Activation::kGeluNew: {
      const Floats cube = rounded<T>(rounded<T>(x * x) * x);  // pow(3.0) rounds both products in bfloat16
      const Floats inner = rounded<T>(x + rounded<T>(0.044715f * cube));
      const Floats bent = rounded<T>(each(rounded<T>(0.79788456f * inner), [](float v) { return std::tanh(v); }));
      return rounded<T>(rounded<T>(0.5f * x) * rounded<T>(1.0f + bent));
    }
    case Activation::kRelu2: {
      const Floats y = at_least(x, 0.0f);
      return rounded<T>(y * y);
    }
    case Activation::kSwish:
      return rounded<T>(x * rounded<T>(sigmoid(rounded<T>(x * gate.alpha))));
  }
  return x;
}

template <class T>
INLINE Floats gated(Floats g, Floats u, const Gate& gate) {
  const Floats a = at_most(activated<T>(at_most(g, gate.gate_max), gate), gate.act_max);
  u = at_most(at_least(u, gate.up_min), gate.up_max);
  return rounded<T>(a * (gate.up_offset != 0.0f ? rounded<T>(u + gate.up_offset) : u));
}

}  // namespace moe
