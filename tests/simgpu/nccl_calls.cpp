#include "tests/simgpu/nccl_calls.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>

#include "kernels/types.h"
#include "tests/simgpu/runtime.h"

namespace choir::simgpu {
namespace {

constexpr int nan_byte = 0xff;  // in every floating-point type, all ones are NaN

template <std::size_t n>
void copy_text(char (&to)[n], const std::string& from) {
  from.copy(to, std::min(from.size(), n - 1));
}

const char* name_of(ncclDataType_t type) {
  switch (type) {
    case ncclFloat32:
      return "f32";
    case ncclFloat64:
      return "f64";
    case ncclBfloat16:
      return "bf16";
    case ncclInt32:
      return "i32";
    case ncclUint8:
      return "u8";
    default:
      return "?";
  }
}

bool reduces(Verb verb) { return verb == Verb::all_reduce || verb == Verb::reduce_scatter || verb == Verb::reduce; }

CallSignature signature_of(const char* call, std::int64_t count, ncclDataType_t type, int reduction, int root,
                           const std::string& label) {
  CallSignature signature{.count = count, .type = type, .reduction = reduction, .root = root};
  copy_text(signature.call, call);
  copy_text(signature.label, label);
  return signature;
}

bool fit(const CallSignature& a, const CallSignature& b) {
  return a.count == b.count && a.type == b.type && a.reduction == b.reduction && a.root == b.root &&
         std::strcmp(a.call, b.call) == 0;
}

/// "ncclAllReduce of 100 f32, sum, 'blocks.0.mlp'"
std::string describe(const CallSignature& signature) {
  constexpr const char* reductions[] = {"sum", "product", "max", "min", "average"};
  std::string text = std::string(signature.call) + " of " + std::to_string(signature.count) + " " +
                     name_of(static_cast<ncclDataType_t>(signature.type));
  if (signature.reduction >= 0) text += std::string(", ") + reductions[signature.reduction];
  if (signature.root >= 0) text += ", root " + std::to_string(signature.root);
  if (signature.label[0] != 0) text += std::string(", '") + signature.label + "'";
  return text;
}

/// to = to op from. Each hop rounds to T.
template <class T>
void reduce_into(std::byte* to_bytes, const std::byte* from_bytes, std::int64_t count, ncclRedOp_t op) {
  T* to = reinterpret_cast<T*>(to_bytes);
  const T* from = reinterpret_cast<const T*>(from_bytes);
  for (std::int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_integral_v<T>) {
      to[i] = op == ncclMax ? std::max(to[i], from[i]) : static_cast<T>(static_cast<std::uint32_t>(to[i]) + from[i]);
    } else {
      using A = kernels::Accumulate<T>;
      const A a = to[i], b = from[i];
      to[i] = static_cast<T>(op == ncclMax ? std::fmax(a, b) : a + b);
    }
  }
}

void reduce_into(std::byte* to, const std::byte* from, std::int64_t count, ncclDataType_t type, ncclRedOp_t op) {
  switch (type) {
    case ncclFloat32:
      return reduce_into<float>(to, from, count, op);
    case ncclFloat64:
      return reduce_into<double>(to, from, count, op);
    case ncclBfloat16:
      return reduce_into<kernels::bf16>(to, from, count, op);
    case ncclInt32:
      return reduce_into<std::int32_t>(to, from, count, op);
    default:
      return reduce_into<std::uint8_t>(to, from, count, op);
  }
}

}  // namespace

const char* name_of(Verb verb) {
  constexpr const char* names[] = {"ncclAllReduce", "ncclReduceScatter", "ncclAllGather", "ncclBroadcast",
                                   "ncclReduce"};
  return names[static_cast<int>(verb)];
}

std::int64_t bytes_of(ncclDataType_t type) {
  switch (type) {
    case ncclFloat64:
      return 8;
    case ncclFloat32:
    case ncclInt32:
      return 4;
    case ncclBfloat16:
      return 2;
    case ncclUint8:
      return 1;
    default:
      return 0;
  }
}

void Endpoint::report(const std::string& what) {
  if (mismatched) return;
  mismatched = true;
  add_finding({"collective mismatch", what});
}

