#include "framework/model/sample.h"

#include <algorithm>

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

}  // namespace

SampleBuffer::SampleBuffer(const ModelConfig& config)
    : inputs(static_cast<std::size_t>(reads_images(config) ? 0 : config.context)),
      targets(static_cast<std::size_t>(config.targets_of_sequence())),
      patches(static_cast<std::size_t>(reads_images(config) ? config.image_rows() * config.image.features() : 0)),
      documents(static_cast<std::size_t>(config.separates_documents() ? config.context : 0),
                {0, static_cast<std::int32_t>(config.context)}) {}

void random_sample(const ModelConfig& config, std::uint64_t key, std::int64_t index, const Sample& sample) {
  const auto word = [&](std::size_t i) { return kernels::philox_word(key, static_cast<std::uint64_t>(index), i); };
  const auto below = [&](std::int64_t limit, std::size_t i) {
    return static_cast<std::int32_t>(word(i) % static_cast<std::uint64_t>(limit));
  };
  for (std::size_t i = 0; i < sample.inputs.size(); ++i) sample.inputs[i] = below(config.vocabulary, i);
  for (std::size_t i = 0; i < sample.targets.size(); ++i)
    sample.targets[i] = below(config.is_classifier() ? config.classes : config.vocabulary, i + 1);
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

BatchRows::BatchRows(const ModelConfig& config, const Rows& held, bool count_only)
    : rows(held),
      targets_shape{config.is_classifier() ? held.sequences : held.count()},
      separate_documents(config.separates_documents()),
      whole_images(config.image.is_convolved()) {
  if (reads_images(config))
    patches_shape = {whole_images ? held.sequences * config.image_rows() : held.count(), config.image.features()};
  else
    ids_shape = {held.count()};
  if (count_only) return;
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
  std::int64_t first_row = 0;
  for (int run = 0; run < 2; first_row += rows.count(run++)) {
    const auto [begin, end] = rows.runs[run];
    const std::int64_t row = first_row + sequence * (end - begin);
    const auto copy = [&](const auto& from, auto& to, std::int64_t width) {
      if (!from.empty()) std::copy(from.begin() + begin * width, from.begin() + end * width, to.begin() + row * width);
    };
    copy(sample.inputs, ids, 1);
    if (!whole_images) copy(sample.patches, patches, patches_shape.empty() ? 0 : patches_shape[1]);
    const bool of_positions = std::ssize(sample.targets) == rows.length;
    if (of_positions) copy(sample.targets, targets, 1);
    if (!of_positions && begin == 0 && end > 0) targets[static_cast<std::size_t>(sequence)] = sample.targets[0];
  }
}

std::int64_t BatchRows::num_targets() const {
  return std::count_if(targets.begin(), targets.end(), [](std::int32_t target) { return target >= 0; });
}

SeparateDocuments BatchRows::upload_documents(Runtime& runtime) const {
  return separate_documents ? choir::upload_documents(runtime, documents, rows) : SeparateDocuments{};
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
  batch.targets = put(targets.data(), targets_shape, DType::i32);
  ops::with_type(runtime.compute_type, [&]<class T>() {
    const std::vector<T> converted(patches.begin(), patches.end());
    batch.patches = put(converted.data(), patches_shape, runtime.compute_type);
  });
  return batch;
}

}  // namespace choir
