// A model is a list of parts: an embedding, blocks, a head. A part is one group of parameters, and one more for its
// experts. A pipeline stage is a
// stretch of the list. Layers are plain structs; only the few kinds of parts are virtual.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "framework/nn/attention.h"
#include "framework/nn/embedding.h"

namespace choir {

/// The input of one micro-batch.
struct Batch {
  Tensor ids;      ///< [N] i32; empty for images
  Tensor source;   ///< [rows of the source] i32; empty without one; negative: padding
  Tensor targets;  ///< [N] i32, or one for each sequence; negative: not counted. Empty in generation
  Tensor patches;  ///< of images: [N, features], or the pixels of whole images [B * H * W, channels]
};

/// What the head does with the losses of the targets.
struct Loss {
  Tensor sum;             ///< one f64 on the device: they are added to it
  Tensor right;           ///< one f64: the number of targets found is added to it; empty: they are not counted
  double scale = 1;       ///< gradients are those of scale * loss
  bool gradient = false;  ///< backward follows
};

class Part {
 public:
  /// What backward reads, of one micro-batch. Used by one forward and one backward, which may empty it.
  struct Saved {
    virtual ~Saved() = default;
  };

  Part() = default;
  virtual ~Part() = default;
  Part(const Part&) = delete;
  Part& operator=(const Part&) = delete;

  virtual std::unique_ptr<Saved> make_saved() const = 0;
  /// x [rows held, D] -> y [rows held, D], of a model with a source as in joined_rows.h. The first part of a model
  /// reads batch.ids and gets an empty x. The last one returns an empty y; without targets, the logits [1, V] of the
  /// token after the last one.
  virtual Tensor forward(const Tensor& x, const Batch&, const Loss&, Saved&, Context&) const = 0;
  /// dy [rows held, D] -> dx [rows held, D], empty as y and x are. Weight gradients accumulate.
  virtual Tensor backward(const Tensor& dy, Saved&, Context&) const = 0;

  /// What the two directions use besides: forward reads values of weights, backward adds to their gradients.
  virtual bool forward_adds_gradients() const { return false; }
  virtual bool backward_reads_values() const { return true; }

  /// The cache that the part needs in generation, for one sequence of at most `positions` tokens.
  virtual KeyValueCache make_cache(std::int64_t /*positions*/, Runtime&) const { return {}; }
};

/// What a part is before it is made: it is made only on the ranks of the stage that holds it.
struct PartSpec {
  std::string name;  ///< "blocks.3"
  std::string kind;  ///< parts of one kind do the same work
  /// A table that this part reads. If another stage has a part with the same one, both hold it: the stage of the first
  /// of these parts owns it.
  std::optional<VocabularyTable> table;
  std::function<std::unique_ptr<Part>(const TensorShare&, ParameterStore&)> make;
};

}  // namespace choir
