// The window into the heads: measures and maps by their formulas in double precision, importance by the gradient of the
// output weight, and the same in every layout.
#include <cmath>
#include <map>

#include "framework/train/head_samples.h"
#include "framework/train/inspect.h"
#include "framework/train/layer_heads.h"
#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

/// Samples of the endless random text, some of whose tokens are made to occur twice.
std::vector<InspectedSample> random_samples(const ModelConfig& model, std::int64_t count) {
  std::vector<InspectedSample> samples;
  for (std::int64_t i = 0; i < count; ++i) {
    InspectedSample& sample =
        samples.emplace_back(InspectedSample{.buffer = SampleBuffer(model), .length = model.context});
    random_sample(model, random_key_of_tests, i, sample.buffer.view());
    for (std::int32_t& id : sample.buffer.inputs) id %= 3;
    for (std::int32_t& id : sample.buffer.source) id = id < 0 ? id : id % 3;
    if (model.has_source()) sample.source_length = source_tokens(model, sample.buffer, TokenStream::source);
    if (source_texts(model) == 2)
      sample.second_source_length = source_tokens(model, sample.buffer, TokenStream::second_source);
  }
  return samples;
}

double at(const std::vector<double>& values, std::int64_t i) { return values[static_cast<std::size_t>(i)]; }

/// What one rank with all samples in one micro-batch has recorded.
struct Recorded {
  const AttentionRecord::Entry& entry;
  const ModelConfig& model;
  const AttentionStack& stack;
  std::vector<double> qkv, across, out, sinks, log_decay, log_rate;

  Recorded(SmallRun& run, const AttentionStack& s, const AttentionRecord::Entry& e)
      : entry(e),
        model(run.trainer.config().model),
        stack(s),
        qkv(elements(run.device, e.qkv)),
        across(e.kv ? elements(run.device, e.kv) : std::vector<double>{}),
        out(elements(run.device, e.out)),
        sinks(e.sinks ? elements(run.device, e.sinks) : std::vector<double>{}),
        log_decay(e.log_decay ? elements(run.device, e.log_decay) : std::vector<double>{}),
        log_rate(e.log_rate ? elements(run.device, e.log_rate) : std::vector<double>{}) {}
  bool is_linear() const { return !log_decay.empty(); }
  std::int64_t length() const { return entry.rows.length; }  ///< of the queries
  std::int64_t keys() const { return entry.kv ? entry.kv_rows.length : length(); }
  double g(std::int64_t row, std::int64_t head) const { return at(log_decay, row * model.attention.heads + head); }
  double rate(std::int64_t row, std::int64_t head) const {
    return std::exp(at(log_rate, row * model.attention.heads + head));
  }
  /// x . y at unit length, as the delta rule has them; x is of a row of q (which: -1) or k (0), y of one of k.
  double aligned(int which, std::int64_t x, std::int64_t y, std::int64_t head) const {
    double product = 0, of_x = 1e-6, of_y = 1e-6;
    for (std::int64_t e = 0; e < model.head_width(); ++e) {
      const double left = which < 0 ? q(x, head, e) : kv(0, x, head, e), right = kv(0, y, head, e);
      product += left * right, of_x += left * left, of_y += right * right;
    }
    return product / std::sqrt(of_x * of_y);
  }
  double q(std::int64_t row, std::int64_t head, std::int64_t e) const {
    return at(qkv, row * entry.qkv.width() + head * model.head_width() + e);
  }
  double kv(int which, std::int64_t row, std::int64_t head, std::int64_t e) const {
    const std::int64_t heads = model.attention.heads, kv_head = head / (heads / model.kv_heads());
    if (entry.kv)
      return at(across, row * entry.kv.width() + (which * model.kv_heads() + kv_head) * model.head_width() + e);
    return at(qkv, row * entry.qkv.width() + (heads + which * model.kv_heads() + kv_head) * model.head_width() + e);
  }
};

