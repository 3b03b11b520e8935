#include "framework/train/layer_heads.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "framework/ops/dispatch.h"
#include "framework/ops/elementwise.h"
#include "framework/parallel/context_axis.h"
#include "kernels/delta_attention.h"

namespace choir {
namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

/// The heads of a layer of this stack.
AttentionSpec spec_of(const Trainer& trainer, const AttentionStack& stack) {
  AttentionSpec spec = trainer.attention_spec();
  spec.band = stack.band;
  spec.score = stack.score;
  if (stack.crosses()) spec.routing = {};
  return spec;
}

/// The keys that each query of a whole sequence may see, besides its band; empty: all.
std::vector<kernels::DocumentRange> documents_of(const ModelConfig& model, const AttentionStack& stack,
                                                 std::int64_t length, const SampleBuffer& buffer) {
  if (buffer.source.empty()) return buffer.documents;
  std::int64_t tokens = model.source_length();  // that keys and values of a source have
  for (const TokenStream stream : {stack.keys, stack.columns})
    if (stream != TokenStream::target) tokens = std::min(tokens, source_tokens(model, buffer, stream));
  std::vector<kernels::DocumentRange> ranges(index(length), {0, static_cast<std::int32_t>(tokens)});
  if (stack.crosses()) return ranges;
  if (stack.rows == TokenStream::target) return {};
  leave_out_filler(ranges, tokens);
  return ranges;
}

/// to[e * to_stride + i] = from[i * from_stride + e], in blocks that a cache holds.
void transpose(const float* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width, float* to,
               std::int64_t to_stride) {
  constexpr std::int64_t block = 64;
  for (std::int64_t begin = 0; begin < rows; begin += block)
    for (std::int64_t e = 0; e < width; ++e)
      for (std::int64_t i = begin; i < std::min(rows, begin + block); ++i)
        to[e * to_stride + i] = from[i * from_stride + e];
}

/// Of rows of `width`, as the delta rule has q and k.
void to_unit_length(std::vector<float>& rows, std::int64_t width) {
  for (auto row = rows.begin(); row != rows.end(); row += width) {
    const double square = std::inner_product(row, row + width, row, kernels::delta_norm_epsilon);
    std::transform(row, row + width, row, [factor = 1 / std::sqrt(square)](float x) {
      return static_cast<float>(static_cast<double>(x) * factor);
    });
  }
}

}  // namespace

template <class T>
void put_together(Runtime& runtime, Communicator& axis, std::vector<T>& values) {
  if (values.empty()) return;
  const Tensor sum = ops::to_device(runtime, values, dtype_of<T>);
  axis.all_reduce(sum, Reduce::sum, runtime.device.compute(), "heads");
  ops::download(runtime, sum, values.data());
}
template void put_together(Runtime&, Communicator&, std::vector<float>&);
template void put_together(Runtime&, Communicator&, std::vector<double>&);

std::int64_t source_tokens(const ModelConfig& model, const SampleBuffer& buffer, TokenStream stream) {
  return tokens_of_text(source_text(model, std::span(buffer.source), stream == TokenStream::second_source ? 1 : 0));
}

const AttentionRecord::Entry* recorded(const AttentionRecord& record, const std::string& layer, std::int64_t sample) {
  for (const auto& [key, entry] : record.entries)
    if (key.first == layer && key.second <= sample && sample < key.second + entry.rows.sequences) return &entry;
  return nullptr;
}

std::vector<float> on_host(Runtime& runtime, const Tensor& x) {
  std::vector<float> values(index(x.count()));
  const Tensor flat = ops::contiguous(runtime, x);
  if (x.dtype() == DType::f32) {
    ops::download(runtime, flat, values.data());
    return values;
  }
  ops::with_type(x.dtype(), [&]<class T>() {
    std::vector<T> host(values.size());
    ops::download(runtime, flat, host.data());
    std::transform(host.begin(), host.end(), values.begin(), [](T value) { return static_cast<float>(value); });
  });
  return values;
}

std::vector<RunRows> rows_of_sample(const Tensor& x, const Rows& rows, std::int64_t sample) {
  std::vector<RunRows> runs;
  const std::int64_t sequence = sample - rows.first_sample;
  for (int run = 0, begin = 0; run < runs_of_a_rank; begin += static_cast<int>(rows.count(run++))) {
    const std::int64_t positions = rows.runs[run].count(), first = begin + sequence * positions;
    if (positions > 0) runs.push_back({x.slice_rows(first, first + positions), rows.runs[run].begin});
  }
  return runs;
}

LayerHeads::LayerHeads(Trainer& trainer, const AttentionStack& stack, std::int64_t layer,
                       const AttentionRecord::Entry& entry, std::int64_t sample, const SampleBuffer& buffer)
    : spec_(spec_of(trainer, stack)),
      length_(entry.rows.length),
      kv_length_(entry.kv ? entry.kv_rows.length : length_),
      documents_(documents_of(trainer.config().model, stack, length_, buffer)),
      heads_(spec_.heads.query(spec_.tensor_rank)) {
  Runtime& runtime = trainer.runtime();
  const std::int64_t width = spec_.head_width, q_width = heads_.count() * width;
  const std::int64_t kv_heads = spec_.heads.key_value(spec_.tensor_rank).count();
  q_.resize(index(length_ * q_width));
  k_transposed_.resize(index(kv_heads * width * kv_length_));
  for (const auto& [rows, begin] : rows_of_sample(entry.qkv, entry.rows, sample)) {
    const std::vector<float> q = on_host(runtime, rows.slice_columns(0, q_width));
    std::copy(q.begin(), q.end(), q_.begin() + begin * q_width);
  }
  const std::int64_t first_key = entry.kv ? 0 : q_width;
  for (const auto& [rows, begin] :
       rows_of_sample(entry.kv ? entry.kv : entry.qkv, entry.kv ? entry.kv_rows : entry.rows, sample)) {
    const std::vector<float> k = on_host(runtime, rows.slice_columns(first_key, first_key + kv_heads * width));
    transpose(k.data(), kv_heads * width, rows.rows(), kv_heads * width, k_transposed_.data() + begin, kv_length_);
  }
  for (auto* part : {&q_, &k_transposed_}) put_together(runtime, *trainer.mesh().context, *part);
  if (stack.is_linear(trainer.config().model, layer)) {
    read_decays(trainer, entry, sample);
    if (entry.log_rate) read_rates(trainer, entry, sample);
  } else {
    read_lse(trainer, entry, sample);
  }
  if (entry.sinks) sinks_ = on_host(runtime, entry.sinks);
}

