// Saved activations in memory of the host (Rhu et al. 2016, arXiv 1602.08124): what a part saves for backward is copied
// there while the next part runs forward, and back while that part runs backward. The device holds what two or three
// parts save, however many there are.
//
// The copies run on a stream of their own. The compute stream waits for their end before anything reads or reuses their
// memory:
//
//   forward    part i | part i + 1                                       | ...
//                     | copies of part i, behind part i                  | device memory of part i is free
//   backward           ... | part i + 1                                  | part i
//                          | copies of part i into fresh memory, behind what used it before
//
// Memory of the host is given out again as soon as a part is back: its next reader or writer is a copy, behind the one
// back on the same stream.
#pragma once

#include <memory>
#include <vector>

#include "framework/core/runtime.h"

namespace choir {

/// The memory of what one part has saved for one micro-batch.
struct OffloadedPart {
  std::vector<Tensor> memory;  ///< all of it, wherever it is
  std::vector<Tensor> other;   ///< while copies run: for each, the memory to which it goes. Else empty
  Event copied;
};

/// The memory of an allocator that becomes `saved` while this lives; none if that is null.
class KeptMemory {
 public:
  explicit KeptMemory(Allocator* allocator) : allocator_(allocator) {
    if (allocator_) allocator_->kept = &memory_;
  }
  ~KeptMemory() {
    if (allocator_) allocator_->kept = nullptr;
  }
  KeptMemory(const KeptMemory&) = delete;
  KeptMemory& operator=(const KeptMemory&) = delete;

  /// What of it has not been forgotten again.
  std::vector<Tensor> held() const;

 private:
  Allocator* allocator_;
  std::vector<std::weak_ptr<TensorMemory>> memory_;
};

class ActivationOffload {
 public:
  /// `host` has memory beside the device (core/pinned_memory.h). Both outlive this.
  ActivationOffload(Device& device, Allocator& host)
      : device_(device), host_(host), stream_(device.add_communication_stream()) {}

  /// After the forward of a part that has saved `memory`: the copies to the host begin.
  OffloadedPart begin_leaving(std::vector<Tensor> memory);
  /// Before a backward that comes before the part's own: its copies to the device begin.
  void begin_returning(OffloadedPart&);
  /// For work enqueued on the compute stream from now on, the memory is where the copies have gone, and what it has
  /// left is free. Does nothing if no copies have begun.
  void end_copies(OffloadedPart&);

 private:
  void begin_copies(OffloadedPart&, Allocator& to, const char* name);

  Device& device_;
  Allocator& host_;
  Stream& stream_;
};

}  // namespace choir
