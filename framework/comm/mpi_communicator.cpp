#include "framework/comm/mpi_communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>

#include "framework/comm/reduction.h"

namespace choir {
namespace {

// MPI counts in int. Large pieces, because each is one more message.
constexpr std::int64_t largest_message = 1 << 30;
// Open MPI's collectives allocate memory in each call, and become much slower above this.
constexpr std::int64_t largest_broadcast = 16 << 20;

char* bytes_of(const Tensor& tensor) { return static_cast<char*>(tensor.raw()); }

void copy_bytes(char* to, const char* from, std::int64_t bytes) {
  if (to != from) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

std::string words_of(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  return text;
}

}  // namespace

// A macro, because Failure is a protected name of Communicator's.
#define CHECK_MPI(call)                                                                            \
  do {                                                                                             \
    if (const int code_ = (call); code_ != MPI_SUCCESS)                                            \
      throw Failure{std::string(#call, 0, std::string(#call).find('(')) + ": " + words_of(code_)}; \
  } while (false)

MpiCommunicator::MpiCommunicator(MPI_Comm comm, Group group, Device& device, CallRing& ring)
    : Communicator(std::move(group), device, device.communicate(), ring), comm_(comm) {
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
}

MpiCommunicator::~MpiCommunicator() {
  try {
    stream().synchronize();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "while closing the communicator of %s: %s\n", axis().c_str(), error.what());
  }
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (!finalized) MPI_Comm_free(&comm_);
}

std::int64_t MpiCommunicator::reduction_workspace_bytes(std::int64_t count, DType type) const {
  return choir::reduction_workspace_bytes(count, size(), type);
}

void MpiCommunicator::transfer(const std::vector<Block>& sends, const std::vector<Block>& receives) {
  const auto messages_of = [](const std::vector<Block>& blocks) {
    std::vector<Block> messages;
    for (const Block& block : blocks)
      for (std::int64_t begin = 0; begin < block.bytes; begin += largest_message)
        messages.push_back({block.data + begin, std::min(largest_message, block.bytes - begin), block.peer, block.tag});
    return messages;
  };
  const std::vector<Block> in = messages_of(receives), out = messages_of(sends);
  std::vector<MPI_Request> requests(in.size() + out.size(), MPI_REQUEST_NULL);
  MPI_Request* request = requests.data();
  for (const Block& message : in)
    CHECK_MPI(MPI_Irecv(message.data, static_cast<int>(message.bytes), MPI_BYTE, message.peer, message.tag, comm_,
                        request++));
  for (const Block& message : out)
    CHECK_MPI(MPI_Isend(message.data, static_cast<int>(message.bytes), MPI_BYTE, message.peer, message.tag, comm_,
                        request++));

  std::vector<MPI_Status> statuses(requests.size());
  const int code = MPI_Waitall(static_cast<int>(requests.size()), requests.data(), statuses.data());
  if (code != MPI_SUCCESS) {
    // The first message that failed gives the reason; the others may be pending.
    const auto failed = std::find_if(statuses.begin(), statuses.end(), [](const MPI_Status& status) {
      return status.MPI_ERROR != MPI_SUCCESS && status.MPI_ERROR != MPI_ERR_PENDING;
    });
    const int cause = code == MPI_ERR_IN_STATUS && failed != statuses.end() ? failed->MPI_ERROR : code;
    throw Failure{"MPI_Waitall: " + words_of(cause)};
  }
  for (std::size_t i = 0; i < in.size(); ++i) {  // to MPI a message that is too short is not an error
    int bytes = 0;
    CHECK_MPI(MPI_Get_count(&statuses[i], MPI_BYTE, &bytes));
    if (bytes != in[i].bytes)
      throw Failure{
          fmt::format("{} bytes came from rank {} of the axis, but {} were expected", bytes, in[i].peer, in[i].bytes)};
  }
}

void MpiCommunicator::reduce_own(const std::vector<Block>& parts, char* arrived, char* out, DType type, Reduce op) {
  const Block& own = parts[static_cast<std::size_t>(rank())];
  std::vector<Block> sends, receives;
  std::vector<const void*> sources(parts.size());
  // Each rank begins with the next one, so that not all ranks begin with the same one.
  for (int step = 1; step < size(); ++step) {
    sends.push_back(parts[static_cast<std::size_t>((rank() + step) % size())]);
    const int from = (rank() - step + size()) % size();
    receives.push_back({arrived + from * own.bytes, own.bytes, from});
    sources[static_cast<std::size_t>(from)] = receives.back().data;
  }
  sources[static_cast<std::size_t>(rank())] = own.data;
  transfer(sends, receives);
  reduce_in_order(sources, out, own.bytes / size_of(type), type, op);
}

void MpiCommunicator::do_all_reduce(const Tensor& tensor, Reduce op, const Tensor& workspace) {
  char* data = bytes_of(tensor);
  char* arrived = bytes_of(workspace);
  const std::int64_t count = tensor.count(), width = size_of(tensor.dtype());

  if (size() * tensor.bytes() <= small_reduction_bytes) {
    const int bytes = static_cast<int>(tensor.bytes());
    CHECK_MPI(MPI_Allgather(data, bytes, MPI_BYTE, arrived, bytes, MPI_BYTE, comm_));
    std::vector<const void*> sources;
    for (int r = 0; r < size(); ++r) sources.push_back(arrived + r * tensor.bytes());
    return reduce_in_order(sources, data, count, tensor.dtype(), op);
  }

  const std::int64_t piece = size() * reduction_block((count + size() - 1) / size(), size(), tensor.dtype());
  for (std::int64_t begin = 0; begin < count; begin += piece) {
    const std::int64_t length = std::min(piece, count - begin);
    const std::int64_t block = (length + size() - 1) / size();
    std::vector<Block> parts;
    for (int r = 0; r < size(); ++r) {
      const std::int64_t part_begin = std::min(length, r * block), part_end = std::min(length, (r + 1) * block);
      parts.push_back({data + (begin + part_begin) * width, (part_end - part_begin) * width, r});
    }
    const Block& own = parts[static_cast<std::size_t>(rank())];
    reduce_own(parts, arrived, own.data, tensor.dtype(), op);

    std::vector<Block> sends, receives;
    for (int step = 1; step < size(); ++step) {
      sends.push_back({own.data, own.bytes, (rank() + step) % size()});
      receives.push_back(parts[static_cast<std::size_t>((rank() - step + size()) % size())]);
    }
    transfer(sends, receives);
  }
}

void MpiCommunicator::do_reduce_scatter(const Tensor& in, const Tensor& out, Reduce op, const Tensor& workspace) {
  const std::int64_t count = out.count(), width = size_of(out.dtype());
  const std::int64_t block = std::max<std::int64_t>(1, reduction_block(count, size(), out.dtype()));
  for (std::int64_t begin = 0; begin < count; begin += block) {
    const std::int64_t length = std::min(block, count - begin);
    std::vector<Block> parts;
    for (int r = 0; r < size(); ++r) parts.push_back({bytes_of(in) + (r * count + begin) * width, length * width, r});
    reduce_own(parts, bytes_of(workspace), bytes_of(out) + begin * width, out.dtype(), op);
  }
}

void MpiCommunicator::do_all_gather(const Tensor& in, const Tensor& out) {
  const std::int64_t bytes = in.bytes();
  copy_bytes(bytes_of(out) + rank() * bytes, bytes_of(in), bytes);
  if (out.bytes() <= small_reduction_bytes) {  // in log2(size()) steps
    CHECK_MPI(MPI_Allgather(MPI_IN_PLACE, 0, MPI_BYTE, out.raw(), static_cast<int>(bytes), MPI_BYTE, comm_));
    return;
  }
  std::vector<Block> sends, receives;
  for (int step = 1; step < size(); ++step) {
    const int to = (rank() + step) % size(), from = (rank() - step + size()) % size();
    sends.push_back({bytes_of(in), bytes, to});
    receives.push_back({bytes_of(out) + from * bytes, bytes, from});
  }
  transfer(sends, receives);
}

void MpiCommunicator::do_all_to_all(const Tensor& in, const Tensor& out) {
  const std::int64_t bytes = in.bytes() / size();
  std::vector<Block> sends, receives;
  for (int step = 1; step < size(); ++step) {
    const int to = (rank() + step) % size(), from = (rank() - step + size()) % size();
    sends.push_back({bytes_of(in) + to * bytes, bytes, to});
    receives.push_back({bytes_of(out) + from * bytes, bytes, from});
  }
  copy_bytes(bytes_of(out) + rank() * bytes, bytes_of(in) + rank() * bytes, bytes);
  transfer(sends, receives);
}

void MpiCommunicator::do_broadcast(const Tensor& tensor, int root) {
  for (std::int64_t begin = 0; begin < tensor.bytes(); begin += largest_broadcast) {
    const int bytes = static_cast<int>(std::min(largest_broadcast, tensor.bytes() - begin));
    CHECK_MPI(MPI_Bcast(bytes_of(tensor) + begin, bytes, MPI_BYTE, root, comm_));
  }
}

void MpiCommunicator::do_exchange(const std::vector<Message>& sends, const std::vector<Message>& receives) {
  const auto blocks_of = [](const std::vector<Message>& messages) {
    std::vector<Block> blocks;
    for (const Message& message : messages)
      blocks.push_back({bytes_of(message.tensor), message.tensor.bytes(), message.peer, message.tag});
    return blocks;
  };
  transfer(blocks_of(sends), blocks_of(receives));
}

void MpiCommunicator::do_barrier() { CHECK_MPI(MPI_Barrier(comm_)); }

}  // namespace choir
