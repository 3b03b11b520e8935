#include "framework/comm/communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <set>
#include <string_view>

#include "framework/comm/host_axis.h"
#include "framework/core/error.h"
#include "kernels/elementwise.h"

namespace choir {

std::vector<int> Group::members() const {
  std::vector<int> ranks;
  for (int i = 0; i < size; ++i) ranks.push_back(first + i * stride);
  return ranks;
}

struct Communicator::Site {
  const Communicator& communicator;
  const char* verb;
  const char* label;

  std::string name() const { return fmt::format("{} of {} ({})", verb, communicator.axis(), label); }

  [[noreturn]] void refuse(const std::string& what) const {
    throw Error({.what = fmt::format("{}: {}", name(), what),
                 .why = "every rank of the axis has to give tensors that fit together, or memory would be overwritten",
                 .fix = "this is a mistake in the program that makes the call, not in its configuration"});
  }

  void check(const Tensor& tensor, const char* which) const {
    if (!tensor) refuse(fmt::format("{} is an empty handle", which));
    if (!tensor.contiguous())
      refuse(fmt::format("{} is not contiguous: {} {} with rows {} elements apart", which, name_of(tensor.dtype()),
                         to_string(tensor.shape()), tensor.row_stride()));
  }

  void check_types(const Tensor& in, const Tensor& out) const {
    if (in.dtype() != out.dtype())
      refuse(fmt::format("in is {}, out is {}", name_of(in.dtype()), name_of(out.dtype())));
  }

  void check_reduction(const Tensor& tensor, Reduce op) const {
    if (tensor.dtype() == DType::u8 && op == Reduce::sum) refuse("u8 can only be reduced by max: sums would overflow");
  }

  /// `whole` has size() blocks like `block`. If they overlap, `block` is this rank's.
  void check_blocks(const Tensor& whole, const char* whole_name, const Tensor& block, const char* block_name) const {
    const int size = communicator.size();
    if (whole.count() != size * block.count())
      refuse(fmt::format("{} {} has {} elements, but {} ranks times {} {} are {}", whole_name, to_string(whole.shape()),
                         whole.count(), size, block_name, to_string(block.shape()), size * block.count()));
    const char* own = static_cast<const char*>(whole.raw()) + communicator.rank() * block.bytes();
    if (overlap(whole, block) && own != block.raw())
      refuse(fmt::format("{} overlaps {}, but is not this rank's block of it", block_name, whole_name));
  }

  void check_peer(int peer, const char* which) const {
    if (peer < 0 || peer >= communicator.size())
      refuse(fmt::format("{} {} is not one of the ranks 0 to {}", which, peer, communicator.size() - 1));
  }

