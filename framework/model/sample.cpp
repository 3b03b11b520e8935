#include "framework/model/sample.h"

#include <algorithm>

#include "framework/model/families.h"
#include "framework/ops/dispatch.h"
#include "framework/ops/elementwise.h"
#include "framework/parallel/documents.h"
#include "kernels/philox.h"

namespace choir {
namespace {

bool reads_images(const ModelConfig& config) { return config.family == ModelFamily::vision; }

std::size_t count_of(const Shape& shape) {
  std::int64_t count = shape.empty() ? 0 : 1;
  for (const std::int64_t extent : shape) count *= extent;
  return static_cast<std::size_t>(count);
}

/// Of the rows of a micro-batch and of its source, whose texts have `lengths` tokens.
Source upload_source_of(Runtime& runtime, const Rows& rows, const Rows& source_rows,
                        const std::vector<std::int32_t>& lengths) {
  Source result{.rows = source_rows};
  const auto tokens = static_cast<std::int32_t>(source_rows.length),
             targets_end = static_cast<std::int32_t>(source_rows.length + rows.length);
  std::vector<kernels::DocumentRange> own, seen;
  for (const std::int32_t length : lengths) {
    own.insert(own.end(), static_cast<std::size_t>(length), {0, length});
    own.insert(own.end(), static_cast<std::size_t>(tokens - length), {length, tokens});
  }
  // A token of the source is seen by all targets, one behind its end by none; a target sees all tokens of the source.
  // Of two texts a position is seen if both have a token there.
  const std::ptrdiff_t texts = source_rows.sequences / rows.sequences;
  for (auto of_sample = lengths.begin(); of_sample != lengths.end(); of_sample += texts) {
    const std::int32_t length = *std::min_element(of_sample, of_sample + texts);
    seen.insert(seen.end(), static_cast<std::size_t>(length), {tokens, targets_end});
    seen.insert(seen.end(), static_cast<std::size_t>(tokens - length), {targets_end, targets_end});
    seen.insert(seen.end(), static_cast<std::size_t>(rows.length), {0, length});
  }
  result.documents = runtime.empty({source_rows.sequences * source_rows.length, 2}, DType::i32);
  result.seen = runtime.empty({rows.sequences * (source_rows.length + rows.length), 2}, DType::i32);
  ops::upload(runtime, own.data(), result.documents);
  ops::upload(runtime, seen.data(), result.seen);
  return result;
}

}  // namespace

SampleBuffer::SampleBuffer(const ModelConfig& config)
    : inputs(static_cast<std::size_t>(reads_images(config) ? 0 : config.context)),
      targets(static_cast<std::size_t>(config.targets_of_sequence())),
      source(static_cast<std::size_t>(source_texts(config) * config.source_length())),
      patches(static_cast<std::size_t>(reads_images(config) ? config.image_rows() * config.image.features() : 0)),
      documents(static_cast<std::size_t>(config.separates_documents() ? config.context : 0),
                {0, static_cast<std::int32_t>(config.context)}) {}

void leave_out_filler(std::span<kernels::DocumentRange> documents, std::int64_t text) {
  const auto end = static_cast<std::int32_t>(std::max<std::int64_t>(1, text));
  const auto filled = documents.begin() + end;
  std::fill(documents.begin(), filled, kernels::DocumentRange{0, end});
  std::fill(filled, documents.end(), kernels::DocumentRange{end, static_cast<std::int32_t>(documents.size())});
}

void random_sample(const ModelConfig& config, std::uint64_t key, std::int64_t index, const Sample& sample) {
  const auto word = [&](std::size_t i) { return kernels::philox_word(key, static_cast<std::uint64_t>(index), i); };
  const auto below = [&](std::int64_t limit, std::size_t i) {
    return static_cast<std::int32_t>(word(i) % static_cast<std::uint64_t>(limit));
  };
  for (std::size_t i = 0; i < sample.inputs.size(); ++i) sample.inputs[i] = below(config.vocabulary, i);
  for (std::size_t i = 0; i < sample.targets.size(); ++i)
    sample.targets[i] = below(config.is_classifier() ? config.classes : config.vocabulary, i + 1);
  for (std::int64_t n = 0; !sample.source.empty() && n < source_texts(config); ++n) {
    const std::uint64_t of_text = ~key - static_cast<std::uint64_t>(n);  // another key; not all of the same length
    const auto place = static_cast<std::uint64_t>(index);
    const std::span<std::int32_t> text = source_text(config, sample.source, n);
    const std::size_t length = text.size() - kernels::philox_word(of_text, place, text.size()) % text.size();
    for (std::size_t i = 0; i < length; ++i)
      text[i] = static_cast<std::int32_t>(kernels::philox_word(of_text, place, i) %
                                          static_cast<std::uint64_t>(config.vocabulary));
    std::ranges::fill(text.subspan(length), -1);
  }
  // Another part of the words than the class: in [-1, 1).
  for (std::size_t i = 0; i < sample.patches.size(); ++i)
    sample.patches[i] = static_cast<float>(static_cast<std::int32_t>(word(i + (std::size_t{1} << 32)))) * 0x1p-31f;
  const std::size_t length = sample.documents.size();
  const bool is_text =
      config.family == ModelFamily::classifier;  // then it is filled up; else documents of three tokens or so
  for (std::size_t begin = 0, end = 0; begin < length; begin = end) {
    if (is_text && begin > 0) end = length - 1;
    do ++end;
    while (end < length && word(end + (std::size_t{1} << 33)) % (is_text ? length : 3) != 0);
    std::ranges::fill(sample.documents.subspan(begin, end - begin),
                      kernels::DocumentRange{static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)});
  }
}

