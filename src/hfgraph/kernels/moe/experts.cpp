// The kernel of `experts.h` as the CPU implementation of the operator `hfgraph::moe__cpp`. Experts with many rows go to ATen's product.
#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 10) << 48))
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <optional>
#include <string>

#include "experts.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;
using Number = std::optional<double>;

constexpr int64_t kWorth = 1 << 17;  // multiplications that a further thread is worth

// f(0), ..., f(pieces - 1), each by any thread; `work` is how many multiplications they are together.
template <class F>
void share(int64_t pieces, int64_t work, const F& f) {
  const int64_t most = std::min({work / kWorth, pieces, int64_t(torch::stable::get_num_threads())});
  if (most <= 1) {
    for (int64_t i = 0; i < pieces; i++) f(i);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, most, 1, [&](int64_t from, int64_t to) {
    if (from < to)
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) f(i);
  });
}

void multiply(const Tensor& out, const Tensor& x, const Tensor& matrix) {
  const Tensor turned = torch::stable::transpose(matrix, 0, 1);
  STD_TORCH_CHECK(aoti_torch_cpu_mm_out(out.get(), x.get(), turned.get()) == 0, "the product of an expert with its rows failed");
}

template <class T>
T* data(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }

template <class T>
moe::Weights<T> weights(const Tensor& matrices, const Maybe& bias) {
  return {static_cast<const T*>(matrices.const_data_ptr()), matrices.stride(0), matrices.stride(1), matrices.stride(2),
          bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr, bias ? bias->stride(0) : 0};
}

// An id past the last expert stands for none, as where experts are on other ranks; with biases there would have to be one for it.
std::vector<int64_t> chosen(const Tensor& ids, int64_t experts, bool biased) {
  std::vector<int64_t> found;
  found.reserve(ids.numel());
  for (int64_t t = 0; t < ids.size(0); t++)
    for (int64_t k = 0; k < ids.size(1); k++) {
      const int64_t at = t * ids.stride(0) + k * ids.stride(1);
      const void* from = ids.const_data_ptr();
      const int64_t e = ids.scalar_type() == ScalarType::Int ? static_cast<const int32_t*>(from)[at] : static_cast<const int64_t*>(from)[at];
      STD_TORCH_CHECK(e >= 0 && (e < experts || !biased), "expert ", e, " is chosen, and there are ", experts);
      found.push_back(std::min(e, experts));
    }
  return found;
}

template <class T>
std::vector<float> routed(const Tensor& weights) {
  std::vector<float> found;
  found.reserve(weights.numel());
  for (int64_t t = 0; t < weights.size(0); t++)
    for (int64_t k = 0; k < weights.size(1); k++)
      found.push_back(lanes::widen(static_cast<const T*>(weights.const_data_ptr())[t * weights.stride(0) + k * weights.stride(1)]));
  return found;
}

template <class T>
constexpr ScalarType kComputed = std::is_same_v<typename moe::Computed<T>::Type, float> ? ScalarType::Float : ScalarType::BFloat16;

// Experts with many rows, one after the other, each by all threads. Where the processor has no products of bfloat16, a copy of the
// expert's matrices in float costs less than products that widen them again for every row.
template <class T>
void in_bulk(const moe::Call<T>& c, const moe::Experts<T>& parts, const moe::Order& order, const std::vector<int64_t>& busy, const Tensor& gate_up,
             const Tensor& down, Tensor tokens, Tensor inner, Tensor results) {
  using C = typename moe::Computed<T>::Type;
  int64_t most = 0;
  for (const int64_t e : busy) most = std::max(most, order.rows(e));
  Tensor all = torch::stable::new_empty(tokens, {most, gate_up.size(1)});
  for (const int64_t e : busy) {
    const int64_t start = order.start[e], many = order.rows(e);
    const Tensor products = torch::stable::narrow(all, 0, 0, many);
    multiply(products, torch::stable::narrow(tokens, 0, start, many), torch::stable::to(torch::stable::select(gate_up, 0, e), kComputed<T>));
    share(many, many * c.inner * 16, [&](int64_t r) { parts.gate_row(e, start + r, data<C>(products) + r * gate_up.size(1)); });
    multiply(torch::stable::narrow(results, 0, start, many), torch::stable::narrow(inner, 0, start, many),
             torch::stable::to(torch::stable::select(down, 0, e), kComputed<T>));
  }
}

