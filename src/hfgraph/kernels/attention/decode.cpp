// The kernel of `decode.h` as the CPU implementation of the operator `hfgraph::attention__cpp`.
#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 10) << 48))
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "decode.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

// Strides over (batch, head, query, key) of a tensor that is broadcast to their sizes from the right.
template <class T>
attention::View<T> broadcast(const Maybe& given, const char* name, const int64_t (&sizes)[4]) {
  attention::View<T> view;
  if (!given) return view;
  view.data = static_cast<const T*>(given->const_data_ptr());
  int64_t* strides[4] = {&view.batch, &view.head, &view.query, &view.key};
  for (int64_t d = 0, to = 4 - given->dim(); to < 4; d++, to++) {
    STD_TORCH_CHECK(given->size(d) == 1 || given->size(d) == sizes[to], name, " has ", given->size(d), " where ", sizes[to], " are attended to");
    if (given->size(d) != 1) *strides[to] = given->stride(d);
  }
  return view;
}

template <class T>
attention::View<T> rows(const Tensor& x, bool keys) {
  attention::View<T> view{static_cast<const T*>(x.const_data_ptr()), x.stride(0), x.stride(1)};
  (keys ? view.key : view.query) = x.stride(2);
  return view;
}

int64_t number(const Tensor& x) {
  const void* data = x.const_data_ptr();
  return x.scalar_type() == ScalarType::Int ? *static_cast<const int32_t*>(data) : *static_cast<const int64_t*>(data);
}

template <class T>
void run(attention::Call<T> call, int64_t pairs) {
  attention::Decode<T> decode(call);
  // With less to do, some three microseconds, a thread costs more than it saves.
  const int64_t worth = pairs * (call.width + call.value_width) >> 17;
  const int64_t most = std::min({worth, decode.pieces(), int64_t(torch::stable::get_num_threads())});
  if (most <= 1) return decode.work();
  torch::stable::parallel_for(0, most, 1, [&](int64_t from, int64_t to) {
    if (from < to) decode.work();
  });
}

template <class T>
Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& mask, const Maybe& bias, const Maybe& sinks, const Maybe& start,
              double scale, int64_t left, int64_t right, int64_t chunk, std::optional<int64_t> offset, double softcap,
              const std::optional<std::vector<double>>& slopes, std::optional<double> masked) {
  Tensor out = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2), v.size(3)});
  if (out.numel() == 0) return out;
  const int64_t sizes[4] = {q.size(0), q.size(1), q.size(2), k.size(2)};
  STD_TORCH_CHECK(v.size(2) == sizes[3], "there are ", sizes[3], " keys and ", v.size(2), " values");
  const int64_t first = start ? number(*start) : offset ? *offset : k.size(2) - q.size(2);
  std::vector<float> slope;
  if (slopes) slope.assign(slopes->begin(), slopes->end());
  const float low = masked ? lanes::widen(lanes::narrow<T>(float(*masked))) : attention::kNone;
  const T* sink = sinks ? static_cast<const T*>(sinks->const_data_ptr()) : nullptr;
  run<T>({sizes[0], sizes[1], k.size(1), sizes[2], sizes[3], q.size(3), v.size(3),
          rows<T>(q, false), rows<T>(k, true), rows<T>(v, true), broadcast<T>(bias, "bias", sizes), broadcast<uint8_t>(mask, "mask", sizes),
          sink, sinks ? sinks->stride(0) : 0, slope, float(scale), float(softcap), low, first, left, right, chunk,
          static_cast<T*>(out.mutable_data_ptr())}, sizes[0] * sizes[1] * sizes[2] * sizes[3]);
  return out;
}

Tensor attention__cpp(Tensor q, Tensor k, Tensor v, Maybe mask, Maybe bias, Maybe sinks, Maybe segments, Maybe start, double scale, int64_t left,
                      int64_t right, int64_t chunk, std::optional<int64_t> offset, double softcap, std::optional<std::vector<double>> slopes,
                      std::optional<double> masked) {
  const auto chosen = q.scalar_type() == ScalarType::BFloat16 ? attend<lanes::BFloat16> : attend<float>;
  return chosen(q, k, v, mask, bias, sinks, start, scale, left, right, chunk, offset, softcap, slopes, masked);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hfgraph, CPU, m) { m.impl("attention__cpp", TORCH_BOX(&attention__cpp)); }
