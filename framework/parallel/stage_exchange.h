// The tensors on their way between pipeline stages: each output and gradient that one piece of the model has made and
// another reads, whether the two are on one stage or on two.
//
// Messages are on the communication stream: they run while the stage computes, and only take() makes the compute stream
// wait for those that have to be there.
#pragma once

#include <cstdint>
#include <functional>
#include <map>

#include "framework/comm/context.h"
#include "framework/parallel/pipeline.h"

namespace choir {

class StageExchange {
 public:
  explicit StageExchange(const Pipeline& pipeline) : pipeline_(pipeline) {}

  /// Exchanges what `step` says: sends what was put, and receives tensors like `shape` [rows held, D] of the compute
  /// type, one shape for each micro-batch.
  void exchange(const StageStep& step, const std::function<Shape(int micro_batch)>& shape, Context&);

  /// What `piece` has made of a micro-batch: an output (forward) or the gradient of its input (backward).
  void put(Action::Kind kind, int micro_batch, int piece, const Tensor& tensor);
  /// The input of an action of `piece`, for work enqueued on the compute stream from now on. Empty at the model's ends.
  Tensor take(Action::Kind kind, int micro_batch, int piece, Context&);

 private:
  struct Key {
    Action::Kind kind;
    int micro_batch, piece;  // that made it
    auto operator<=>(const Key&) const = default;
  };
  struct Arrival {
    Tensor tensor;
    Event arrived;           // nothing recorded: made on this stage
    std::uint64_t call = 0;  // of the communicator, that brought it
  };

  int tag(const Transfer&) const;

  Pipeline pipeline_;
  std::map<Key, Arrival> tensors_;
};

}  // namespace choir
