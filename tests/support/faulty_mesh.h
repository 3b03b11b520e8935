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

#include "framework/comm/mesh.h"
#include "framework/comm/mpi_communicator.h"
#include "framework/config/config.h"
#include "framework/model/families.h"
#include "framework/model/stage.h"
#include "framework/parallel/data.h"

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
  return make_axes(rank, shape, [&](const Group& group) {
    MPI_Comm comm = MPI_COMM_NULL;
    MPI_Comm_split(world, group.first, group.rank, &comm);
    return std::make_unique<FaultyCommunicator>(comm, group, device, ring, fault, calls);
  });
}

/// The fault that damages the gradient of parameter `name` after its sum over the data ranks: `damage` gets the rows
/// held here, [rows, columns] in f32. The model's gradients are one bucket.
inline Fault fault_of_gradient(const Config& config, const MeshShape& shape, const std::string& name,
                               const std::function<void(const Tensor& gradient)>& damage) {
  return {.axis = "data", .verb = "all_reduce", .label = "gradient bucket", .damage = [=](const Tensor& bucket) {
            int rank = 0;
            MPI_Comm_rank(MPI_COMM_WORLD, &rank);
            Device device(CountOnly{}, 1);
            Runtime runtime{.device = device};
            ParameterStore store;
            const TensorShare share{
                .rank = shape.coordinates(rank).tensor, .size = shape.tensor, .sequence = config.parallel.sequence};
            const Stage stage(make_parts(config.model, /*recompute=*/false), share, store);
            store.allocate(runtime, bucket_alignment(shape.data));
            if (bucket.count() != store.size()) throw Error({.what = "the gradients are several buckets"});
            for (const Parameter& p : store.parameters())
              if (p.name == name)
                damage(bucket.slice_columns(p.offset(), p.offset() + p.held.count())
                           .reshape({p.held.rows(), p.held.columns()}));
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