bool sees(const ModelConfig& m, const AttentionStack& stack, const SampleBuffer& buffer, std::int64_t i,
          std::int64_t j) {
  const auto tokens = [&](TokenStream stream) {
    return stream == TokenStream::target ? m.source_length() : source_tokens(m, buffer, stream);
  };
  const std::int64_t source = m.has_source() ? std::min(tokens(stack.keys), tokens(stack.columns)) : 0;
  if (stack.name == "cross" && (j >= source || !m.attention.sources.are_aligned())) return j < source;
  if ((stack.name == "encoder" || stack.name == "second_source") && (i < source) != (j < source)) return false;
  if (!buffer.documents.empty() &&
      buffer.documents[static_cast<std::size_t>(i)].begin != buffer.documents[static_cast<std::size_t>(j)].begin)
    return false;
  if (std::max(i, j) < m.attention.prefix) return true;
  const std::int64_t window = m.attention.window > 0 ? m.attention.window : std::max(m.context, m.source_length());
  return m.family == ModelFamily::decoder || stack.name == "decoder" || stack.name == "cross"
             ? j <= i && i - j < window
             : std::abs(i - j) < window;
}

double alibi_slope(std::int64_t head, std::int64_t heads) {
  std::int64_t power = 1;
  while (2 * power <= heads) power *= 2;
  if (head >= power) return alibi_slope(2 * (head - power), 2 * power);
  return std::pow(2.0, -8.0 * static_cast<double>(head + 1) / static_cast<double>(power));
}

/// By the delta rule, what row i reads of row j of a sequence that begins with row `first`: what j adds to the state is
/// c_j k_j, of which each token t on the way to i takes out its part, so that the state becomes the sum of c_t k_t.
double delta_weight(const Recorded& r, std::int64_t first, std::int64_t i, std::int64_t j, std::int64_t head) {
  const std::int64_t step = j <= i ? 1 : -1;
  const auto decay = [&](std::int64_t t) { return std::exp(r.g(first + t, head)); };
  std::map<std::int64_t, double> coefficients{{j, r.rate(first + j, head) * (j <= i ? 1 : decay(j))}};
  for (std::int64_t t = j + step; t != i + (j <= i ? 1 : 0); t += step) {
    double stood = 0;
    for (const auto& [s, c] : coefficients) stood += c * r.aligned(0, first + s, first + t, head);
    coefficients[t] = -r.rate(first + t, head) * stood;
    for (auto& [s, c] : coefficients) c *= decay(t);
  }
  double weight = 0;
  for (const auto& [s, c] : coefficients) weight += c * r.aligned(-1, first + i, first + s, head);
  return weight;
}

/// What one head weighs keys by, and its sink behind each row: [T, keys + 1]. Of softmax before it is divided by sums.
std::vector<double> weights_of(const Recorded& r, const SampleBuffer& buffer, std::int64_t sample, std::int64_t head) {
  const ModelConfig& m = r.model;
  const std::int64_t length = r.length(), keys = r.keys();
  std::vector<double> weights;
  for (std::int64_t i = 0; i < length; ++i) {
    for (std::int64_t j = 0; j <= keys; ++j) {
      double score = -INFINITY;
      if (j == keys && m.attention.sinks) score = at(r.sinks, head);
      if (j < keys && sees(m, r.stack, buffer, i, j)) {
        score = 0;
        for (std::int64_t e = 0; e < m.head_width(); ++e)
          score += r.q(sample * length + i, head, e) * r.kv(0, sample * keys + j, head, e);
        score /= std::sqrt(static_cast<double>(m.head_width()));
        if (m.attention.soft_cap > 0) score = m.attention.soft_cap * std::tanh(score / m.attention.soft_cap);
        if (m.attention.position == Position::alibi && !r.entry.kv)
          score -= alibi_slope(head, m.attention.heads) * static_cast<double>(std::abs(i - j));
      }
      if (!r.is_linear()) {
        weights.push_back(std::exp(score));
        continue;
      }
      if (!r.log_rate.empty() && !std::isinf(score)) {
        weights.push_back(delta_weight(r, sample * length, i, j, head));
        continue;
      }
      double decayed = std::isinf(score) ? 0 : score;
      for (std::int64_t t = std::min(i, j) + 1; decayed != 0 && t <= std::max(i, j); ++t)
        decayed *= std::exp(r.g(sample * length + t, head));
      weights.push_back(decayed);
    }
  }
  return weights;
}