NcclCall::NcclCall(std::shared_ptr<Endpoint> endpoint, bool arrives)
    : endpoint_(std::move(endpoint)), ticket_(endpoint_->device), number_(endpoint_->calls++), arrives_(arrives) {}

bool NcclCall::ready() {
  if (endpoint_->finished != number_) return false;
  if (endpoint_->aborted) return true;
  if (!ticket_.is_first()) return false;
  if (!arrives_ && endpoint_->late_error != ncclSuccess && host_waits())
    endpoint_->error = endpoint_->late_error.load();
  if (!ended_) ended_ = arrives_ && advance();  // polled again if the simulator ran another stream first
  return ended_;
}

void NcclCall::run() {
  for (const Part& part : results_)
    if (!part.bytes.empty()) std::memcpy(part.to, part.bytes.data(), part.bytes.size());
  ++endpoint_->finished;
  ticket_.end();
}

Collective::Collective(std::shared_ptr<Endpoint> endpoint_of_call, bool arrives, const CollectiveArguments& arguments,
                       const std::string& label)
    : NcclCall(std::move(endpoint_of_call), arrives),
      arguments_(arguments),
      signature_(signature_of(
          name_of(arguments.verb), arguments.count, arguments.type, reduces(arguments.verb) ? arguments.reduction : -1,
          arguments.verb == Verb::broadcast || arguments.verb == Verb::reduce ? arguments.root : -1, label)),
      number_(++endpoint().collectives) {
  for (const Access& access : accesses())
    if (access.write)
      results_.push_back({arguments.out, std::vector<std::byte>(static_cast<std::size_t>(access.bytes),
                                                                static_cast<std::byte>(nan_byte))});
  LaunchLog& own = arena().member(endpoint().rank).collectives;
  write_launch(endpoint(), own, number_);
  for (int other = 0; other < endpoint().ranks; ++other)
    if (other != endpoint().rank)
      compare_launch(endpoint(), own, arena().member(other).collectives, other, number_,
                     "collective #" + std::to_string(number_));
}

std::vector<Access> Collective::accesses() const {
  const std::int64_t one = arguments_.count * bytes_of(arguments_.type);
  const std::int64_t all = one * endpoint().ranks;
  const Verb verb = arguments_.verb;
  std::vector<Access> list;
  if (verb != Verb::broadcast || endpoint().rank == arguments_.root)
    list.push_back({arguments_.in, verb == Verb::reduce_scatter ? all : one, false});
  if (verb != Verb::reduce || endpoint().rank == arguments_.root)
    list.push_back({arguments_.out, verb == Verb::all_gather ? all : one, true});
  return list;
}

bool Collective::advance() {
  for (;;) {
    if (!deposited_ && !deposit()) return false;
    if (!all_have_deposited()) return gone_;
    if (!compared_) compare();
    if (fits_) collect();
    deposited_ = false;
    arena().member(endpoint().rank).consumed = ++endpoint().pieces;
    if (!fits_ || done_ == arguments_.count) return true;
  }
}

std::int64_t Collective::blocks() const { return arguments_.verb == Verb::reduce_scatter ? endpoint().ranks : 1; }

/// Elements of the next piece, of each block.
std::int64_t Collective::piece() const {
  return std::min(Arena::slot_bytes / (bytes_of(arguments_.type) * blocks()), arguments_.count - done_);
}

/// Deposits this rank's part of the next piece if all ranks have read the last one. False if a rank has not.
bool Collective::deposit() {
  for (int r = 0; r < endpoint().ranks; ++r)
    if (arena().member(r).consumed < endpoint().pieces) return false;
  Arena::Member& own = arena().member(endpoint().rank);
  own.signature = signature_;
  if (arguments_.verb != Verb::broadcast || endpoint().rank == arguments_.root) {
    const std::int64_t width = bytes_of(arguments_.type), bytes = piece() * width;
    const auto* in = static_cast<const std::byte*>(arguments_.in);
    for (std::int64_t block = 0; block < blocks() && bytes > 0; ++block)
      std::memcpy(arena().slot(endpoint().rank) + block * bytes, in + (block * arguments_.count + done_) * width,
                  static_cast<std::size_t>(bytes));
  }
  own.deposited = endpoint().pieces + 1;
  deposited_ = true;
  return true;
}