BatchRows::BatchRows(const ModelConfig& config, const Rows& held, const Rows& held_source, bool count_only)
    : rows(held),
      source_rows(held_source),
      targets_shape{config.is_classifier() ? held.sequences : held.count()},
      separate_documents(config.separates_documents()),
      whole_images(config.image.is_convolved()) {
  if (reads_images(config))
    patches_shape = {whole_images ? held.sequences * config.image_rows() : held.count(), config.image.features()};
  else
    ids_shape = {held.count()};
  if (config.has_source()) source_shape = {held_source.count()};
  if (count_only) return;
  if (config.has_source())
    source_lengths.resize(static_cast<std::size_t>(held_source.sequences),
                          static_cast<std::int32_t>(held_source.length));
  source.resize(count_of(source_shape));
  ids.resize(count_of(ids_shape));
  targets.resize(count_of(targets_shape), -1);
  patches.resize(count_of(patches_shape));
  if (separate_documents)
    documents.resize(static_cast<std::size_t>(held.sequences * held.length),
                     {0, static_cast<std::int32_t>(held.length)});
}

void BatchRows::set(std::int64_t sequence, const SampleBuffer& sample) {
  std::copy(sample.documents.begin(), sample.documents.end(),
            documents.begin() + (documents.empty() ? 0 : sequence * rows.length));
  if (whole_images) std::ranges::copy(sample.patches, patches.begin() + sequence * std::ssize(sample.patches));
  const auto for_each_run = [](const Rows& held, std::int64_t of, const auto& body) {
    for (std::int64_t run = 0, first_row = 0; run < 2; first_row += held.count(static_cast<int>(run++))) {
      const auto [begin, end] = held.runs[run];
      body(begin, end, first_row + of * (end - begin));
    }
  };
  const auto copy = [](const auto& from, std::int64_t begin, std::int64_t end, auto& to, std::int64_t row,
                       std::int64_t width) {
    if (!from.empty()) std::copy(from.begin() + begin * width, from.begin() + end * width, to.begin() + row * width);
  };
  for_each_run(rows, sequence, [&](std::int64_t begin, std::int64_t end, std::int64_t row) {
    copy(sample.inputs, begin, end, ids, row, 1);
    if (!whole_images) copy(sample.patches, begin, end, patches, row, patches_shape.empty() ? 0 : patches_shape[1]);
    const bool of_positions = std::ssize(sample.targets) == rows.length;
    if (of_positions) copy(sample.targets, begin, end, targets, row, 1);
    if (!of_positions && begin == 0 && end > 0) targets[static_cast<std::size_t>(sequence)] = sample.targets[0];
  });
  const std::int64_t texts = source_rows.length == 0 ? 0 : source_rows.sequences / rows.sequences;
  for (std::int64_t n = 0; n < texts; ++n) {
    const std::int64_t of = texts * sequence + n;
    const auto length = static_cast<std::size_t>(source_rows.length);
    const auto text = std::span(sample.source).subspan(static_cast<std::size_t>(n) * length, length);
    for_each_run(source_rows, of, [&](std::int64_t begin, std::int64_t end, std::int64_t row) {
      copy(text, begin, end, source, row, 1);
    });
    source_lengths[static_cast<std::size_t>(of)] = static_cast<std::int32_t>(tokens_of_text(text));
  }
}

std::int64_t tokens_of_text(std::span<const std::int32_t> text) {
  return std::ranges::find_if(text, [](std::int32_t id) { return id < 0; }) - text.begin();
}

std::int64_t BatchRows::num_targets() const {
  return std::count_if(targets.begin(), targets.end(), [](std::int32_t target) { return target >= 0; });
}

SeparateDocuments BatchRows::upload_documents(Runtime& runtime) const {
  return separate_documents ? choir::upload_documents(runtime, documents, rows) : SeparateDocuments{};
}

Source BatchRows::upload_source(Runtime& runtime) const {
  return source_shape.empty() ? Source{} : upload_source_of(runtime, rows, source_rows, source_lengths);
}

GivenSource::GivenSource(const ModelConfig& config, std::span<const std::int32_t> source) {
  const std::int64_t texts = source.empty() ? 0 : source_texts(config);
  for (std::int64_t n = 0; n < texts; ++n) {
    lengths.push_back(static_cast<std::int32_t>(tokens_of_text(source_text(config, source, n))));
    length = std::max<std::int64_t>(length, lengths.back());
  }
  for (std::int64_t n = 0; n < texts; ++n) {
    const auto tokens = source_text(config, source, n).first(static_cast<std::size_t>(length));
    ids.insert(ids.end(), tokens.begin(), tokens.end());
  }
}

Source GivenSource::upload(Runtime& runtime, std::int64_t positions) const {
  if (ids.empty()) return {};
  const Rows rows = whole_rows(std::ssize(lengths), length);
  if (std::ranges::count(lengths, length) == std::ssize(lengths)) return {.rows = rows};  // nothing is padding
  return upload_source_of(runtime, whole_rows(1, positions), rows, lengths);
}

Batch BatchRows::upload(Runtime& runtime) const {
  Batch batch;
  const auto put = [&](const void* host, const Shape& shape, DType type) -> Tensor {
    if (shape.empty()) return {};
    const Tensor tensor = runtime.empty(shape, type);
    ops::upload(runtime, host, tensor);
    return tensor;
  };
  batch.ids = put(ids.data(), ids_shape, DType::i32);
  batch.source = put(source.data(), source_shape, DType::i32);
  batch.targets = put(targets.data(), targets_shape, DType::i32);
  ops::with_type(runtime.compute_type, [&]<class T>() {
    const std::vector<T> converted(patches.begin(), patches.end());
    batch.patches = put(converted.data(), patches_shape, runtime.compute_type);
  });
  return batch;
}

}  // namespace choir