/// The sums over keys and the sink of the absolute values.
std::vector<double> sums_of(const std::vector<double>& weights, std::int64_t length) {
  const std::int64_t width = std::ssize(weights) / length;
  std::vector<double> sums(static_cast<std::size_t>(length));
  for (std::size_t i = 0; i < weights.size(); ++i) sums[i / static_cast<std::size_t>(width)] += std::abs(weights[i]);
  return sums;
}

/// The map [T, keys] of one head, and its sink behind each row: [T, keys + 1].
std::vector<double> map_of(const Recorded& r, const SampleBuffer& buffer, std::int64_t sample, std::int64_t head) {
  std::vector<double> map = weights_of(r, buffer, sample, head);
  const std::vector<double> sums = sums_of(map, r.length());
  for (std::size_t i = 0; i < map.size(); ++i) {
    const double sum = sums[i / static_cast<std::size_t>(r.keys() + 1)];
    map[i] = sum > 0 ? std::abs(map[i]) / sum : 0;
  }
  return map;
}

double mean_over(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? std::nan("") : sum / static_cast<double>(values.size());
}

/// All measures but importance, of the first `length` rows of a map [T, keys + 1] of a head in a sample.
std::array<double, head_measures> measures_of(const std::vector<double>& map, const Recorded& r, std::int64_t sample,
                                              std::int64_t head, std::int64_t length, const SampleBuffer& buffer) {
  const ModelConfig& m = r.model;
  const std::int64_t keys = r.keys(), columns = m.image.columns();
  const bool image = m.family == ModelFamily::vision, compares = !r.entry.kv;
  const std::span<const std::int32_t> ids = r.stack.rows == TokenStream::target
                                                ? std::span<const std::int32_t>(buffer.inputs)
                                                : source_text(m, std::span(buffer.source), r.stack.text);
  const std::int64_t class_token = image && m.pool == Pool::class_token ? 1 : 0;
  std::vector<double> entropy, distance, first, previous, induction, sink, forgotten;
  for (std::int64_t i = 0; i < length; ++i) {
    const auto p = [&](std::int64_t j) { return at(map, i * (keys + 1) + j); };
    const std::int64_t begin = buffer.documents.empty() ? 0 : buffer.documents[static_cast<std::size_t>(i)].begin;
    double bits = 0, total = 0, moment = 0, following = 0;
    bool follows = false;
    for (std::int64_t j = 0; j <= keys; ++j)
      if (p(j) > 0) bits -= p(j) * std::log2(p(j));
    for (std::int64_t j = class_token; j < keys && i >= class_token && compares; ++j) {
      const std::int64_t a = i - class_token, b = j - class_token;
      total += p(j);
      moment +=
          p(j) * (image ? std::sqrt(std::pow(a / columns - b / columns, 2) + std::pow(a % columns - b % columns, 2))
                        : static_cast<double>(std::abs(i - j)));
    }
    entropy.push_back(bits);
    if (total > 0) distance.push_back(moment / total);
    if (!compares || i > begin) first.push_back(p(begin));
    if (m.attention.sinks) sink.push_back(p(keys));
    if (r.is_linear() && i > begin) forgotten.push_back(-r.g(sample * r.length() + i, head));
    if (image || !compares) continue;
    if (i > begin) previous.push_back(p(i - 1));
    for (std::int64_t j = begin + 1; j < i; ++j)
      if (sees(m, r.stack, buffer, i, j) && ids[static_cast<std::size_t>(j - 1)] == ids[static_cast<std::size_t>(i)]) {
        follows = true;
        following += p(j);
      }
    if (follows) induction.push_back(following);
  }
  return {0,
          mean_over(entropy),
          mean_over(distance),
          mean_over(first),
          mean_over(previous),
          mean_over(induction),
          mean_over(sink),
          std::log(2.0) / mean_over(forgotten)};
}

