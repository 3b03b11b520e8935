// Do masters and optimizer state still have the bits that they should have? A fault of the memory, or of a processor
// that computes another result than its neighbours, shows as a difference: of ranks that hold the same, or, if no other
// rank holds it, between an update and the next one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/train/trainer.h"

namespace choir {

class StateCheck {
 public:
  /// `trainer` outlives this.
  explicit StateCheck(Trainer& trainer);

  /// Compares with the ranks that hold the same: the data ranks at stage 0, else those of other replicas. Returns what
  /// differs and on which ranks, the same on all ranks, or "". Collective.
  std::string compare();

  /// Of what no other rank holds: remembers its digests; then compares with them, if there are any, and forgets them.
  /// They have to be equal until the next update. unchanged() returns as compare() does, and is collective.
  void remember();
  std::string unchanged();

 private:
  /// Some elements of a parameter, or of a state array for it, that are here.
  struct Part {
    std::string name;  ///< "blocks.0.attention.q.weight", "optimizer.first_moment...", as in checkpoints
    bool of_experts;
  };
  /// Ranges of one tensor: one kernel call.
  struct Call {
    Tensor values, ranges;
    std::size_t first, count;  ///< of parts_
  };

  void add(const Tensor& values, std::int64_t flat_begin, const std::vector<ParameterPart>& parts,
           const std::string& prefix);
  std::vector<std::uint64_t> digests();
  std::vector<Communicator*> holders(bool of_experts);
  bool is_shared(bool of_experts);
  std::string tell(const std::vector<std::string>& mine);

  Trainer& trainer_;
  std::vector<Part> parts_;
  std::vector<Call> calls_;
  std::vector<std::uint64_t> remembered_;  // of parts_; empty: nothing
};

}  // namespace choir