template <class T>
Tensor mix(const Tensor& x, const Tensor& ids, const Tensor& router, const Tensor& gate_up, const Tensor& down, const Maybe& gate_up_bias,
           const Maybe& down_bias, const moe::Gate& gate, bool weights_first) {
  using C = typename moe::Computed<T>::Type;
  const Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  STD_TORCH_CHECK(ids.size(0) == x.size(0) && router.size(0) == x.size(0), "there are ", x.size(0), " tokens, choices of ", ids.size(0),
                  " and weights of ", router.size(0));
  if (out.numel() == 0) return out;
  const bool narrow = router.scalar_type() == x.scalar_type();
  const moe::Call<T> c{x.size(0), ids.size(1), gate_up.size(0), x.size(1), down.size(2), static_cast<const T*>(x.const_data_ptr()), x.stride(0),
                       chosen(ids, gate_up.size(0), gate_up_bias || down_bias), narrow ? routed<T>(router) : routed<float>(router), narrow, weights_first,
                       weights<T>(gate_up, gate_up_bias), weights<T>(down, down_bias), gate, data<T>(out)};
  const moe::Order order(c.ids, c.experts);
  std::vector<int64_t> quiet, busy;
  for (int64_t e = 0; e < c.experts; e++)
    if (order.rows(e)) (order.rows(e) <= moe::kMost ? quiet : busy).push_back(e);
  const int64_t none = order.start[c.experts];
  const auto rows = [&](int64_t width) { return torch::stable::new_empty(x, {c.pairs(), width}, kComputed<T>); };
  Tensor tokens = rows(c.hidden), inner = rows(c.inner), results = rows(c.hidden);
  const moe::Experts<T> parts(c, order, {data<C>(tokens), data<C>(inner), data<C>(results)});
  share(c.pairs(), c.pairs() * c.hidden, [&](int64_t row) { parts.fetch(row); });
  Tensor of_none = torch::stable::narrow(results, 0, none, c.pairs() - none);
  torch::stable::zero_(of_none);
  const int64_t up = parts.tile(c.first), down_by = parts.tile(c.second), ups = (c.inner + up - 1) / up, downs = (c.hidden + down_by - 1) / down_by;
  const int64_t work = int64_t(quiet.size()) * c.hidden * c.inner;
  share(int64_t(quiet.size()) * ups, 2 * work, [&](int64_t i) { parts.up(quiet[i / ups], i % ups * up); });
  share(int64_t(quiet.size()) * downs, work, [&](int64_t i) { parts.down(quiet[i / downs], i % downs * down_by); });
  if (!busy.empty()) in_bulk(c, parts, order, busy, gate_up, down, tokens, inner, results);
  share(c.tokens, c.pairs() * c.hidden, [&](int64_t token) { parts.combine(token); });
  return out;
}

moe::Activation named(const std::string& name) {
  if (name == "silu") return moe::Activation::kSilu;
  if (name == "gelu") return moe::Activation::kGelu;
  if (name == "gelu_tanh") return moe::Activation::kGeluTanh;
  if (name == "gelu_new") return moe::Activation::kGeluNew;
  if (name == "relu2") return moe::Activation::kRelu2;
  STD_TORCH_CHECK(name == "swish", "no activation is called ", name);
  return moe::Activation::kSwish;
}

Tensor moe__cpp(Tensor x, Tensor expert_ids, Tensor expert_weights, Tensor gate_up, Tensor down, Maybe gate_up_bias, Maybe down_bias,
                std::string activation, double alpha, Number gate_max, Number act_max, Number up_min, Number up_max, double up_offset,
                int64_t interleaved, int64_t weights_first) {
  constexpr double none = std::numeric_limits<double>::infinity();
  const bool is_narrow = x.scalar_type() == ScalarType::BFloat16;
  // A bound has the precision of what it bounds.
  const auto bound = [&](Number given, double otherwise) {
    const float value = float(given.value_or(otherwise));
    return is_narrow ? lanes::widen(lanes::narrow<lanes::BFloat16>(value)) : value;
  };
  const moe::Gate gate{named(activation), float(alpha), bound(gate_max, none), bound(act_max, none), bound(up_min, -none), bound(up_max, none),
                       float(up_offset), gate_up.size(1) != down.size(2), interleaved != 0};
  const auto chosen = is_narrow ? mix<lanes::BFloat16> : mix<float>;
  return chosen(x, expert_ids, expert_weights, gate_up, down, gate_up_bias, down_bias, gate, weights_first != 0);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hfgraph, CPU, m) { m.impl("moe__cpp", TORCH_BOX(&moe__cpp)); }
