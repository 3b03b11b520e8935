#include "framework/checkpoint/agreement.h"

#include <algorithm>
#include <limits>

#include "framework/core/error.h"

namespace choir {
namespace {

std::int32_t length_of(const std::string& text) {
  if (text.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
    throw Error({.what = "a report of " + std::to_string(text.size()) + " bytes on one rank's file is too long"});
  return static_cast<std::int32_t>(text.size());
}

/// Messages are in the order of the compute stream: the workspace of a sum may be memory that work enqueued there has
/// not done with yet. The device of a mesh of GPUs' hosts has nothing on it.
Stream& stream_of(Communicator& world) { return world.device().compute(); }

/// Waits for the last call, and throws if it has failed.
void finish(Communicator& world) {
  stream_of(world).synchronize();
  world.stream().synchronize();
}

}  // namespace

Tensor Agreement::bytes(std::int64_t count) {
  return Tensor(memory_, {std::max<std::int64_t>(count, 1)}, DType::u8, MemoryKind::temporary);  // no empty messages
}

std::int32_t Agreement::largest(std::int32_t value, const char* label) {
  const Tensor tensor(memory_, {1}, DType::i32, MemoryKind::temporary);
  *tensor.data<std::int32_t>() = value;
  world_.all_reduce(tensor, Reduce::max, stream_of(world_), label);
  finish(world_);
  return *tensor.data<std::int32_t>();
}

double Agreement::sum(double value, const char* label) {
  const Tensor tensor(memory_, {1}, DType::f64, MemoryKind::temporary);
  *tensor.data<double>() = value;
  world_.all_reduce(tensor, Reduce::sum, stream_of(world_), label);
  finish(world_);
  return *tensor.data<double>();
}

std::string Agreement::broadcast(const std::string& text, int root, const char* label) {
  const std::int32_t length = largest(rank() == root ? length_of(text) : 0, label);
  const Tensor tensor = bytes(length);
  if (rank() == root) std::copy(text.begin(), text.end(), tensor.data<char>());
  world_.broadcast(tensor, root, stream_of(world_), label);
  finish(world_);
  return {tensor.data<char>(), static_cast<std::size_t>(length)};
}

std::string Agreement::first(const std::string& text, const char* label) {
  const std::int32_t speaker = size() - largest(text.empty() ? 0 : size() - rank(), label);
  return speaker == size() ? "" : broadcast(text, speaker, label);
}

std::vector<std::string> Agreement::gather(const std::string& text, const char* label) {
  const Tensor lengths(memory_, {size()}, DType::i32, MemoryKind::temporary);
  const Tensor mine = lengths.slice_columns(rank(), rank() + 1);
  *mine.data<std::int32_t>() = length_of(text);
  world_.all_gather(mine, lengths, stream_of(world_), label);
  finish(world_);

  const Tensor letter = bytes(length_of(text));
  std::copy(text.begin(), text.end(), letter.data<char>());
  std::vector<Message> sends, receives;
  for (int peer = 1; rank() == 0 && peer < size(); ++peer)
    receives.push_back({bytes(lengths.data<std::int32_t>()[peer]), peer});
  if (rank() != 0) sends.push_back({letter, 0});
  world_.exchange(sends, receives, stream_of(world_), label);
  finish(world_);
  if (rank() != 0) return {};
  std::vector<std::string> texts{text};
  for (const Message& message : receives)
    texts.emplace_back(message.tensor.data<char>(),
                       static_cast<std::size_t>(lengths.data<std::int32_t>()[message.peer]));
  return texts;
}

void Agreement::on_rank_0(const std::function<void()>& work, const char* label) {
  enum : std::int32_t { returned, config_error, error };
  std::int32_t end = returned;
  std::string text;
  if (rank() == 0) {
    try {
      work();
    } catch (const ConfigError& mistake) {
      end = config_error;
      text = mistake.what();
    } catch (const std::exception& failure) {
      end = error;
      text = failure.what();
    }
  }
  end = largest(end, label);
  if (end == returned) return;
  text = broadcast(text, 0, label);
  if (end == config_error) throw ConfigError(Problem{.what = text});
  throw SharedError({.what = text});
}

void Agreement::barrier(const char* label) {
  world_.barrier(stream_of(world_), label);
  finish(world_);
}

}  // namespace choir
