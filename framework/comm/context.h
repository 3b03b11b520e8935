// Everything a layer may use: the device's runtime, the mesh, and the place of its rows in the global batch.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "framework/comm/context_kind.h"
#include "framework/comm/mesh.h"
#include "framework/core/rows.h"
#include "framework/core/runtime.h"

namespace choir {

/// The keys and values of the tokens already seen, of one layer, for generation.
struct KeyValueCache {
  Tensor keys, values;  ///< [positions, key/value heads held * E]
  Tensor choices;       ///< [experts] i32: how many of these tokens chose each expert; empty without experts
  Tensor head_choices;  ///< [routed heads] i32: how many of these tokens chose each; empty without routed heads
  Tensor source;        ///< [source positions, ...]: the keys, the values or both of a source; empty without a source
  Tensor aligned;  ///< [positions, key/value heads held * E]: the keys or the values of these tokens that belong to
                   ///< the others of the source (nn/sources.h); empty: there are none
  Tensor state;    ///< [heads held, E * E]: of linear attention, in place of keys and values; else empty
};

/// What the tokens of a step choose of experts and heads: written by a run, and used by another one instead of its own.
struct ChoiceRecord {
  bool replays = false;
  std::int64_t first_row = 0;  ///< of this step, in the tensors below
  /// By layer: the choices [rows, chosen] of all rows of the global batch; -1: not known.
  std::map<std::string, std::vector<std::int32_t>> choices{};
  /// Of a replay: the number of rows that would have chosen otherwise, and the largest difference of two keys that
  /// changed places (what a row chooses by: kernels::Route), relative to the largest key of the row.
  std::int64_t differing = 0;
  double widest = 0;
};

/// What attention has computed in a step, for somebody who looks into the heads: of each layer and micro-batch, the
/// rows and heads that this rank holds. The layers of a run write to it.
struct AttentionRecord {
  struct Entry {
    Rows rows{};
    Tensor qkv{};    ///< [N, (H + 2 K) E held]: q, k, v side by side, after norms and rotary; q alone if there is a kv
    Rows kv_rows{};  ///< of another sequence, from which keys and values are
    Tensor kv{};     ///< [M, 2 K E held]: these, side by side; empty: those of qkv
    Tensor out{};    ///< [N, H E held]: before the output product
    Tensor dout{};   ///< [N, H E held]: its gradient
    Tensor lse{};    ///< Attended::lse (parallel/context.h); of softmax
    Tensor sinks{};  ///< [H held], or empty
    Tensor log_decay{};  ///< [N, H held], of linear attention
    Tensor log_rate{};   ///< likewise, by the delta rule
  };
  std::map<std::pair<std::string, std::int64_t>, Entry> entries{};  ///< by layer and first sample of the micro-batch
};

class ActivationOffload;  // model/activation_offload.h

/// Weight gradients of a micro-batch that the schedule computes later than its activation gradients.
using DeferredWork = std::vector<std::function<void(struct Context&)>>;

/// Of a micro-batch whose documents are separate; empty tensors: a sequence is one document.
struct SeparateDocuments {
  Tensor ranges;     ///< [B * T, 2] i32, all positions of the sequences in order: a kernels::DocumentRange each
  Tensor positions;  ///< [rows] i32, of the rows held and the padding of the last share: the position in its document
  std::int64_t first_query = 0;  ///< as a query, position i has the range of first_query + i
};

/// What the encoder of a model reads: for each sequence of a micro-batch another one, with positions of its own.
struct Source {
  Rows rows = no_rows();  ///< those held; none: the model has no encoder, or has read the source already (generation)
  /// The tokens of a source are at its front; what is behind them is padding. Both empty: there is none.
  Tensor documents{};  ///< [B * S, 2] i32: SeparateDocuments::ranges of the source: its tokens, and the padding
  Tensor seen{};       ///< [B * (S + T), 2] i32, of source and target: SeparateDocuments::ranges of attention to the
                       ///< source, in which target i as a query stands at position S + i
};

/// Called after each part of a stage with what it has computed: y of forward, or dx of backward (model/part.h).
using WatchParts = std::function<void(bool backward, std::size_t part, const Tensor& result, struct Context&)>;

struct Context {
  Runtime& runtime;
  Mesh& mesh;
  Rows rows{};  ///< of this micro-batch
  SeparateDocuments documents{};
  Source source{};
  ContextKind kind = ContextKind::automatic;
  DeferredWork* deferred = nullptr;      ///< where linear layers leave their weight gradients; null: computed at once
  const KeyValueCache* cache = nullptr;  ///< of the current layer, in generation
  bool training = true;                  ///< false: no dropout
  bool fp8 = false;                      ///< nn/linear.h multiplies activations of bf16 in 8 bits
  /// Pieces of rows into which a product is cut whose results are summed over the tensor ranks: one is summed while the
  /// next is multiplied.
  std::int64_t tensor_chunks = 1;
  /// Of losses that every row has, the balance of experts and of heads: gradients are those of row_scale * their sum.
  /// 0: no gradient is wanted.
  double row_scale = 0;
  Tensor expert_sums{};                  ///< [3] f64: kernels::ExpertSums adds to it; empty: nothing is counted
  Tensor head_sums{};                    ///< [3 + routed heads] f64: as those, then kernels::HeadCounts; or empty
  ChoiceRecord* choices = nullptr;       ///< null: choices are neither written nor replayed
  AttentionRecord* attention = nullptr;  ///< null: nobody looks into the heads
  ActivationOffload* offload = nullptr;  ///< where parts leave what they save; null: it stays on the device
  const WatchParts* watch = nullptr;     ///< of a replay; null: nobody looks at what is between the parts
};

/// For attention to what the source has: to its keys and values, or to those of which it has one or the other.
inline SeparateDocuments seen_of_source(const Context& context) {
  return {.ranges = context.source.seen, .positions = {}, .first_query = context.source.rows.length};
}

/// For a layer that computes on the rows of the source.
inline Context of_source(const Context& context) {
  Context source = context;
  source.rows = context.source.rows;
  source.documents = {.ranges = context.source.documents, .positions = {}};
  source.source = {};
  source.cache = nullptr;  // the encoder reads the whole source at once
  return source;
}

}  // namespace choir
