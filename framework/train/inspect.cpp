#include "framework/train/inspect.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "framework/train/layer_heads.h"
#include "kernels/cpu/parallel.h"

namespace choir {
namespace {

constexpr std::int64_t most_compared = 16'000'000;  // numbers by which heads are compared, of all heads
constexpr std::int64_t most_compared_queries = 64;  // of a sample
constexpr double undefined = std::numeric_limits<double>::quiet_NaN();

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

/// A layer of a stack.
struct Layer {
  const AttentionStack& stack;
  std::size_t stack_number;
  std::int64_t in_stack, number;  ///< of all layers

  std::string name() const { return stack.layer_name(in_stack); }
};

void for_each_layer(const std::vector<AttentionStack>& stacks, const std::function<void(const Layer&)>& body) {
  std::int64_t number = 0;
  for (std::size_t s = 0; s < stacks.size(); ++s)
    for (std::int64_t in_stack = 0; in_stack < stacks[s].layers; ++in_stack) body({stacks[s], s, in_stack, number++});
}

/// The sums of out * dout of the heads of all layers, of one sample: the slopes of the loss along their gates.
std::vector<float> gate_gradients(Trainer& trainer, const AttentionRecord& record, std::int64_t sample) {
  const AttentionSpec spec = trainer.attention_spec();
  const Slice query = spec.heads.query(spec.tensor_rank);
  std::vector<double> sums(index(attention_layers(trainer.config().model) * spec.heads.heads));
  for_each_layer(attention_stacks(trainer.config().model), [&](const Layer& layer) {
    const std::int64_t sequence = layer.stack.sequence_of(sample);
    const AttentionRecord::Entry* entry = recorded(record, layer.name(), sequence);
    if (!entry) return;
    const std::vector<RunRows> outs = rows_of_sample(entry->out, entry->rows, sequence);
    const std::vector<RunRows> douts = rows_of_sample(entry->dout, entry->rows, sequence);
    for (std::size_t run = 0; run < outs.size(); ++run) {
      const std::vector<float> out = on_host(trainer.runtime(), outs[run].rows);
      const std::vector<float> dout = on_host(trainer.runtime(), douts[run].rows);
      for (std::size_t i = 0; i < out.size(); ++i) {
        const std::int64_t head = static_cast<std::int64_t>(i) / spec.head_width % query.count();
        sums[index(layer.number * spec.heads.heads + query.begin + head)] += static_cast<double>(out[i] * dout[i]);
      }
    }
  });
  std::vector<float> slopes(sums.begin(), sums.end());
  put_together(trainer.runtime(), *trainer.mesh().world, slopes);
  return slopes;
}

/// How far two positions are from each other; negative: one of them is a class token, which has no place.
class Distances {
 public:
  explicit Distances(const ModelConfig& model) : model_(model) {}
  double operator()(std::int64_t a, std::int64_t b) const {
    if (model_.family != ModelFamily::vision) return static_cast<double>(std::abs(a - b));
    const std::int64_t first = model_.pool == Pool::class_token ? 1 : 0, columns = model_.image.columns();
    if (std::min(a, b) < first) return -1;
    const auto along = [&](std::int64_t x, std::int64_t y) { return static_cast<double>(x - y); };
    return std::hypot(along((a - first) / columns, (b - first) / columns),
                      along((a - first) % columns, (b - first) % columns));
  }