/// As good as f32: scores are below 20 here, and sums have few terms.
constexpr double bound = 2e-5;

void expect_same(double value, double expected, const std::string& what) {
  EXPECT_EQ(std::isnan(value), std::isnan(expected)) << what;
  if (std::isnan(expected)) return;
  EXPECT_NEAR(value, expected, bound * (1 + std::abs(expected))) << what;
}

/// Of eight queries at even distances from the last of `length` on; `map` [T, keys + 1] is that of head `number` of
/// all, and `head` of the layer.
void expect_sampled(const HeadSamples& sampled, std::int64_t number, std::int64_t head, const std::vector<double>& map,
                    const Recorded& r, std::int64_t length, const SampleBuffer& buffer) {
  const std::vector<double> sums = sums_of(weights_of(r, buffer, r.stack.sequence_of(0), head), r.length());
  const std::int64_t keys = r.keys(), queries = std::min<std::int64_t>(8, length);
  std::vector<double> entropy, sink;
  double largest = 0;
  for (std::int64_t n = 0; n < queries; ++n) {
    const std::int64_t i = length - 1 - n * length / queries;
    const std::int64_t begin = buffer.documents.empty() ? 0 : buffer.documents[static_cast<std::size_t>(i)].begin;
    double bits = 0, total = 0, most = 0;
    for (std::int64_t j = 0; j <= keys; ++j) {
      const double p = at(map, i * (keys + 1) + j);
      if (p > 0) bits -= p * std::log2(p);
      if (j < keys) most = std::max(most, p);
      total += p;
    }
    EXPECT_NEAR(total, 1, 1e-12);
    entropy.push_back(bits);
    const double logit = std::log(most * at(sums, i));
    largest = n == 0 ? logit : std::max(largest, logit);
    if (r.entry.kv || i > begin) sink.push_back(at(map, i * (keys + 1) + begin) + at(map, i * (keys + 1) + keys));
  }
  expect_same(at(sampled.entropy, number), mean_over(entropy), "sampled entropy");
  expect_same(at(sampled.largest_logit, number), largest, "largest logit");
  expect_same(at(sampled.sink, number), mean_over(sink), "sink");
}

std::string name_of_head(const std::string& layer, std::int64_t head) {
  return layer + ", head " + std::to_string(head);
}

