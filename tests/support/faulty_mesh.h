// A mesh on MPI that repeats one mistake, which `choir verify` must find.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "framework/comm/host_axis.h"
#include "framework/comm/mesh.h"
#include "framework/comm/mpi_communicator.h"
#include "framework/config/config.h"
#include "framework/model/families.h"
#include "framework/model/stage.h"
#include "framework/parallel/shards.h"

namespace choir::tests {

/// Affects the calls of `verb` and `label` on `axis` whose number, from 0, is `occurrence` modulo `of`. `of` is the
/// number of such calls in a step: forward and backward of a layer use one label.
struct Fault {
  std::string axis, verb, label;
  int occurrence = 0, of = 1;
  /// Changes the result, [elements], on the host. Empty: the call is left out.
  std::function<void(const Tensor& result)> damage;
};

/// A call: axis, verb, label.
using CallName = std::tuple<std::string, std::string, std::string>;

class FaultyCommunicator : public MpiCommunicator {
 public:
  /// `calls` (may be null) gets the names of all calls, in order.
  FaultyCommunicator(MPI_Comm comm, const Group& group, Device& device, CallRing& ring, Fault fault,
                     std::vector<CallName>* calls)
      : MpiCommunicator(comm, group, device, ring), ring_(ring), fault_(std::move(fault)), calls_(calls) {}

 protected:
  void do_all_reduce(const Tensor& tensor, Reduce op, const Tensor& workspace) override {
    const bool hit = is_hit();
    if (!hit || fault_.damage) MpiCommunicator::do_all_reduce(tensor, op, workspace);
    if (hit && fault_.damage) fault_.damage(tensor);
  }
  void do_all_gather(const Tensor& in, const Tensor& out) override {
    if (!is_hit()) return MpiCommunicator::do_all_gather(in, out);
    for (int r = 0; r < size(); ++r) copy(in, out, r);  // every block is this rank's
  }
  void do_reduce_scatter(const Tensor& in, const Tensor& out, Reduce op, const Tensor& workspace) override {
    if (!is_hit()) return MpiCommunicator::do_reduce_scatter(in, out, op, workspace);
    const auto bytes = static_cast<std::size_t>(out.bytes());
    std::memmove(out.raw(), static_cast<const char*>(in.raw()) + static_cast<std::size_t>(rank()) * bytes, bytes);
  }
  void do_exchange(const std::vector<Message>& sends, const std::vector<Message>& receives) override {
    MpiCommunicator::do_exchange(sends, receives);
    if (!is_hit()) return;
    for (const Message& message : receives)  // as if nothing had come; the other end does not wait for ever
      std::memset(message.tensor.raw(), 0, static_cast<std::size_t>(message.tensor.bytes()));
  }

 private:
  static void copy(const Tensor& in, const Tensor& out, int block) {
    const auto bytes = static_cast<std::size_t>(in.bytes());
    std::memmove(static_cast<char*>(out.raw()) + static_cast<std::size_t>(block) * bytes, in.raw(), bytes);
  }
  /// Whether the fault affects the call that has just begun.
  bool is_hit() {
    const Call call = ring_.calls().back();
    if (calls_) calls_->emplace_back(call.axis, call.verb, call.label);
    if (call.axis != fault_.axis || call.verb != fault_.verb || call.label != fault_.label) return false;
    return count_++ % fault_.of == fault_.occurrence;
  }

  CallRing& ring_;
  Fault fault_;
  std::vector<CallName>* calls_;
  int count_ = 0;
};

/// make_mesh() with communicators that make `fault`. Collective over `world`.
inline Mesh make_faulty_mesh(MPI_Comm world, const MeshShape& shape, Device& device, CallRing& ring, const Fault& fault,
                             std::vector<CallName>* calls = nullptr) {
  int rank = 0;
  MPI_Comm_rank(world, &rank);
  const auto make = [&](const Group& group) {
    MPI_Comm comm = MPI_COMM_NULL;
    MPI_Comm_split(world, group.first, group.rank, &comm);
    return std::make_unique<FaultyCommunicator>(comm, group, device, ring, fault, calls);
  };
  Mesh mesh = make_axes(rank, shape, make);
  mesh.host = make(Group{.axis = host_axis, .size = shape.ranks(), .rank = rank});
  return mesh;
}

/// The fault that damages the gradient of parameter `name` after its sum over the data ranks: `damage` gets the rows
/// held here, [rows, columns] in f32. Every group has one bucket of matrices and one of vectors.
inline Fault fault_of_gradient(const Config& config, const MeshShape& shape, const std::string& name,
                               const std::function<void(const Tensor& gradient)>& damage) {
  struct Place {
    int bucket = -1, buckets = 0;  // in the order of the calls
    std::int64_t offset = 0;       // in the bucket
    Region held;
  };
  const auto place_on = [=](int rank) {
    ParameterStore store;
    const TensorShare share{
        .rank = shape.coordinates(rank).tensor, .size = shape.tensor, .sequence = config.parallel.sequence};
    const Stage stage(make_parts(config.model, Recompute::none), share, store);
    store.lay_out(bucket_alignment(shape.data));
    Place place;
    const Parameter& p = *store.find(name);
    const std::vector<Bucket> buckets = make_buckets(store, 0, {shape.data, 0, shape.data}, default_bucket_elements);
    for (int group = store.groups() - 1; group >= 0; --group)
      for (const Bucket& bucket : buckets) {
        if (bucket.group != group) continue;
        if (bucket.range.begin <= p.offset() && p.offset() < bucket.range.end) {
          place.bucket = place.buckets;
          place.offset = p.offset() - bucket.range.begin;
        }
        ++place.buckets;
      }
    place.held = p.held;
    return place;
  };
  const Place first = place_on(0);
  return {.axis = "data",
          .verb = "all_reduce",
          .label = "gradient bucket",
          .occurrence = first.bucket,
          .of = first.buckets,
          .damage = [=](const Tensor& bucket) {
            int rank = 0;
            MPI_Comm_rank(MPI_COMM_WORLD, &rank);
            const Place here = place_on(rank);
            if (here.offset + here.held.count() > bucket.count()) throw Error({.what = "a group is several buckets"});
            damage(bucket.slice_columns(here.offset, here.offset + here.held.count())
                       .reshape({here.held.rows(), here.held.columns()}));
          }};
}

inline void set_to_zero(const Tensor& gradient) { std::fill_n(gradient.data<float>(), gradient.count(), 0.0f); }

/// Exchanges heads 0 and 1 of those held here.
inline std::function<void(const Tensor&)> swap_heads(std::int64_t head_width) {
  return [head_width](const Tensor& gradient) {
    float* first = gradient.data<float>();
    const std::int64_t count = head_width * gradient.width();
    if (gradient.count() < 2 * count) throw Error({.what = "this rank holds one head only"});
    std::swap_ranges(first, first + count, first + count);
  };
}

}  // namespace choir::tests