 private:
  const ModelConfig& model_;
};

struct Mean {
  double sum = 0, count = 0;
  void add(double value) { sum += value, ++count; }
  double value() const { return count > 0 ? sum / count : undefined; }
};

double surprise(double p) { return p > 0 ? -p * std::log2(p) : 0; }

/// Positions of a sample that are looked at, of what one of the streams reads.
std::int64_t length_of(const InspectedSample& sample, TokenStream stream) {
  switch (stream) {
    case TokenStream::target:
      return sample.length;
    case TokenStream::source:
      return sample.source_length;
    case TokenStream::second_source:
      break;
  }
  return sample.second_source_length;
}

/// Their ids; empty for images.
std::span<const std::int32_t> ids_of(const ModelConfig& model, const SampleBuffer& buffer, TokenStream stream) {
  if (stream == TokenStream::target) return buffer.inputs;
  return source_text(model, std::span(buffer.source), stream == TokenStream::second_source ? 1 : 0);
}

/// What is compared of a sample: some rows of the map of each head of a stack, each with its sink behind it.
struct ComparedRows {
  std::int64_t rows, width, begin;  // of width numbers each; the place of the first among the numbers of a head
  std::int64_t row_of(std::int64_t query, std::int64_t length) const {  // -1: not compared
    const std::int64_t from_end = length - 1 - query, row = (from_end * rows + length - 1) / length;
    return row < rows && row * length / rows == from_end ? row : -1;
  }
};

/// Reads all rows of a head: measures besides importance, the map [cells, cells], and the rows to compare.
std::array<double, head_measures> read_head(const kernels::AttentionHead& head, const ModelConfig& model,
                                            const AttentionStack& stack, const InspectedSample& sample,
                                            std::int64_t tile, const Inspection::Maps& maps, float* map,
                                            const ComparedRows& compared, float* compared_rows) {
  const bool compares = stack.compares_positions;
  const std::span<const std::int32_t> ids = ids_of(model, sample.buffer, stack.rows);
  const bool of_text = !ids.empty() && compares;
  const std::int64_t length = length_of(sample, stack.rows);
  const Distances distance_between(model);
  std::vector<float> p(index(head.kv_length));
  Mean entropy, distance, first, previous, induction, sink, forgotten;
  for (std::int64_t i = 0; i < length; ++i) {
    if (!kernels::is_computed(head, i)) continue;
    const auto keys = kernels::seen_keys(head, i);
    const float s = kernels::attention_row(head, i, p.data()).sink;
    const std::int64_t begin = head.documents.separate ? head.documents.ranges[i].begin : 0;
    double bits = surprise(static_cast<double>(s)), total = 0, moment = 0, following = 0;
    bool follows = false;
    float* row = map + i / tile * maps.columns;
    for (std::int64_t j = keys.begin; j < keys.end; ++j) {
      const auto share = static_cast<double>(p[index(j)]);
      bits += surprise(share);
      if (const double d = compares ? distance_between(i, j) : -1; d >= 0) total += share, moment += share * d;
      if (of_text && j > begin && j < i && ids[index(j - 1)] == ids[index(i)]) {
        follows = true;
        following += share;
      }
      row[j / tile] += p[index(j)];
    }
    const auto share_of = [&](std::int64_t j) {
      return j >= keys.begin && j < keys.end ? static_cast<double>(p[index(j)]) : 0.0;
    };
    entropy.add(bits);
    if (total > 0) distance.add(moment / total);
    if (!compares || i > begin) first.add(share_of(begin));
    if (of_text && i > begin) previous.add(share_of(i - 1));
    if (follows) induction.add(following);
    if (head.sink) sink.add(static_cast<double>(s));
    if (head.decay_sums && i > begin) forgotten.add(head.decay_sums[i - 1] - head.decay_sums[i]);
    if (const std::int64_t place = compared.row_of(i, length); place >= 0) {
      float* to = compared_rows + place * compared.width;
      std::copy(p.begin() + keys.begin, p.begin() + std::max(keys.begin, keys.end), to + keys.begin);
      to[compared.width - 1] = s;
    }
  }
  for (std::int64_t row = 0; row < maps.rows; ++row) {
    const auto queries = static_cast<float>(std::min(tile, length - row * tile));
    for (std::int64_t column = 0; column < maps.columns; ++column) map[row * maps.columns + column] /= queries;
  }
  return {undefined,        entropy.value(),   distance.value(), first.value(),
          previous.value(), induction.value(), sink.value(),     std::log(2) / forgotten.value()};
}

/// The mean over `rows` rows of the sum of min(a, b).
float overlap(const float* a, const float* b, std::int64_t count, std::int64_t rows) {
  constexpr std::int64_t lanes = 16;  // independent sums, for vectors
  float sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    for (std::int64_t l = 0; l < lanes; ++l) sums[l] += std::min(a[i + l], b[i + l]);
  for (; i < count; ++i) sums[0] += std::min(a[i], b[i]);
  double sum = 0;
  for (const float lane : sums) sum += static_cast<double>(lane);
  return static_cast<float>(sum / static_cast<double>(rows));
}

int threads_for(Trainer& trainer, std::int64_t items) {
  return static_cast<int>(std::clamp<std::int64_t>(items, 1, trainer.runtime().device.threads()));
}

ReadSample reader_of(const std::vector<InspectedSample>& samples) {
  return [&samples](std::int64_t i, const Sample& sample) {
    const SampleBuffer& from = samples[index(std::min(i, std::ssize(samples) - 1))].buffer;
    std::ranges::copy(from.inputs, sample.inputs.begin());
    std::ranges::copy(from.targets, sample.targets.begin());
    std::ranges::copy(from.patches, sample.patches.begin());
    std::ranges::copy(from.documents, sample.documents.begin());
    std::ranges::copy(from.source, sample.source.begin());
    if (i >= std::ssize(samples)) std::ranges::fill(sample.targets, -1);
    return std::int64_t{0};
  };
}

/// The side of the cells with which the maps of all samples are small enough.
std::int64_t tile_for(const std::vector<AttentionStack>& stacks, std::int64_t heads,
                      const std::vector<InspectedSample>& samples) {
  for (std::int64_t tile = 1;; ++tile) {
    std::int64_t total = 0, longest = 0;
    for (const InspectedSample& sample : samples)
      for (const AttentionStack& stack : stacks) {
        const std::int64_t rows = (length_of(sample, stack.rows) + tile - 1) / tile;
        const std::int64_t columns = (length_of(sample, stack.columns) + tile - 1) / tile;
        total += stack.layers * heads * rows * columns;
        longest = std::max({longest, rows, columns});
      }
    if (total <= most_map_cells || longest == 1) return tile;
  }
}

/// How heads are compared: of each stack and sample some rows, the numbers of a head one behind another.
struct ComparedHeads {
  std::vector<std::vector<ComparedRows>> rows;          ///< [stacks, samples]
  std::vector<std::int64_t> first, of_a_head, queries;  ///< of each stack: where its heads begin, numbers of one
  std::int64_t all = 0;                                 ///< numbers of all heads