TEST(Inspect, MapsAndMeasuresAreThoseOfTheirFormulas) {
  if (device_is_simulated() || world_size() > 1) GTEST_SKIP() << "one rank on the CPU is enough";
  for (const char* name :
       {"gpt", "window_8_of_2", "soft_cap_alibi", "documents", "prefix", "sinks", "encoder_documents", "encoder_window",
        "classifier", "vision", "class_token", "llama_pairs", "aligned_sources", "two_sources", "linear_encoder",
        "linear_pairs", "delta", "delta_pairs"}) {
    SCOPED_TRACE(name);
    ModelConfig model = small_model(name);
    model.dropout = model.attention.dropout = 0;
    const std::int64_t heads = model.attention.heads;
    const std::vector<InspectedSample> samples = random_samples(model, batch);
    SmallRun run(model, plain_sgd(1), one_rank);
    const Inspection inspection = inspect(run.trainer, samples);
    ASSERT_EQ(inspection.tile, 1);
    const Tensors gradients = run.gradients(), masters = run.masters();

    AttentionRecord record;
    run.trainer.set_attention(&record);
    run.compute_gradients(0, [&](std::int64_t i, const Sample& sample) {
      const SampleBuffer& from = samples[static_cast<std::size_t>(i)].buffer;
      std::ranges::copy(from.inputs, sample.inputs.begin());
      std::ranges::copy(from.targets, sample.targets.begin());
      std::ranges::copy(from.patches, sample.patches.begin());
      std::ranges::copy(from.documents, sample.documents.begin());
      std::ranges::copy(from.source, sample.source.begin());
      return std::int64_t{0};
    });
    const HeadSamples sampled = sample_heads(run.trainer, record, samples[0].buffer);
    std::int64_t number = 0;  // of the head, of all
    for (std::size_t stack_number = 0; stack_number < inspection.stacks.size(); ++stack_number) {
      const AttentionStack& stack = inspection.stacks[stack_number];
      const std::int64_t first = number;
      std::vector<std::vector<double>> all_maps;
      std::int64_t rows = 0;  // of a map of all_maps
      for (std::int64_t layer = 0; layer < stack.layers; ++layer) {
        const Recorded recorded(run, stack, record.entries.at({stack.layer_name(layer), 0}));
        for (std::int64_t head = 0; head < heads; ++head, ++number) {
          std::vector<double>& of_head = all_maps.emplace_back();
          rows = 0;
          for (std::int64_t s = 0; s < batch; ++s) {
            const InspectedSample& sample = samples[static_cast<std::size_t>(s)];
            const Inspection::Sample& inspected = inspection.samples[static_cast<std::size_t>(s)];
            const auto length_of = [&](TokenStream stream) {
              return stream == TokenStream::source          ? sample.source_length
                     : stream == TokenStream::second_source ? sample.second_source_length
                                                            : sample.length;
            };
            const std::int64_t length = length_of(stack.rows), columns = length_of(stack.columns);
            const std::int64_t keys = recorded.keys();
            const std::int64_t sequence = stack.sequence_of(s);
            const std::vector<double> map = map_of(recorded, sample.buffer, sequence, head);
            const std::vector<double> weights = weights_of(recorded, sample.buffer, sequence, head);
            const std::vector<double> sums = sums_of(weights, recorded.length());
            const auto measures = measures_of(map, recorded, sequence, head, length, sample.buffer);
            for (std::size_t m = 1; m < head_measures; ++m)
              expect_same(inspected.values[m][static_cast<std::size_t>(number)], measures[m],
                          names<HeadMeasure>[m] + (" of " + name_of_head(stack.layer_name(layer), head)));
            const Inspection::Maps& maps = inspected.maps[stack_number];
            ASSERT_EQ(maps.rows, length);
            ASSERT_EQ(maps.columns, columns);
            for (std::int64_t i = 0; i < length; ++i) {
              for (std::int64_t j = 0; j < columns; ++j)
                ASSERT_NEAR(maps.values[static_cast<std::size_t>(((number - first) * length + i) * columns + j)],
                            at(map, i * (keys + 1) + j), bound)
                    << name_of_head(stack.layer_name(layer), head) << " " << i << " " << j;
              std::vector<double> read;
              double square = 0;
              for (std::int64_t e = 0; e < model.head_width(); ++e) {
                double sum = 0;
                for (std::int64_t j = 0; j < keys; ++j)
                  sum += at(weights, i * (keys + 1) + j) * recorded.kv(1, sequence * keys + j, head, e);
                read.push_back(sum);
                square += sum * sum / static_cast<double>(model.head_width());
              }
              // Softmax divides by the sum of the weights, linear attention has a norm behind it.
              const std::string norm = stack.layer_name(layer) + ".out_norm.weight";
              for (std::int64_t e = 0; e < model.head_width(); ++e) {
                const double factor = recorded.is_linear()
                                          ? at(masters.at(norm), e) / std::sqrt(square + model.norm.epsilon)
                                          : 1 / std::max(at(sums, i), 1e-300);  // nothing is read of nothing
                ASSERT_NEAR(
                    at(recorded.out, ((sequence * recorded.length() + i) * heads + head) * model.head_width() + e),
                    factor * at(read, e), bound * 20)
                    << "weights times V of " << name_of_head(stack.layer_name(layer), head);
              }
            }
            if (s == 0 && stack.name != "cross")
              expect_sampled(sampled, number, head, map, recorded,
                             stack.rows == TokenStream::target ? recorded.length() : length, sample.buffer);
            of_head.insert(of_head.end(), map.begin(), map.begin() + length * (keys + 1));
            rows += length;
          }
        }
      }
      const std::int64_t all_heads = inspection.layers * heads;
      for (std::size_t a = 0; a < all_maps.size(); ++a)
        for (std::int64_t b = 0; b < all_heads; ++b) {
          const double alike = static_cast<double>(
              inspection.similarity[(static_cast<std::size_t>(first) + a) * static_cast<std::size_t>(all_heads) +
                                    static_cast<std::size_t>(b)]);
          EXPECT_EQ(std::isnan(alike), b < first || b >= number);
          if (std::isnan(alike)) continue;
          const std::vector<double>& other = all_maps[static_cast<std::size_t>(b - first)];
          double common = 0;
          for (std::size_t i = 0; i < other.size(); ++i) common += std::min(all_maps[a][i], other[i]);
          EXPECT_NEAR(alike, common / static_cast<double>(rows), bound);
        }
    }
  }
}