std::vector<double> LayerHeads::gate_of_heads(Trainer& trainer, const Tensor& gate, const Rows& all,
                                              std::int64_t sample) const {
  std::vector<double> by_head(index(heads_.count() * length_));
  for (const auto& [rows, begin] : rows_of_sample(gate, all, sample)) {
    const std::vector<float> g = on_host(trainer.runtime(), rows);
    for (std::int64_t i = 0; i < std::ssize(g); ++i)
      by_head[index(i % heads_.count() * length_ + begin + i / heads_.count())] =
          std::isinf(g[index(i)]) ? 0 : static_cast<double>(g[index(i)]);
  }
  put_together(trainer.runtime(), *trainer.mesh().context, by_head);
  return by_head;
}

void LayerHeads::read_decays(Trainer& trainer, const AttentionRecord::Entry& entry, std::int64_t sample) {
  decay_sums_ = gate_of_heads(trainer, entry.log_decay, entry.rows, sample);
  for (std::int64_t head = 0; head < heads_.count(); ++head) {
    const auto first = decay_sums_.begin() + head * length_;
    std::partial_sum(first, first + length_, first);
  }
}

void LayerHeads::read_rates(Trainer& trainer, const AttentionRecord::Entry& entry, std::int64_t sample) {
  for (const double log_rate : gate_of_heads(trainer, entry.log_rate, entry.rows, sample))
    rates_.push_back(static_cast<float>(std::exp(log_rate)));
  const std::int64_t width = spec_.head_width;
  k_.resize(k_transposed_.size());
  for (std::int64_t head = 0; head < heads_.count(); ++head)
    transpose(k_transposed_.data() + head * width * length_, length_, width, length_,
              k_.data() + head * width * length_, width);
  to_unit_length(q_, width);
  to_unit_length(k_, width);
}

void LayerHeads::read_lse(Trainer& trainer, const AttentionRecord::Entry& entry, std::int64_t sample) {
  Runtime& runtime = trainer.runtime();
  lse_.resize(index(heads_.count() * length_));
  // Context parallelism by heads leaves the log-sum-exps of all positions of some of the heads here.
  const std::int64_t ranks = trainer.mesh().shape.context;
  const ContextKind kind =
      context_kind(trainer.config().parallel.context_kind, spec_, length_, ranks, runtime.compute_type);
  const bool by_heads = ranks > 1 && !entry.kv && kind == ContextKind::heads;
  const Slice of =
      by_heads ? share_of_heads(spec_, spec_.tensor_rank, ranks, trainer.mesh().here.context).query : heads_;
  const Rows rows = by_heads ? whole_rows(entry.rows.sequences, length_, entry.rows.first_sample) : entry.rows;
  for (int run = 0; run < runs_of_a_rank; ++run) {
    const std::int64_t positions = rows.runs[run].count();
    if (positions == 0) continue;
    const std::int64_t begin =
        (run == 0 ? 0 : rows.count(0)) * of.count() + (sample - rows.first_sample) * of.count() * positions;
    const Tensor flat = entry.lse.reshape({entry.lse.count()});
    const std::vector<float> lse = on_host(runtime, flat.slice_columns(begin, begin + of.count() * positions));
    for (std::int64_t head = 0; head < of.count(); ++head)
      std::copy_n(lse.begin() + head * positions, positions,
                  lse_.begin() + (of.begin - heads_.begin + head) * length_ + rows.runs[run].begin);
  }
  put_together(runtime, *trainer.mesh().context, lse_);
}

kernels::AttentionHead LayerHeads::at(std::int64_t head) const {
  const std::int64_t here = head - heads_.begin, width = spec_.head_width;
  const std::int64_t kv_head = (here + spec_.heads.group_offset(spec_.tensor_rank)) / spec_.heads.group_size();
  return {.length = length_,
          .kv_length = kv_length_,
          .head_width = width,
          .band = spec_.band,
          .score = spec_.score,
          .head = head,
          .scale = rates_.empty() ? 1 / std::sqrt(static_cast<double>(width)) : 1,
          .documents = {.separate = !documents_.empty(), .ranges = documents_.data(), .length = length_},
          .q = q_.data() + here * width,
          .q_stride = heads_.count() * width,
          .k_transposed = k_transposed_.data() + kv_head * width * kv_length_,
          .lse = lse_.empty() ? nullptr : lse_.data() + here * length_,
          .sink = sinks_.empty() ? nullptr : sinks_.data() + here,
          .decay_sums = decay_sums_.empty() ? nullptr : decay_sums_.data() + here * length_,
          .k = k_.empty() ? nullptr : k_.data() + here * length_ * width,
          .rates = rates_.empty() ? nullptr : rates_.data() + here * length_};
}

}  // namespace choir