bool Collective::all_have_deposited() {
  for (int r = 0; r < endpoint().ranks; ++r) {
    const Arena::Member& member = arena().member(r);
    const bool destroyed = member.presence == Arena::destroyed;  // first: a rank may deposit and then leave
    if (member.deposited > endpoint().pieces) continue;
    if (destroyed) {
      gone_ = true;
      endpoint().report("collective #" + std::to_string(number_) + " of " + endpoint().name + ": rank " +
                        std::to_string(endpoint().rank) + " calls " + describe(signature_) + "; rank " +
                        std::to_string(r) + " has destroyed the communicator instead");
    }
    return false;
  }
  return true;
}

void Collective::compare() {
  compared_ = true;
  std::map<std::string, std::string> ranks_of;  // by their call
  const CallSignature& first = arena().member(0).signature;
  for (int r = 0; r < endpoint().ranks; ++r) {
    const CallSignature& signature = arena().member(r).signature;
    fits_ = fits_ && fit(signature, first);
    std::string& ranks = ranks_of[describe(signature)];
    ranks += (ranks.empty() ? "" : ", ") + std::to_string(r);
  }
  if (ranks_of.size() == 1) return;
  std::string text = "collective #" + std::to_string(number_) + " of " + endpoint().name;
  const char* separator = ": rank ";
  for (const auto& [call, ranks] : ranks_of) {
    text += separator + ranks + " called " + call;
    separator = "; rank ";
  }
  endpoint().report(text);
}

/// Copies the piece that all have deposited into the result.
void Collective::collect() {
  const std::int64_t width = bytes_of(arguments_.type), count = piece(), bytes = count * width;
  const std::int64_t done = std::exchange(done_, done_ + count);
  if (results_.empty() || bytes == 0) return;
  std::byte* out = results_.front().bytes.data();
  const auto copy = [&](int from, std::int64_t to) {
    std::memcpy(out + to * width, arena().slot(from), static_cast<std::size_t>(bytes));
  };
  if (arguments_.verb == Verb::broadcast) return copy(arguments_.root, done);
  if (arguments_.verb == Verb::all_gather) {
    for (int r = 0; r < endpoint().ranks; ++r) copy(r, r * arguments_.count + done);
    return;
  }
  const std::int64_t block = arguments_.verb == Verb::reduce_scatter ? endpoint().rank * bytes : 0;
  std::memcpy(out + done * width, arena().slot(0) + block, static_cast<std::size_t>(bytes));
  for (int r = 1; r < endpoint().ranks; ++r)
    reduce_into(out + done * width, arena().slot(r) + block, count, arguments_.type, arguments_.reduction);
}

Messages::Messages(std::shared_ptr<Endpoint> endpoint_of_call, bool arrives,
                   const std::vector<MessageArguments>& messages)
    : NcclCall(std::move(endpoint_of_call), arrives) {
  for (const MessageArguments& message : messages) {
    Transfer transfer{.arguments = message,
                      .signature = signature_of("message", message.count, message.type, -1, -1, message.label),
                      .bytes = message.count * bytes_of(message.type),
                      .result = results_.size()};
    if (!message.send)
      results_.push_back({message.data, std::vector<std::byte>(static_cast<std::size_t>(transfer.bytes),
                                                               static_cast<std::byte>(nan_byte))});
    transfers_.push_back(transfer);
    note_launch(message);
  }
}

/// Messages to and from a rank are counted apart: the other end calls them in another order.
void Messages::note_launch(const MessageArguments& message) {
  const int rank = endpoint().rank, peer = message.peer;
  std::vector<std::int64_t>& counts = message.send ? endpoint().sends : endpoint().receives;
  counts.resize(static_cast<std::size_t>(endpoint().ranks));
  const std::int64_t number = ++counts[static_cast<std::size_t>(peer)];
  Arena::Channel& channel = message.send ? arena().channel(rank, peer) : arena().channel(peer, rank);
  LaunchLog& own = message.send ? channel.sends : channel.receives;
  write_launch(endpoint(), own, number);
  if (peer != rank)
    compare_launch(
        endpoint(), own, message.send ? channel.receives : channel.sends, peer, number,
        "message #" + std::to_string(number) + (message.send ? " to rank " : " from rank ") + std::to_string(peer));
}