// A gate of a head multiplies the columns of the output weight that read the head: d loss / d gate = sum of W dW there.
TEST(Inspect, ImportanceIsTheSlopeOfTheLossAlongAGate) {
  if (device_is_simulated() || world_size() > 1) GTEST_SKIP() << "one rank on the CPU is enough";
  for (const char* name : {"gpt", "window_8_of_2", "sinks", "chosen_heads", "encoder", "class_token", "pairs",
                           "aligned_sources", "linear", "chosen_pairs"}) {
    SCOPED_TRACE(name);
    ModelConfig model = small_model(name);
    model.dropout = model.attention.dropout = 0;
    if (model.routes_heads())
      model.attention.routing.balance_weight = model.experts.balance_weight = 0;  // losses without targets too
    SmallRun run(model, plain_sgd(1), one_rank);
    const Inspection inspection = inspect(run.trainer, random_samples(model, 1));
    const Tensors gradients = run.gradients(), masters = run.masters();
    const std::int64_t columns = model.attention.heads * model.head_width();
    std::int64_t number = 0;
    for (const AttentionStack& stack : inspection.stacks)
      for (std::int64_t n = 0; n < stack.layers * model.attention.heads; ++n, ++number) {
        const std::int64_t head = n % model.attention.heads;
        const std::string layer = stack.layer_name(n / model.attention.heads), weight = layer + ".out.weight";
        double slope = 0, magnitude = 0;
        for (std::int64_t i = 0; i < model.width; ++i)
          for (std::int64_t e = head * model.head_width(); e < (head + 1) * model.head_width(); ++e) {
            const double term = at(gradients.at(weight), i * columns + e) * at(masters.at(weight), i * columns + e);
            slope += term, magnitude += std::abs(term);
          }
        EXPECT_NEAR(at(inspection.values(0, HeadMeasure::importance), number), std::abs(slope), bound * magnitude)
            << name_of_head(layer, head);
      }
  }
}

// What a head reads does not depend on who has chosen it; rows that it does not compute are 0, in maps and in its
// output.
TEST(Inspect, HeadsThatTokensChooseAreReadWhereTheyAreComputed) {
  if (device_is_simulated() || world_size() > 1) GTEST_SKIP() << "one rank on the CPU is enough";
  ModelConfig model = small_model("chosen_heads");
  model.dropout = 0;
  const std::vector<InspectedSample> samples = random_samples(model, 3);
  SmallRun run(model, plain_sgd(1), one_rank);
  const Inspection inspection = inspect(run.trainer, samples);
  AttentionRecord record;
  run.trainer.set_attention(&record);
  run.compute_gradients(0, [&](std::int64_t i, const Sample& sample) {
    const SampleBuffer& from = samples[static_cast<std::size_t>(std::min<std::int64_t>(i, 2))].buffer;
    std::ranges::copy(from.inputs, sample.inputs.begin());
    std::ranges::copy(from.targets, sample.targets.begin());
    return std::int64_t{0};
  });
  const std::int64_t length = model.context, heads = model.attention.heads, width = model.head_width();
  const AttentionStack& stack = inspection.stacks.at(0);
  std::int64_t computed = 0;
  for (std::int64_t layer = 0; layer < model.layers; ++layer) {
    const Recorded recorded(run, stack, record.entries.at({stack.layer_name(layer), 0}));
    for (std::int64_t n = 0; n < 3 * heads * length; ++n) {
      const std::int64_t s = n / length / heads, head = n / length % heads, i = n % length,
                         number = layer * heads + head;
      const std::vector<double> map = map_of(recorded, samples[static_cast<std::size_t>(s)].buffer, s, head);
      const double out = at(recorded.out, ((s * length + i) * heads + head) * width);
      const bool is_computed = out != 0;
      computed += is_computed ? 1 : 0;
      EXPECT_TRUE(is_computed || head > 0) << "head 0 is always on";
      for (std::int64_t j = 0; j < length; ++j)
        ASSERT_NEAR(inspection.samples[static_cast<std::size_t>(s)]
                        .maps[0]
                        .values[static_cast<std::size_t>((number * length + i) * length + j)],
                    is_computed ? at(map, i * (length + 1) + j) : 0, bound)
            << name_of_head(stack.layer_name(layer), head) << " " << i << " " << j;
    }
  }
  const std::int64_t most = 3 * length * model.layers * model.heads_of_token();
  EXPECT_TRUE(most / 2 < computed && computed < most) << "some tokens find no room";
}

