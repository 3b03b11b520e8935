// Samples in host memory, and the rows of them that a rank holds.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "framework/core/rows.h"
#include "framework/model/model_config.h"
#include "framework/model/part.h"
#include "kernels/documents.h"

namespace choir {

/// Where a sample is written: one sequence with what is to be predicted. What the model's family does not read is
/// empty.
struct Sample {
  std::span<std::int32_t> inputs;   ///< [T]: ids of text
  std::span<std::int32_t> targets;  ///< [T], or [1]: the class of the whole sequence; negative: not counted
  std::span<float> patches;         ///< [image_rows(), features]: squares of an image, or its pixels, in rows; a
                                    ///< class token's are zeros
  std::span<kernels::DocumentRange> documents{};  ///< [T]: the positions of each token's document, if they are
                                                  ///< separate. Of a classifier the text is the first, and what fills
                                                  ///< the sequence up the second
  std::span<std::int32_t> source{};  ///< [source_texts(), S]: ids of the texts that an encoder reads; behind
                                     ///< the end of each -1
};

/// Of what a sample has as its source, text `text` [S].
template <class Id>
std::span<Id> source_text(const ModelConfig& config, std::span<Id> source, std::int64_t text) {
  const auto length = static_cast<std::size_t>(config.source_length());
  return source.subspan(static_cast<std::size_t>(text) * length, length);
}
/// The tokens of a text, behind whose end there is -1.
std::int64_t tokens_of_text(std::span<const std::int32_t> text);

/// Writes sample `index` (of the step's global batch, or of an evaluation). Returns the bytes of text that the targets
/// stand for.
using ReadSample = std::function<std::int64_t(std::int64_t index, const Sample&)>;

/// Memory of one sample.
struct SampleBuffer {
  explicit SampleBuffer(const ModelConfig&);
  Sample view() { return {inputs, targets, patches, documents, source}; }

  std::vector<std::int32_t> inputs, targets, source;
  std::vector<float> patches;
  std::vector<kernels::DocumentRange> documents;  ///< at first a sample is one document
};

/// The ranges of a sequence of which the first `text` positions are a text and the others only fill it up: neither sees
/// the other. An empty text has one position.
void leave_out_filler(std::span<kernels::DocumentRange> documents, std::int64_t text);

/// Sample `index` of endless random data: the next tokens are the targets of text; an image has a random class.
void random_sample(const ModelConfig&, std::uint64_t key, std::int64_t index, const Sample&);

/// The source of one sample, for generation: rows of its texts, as long as the longest of them.
struct GivenSource {
  /// `source` as Sample::source has it.
  GivenSource(const ModelConfig&, std::span<const std::int32_t> source);
  /// What a decoder of at most `positions` tokens reads, before its first one.
  Source upload(Runtime&, std::int64_t positions) const;

  std::vector<std::int32_t> ids;      ///< [texts, length]
  std::vector<std::int32_t> lengths;  ///< [texts]
  std::int64_t length = 0;
};

/// The rows of a micro-batch that a rank holds.
struct BatchRows {
  /// No sequence has targets. `source`: the rows of their sources, of all texts (nn/text_rows.h). With `count_only`
  /// there is no memory, for device `count`.
  BatchRows(const ModelConfig&, const Rows&, const Rows& source, bool count_only = false);
  /// The rows of sequence `sequence` of the micro-batch. The target of a whole sequence belongs to the rank with its
  /// first position.
  void set(std::int64_t sequence, const SampleBuffer&);
  std::int64_t num_targets() const;

  Batch upload(Runtime&) const;
  /// What every part of the model reads; empty tensors if documents are joined.
  SeparateDocuments upload_documents(Runtime&) const;
  Source upload_source(Runtime&) const;

  Rows rows, source_rows;
  Shape ids_shape, targets_shape, patches_shape, source_shape;  ///< on the device; empty: the family does not read it
  std::vector<std::int32_t> ids, targets, source;               ///< -1: no target, no token
  std::vector<float> patches;
  bool separate_documents;
  bool whole_images;                              ///< patches are the pixels of all positions
  std::vector<kernels::DocumentRange> documents;  ///< [B, T]: of all positions, if they are separate
  std::vector<std::int32_t> source_lengths;       ///< [B * texts]: tokens of the texts of each source, if there is one
};

}  // namespace choir