std::vector<Access> Messages::accesses() const {
  std::vector<Access> list;
  for (const Transfer& transfer : transfers_)
    list.push_back({transfer.arguments.data, transfer.bytes, !transfer.arguments.send});
  return list;
}

/// Each pair of ranks has one channel in each direction, which transfers one message at a time, in the order of calls.
bool Messages::advance() {
  bool done = true;
  for (std::size_t i = 0; i < transfers_.size(); ++i) {
    Transfer& transfer = transfers_[i];
    const bool waits = std::any_of(transfers_.begin(), transfers_.begin() + static_cast<std::ptrdiff_t>(i),
                                   [&](const Transfer& earlier) {
                                     return !earlier.done && earlier.arguments.send == transfer.arguments.send &&
                                            earlier.arguments.peer == transfer.arguments.peer;
                                   });
    if (!waits && !transfer.done) transfer.arguments.send ? send(transfer) : receive(transfer);
    done = done && transfer.done;
  }
  return done;
}

void Messages::send(Transfer& transfer) {
  Arena::Channel& channel = arena().channel(endpoint().rank, transfer.arguments.peer);
  const bool gone = peer_is_gone(transfer);  // first: a rank may take the message and then leave
  if (channel.taken != channel.posted) {
    if (gone) end_without_peer(transfer);
    return;
  }
  if (transfer.begun && transfer.moved == transfer.bytes) {
    transfer.done = true;
    return;
  }
  transfer.begun = true;
  channel.signature = transfer.signature;
  const std::int64_t bytes = std::min(Arena::slot_bytes, transfer.bytes - transfer.moved);
  if (bytes > 0)
    std::memcpy(arena().channel_slot(endpoint().rank, transfer.arguments.peer),
                static_cast<const std::byte*>(transfer.arguments.data) + transfer.moved,
                static_cast<std::size_t>(bytes));
  transfer.moved += bytes;
  ++channel.posted;
}

void Messages::receive(Transfer& transfer) {
  Arena::Channel& channel = arena().channel(transfer.arguments.peer, endpoint().rank);
  const bool gone = peer_is_gone(transfer);
  if (channel.posted == channel.taken) {
    if (gone) end_without_peer(transfer);
    return;
  }
  const CallSignature& sent = channel.signature;
  if (!transfer.begun) {
    transfer.begun = true;
    transfer.fits = fit(sent, transfer.signature);
    if (!transfer.fits || std::strcmp(sent.label, transfer.signature.label) != 0)
      endpoint().report("message in " + endpoint().name + ": rank " + std::to_string(transfer.arguments.peer) +
                        " sends a " + describe(sent) + "; rank " + std::to_string(endpoint().rank) + " receives a " +
                        describe(transfer.signature));
  }
  const std::int64_t total = sent.count * bytes_of(static_cast<ncclDataType_t>(sent.type));
  const std::int64_t bytes = std::min(Arena::slot_bytes, total - transfer.moved);
  if (transfer.fits && bytes > 0)
    std::memcpy(results_[transfer.result].bytes.data() + transfer.moved,
                arena().channel_slot(transfer.arguments.peer, endpoint().rank), static_cast<std::size_t>(bytes));
  transfer.moved += bytes;
  transfer.done = transfer.moved == total;
  ++channel.taken;
}

bool Messages::peer_is_gone(const Transfer& transfer) const {
  return arena().member(transfer.arguments.peer).presence == Arena::destroyed;
}

/// A message whose other rank is gone ends, with a finding.
void Messages::end_without_peer(Transfer& transfer) {
  const MessageArguments& arguments = transfer.arguments;
  transfer.done = true;
  endpoint().report("message in " + endpoint().name + ": rank " + std::to_string(endpoint().rank) +
                    (arguments.send ? " sends a " : " receives a ") + describe(transfer.signature) + "; rank " +
                    std::to_string(arguments.peer) + " has destroyed the communicator instead");
}

}  // namespace choir::simgpu