/// As train.inspect_every has it: of the first micro-batch of a step.
HeadSamples sampled(SmallRun& run) {
  const ModelConfig& model = run.trainer.config().model;
  AttentionRecord record;
  run.trainer.set_attention(&record, 1);
  run.compute_gradients();
  run.trainer.set_attention(nullptr);
  SampleBuffer first(model);
  random_sample(model, random_key_of_tests, 0, first.view());
  return sample_heads(run.trainer, record, first);
}

TEST(Inspect, IsThatOfOneRankInEveryLayout) {
  if (device_is_simulated()) GTEST_SKIP() << "the arithmetic is that of the host";
  for (const char* name : {"window_8_of_2", "sinks", "chosen_heads", "encoder_documents", "class_token", "two_sources",
                           "aligned_sources", "linear_encoder", "delta_pairs"}) {
    ModelConfig model = small_model(name);
    model.dropout = model.attention.dropout = 0;
    const std::vector<InspectedSample> samples = random_samples(model, 5);  // of a batch of 12
    const std::unique_ptr<SmallRun> one = run_alone(model, plain_sgd(1));
    const Inspection alone = inspect(one->trainer, samples);
    const HeadSamples sampled_alone = sampled(*one);
    for (const Layout& layout : layouts(world_size(), model)) {
      SCOPED_TRACE(name + (": " + layout.name));
      SmallRun run(model, plain_sgd(1), layout);
      const Inspection inspection = inspect(run.trainer, samples);
      ASSERT_EQ(inspection.samples.size(), samples.size());
      const HeadSamples few = sampled(run);
      for (std::size_t head = 0; head < few.entropy.size(); ++head) {
        expect_same(few.entropy[head], sampled_alone.entropy[head], "sampled entropy");
        expect_same(few.largest_logit[head], sampled_alone.largest_logit[head], "largest logit");
        expect_same(few.sink[head], sampled_alone.sink[head], "sink");
      }
      for (std::size_t s = 0; s < samples.size(); ++s) {
        for (std::size_t m = 0; m < head_measures; ++m)
          for (std::size_t head = 0; head < alone.samples[s].values[m].size(); ++head)
            expect_same(inspection.samples[s].values[m][head], alone.samples[s].values[m][head], names<HeadMeasure>[m]);
        for (std::size_t stack = 0; stack < alone.stacks.size(); ++stack) {
          const std::vector<float>&here = inspection.samples[s].maps[stack].values,
                &there = alone.samples[s].maps[stack].values;
          ASSERT_EQ(here.size(), there.size());
          for (std::size_t i = 0; i < there.size(); ++i) ASSERT_NEAR(here[i], there[i], bound);
        }
      }
      for (std::size_t i = 0; i < alone.similarity.size(); ++i)
        if (!std::isnan(alone.similarity[i])) {
          ASSERT_NEAR(inspection.similarity[i], alone.similarity[i], bound);
        }
    }
  }
}

}  // namespace
}  // namespace choir::tests