  static bool overlap(const Tensor& a, const Tensor& b) {
    const auto* a_begin = static_cast<const char*>(a.raw());
    const auto* b_begin = static_cast<const char*>(b.raw());
    return a_begin < b_begin + b.bytes() && b_begin < a_begin + a.bytes();
  }
};

namespace {

template <std::size_t n>
void copy_text(char (&to)[n], std::string_view from) {
  const std::size_t count = std::min(from.size(), n - 1);
  std::copy_n(from.begin(), count, to);
}

}  // namespace

Call Communicator::call_of(const Site& site, std::int64_t bytes) const {
  Call call{
      .bytes = static_cast<std::uint64_t>(bytes), .first = group_.first, .stride = group_.stride, .ranks = group_.size};
  copy_text(call.verb, site.verb);
  copy_text(call.axis, axis());
  copy_text(call.label, site.label);
  return call;
}

void Communicator::run(const Site& site, std::int64_t bytes, Stream& stream, std::function<void()> work) {
  Call call = call_of(site, bytes);
  call.number = ++calls_of_all_;
  run(call, stream, std::move(work));
}

void Communicator::run(const Call& call, Stream& stream, std::function<void()> work) {
  ++calls_;
  if (axis() != host_axis) device_.ledger().add_message(axis(), call.verb, static_cast<double>(call.bytes));
  if (!device_.counts_only()) enqueue(call, stream, work);
  if (device_.kind() != DeviceKind::cuda) return;
  // A GPU's memory is reused in the order of the compute stream, which now waits for all calls so far, or for none.
  if (&stream == &device_.compute())
    held_.clear();
  else
    held_.push_back({calls_, std::move(work)});
}

void Communicator::waited_for(std::uint64_t call) {
  while (!held_.empty() && held_.front().call <= call) held_.pop_front();
}

// stream:        ... before | record            wait | after ...
//                                  \            /
// stream_:                          wait | work | record
void Communicator::enqueue(const Call& call, Stream& stream, const std::function<void()>& work) {
  const bool elsewhere = &stream != &stream_;
  if (elsewhere) {
    Event before;
    before.record(stream);
    before.wait(stream_);
  }
  Event after;
  if (stream_.cuda() != nullptr) {
    pending_.note_ends();
    const cuda::Range range(call.label);
    const std::uint64_t sequence = begin(call, work);
    after.record(stream_);
    pending_.add(sequence, [after] { return after.done(); });
  } else {
    stream_.enqueue([this, call, work] { ring_.end(begin(call, work)); });
    if (elsewhere) after.record(stream_);
  }
  if (elsewhere) after.wait(stream);
}

/// Does the work of a call that is now in the ring; returns its sequence number there.
std::uint64_t Communicator::begin(const Call& call, const std::function<void()>& work) {
  const std::uint64_t sequence = ring_.begin(call);
  try {
    work();
  } catch (const Failure& failure) {  // the ring keeps the call as running: that is where this rank stopped
    throw Error({.what = fmt::format("{} of {} ({}), call #{}, failed: {}", call.verb, call.axis, call.label,
                                     call.number, failure.what),
                 .why = "a rank died, the ranks made different calls, or they disagree on the sizes",
                 .fix = "compare the calls of all ranks: logs/rank-*.calls of the run folder"});
  }
  return sequence;
}

std::string Communicator::problem() {
  try {
    pending_.note_ends();
  } catch (const std::exception& error) {  // the GPU has failed: the next call of its library returns the error
    return error.what();
  }
  return {};
}

/// With one rank: the result is the input.
void Communicator::copy(const Tensor& from, const Tensor& to, Stream& stream) {
  if (device_.counts_only() || from.raw() == to.raw()) return;
  stream.enqueue([this, from, to] {
    device_.with_kernels<float>([&](auto kernels_of) {
      kernels::copy_rows(kernels_of, from.raw(), from.bytes(), to.raw(), to.bytes(), 1, from.bytes());
    });
  });
}

/// Taken when the call is made, not when it runs, so that the order of allocations repeats in every step.
Tensor Communicator::workspace(std::int64_t count, DType type) {
  return {device_.allocator(), {reduction_workspace_bytes(count, type)}, DType::u8, MemoryKind::workspace};
}

void Communicator::all_reduce(const Tensor& tensor, Reduce op, Stream& stream, const char* label) {
  const Site site{*this, "all_reduce", label};
  site.check(tensor, "tensor");
  site.check_reduction(tensor, op);
  if (size() == 1) return;
  run(site, tensor.bytes(), stream,
      [this, tensor, op, scratch = workspace((tensor.count() + size() - 1) / size(), tensor.dtype())] {
        do_all_reduce(tensor, op, scratch);
      });
}

void Communicator::all_gather(const Tensor& in, const Tensor& out, Stream& stream, const char* label) {
  const Site site{*this, "all_gather", label};
  site.check(in, "in");
  site.check(out, "out");
  site.check_types(in, out);
  site.check_blocks(out, "out", in, "in");
  if (size() == 1) return copy(in, out, stream);
  run(site, out.bytes(), stream, [this, in, out] { do_all_gather(in, out); });
}

void Communicator::reduce_scatter(const Tensor& in, const Tensor& out, Reduce op, Stream& stream, const char* label) {
  const Site site{*this, "reduce_scatter", label};
  site.check(in, "in");
  site.check(out, "out");
  site.check_types(in, out);
  site.check_reduction(in, op);
  site.check_blocks(in, "in", out, "out");
  if (size() == 1) return copy(in, out, stream);
  run(site, in.bytes(), stream,
      [this, in, out, op, scratch = workspace(out.count(), out.dtype())] { do_reduce_scatter(in, out, op, scratch); });
}

void Communicator::all_to_all(const Tensor& in, const Tensor& out, Stream& stream, const char* label) {
  const Site site{*this, "all_to_all", label};
  site.check(in, "in");
  site.check(out, "out");
  site.check_types(in, out);
  if (in.count() != out.count() || in.count() % size() != 0)
    site.refuse(fmt::format("in {} and out {} have {} and {} elements: not the same multiple of {} ranks",
                            to_string(in.shape()), to_string(out.shape()), in.count(), out.count(), size()));
  if (Site::overlap(in, out)) site.refuse("in and out overlap");
  if (size() == 1) return copy(in, out, stream);
  run(site, in.bytes(), stream, [this, in, out] { do_all_to_all(in, out); });
}

void Communicator::broadcast(const Tensor& tensor, int root, Stream& stream, const char* label) {
  const Site site{*this, "broadcast", label};
  site.check(tensor, "tensor");
  site.check_peer(root, "root");
  if (size() == 1) return;
  run(site, tensor.bytes(), stream, [this, tensor, root] { do_broadcast(tensor, root); });
}

/// Adds the messages to those so far, and writes to `call` those with each of its peers. A call with more peers than a
/// record holds has none there: it is then a call of all ranks, in which every rank takes part.
void Communicator::count_messages(const std::vector<Message>& sends, const std::vector<Message>& receives, Call& call) {
  messages_.resize(static_cast<std::size_t>(size()));
  std::set<int> peers;
  for (const Message& send : sends) {
    ++messages_[static_cast<std::size_t>(send.peer)].sent;
    peers.insert(send.peer);
  }
  for (const Message& receive : receives) {
    ++messages_[static_cast<std::size_t>(receive.peer)].received;
    peers.insert(receive.peer);
  }
  peers.erase(rank());
  if (peers.empty() || peers.size() > Call::most_peers) {
    call.number = ++calls_of_all_;
    return;
  }
  call.number = ++calls_of_pairs_;
  std::size_t i = 0;
  for (const int peer : peers) {
    call.peers[i] = messages_[static_cast<std::size_t>(peer)];
    call.peers[i++].rank = group_.first + peer * group_.stride;
  }
}

void Communicator::exchange(const std::vector<Message>& sends, const std::vector<Message>& receives, Stream& stream,
                            const char* label) {
  const Site site{*this, "exchange", label};
  std::int64_t sent = 0;
  std::vector<Tensor> to_self, from_self;
  for (const Message& send : sends) {
    site.check(send.tensor, "a tensor to send");
    site.check_peer(send.peer, "receiver");
    sent += send.tensor.bytes();
    if (send.peer == rank()) to_self.push_back(send.tensor);
  }
  for (const Message& receive : receives) {
    site.check(receive.tensor, "a tensor to receive");
    site.check_peer(receive.peer, "sender");
    if (receive.peer == rank()) from_self.push_back(receive.tensor);
  }
  // Messages to oneself are checked here: Open MPI 4.1 cuts them to the receiver's size and reports no error.
  if (to_self.size() != from_self.size())
    site.refuse(fmt::format("{} messages to itself, but {} from itself", to_self.size(), from_self.size()));
  for (std::size_t i = 0; i < to_self.size(); ++i)
    if (to_self[i].bytes() != from_self[i].bytes())
      site.refuse(fmt::format("message {} to itself has {} bytes, but {} are received", i, to_self[i].bytes(),
                              from_self[i].bytes()));

  if (size() > 1) {
    Call call = call_of(site, sent);
    count_messages(sends, receives, call);
    return run(call, stream, [this, sends, receives] { do_exchange(sends, receives); });
  }
  for (std::size_t i = 0; i < to_self.size(); ++i) copy(to_self[i], from_self[i], stream);
}

void Communicator::barrier(Stream& stream, const char* label) {
  if (size() == 1) return;
  run(Site{*this, "barrier", label}, 0, stream, [this] { do_barrier(); });
}

}  // namespace choir
