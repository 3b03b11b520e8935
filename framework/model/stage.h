// The parts of a model that one pipeline stage holds. Without a pipeline that is the whole model.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "framework/model/activation_offload.h"
#include "framework/model/model_config.h"
#include "framework/model/part.h"
#include "framework/parallel/schedule.h"
#include "framework/parallel/shards.h"

namespace choir {

class Stage {
 public:
  /// What backward needs of one chunk and one micro-batch.
  struct Saved {
    std::vector<std::unique_ptr<Part::Saved>> parts;
    std::vector<OffloadedPart> offloaded;  ///< the memory of each, if Context::offload; of the last part nothing
    std::deque<std::pair<std::size_t, DeferredWork>> weights;  ///< by part: what backward leaves to weights()
  };

  /// Where each part of a model lies: stretch i of `pieces`, on stage stage_of[i].
  struct Placement {
    std::vector<Slice> pieces;  ///< [begin, end) of the parts
    std::vector<int> stage_of;
  };

  /// Declares the parameters of stage `stage`, one group for each part, in the order of the model; before them, in a
  /// group of their own, tables that another stage owns.
  Stage(const std::vector<PartSpec>& model, const Placement&, int stage, const TensorShare&, ParameterStore&);
  /// The whole model.
  Stage(const std::vector<PartSpec>& model, const TensorShare&, ParameterStore&);

  /// Part::forward() through all parts of chunk `chunk`, the stage's stretches in the order of the model. What backward
  /// needs is in `saved` afterwards if loss.gradient. Each part's values are acquired while it runs, and those of the
  /// next part are on their way.
  Tensor forward(int chunk, Tensor x, const Batch&, const Loss&, Saved& saved, Context&, Shards&) const;
  /// Part::backward() through them; empties `saved`. `last`: no other micro-batch will add to their gradients, so those
  /// of groups that no other stage shares are final.
  Tensor backward(int chunk, Tensor dy, Saved& saved, Context&, Shards&, bool last) const;
  /// The two halves of backward(): the gradients of weights in linear layers, which hold what they need, come later.
  Tensor backward_without_weights(int chunk, Tensor dy, Saved& saved, Context&, Shards&, bool last) const;
  void weights(Saved& saved, Context&, Shards&, bool last) const;

  /// Caches for one sequence of at most `positions` tokens; for generate().
  std::vector<KeyValueCache> make_caches(std::int64_t positions, Runtime&) const;
  /// Logits [1, V] of the token after batch.ids [n], which stand at the positions of context.rows. A source is read by
  /// the first call: in later ones no row of context.source is held. The whole model.
  Tensor generate(const Batch& batch, const std::vector<KeyValueCache>& caches, Context&, Shards&) const;

  /// True if another stage holds a table of this group, so that its gradient is complete only with theirs.
  bool shares(int group) const { return shared_[static_cast<std::size_t>(group)]; }
  /// shares() of all groups, for ShardOptions::late.
  const std::vector<bool>& shared_groups() const { return shared_; }
  /// Adds up the gradients of the tables that several stages hold, in the order of the model. Collective over the
  /// pipeline axis, after the last backward.
  void sum_shared_tables(Context&) const;

  std::int64_t parts() const { return static_cast<std::int64_t>(parts_.size()); }

 private:
  struct Chunk {
    std::size_t begin, end;  // of parts_
  };
  struct SharedTable {
    const Parameter* parameter;
    std::vector<int> stages;  // that hold it, in the order of the model
  };

  /// A group that a part uses: its own, or that of a table. Backward comes to the last of a group's users first.
  struct Use {
    int group;
    bool first_user, last_user;
  };

  void acquire(std::size_t part, Context&, Shards&) const;
  void prefetch(std::size_t part, Context&, Shards&) const;
  void release(std::size_t part, Shards&) const;
  void open(std::size_t part, Context&, Shards&) const;
  void close(std::size_t part, Context&, Shards&, bool last) const;
  Tensor backward_of(std::size_t part, std::size_t begin, const Tensor& dy, Saved& saved, Context&, Shards&) const;

  std::vector<std::unique_ptr<Part>> parts_;
  std::vector<std::vector<Use>> uses_;  // by part
  std::vector<Chunk> chunks_;
  std::vector<SharedTable> tables_;
  std::vector<bool> shared_;  // by group
};

/// The floating-point operations of each part for one sequence, counted on device `count`; the same on all ranks.
/// `weights`: of the weight gradients that can be deferred.
PieceTimes count_costs(const std::vector<PartSpec>& model, const ModelConfig&, const TensorShare&);

}  // namespace choir
