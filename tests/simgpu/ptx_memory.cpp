// Loads, stores, atomics and asynchronous copies of the interpreter. resolve() checks every address.
#include <algorithm>
#include <cstring>

#include "tests/simgpu/ptx_block.h"
#include "tests/simgpu/ptx_values.h"

namespace choir::simgpu::ptx {
namespace {

const char* verb(AccessKind kind) {
  return kind == AccessKind::read ? "read" : kind == AccessKind::write ? "write" : "atomic operation";
}

/// The largest power of two that starts at `offset`, is no more than 16 and fits into `bytes`.
std::int64_t piece_at(std::uint64_t offset, std::int64_t bytes) {
  std::int64_t piece = 16;
  while (piece > bytes || offset % static_cast<std::uint64_t>(piece) != 0) piece /= 2;
  return piece;
}

std::string hexadecimal(std::uint64_t value) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

void Grid::report(const Problem& problem, const Instruction& in, std::uint64_t address, const char* memory,
                  std::int64_t bytes, AccessKind kind, int thread) {
  std::string what = std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes of " + memory + " memory at " +
                     hexadecimal(address);
  if (problem.other.block == checker_.block)
    what += ", unordered with an access of thread " + std::to_string(problem.other.thread) + " of the same block";
  else if (problem.other.block != 0)
    what += ", unordered with an access of another block";
  else if (std::strcmp(problem.kind, "uninitialised read") == 0)
    what += ", which nothing has written";
  add_finding(problem.kind, in, thread, what);
}

bool Grid::in_module_variable(std::uint64_t address, std::int64_t bytes) const {
  for (const auto& [name, storage] : program_.globals) {
    const auto begin = reinterpret_cast<std::uintptr_t>(storage.data());
    if (address >= begin && address + static_cast<std::uint64_t>(bytes) <= begin + storage.size()) return true;
  }
  return false;
}

bool Grid::is_in_shared(std::int64_t offset, std::int64_t bytes) const {
  const bool in_static = offset >= 0 && offset + bytes <= kernel_.static_shared_bytes;
  const bool in_dynamic = offset >= dynamic_shared_begin && offset + bytes <= shared_bytes_;
  return in_static || in_dynamic;
}

unsigned char* Grid::resolve_shared(const Instruction& in, std::int64_t offset, std::int64_t bytes, AccessKind kind,
                                    int thread) {
  if (!is_in_shared(offset, bytes)) {
    add_finding(
        "out of bounds", in, thread,
        std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes of shared memory, at byte " +
            std::to_string(offset >= dynamic_shared_begin ? offset - dynamic_shared_begin : offset) +
            (offset >= dynamic_shared_begin ? " of " + std::to_string(launch_.dynamic_shared_bytes) + " dynamic ones"
                                            : " of " + std::to_string(kernel_.static_shared_bytes) + " static ones"));
    return nullptr;
  }
  if ((offset & (bytes - 1)) != 0) {  // a power of two
    add_finding("misaligned", in, thread,
                std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes of shared memory at byte " +
                    std::to_string(offset));
    return nullptr;
  }
  const bool recorded =
      !launch_.check || (kind == AccessKind::write && checker_.write_first(shared_shadow_, offset, bytes, thread)) ||
      (kind == AccessKind::read &&
       checker_.read_together(shared_shadow_, offset, bytes, thread / warp, Lanes{1} << thread % warp));
  if (recorded) return shared_ + offset;
  if (const Problem problem = checker_.access_shared(shared_shadow_, offset, bytes, kind, thread); problem.kind)
    report(problem, in, static_cast<std::uint64_t>(offset), "shared", bytes, kind, thread);
  return shared_ + offset;
}

unsigned char* Grid::resolve_global(const Instruction& in, std::uint64_t address, std::int64_t bytes, AccessKind kind,
                                    int thread) {
  if (kind != AccessKind::write) result_.bytes_read += bytes;
  if (kind != AccessKind::read) result_.bytes_written += bytes;
  auto* pointer = reinterpret_cast<unsigned char*>(address);
  Allocation* allocation = checker_.find(address);
  if (allocation == nullptr && in_module_variable(address, bytes)) return pointer;
  const bool inside = allocation != nullptr && address + static_cast<std::uint64_t>(bytes) <=
                                                   allocation->begin + static_cast<std::uint64_t>(allocation->bytes);
  if (!inside) {
    std::string where = "outside every allocation";
    if (allocation == nullptr) {
      const auto after = checker_.allocations.upper_bound(address);
      constexpr std::uint64_t near = 4096;
      if (after != checker_.allocations.end() && after->second->begin - address <= near)
        where = std::to_string(after->second->begin - address) + " bytes before an allocation of " +
                std::to_string(after->second->bytes) + " bytes";
      if (after != checker_.allocations.begin() && address - std::prev(after)->first <= near)
        where = std::to_string(address - std::prev(after)->first) + " bytes behind the end of an allocation of " +
                std::to_string(std::prev(after)->second->bytes) + " bytes";
    } else {
      where = "across the end of an allocation of " + std::to_string(allocation->bytes) + " bytes";
    }
    add_finding("out of bounds", in, thread,
                std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes of global memory at " +
                    hexadecimal(address) + ", " + where);
    return nullptr;
  }
  if ((address & static_cast<std::uint64_t>(bytes - 1)) != 0) {  // a power of two
    add_finding("misaligned", in, thread,
                std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes of global memory at " +
                    hexadecimal(address));
    return nullptr;
  }
  if (launch_.check)
    if (const Problem problem = checker_.access(*allocation, address, bytes, kind, thread); problem.kind)
      report(problem, in, address, "global", bytes, kind, thread);
  return pointer;
}

/// The address of the bytes, or null after a finding: then a load returns zeros and a store is discarded.
unsigned char* Grid::resolve(const Instruction& in, Space space, std::uint64_t address, std::int64_t bytes,
                             AccessKind kind, int thread) {
  const auto shared_begin = reinterpret_cast<std::uintptr_t>(shared_);
  const auto local_begin = reinterpret_cast<std::uintptr_t>(local_.data());
  unsigned char* my_local = local_.data() + thread * kernel_.local_bytes;
  switch (space) {
    case Space::parameter:
      if (static_cast<std::int64_t>(address) + bytes > static_cast<std::int64_t>(launch_.parameters.size()))
        stop("out of bounds", in, thread, "the launch has passed fewer parameters than the kernel reads");
      return reinterpret_cast<unsigned char*>(const_cast<std::byte*>(launch_.parameters.data())) + address;
    case Space::constant:
      return reinterpret_cast<unsigned char*>(address);
    case Space::local:
      if (static_cast<std::int64_t>(address) + bytes > kernel_.local_bytes) {
        add_finding("out of bounds", in, thread, "access of local memory at byte " + std::to_string(address));
        return nullptr;
      }
      return my_local + address;
    case Space::shared:
      return resolve_shared(in, static_cast<std::int64_t>(address & 0xffffffff), bytes, kind, thread);
    case Space::generic:
      if (address - shared_begin < static_cast<std::uint64_t>(shared_bytes_))
        return resolve_shared(in, static_cast<std::int64_t>(address - shared_begin), bytes, kind, thread);
      if (address - local_begin < local_.size()) return reinterpret_cast<unsigned char*>(address);
      return resolve_global(in, address, bytes, kind, thread);
    case Space::global:
      break;
  }
  return resolve_global(in, address, bytes, kind, thread);
}

namespace {

/// body(T{}) with the integer type T of values of `type` in memory.
template <class Body>
void with_stored(Type type, Body&& body) {
  switch (bytes_of(type)) {
    case 1:
      return is_signed(type) ? body(std::int8_t{}) : body(std::uint8_t{});
    case 2:
      return is_signed(type) ? body(std::int16_t{}) : body(std::uint16_t{});
    case 4:
      return is_signed(type) ? body(std::int32_t{}) : body(std::uint32_t{});
    default:
      return body(std::uint64_t{});
  }
}

}  // namespace

/// Finds what each of `lanes` reads of shared memory. Those that read the same are checked together.
void Grid::resolve_shared_reads(const Instruction& in, int warp_index, Lanes lanes, std::int64_t size,
                                const unsigned char* bytes[warp]) {
  const Operand& from = in.operands[1];
  const std::uint64_t* const bases = row(from.reg, warp_index);
  constexpr std::uint64_t places = 64;
  std::int8_t leader_at[places];  // the last lane that reads an address of this hash
  std::fill_n(leader_at, places, std::int8_t{-1});
  Lanes leaders = 0, group[warp];
  each_lane(lanes, [&](int lane) {
    std::int8_t& leader = leader_at[(bases[lane] / 4 + bases[lane] / 64) % places];
    if (leader >= 0 && bases[leader] == bases[lane]) {
      group[leader] |= Lanes{1} << lane;
      return;
    }
    leader = static_cast<std::int8_t>(lane);
    leaders |= Lanes{1} << lane;
    group[lane] = Lanes{1} << lane;
  });
  each_lane(leaders, [&](int leader) {
    const auto at = static_cast<std::int64_t>((bases[leader] + static_cast<std::uint64_t>(from.value)) & 0xffffffff);
    const bool recorded =
        is_in_shared(at, size) && (at & (size - 1)) == 0 &&
        (!launch_.check || checker_.read_together(shared_shadow_, at, size, warp_index, group[leader]));
    each_lane(group[leader], [&](int lane) {
      bytes[lane] = recorded ? shared_ + at : resolve_shared(in, at, size, AccessKind::read, warp_index * warp + lane);
    });
  });
}

void Grid::load(const Instruction& in, int warp_index, Lanes lanes) {
  static constexpr unsigned char zeros[16] = {};  // what a lane loads after a finding
  const Operand &to = in.operands[0], &from = in.operands[1];
  const int count = std::max<int>(1, to.count), width = bytes_of(in.type), first = warp_index * warp;
  const unsigned char* bytes[warp];
  const std::uint64_t* const bases = row(from.reg, warp_index);
  if (in.space == Space::shared)
    resolve_shared_reads(in, warp_index, lanes, count * width, bytes);
  else
    each_lane(lanes, [&](int lane) {
      const std::uint64_t at = bases[lane] + static_cast<std::uint64_t>(from.value);
      bytes[lane] = resolve(in, in.space, at, count * width, AccessKind::read, first + lane);
    });
  each_lane(lanes, [&](int lane) {
    if (bytes[lane] == nullptr) bytes[lane] = zeros;
  });
  with_stored(in.type, [&](auto stored) {
    for (int i = 0; i < count; ++i) {
      std::uint64_t* const loaded = row(part(to, i).reg, warp_index);
      each_lane(lanes, [&](int lane) {
        std::memcpy(&stored, bytes[lane] + i * width, sizeof stored);
        loaded[lane] = static_cast<std::uint64_t>(static_cast<std::int64_t>(stored));
      });
    }
  });
}

void Grid::store(const Instruction& in, int warp_index, Lanes lanes) {
  if (in.space == Space::parameter) return;  // an argument of a call, which is never executed
  const Operand &to = in.operands[0], &from = in.operands[1];
  const int count = std::max<int>(1, from.count), width = bytes_of(in.type), first = warp_index * warp;
  with_stored(in.type, [&](auto stored) {
    each_lane(lanes, [&](int lane) {
      unsigned char* bytes =
          resolve(in, in.space, address(to, first + lane), count * width, AccessKind::write, first + lane);
      if (bytes == nullptr) return;
      for (int i = 0; i < count; ++i)
        std::memcpy(bytes + i * width, &value(part(from, i), first + lane), sizeof stored);
    });
  });
}

namespace {

std::uint64_t combined(const Instruction& in, std::uint64_t old, std::uint64_t operand, std::uint64_t swapped) {
  const Type type = in.type;
  const std::uint64_t a = zero_extended(old, type), b = zero_extended(operand, type);
  const bool less = is_float(type)    ? to_double(a, type) < to_double(b, type)
                    : is_signed(type) ? sign_extended(a, type) < sign_extended(b, type)
                                      : a < b;
  switch (in.mode) {
    case atomic_add:
      if (type == Type::f32) return bits_of(as_f32(a) + as_f32(b));
      return is_float(type) ? from_double(to_double(a, type) + to_double(b, type), type) : a + b;
    case atomic_min:
      return less ? a : b;
    case atomic_max:
      return less ? b : a;
    case exchange:
      return b;
    case compare_and_swap:
      return a == b ? swapped : a;
    case atomic_and:
      return a & b;
    case atomic_or:
      return a | b;
    case atomic_xor:
      return a ^ b;
    case increment:
      return a >= b ? 0 : a + 1;
    default:  // decrement
      return a == 0 || a > b ? b : a - 1;
  }
}

}  // namespace

void Grid::atomic(const Instruction& in, int thread) {
  const int first = in.op == Op::atomic ? 1 : 0;  // of address, value and, for compare and swap, new value
  const auto width = static_cast<std::size_t>(bytes_of(in.type));
  unsigned char* bytes = resolve(in, in.space, address(in.operands[first], thread), static_cast<std::int64_t>(width),
                                 AccessKind::atomic, thread);
  std::uint64_t old = 0;
  if (bytes != nullptr) {
    std::memcpy(&old, bytes, width);
    const std::uint64_t swapped = in.mode == compare_and_swap ? value(in.operands[first + 2], thread) : 0;
    const std::uint64_t now = combined(in, old, value(in.operands[first + 1], thread), swapped);
    std::memcpy(bytes, &now, width);
  }
  if (in.op == Op::atomic) value(in.operands[0], thread) = old;
}

/// cp.async to, from, bytes [, bytes that are read: the rest becomes zero]. The bytes are copied when the thread waits
/// for them; until then the target counts as not written.
void Grid::copy_async(const Instruction& in, int index) {
  Thread& thread = threads_[static_cast<std::size_t>(index)];
  const auto bytes = static_cast<std::int64_t>(value(in.operands[2], index));
  const std::int64_t read = in.num_operands > 3
                                ? std::min(bytes, static_cast<std::int64_t>(value(in.operands[3], index) & 0xffffffff))
                                : bytes;
  const auto to = static_cast<std::int64_t>(address(in.operands[0], index) & 0xffffffff);
  if (resolve_shared(in, to, bytes, AccessKind::write, index) == nullptr) return;
  if (launch_.check) checker_.forget_shared(shared_shadow_, to, bytes);
  const unsigned char* from = nullptr;
  const std::uint64_t source = address(in.operands[1], index);
  for (std::int64_t done = 0; done < read;) {
    const std::uint64_t at = source + static_cast<std::uint64_t>(done);
    const std::int64_t piece = piece_at(at, read - done);
    const unsigned char* found = resolve_global(in, at, piece, AccessKind::read, index);
    if (found == nullptr) return;
    if (done == 0) from = found;
    done += piece;
  }
  if (source % static_cast<std::uint64_t>(bytes) != 0 && read > 0)
    add_finding("misaligned", in, index, "cp.async of " + std::to_string(bytes) + " bytes from " + hexadecimal(source));
  if (thread.copies.empty()) thread.copies.emplace_back();
  thread.copies.back().push_back({.to = to, .from = from, .bytes = read});
  std::memset(shared_ + to, 0xff, static_cast<std::size_t>(bytes));
  if (read < bytes) thread.copies.back().push_back({.to = to + read, .from = nullptr, .bytes = bytes - read});
}

/// Carries out all groups but the last `groups_left` closed ones; with -1 also the open one.
void Grid::land_copies(const Instruction& in, int index, std::int64_t groups_left) {
  Thread& thread = threads_[static_cast<std::size_t>(index)];
  if (thread.copies.empty()) return;
  const auto closed = static_cast<std::int64_t>(thread.copies.size()) - 1;
  const std::int64_t landing = groups_left < 0 ? closed + 1 : std::max<std::int64_t>(0, closed - groups_left);
  for (std::int64_t g = 0; g < landing; ++g)
    for (const Copy& copy : thread.copies[static_cast<std::size_t>(g)]) {
      if (copy.from != nullptr)
        std::memcpy(shared_ + copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
      else
        std::memset(shared_ + copy.to, 0, static_cast<std::size_t>(copy.bytes));
      if (!launch_.check) continue;
      for (std::int64_t done = 0; done < copy.bytes;) {
        const std::int64_t at = copy.to + done, piece = piece_at(static_cast<std::uint64_t>(at), copy.bytes - done);
        if (const Problem problem = checker_.access_shared(shared_shadow_, at, piece, AccessKind::write, index);
            problem.kind)
          report(problem, in, static_cast<std::uint64_t>(at), "shared", piece, AccessKind::write, index);
        done += piece;
      }
    }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + landing);
  if (thread.copies.empty()) thread.copies.emplace_back();
}

}  // namespace choir::simgpu::ptx
