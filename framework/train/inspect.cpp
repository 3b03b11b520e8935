#include "framework/train/inspect.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "framework/train/layer_heads.h"
#include "kernels/cpu/parallel.h"

namespace choir {
namespace {

constexpr std::int64_t most_compared = 16'000'000;  // numbers by which heads are compared, of all heads
constexpr std::int64_t most_compared_queries = 64;  // of a sample
constexpr double undefined = std::numeric_limits<double>::quiet_NaN();

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

/// The sums of out * dout of the heads of all layers, of one sample: the slopes of the loss along their gates.
std::vector<float> gate_gradients(Trainer& trainer, const AttentionRecord& record, std::int64_t sample) {
  const AttentionSpec spec = trainer.attention_spec();
  const Slice query = spec.heads.query(spec.tensor_rank);
  std::vector<double> sums(index(trainer.config().model.layers * spec.heads.heads));
  for (std::int64_t layer = 0; layer < trainer.config().model.layers; ++layer) {
    const AttentionRecord::Entry* entry = recorded(record, layer, sample);
    if (!entry) continue;
    const std::vector<RunRows> outs = rows_of_sample(entry->out, entry->rows, sample);
    const std::vector<RunRows> douts = rows_of_sample(entry->dout, entry->rows, sample);
    for (std::size_t run = 0; run < outs.size(); ++run) {
      const std::vector<float> out = on_host(trainer.runtime(), outs[run].rows);
      const std::vector<float> dout = on_host(trainer.runtime(), douts[run].rows);
      for (std::size_t i = 0; i < out.size(); ++i) {
        const std::int64_t head = static_cast<std::int64_t>(i) / spec.head_width % query.count();
        sums[index(layer * spec.heads.heads + query.begin + head)] += static_cast<double>(out[i] * dout[i]);
      }
    }
  }
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

/// What is compared of a sample: some rows of the map of each head, each with its sink behind it.
struct ComparedRows {
  std::int64_t rows, width, begin;  // of width numbers each; the place of the first among the numbers of a head
  std::int64_t row_of(std::int64_t query, std::int64_t length) const {  // -1: not compared
    const std::int64_t from_end = length - 1 - query, row = (from_end * rows + length - 1) / length;
    return row < rows && row * length / rows == from_end ? row : -1;
  }
};

/// Reads all rows of a head: measures besides importance, the map [cells, cells], and the rows to compare.
std::array<double, head_measures> read_head(const kernels::AttentionHead& head, const ModelConfig& model,
                                            const InspectedSample& sample, std::int64_t tile, std::int64_t cells,
                                            float* map, const ComparedRows& compared, float* compared_rows) {
  const std::vector<std::int32_t>& ids = sample.buffer.inputs;
  const bool of_text = !ids.empty();
  const Distances distance_between(model);
  std::vector<float> p(index(head.length));
  Mean entropy, distance, first, previous, induction, sink;
  for (std::int64_t i = 0; i < sample.length; ++i) {
    if (!kernels::is_computed(head, i)) continue;
    const auto keys = kernels::seen_keys(head, i);
    const float s = kernels::attention_row(head, i, p.data());
    const kernels::DocumentRange document = sample.buffer.documents.empty()
                                                ? kernels::DocumentRange{0, static_cast<std::int32_t>(head.length)}
                                                : sample.buffer.documents[index(i)];
    double bits = surprise(static_cast<double>(s)), total = 0, moment = 0, following = 0;
    bool follows = false;
    float* row = map + i / tile * cells;
    for (std::int64_t j = keys.begin; j < keys.end; ++j) {
      const auto share = static_cast<double>(p[index(j)]);
      bits += surprise(share);
      if (const double d = distance_between(i, j); d >= 0) total += share, moment += share * d;
      if (of_text && j > document.begin && j < i && ids[index(j - 1)] == ids[index(i)]) {
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
    if (i > document.begin) first.add(share_of(document.begin));
    if (of_text && i > document.begin) previous.add(share_of(i - 1));
    if (follows) induction.add(following);
    if (head.sink) sink.add(static_cast<double>(s));
    if (const std::int64_t place = compared.row_of(i, sample.length); place >= 0) {
      float* to = compared_rows + place * compared.width;
      std::copy(p.begin() + keys.begin, p.begin() + std::max(keys.begin, keys.end), to + keys.begin);
      to[compared.width - 1] = s;
    }
  }
  for (std::int64_t row = 0; row < cells; ++row) {
    const auto queries = static_cast<float>(std::min(tile, sample.length - row * tile));
    for (std::int64_t column = 0; column < cells; ++column) map[row * cells + column] /= queries;
  }
  return {undefined,        entropy.value(),   distance.value(), first.value(),
          previous.value(), induction.value(), sink.value()};
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
    if (i >= std::ssize(samples)) std::ranges::fill(sample.targets, -1);
    return std::int64_t{0};
  };
}

/// The side of the cells with which the maps of all samples are small enough.
std::int64_t tile_for(const std::vector<InspectedSample>& samples, std::int64_t maps_of_a_sample) {
  for (std::int64_t tile = 1;; ++tile) {
    std::int64_t total = 0, longest = 0;
    for (const InspectedSample& sample : samples) {
      const std::int64_t cells = (sample.length + tile - 1) / tile;
      total += maps_of_a_sample * cells * cells;
      longest = std::max(longest, cells);
    }
    if (total <= most_map_cells || longest == 1) return tile;
  }
}

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
  Inspection result{.layers = model.layers, .heads = model.attention.heads};
  const std::int64_t all_heads = result.layers * result.heads;
  result.tile = tile_for(samples, all_heads);

  AttentionRecord record;
  trainer.set_attention(&record);
  trainer.compute_gradients(1, reader_of(samples));
  trainer.set_attention(nullptr);

  const std::int64_t context_rank = trainer.mesh().here.context, context_ranks = trainer.mesh().shape.context;
  std::vector<ComparedRows> compared;
  std::int64_t compared_of_a_head = 0, compared_queries = 0;
  for (const InspectedSample& sample : samples) {
    const std::int64_t width = model.context + 1;
    const std::int64_t most = most_compared / (all_heads * width * std::ssize(samples));
    const std::int64_t rows = std::clamp<std::int64_t>(most, 1, std::min(sample.length, most_compared_queries));
    compared.push_back({.rows = rows, .width = width, .begin = compared_of_a_head});
    compared_of_a_head += rows * width;
    compared_queries += rows;
  }
  std::vector<float> compared_rows(index(all_heads * compared_of_a_head));

  for (std::size_t s = 0; s < samples.size(); ++s) {
    const InspectedSample& sample = samples[s];
    Inspection::Sample& to = result.samples.emplace_back();
    to.cells = (sample.length + result.tile - 1) / result.tile;
    to.maps.resize(index(all_heads * to.cells * to.cells));
    std::vector<float> values(head_measures * index(all_heads));
    for (std::int64_t layer = 0; layer < result.layers; ++layer) {
      const AttentionRecord::Entry* entry = recorded(record, layer, static_cast<std::int64_t>(s));
      if (!entry) continue;
      const LayerHeads views(trainer, *entry, static_cast<std::int64_t>(s), sample.buffer);
      const auto read = [&](std::int64_t h) {
        const std::int64_t head = layer * result.heads + h;
        const auto measured =
            read_head(views.at(h), model, sample, result.tile, to.cells, to.maps.data() + head * to.cells * to.cells,
                      compared[s], compared_rows.data() + head * compared_of_a_head + compared[s].begin);
        for (std::size_t m = 0; m < head_measures; ++m)
          values[m * index(all_heads) + index(head)] = static_cast<float>(measured[m]);
      };
      // The ranks of the context axis have the same heads: each reads some of them.
      const std::int64_t first = views.heads().begin + context_rank, end = views.heads().end;
      const std::int64_t mine = std::max<std::int64_t>(0, (end - first + context_ranks - 1) / context_ranks);
      kernels::cpu::for_each_part(threads_for(trainer, mine), mine, 1, [&](const kernels::cpu::Part& part) {
        for (std::int64_t i = part.begin; i < part.end; ++i) read(first + i * context_ranks);
      });
    }
    put_together(trainer.runtime(), *trainer.mesh().world, values);
    put_together(trainer.runtime(), *trainer.mesh().world, to.maps);
    for (std::size_t m = 0; m < head_measures; ++m) {
      const auto begin = values.begin() + static_cast<std::ptrdiff_t>(m) * all_heads;
      to.values[m].assign(begin, begin + all_heads);
    }
    const std::vector<float> slopes = gate_gradients(trainer, record, static_cast<std::int64_t>(s));
    if (sample.target_is_known)
      std::transform(slopes.begin(), slopes.end(), to.values[index(0)].begin(),
                     [](float slope) { return std::abs(slope); });
  }

  put_together(trainer.runtime(), *trainer.mesh().world, compared_rows);
  result.similarity.resize(index(all_heads * all_heads));
  kernels::cpu::for_each_part(threads_for(trainer, all_heads), all_heads, 1, [&](const kernels::cpu::Part& part) {
    for (std::int64_t a = part.begin; a < part.end; ++a)
      for (std::int64_t b = 0; b < all_heads; ++b)
        result.similarity[index(a * all_heads + b)] =
            overlap(compared_rows.data() + a * compared_of_a_head, compared_rows.data() + b * compared_of_a_head,
                    compared_of_a_head, compared_queries);
  });
  return result;
}

}  // namespace choir