  ComparedHeads(const ModelConfig& model, const std::vector<AttentionStack>& stacks,
                const std::vector<InspectedSample>& samples) {
    const std::int64_t heads = model.attention.heads, longest = std::max(model.context, model.source_length());
    const std::int64_t most = most_compared / (attention_layers(model) * heads * (longest + 1) * std::ssize(samples));
    for (const AttentionStack& stack : stacks) {
      std::vector<ComparedRows>& of_samples = rows.emplace_back();
      std::int64_t begin = 0, count = 0;
      for (const InspectedSample& sample : samples) {
        const std::int64_t asked = std::min(length_of(sample, stack.rows), most_compared_queries);
        of_samples.push_back({.rows = std::clamp<std::int64_t>(most, 1, asked), .width = longest + 1, .begin = begin});
        begin += of_samples.back().rows * of_samples.back().width;
        count += of_samples.back().rows;
      }
      first.push_back(all);
      of_a_head.push_back(begin);
      queries.push_back(count);
      all += stack.layers * heads * begin;
    }
  }
};

}  // namespace

std::vector<double> Inspection::mean(HeadMeasure measure) const {
  std::vector<Mean> means(index(layers * heads));
  for (std::size_t s = 0; s < samples.size(); ++s)
    for (std::size_t head = 0; head < means.size(); ++head)
      if (const double value = values(s, measure)[head]; !std::isnan(value)) means[head].add(value);
  std::vector<double> result;
  for (const Mean& mean : means) result.push_back(mean.value());
  return result;
}

Inspection inspect(Trainer& trainer, const std::vector<InspectedSample>& samples) {
  const ModelConfig& model = trainer.config().model;
  Inspection result{
      .stacks = attention_stacks(model), .layers = attention_layers(model), .heads = model.attention.heads};
  const std::int64_t heads = result.heads, all_heads = result.layers * heads;
  result.tile = tile_for(result.stacks, heads, samples);

  AttentionRecord record;
  trainer.set_attention(&record);
  trainer.compute_gradients(1, reader_of(samples));
  trainer.set_attention(nullptr);

  const std::int64_t context_rank = trainer.mesh().here.context, context_ranks = trainer.mesh().shape.context;
  const ComparedHeads comparison(model, result.stacks, samples);
  std::vector<float> compared(index(comparison.all));

  for (std::size_t s = 0; s < samples.size(); ++s) {
    const InspectedSample& sample = samples[s];
    Inspection::Sample& to = result.samples.emplace_back();
    for (const AttentionStack& stack : result.stacks) {
      const auto cells = [&](TokenStream stream) {
        return (length_of(sample, stream) + result.tile - 1) / result.tile;
      };
      Inspection::Maps& maps = to.maps.emplace_back();
      maps = {.rows = cells(stack.rows), .columns = cells(stack.columns), .values = {}};
      maps.values.resize(index(stack.layers * heads * maps.rows * maps.columns));
    }
    std::vector<float> values(head_measures * index(all_heads));
    for_each_layer(result.stacks, [&](const Layer& layer) {
      const std::int64_t sequence = layer.stack.sequence_of(static_cast<std::int64_t>(s));
      const AttentionRecord::Entry* entry = recorded(record, layer.name(), sequence);
      if (!entry) return;
      const LayerHeads views(trainer, layer.stack, layer.in_stack, *entry, sequence, sample.buffer);
      Inspection::Maps& maps = to.maps[layer.stack_number];
      const ComparedRows& rows = comparison.rows[layer.stack_number][s];
      const auto read = [&](std::int64_t h) {
        const std::int64_t in_stack = layer.in_stack * heads + h;
        float* numbers = compared.data() + comparison.first[layer.stack_number] +
                         in_stack * comparison.of_a_head[layer.stack_number] + rows.begin;
        const auto measured = read_head(views.at(h), model, layer.stack, sample, result.tile, maps,
                                        maps.values.data() + in_stack * maps.rows * maps.columns, rows, numbers);
        for (std::size_t m = 0; m < head_measures; ++m)
          values[m * index(all_heads) + index(layer.number * heads + h)] = static_cast<float>(measured[m]);
      };
      // The ranks of the context axis have the same heads: each reads some of them.
      const std::int64_t first = views.heads().begin + context_rank, end = views.heads().end;
      const std::int64_t mine = std::max<std::int64_t>(0, (end - first + context_ranks - 1) / context_ranks);
      kernels::cpu::for_each_part(threads_for(trainer, mine), mine, 1, [&](const kernels::cpu::Part& part) {
        for (std::int64_t i = part.begin; i < part.end; ++i) read(first + i * context_ranks);
      });
    });
    put_together(trainer.runtime(), *trainer.mesh().world, values);
    for (Inspection::Maps& maps : to.maps) put_together(trainer.runtime(), *trainer.mesh().world, maps.values);
    for (std::size_t m = 0; m < head_measures; ++m) {
      const auto begin = values.begin() + static_cast<std::ptrdiff_t>(m) * all_heads;
      to.values[m].assign(begin, begin + all_heads);
    }
    const std::vector<float> slopes = gate_gradients(trainer, record, static_cast<std::int64_t>(s));
    if (sample.target_is_known)
      std::transform(slopes.begin(), slopes.end(), to.values[index(0)].begin(),
                     [](float slope) { return std::abs(slope); });
  }

  put_together(trainer.runtime(), *trainer.mesh().world, compared);
  result.similarity.resize(index(all_heads * all_heads), static_cast<float>(undefined));
  for_each_layer(result.stacks, [&](const Layer& layer) {
    const std::int64_t of_a_head = comparison.of_a_head[layer.stack_number];
    const float* stack = compared.data() + comparison.first[layer.stack_number];
    const std::int64_t in_stack = layer.stack.layers * heads, first = (layer.number - layer.in_stack) * heads;
    kernels::cpu::for_each_part(threads_for(trainer, heads), heads, 1, [&](const kernels::cpu::Part& part) {
      for (std::int64_t h = part.begin; h < part.end; ++h)
        for (std::int64_t b = 0; b < in_stack; ++b)
          result.similarity[index((layer.number * heads + h) * all_heads + first + b)] =
              overlap(stack + (layer.in_stack * heads + h) * of_a_head, stack + b * of_a_head, of_a_head,
                      comparison.queries[layer.stack_number]);
    });
  });
  return result;
}

}  // namespace choir
