// Which tokens are sample i of a run: a pure function of (token file, sequence length, seed, i).
//
// The end of the text is held out for evaluation. The rest is cut into windows at multiples of T tokens; a window is T
// inputs and, one token later, T targets. Each epoch goes through all windows in an order of its own: a keyed
// permutation of the window numbers, a Feistel network over Philox (Luby, Rackoff, SIAM J. Comput. 17, 1988) with cycle
// walking (Black, Rogaway, CT-RSA 2002). No table, no state: any rank of any layout computes the samples that it needs.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "framework/data/token_file.h"
#include "kernels/documents.h"

namespace choir {

/// A bijection of [0, size): the place of `index` in the order keyed by (seed, epoch). size < 2^62.
std::int64_t permute(std::int64_t index, std::int64_t size, std::uint64_t seed, std::int64_t epoch);

/// The first token that is held out if the share `held_out` of the tokens is to be: as few whole documents from the end
/// as have that many tokens. If they have more than 1.5 times as many, or are all documents, the first of them is cut
/// so that the share is exact.
std::int64_t held_out_split(const TokenFile&, double held_out);

/// The rule for checkpoints that do not say where their run was split: whole documents of any size, except that the
/// first document is always for training and that a single document is cut.
std::int64_t held_out_split_by_documents(const TokenFile&, double held_out);

struct SamplerOptions {
  std::int64_t sequence_length = 0;  ///< T, the model's context
  std::uint64_t seed = 0;
  double held_out = 0;  ///< share of the tokens, in [0, 1)
  /// The split of the run that is continued; without it, held_out_split() of `held_out`.
  std::optional<std::int64_t> first_held_out_token = {};
};

class Sampler {
 public:
  /// Throws ConfigError if the training text cannot fill one window, or an option is out of range.
  Sampler(const TokenFile& file, const SamplerOptions& options);

  /// Sample `index` of the run, counted over all steps and ranks: step * batch + place in the batch.
  /// inputs, targets: [T].
  void train_sequence(std::int64_t index, std::span<std::int32_t> inputs, std::span<std::int32_t> targets) const;
  /// The number of samples in one pass through the training text.
  std::int64_t num_train_windows() const { return train_windows_; }

  /// Held-out sequence `index`, in the order of the text. Together they have every held-out token as a target once. The
  /// last one is filled up with the end-of-document token as input and -1, which is not counted, as target.
  void evaluation_sequence(std::int64_t index, std::span<std::int32_t> inputs, std::span<std::int32_t> targets) const;
  std::int64_t num_evaluation_sequences() const;

  /// The documents of these sequences: for each input [T], the positions of its document in the sequence. A document
  /// that began before the sequence begins at 0. What fills up the last held-out sequence belongs to the last document.
  void train_documents(std::int64_t index, std::span<kernels::DocumentRange> documents) const;
  void evaluation_documents(std::int64_t index, std::span<kernels::DocumentRange> documents) const;

  /// Bytes of text that the targets stand for; -1 stands for none.
  std::int64_t target_bytes(std::span<const std::int32_t> targets) const;

  const Tokenizer& tokenizer() const { return file_.tokenizer(); }
  /// Tokens [0, first_held_out_token()) are for training, the rest is held out.
  std::int64_t first_held_out_token() const { return first_held_out_token_; }

 private:
  std::int64_t first_of_train_sequence(std::int64_t index) const;
  std::int64_t first_of_evaluation_sequence(std::int64_t index) const;
  void documents_from(std::int64_t first, std::span<kernels::DocumentRange> documents) const;

  TokenFile file_;
  SamplerOptions options_;
  std::int64_t first_held_out_token_ = 0, train_windows_ = 0;
};

}  // namespace choir
