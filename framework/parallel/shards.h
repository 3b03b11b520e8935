// Data parallelism and ZeRO: ranks with the same weights see other rows of the batch; gradients are summed over them.
//
// ZeRO (Rajbhandari et al. 2019, arXiv 1910.02054) splits what these ranks hold. Every range of the flat order has one
// rank that updates it, with its masters and moments (stage 1), its sum of gradients (stage 2), and its values (stage
// 3). The other ranks hold a whole group only while they need it: its values while a part runs, its gradients during
// its backward.
//
// There is one path. A group's values are gathered if this rank does not have them, and its gradients are reduced when
// nobody holds them any longer. The stages differ in what the trainer holds: below 3 all values, always; below 2 all
// gradients, from the beginning of a step until they are final. At stage 0 a rank updates everything, else its part.
//
// The ranks may be several replicas (HSDP: Zhao et al. 2023, arXiv 2304.11277): those of one replica split what the
// stage says; the sums of the parts are then added up over the replicas, which update them alike.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "framework/comm/context.h"
#include "framework/parallel/buckets.h"
#include "kernels/range.h"

namespace choir {

struct ShardOptions {
  int zero = 0;                 ///< stage, 0 to 3
  bool training = true;         ///< false: no gradients, and no masters beside the values
  std::vector<bool> late = {};  ///< by group: its gradients are final only after all backward. Empty: none
  std::int64_t bucket_elements = default_bucket_elements;
  Allocator* masters = nullptr;  ///< of masters that are not the values; it outlives the tensors. Null: the device's
};

class Shards {
 public:
  /// Lays out `store`, allocates what this rank holds, and writes the start values. `store` outlives this.
  Shards(ParameterStore& store, const ShardOptions&, Context&);

  /// The values of `group` are on their way: gathered on the communication stream, unless they are here.
  void prefetch(int group, Context&);
  /// Work enqueued on the compute stream from now on can read the values of `group`, until the release().
  void acquire(int group, Context&);
  void release(int group);
  /// Work enqueued on the compute stream from now on meets no gather of values, which may write where it reads.
  void await_values(Context&);

  /// The sums of gradients begin at zero: those of weights that a product overwrites are marked as new, the others are
  /// zeroed.
  void begin_step(Context&);
  /// Work enqueued on the compute stream from now on can add to the gradients of `group`, until the close(). The last
  /// close() of several reduces them: sums over the tensor ranks that share a tensor, then over the ranks that hold the
  /// same weights, while the compute stream goes on.
  void open(int group, Context&);
  void close(int group, Context&);
  /// Nothing will be added to the gradients of `group` in this step. Groups come in any order.
  void final(int group, Context&);
  /// After the last group: the compute stream waits for every reduction. Buckets have their complete gradients.
  void finish(Context&);

  /// After masters have changed: rounds them into the values (not needed if the update has done it).
  void round(Runtime&);
  /// After values have changed: the other ranks get them, at the latest when they acquire() them.
  void publish(Context&);

  const std::vector<Bucket>& buckets() const { return buckets_; }
  /// Bucket::updated and Bucket::counted of all buckets.
  std::vector<FlatRange> updated() const;
  std::vector<FlatRange> counted() const;
  /// The elements `range` of a tensor of the buckets, [n]; the range lies in one Bucket::updated.
  Tensor at(const FlatRange& range, const Tensor Bucket::*tensor) const;
  /// All sums of gradients here, [n], and where the element `flat` of some Bucket::updated is in them.
  const Tensor& gradients() const { return gradients_; }
  std::int64_t gradient_offset(std::int64_t flat) const;

 private:
  /// Of a buffer of gradients: what is zeroed before something is added to it.
  struct Zeroed {
    Tensor ranges;  // kernels::Range, in device memory
    std::int64_t elements = 0;
  };
  struct Group {
    std::vector<Weight*> weights;
    std::size_t first_bucket = 0, buckets = 0;
    Tensor matrices, vectors;  // the whole values
    Tensor gradient;           // the whole gradient
    Zeroed zeroed;             // of it, if it is made when it is needed
    int readers = 0, writers = 0;
    bool until_final = false;  // the step itself is a writer
    bool whole = false;        // the values are here, or on their way
    bool arriving = false;     // and the compute stream has not waited for them
    Event arrived;
    std::uint64_t call = 0;
  };
  struct Reduction {
    int group;
    Tensor gradient;
    Event done;
    std::uint64_t call, call_of_replicas;
  };

  Group& at_group(int group) { return groups_[static_cast<std::size_t>(group)]; }
  std::span<const Bucket> buckets_of(int group) const;
  const Bucket& bucket_of(std::int64_t flat) const;
  void make_values(int group, Runtime&);
  void bind_gradient(int group, const Tensor& gradient);
  static Zeroed to_table(const std::vector<kernels::Range>&, Runtime&);
  Zeroed zeroed_in(const FlatRange&, Runtime&) const;
  static void mark_as_new(const Group&);
  static void zero_what_is_new(const Group&, Runtime&);
  Communicator& shard_of(int group, Context&) const;
  Tensor values_of(const Bucket&, const FlatRange&) const;
  void arrive(int group, Context&);
  void reduce(int group, Context&);
  void settle(Context&);
  void write_start_values(Runtime&);

  ParameterStore& store_;
  int zero_;
  std::vector<Bucket> buckets_;
  std::vector<Group> groups_;
  Tensor gradients_;
  Zeroed zeroed_;                     // of them
  std::deque<Reduction> reductions_;  // on the communication stream, in order
};

/// to (f32, f64 or bf16, contiguous) = values of host memory, as many as it has elements.
void write(Runtime&, const float* values, const Tensor& to);

}  // namespace choir
