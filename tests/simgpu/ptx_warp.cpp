// What the lanes of a warp do together: shuffles, votes, and products of small matrices on tensor cores. Fragment
// layouts are those of the PTX ISA 9.0, sections 9.7.14 and 9.7.15.
#include <algorithm>
#include <cstring>

#include "tests/simgpu/ptx_block.h"
#include "tests/simgpu/ptx_values.h"

namespace choir::simgpu::ptx {
namespace {

float element(std::uint64_t bits, int half, Type type) {
  const std::uint64_t part = bits >> (16 * half) & 0xffff;
  return type == Type::bf16 ? bf16_to_f32(part) : f16_to_f32(part);
}

}  // namespace

/// The operation runs when all lanes of the mask that have not exited have reached it. True if these are `lanes`; else
/// they wait.
bool Grid::runs_at_once(const Instruction& in, int warp_index, Lanes lanes) {
  const int first = warp_index * warp;
  const bool has_mask = in.op == Op::shuffle || in.op == Op::vote || in.op == Op::match || in.op == Op::warp_reduce ||
                        in.op == Op::warp_barrier;
  const std::uint64_t* const masks = row(in.operands[in.num_operands - 1].reg, warp_index);
  const auto mask_of = [&](int lane) { return has_mask ? static_cast<Lanes>(masks[lane]) : ~Lanes{0}; };
  Lanes in_all = ~Lanes{0}, in_any = 0;
  each_lane(lanes, [&](int lane) {
    const Lanes mask = mask_of(lane);
    in_all &= mask;
    in_any |= mask;
    if ((mask >> lane & 1) == 0)
      stop("divergent barrier", in, first + lane, "a lane calls a warp operation whose mask does not contain it");
  });
  WarpState& state = warps_[static_cast<std::size_t>(warp_index)];
  if (in_all == in_any && (in_all & state.alive) == lanes) {
    run_warp_operation(in, first, lanes);
    return true;
  }
  each_lane(lanes, [&](int lane) { threads_[static_cast<std::size_t>(first + lane)].mask = mask_of(lane); });
  state.at_warp_operation |= lanes;
  return false;
}

/// Runs the operations that `lanes` wait at and that all of their lanes have reached.
void Grid::finish_warp_operations(int warp_index, Lanes lanes) {
  WarpState& state = warps_[static_cast<std::size_t>(warp_index)];
  const int first = warp_index * warp;
  const Thread* threads = &threads_[static_cast<std::size_t>(first)];
  each_lane(lanes, [&](int lane) {
    const Thread& thread = threads[lane];
    const Lanes wanted = thread.mask & state.alive;
    const bool waits = (state.at_warp_operation >> lane & 1) != 0;  // not released with an earlier lane
    if (!waits || (state.at_warp_operation & wanted) != wanted) return;
    bool together = true;  // lanes may wait at other operations, or with other masks
    each_lane(wanted, [&](int other) {
      together = together && threads[other].pc == thread.pc && threads[other].mask == thread.mask;
    });
    if (!together) return;
    run_warp_operation(kernel_.code[static_cast<std::size_t>(thread.pc)], first, wanted);
    move_to(warp_index, wanted, thread.pc + 1);
    state.at_warp_operation &= ~wanted;
  });
}

void Grid::run_warp_operation(const Instruction& in, int first, Lanes mask) {
  const bool whole_warp = in.op == Op::load_matrix || in.op == Op::mma || in.op == Op::wmma_load ||
                          in.op == Op::wmma_store || in.op == Op::wmma_mma;
  if (whole_warp && mask != 0xffffffff)
    stop("divergent barrier", in, first,
         "lanes of the warp have ended or do not exist, and this operation needs all 32");
  switch (in.op) {
    case Op::warp_barrier:
      if (launch_.check) checker_.warp_barrier(first / warp, mask);
      break;
    case Op::shuffle:
      return shuffle(in, first, mask);
    case Op::vote:
      return vote(in, first, mask);
    case Op::match:
      return match(in, first, mask);
    case Op::warp_reduce:
      return warp_reduce(in, first, mask);
    case Op::load_matrix:
      return load_matrix(in, first);
    case Op::mma:
      return mma(in, first);
    case Op::wmma_load:
    case Op::wmma_store:
      return wmma_move(in, first);
    default:
      return wmma_mma(in, first);
  }
}

/// shfl.sync d[|p], a, b, c, mask: b is a lane or a distance, c holds the clamp in its low bits and the segment above.
void Grid::shuffle(const Instruction& in, int first, Lanes mask) {
  const int a = in.num_operands - 4, warp_index = first / warp;
  std::uint64_t values[warp];
  std::copy_n(row(in.operands[a].reg, warp_index), warp, values);
  const std::uint64_t *const distances = row(in.operands[a + 1].reg, warp_index), *const limits =
                                                                                      row(in.operands[a + 2].reg,
                                                                                          warp_index);
  std::uint64_t *const results = row(in.operands[0].reg, warp_index), *const was_inside =
                                                                          row(a == 2 ? in.operands[1].reg : unwanted,
                                                                              warp_index);
  each_lane(mask, [&](int lane) {
    const auto b = static_cast<int>(distances[lane] & 31), c = static_cast<int>(limits[lane]);
    const int segment = c >> 8 & 31, limit = (lane & segment) | (c & 31 & ~segment), begin = lane & segment;
    int from = in.mode == up          ? lane - b
               : in.mode == down      ? lane + b
               : in.mode == butterfly ? lane ^ b
                                      : begin | (b & ~segment);
    const bool inside = in.mode == up ? from >= limit : from <= limit;
    if (!inside) from = lane;
    if ((mask >> from & 1u) == 0)
      stop("divergent barrier", in, first + lane,
           "a shuffle reads lane " + std::to_string(from) + ", which is not in its mask");
    results[lane] = zero_extended(values[from], Type::b32);
    was_inside[lane] = inside;
  });
}

void Grid::vote(const Instruction& in, int first, Lanes mask) {
  std::uint32_t votes = 0;
  each_lane(mask, [&](int lane) {
    if (predicate(in.operands[1], first + lane)) votes |= 1u << lane;
  });
  const std::uint64_t result = in.mode == all       ? votes == mask
                               : in.mode == any     ? votes != 0
                               : in.mode == uniform ? votes == mask || votes == 0
                                                    : votes;
  each_lane(mask, [&](int lane) { value(in.operands[0], first + lane) = result; });
}

void Grid::match(const Instruction& in, int first, Lanes mask) {
  const int a = in.num_operands - 2;
  std::uint64_t values[warp] = {};
  each_lane(mask, [&](int lane) { values[lane] = zero_extended(value(in.operands[a], first + lane), in.type); });
  each_lane(mask, [&](int lane) {
    std::uint32_t same = 0;
    each_lane(mask, [&](int other) { same |= static_cast<std::uint32_t>(values[other] == values[lane]) << other; });
    const bool all_same = same == mask;
    value(in.operands[0], first + lane) = in.mode == all ? (all_same ? mask : 0) : same;
    if (a == 2) value(in.operands[1], first + lane) = all_same;
  });
}

void Grid::warp_reduce(const Instruction& in, int first, Lanes mask) {
  bool started = false;
  std::uint64_t result = 0;
  each_lane(mask, [&](int lane) {
    const std::uint64_t next = zero_extended(value(in.operands[1], first + lane), in.type);
    const bool less =
        is_signed(in.type) ? sign_extended(next, in.type) < sign_extended(result, in.type) : next < result;
    if (!started)
      result = next;
    else if (in.mode == atomic_add)
      result += next;
    else if (in.mode == atomic_and)
      result &= next;
    else if (in.mode == atomic_or)
      result |= next;
    else if (in.mode == atomic_xor)
      result ^= next;
    else if (less == (in.mode == atomic_min))
      result = next;
    started = true;
  });
  each_lane(mask, [&](int lane) { value(in.operands[0], first + lane) = zero_extended(result, in.type); });
}

/// ldmatrix: lane 8 m + i has the address of row i of matrix m, 16 bytes; lane t gets two elements of row t / 4, or of
/// column t / 4 if transposed.
void Grid::load_matrix(const Instruction& in, int first) {
  const Operand& to = in.operands[0];
  const int matrices = std::max<int>(1, to.count);
  for (int m = 0; m < matrices; ++m) {
    std::uint16_t rows[8][8] = {};
    for (int i = 0; i < 8; ++i) {
      const int lane = 8 * m + i;
      const std::uint64_t row_at = address(in.operands[1], first + lane);
      if (const unsigned char* bytes = resolve(in, Space::shared, row_at, 16, AccessKind::read, first + lane))
        std::memcpy(rows[i], bytes, 16);
    }
    for (int lane = 0; lane < warp; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const bool transposed = in.mode == column_major;
      const std::uint64_t low = transposed ? rows[column][row] : rows[row][column];
      const std::uint64_t high_half = transposed ? rows[column + 1][row] : rows[row][column + 1];
      value(part(to, m), first + lane) = low | high_half << 16;
    }
  }
}

/// d [16, 8] = a [16, k] b [k, 8] + c. Lane t = 4 g + i holds, of a and b, pairs of elements of 16 bits (or single ones
/// of tf32): a[g + 8 (r % 2)][...], b[...][g]; of c and d rows g and g + 8, columns 2 i and 2 i + 1.
void Grid::mma(const Instruction& in, int first) {
  const int k = in.shape_k, per_register = in.type == Type::f32 ? 1 : 2, step = 4 * per_register;
  float a[16][16] = {}, b[16][8] = {};
  for (int lane = 0; lane < warp; ++lane) {
    const int group = lane / 4, column = lane % 4 * per_register;
    const auto get = [&](const Operand& fragment, int r, int half) {
      const std::uint64_t bits = value(part(fragment, r), first + lane);
      return in.type == Type::f32 ? as_f32(bits) : element(bits, half, in.type);
    };
    for (int half = 0; half < per_register; ++half) {
      for (int r = 0; r < 2 * k / step; ++r)
        a[group + 8 * (r % 2)][column + half + step * (r / 2)] = get(in.operands[1], r, half);
      for (int r = 0; r < k / step; ++r) b[column + half + step * r][group] = get(in.operands[2], r, half);
    }
  }
  for (int lane = 0; lane < warp; ++lane)
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4 + 8 * (r / 2), column = lane % 4 * 2 + r % 2;
      float sum = as_f32(value(part(in.operands[3], r), first + lane));
      for (int i = 0; i < k; ++i) sum += a[row][i] * b[i][column];
      value(part(in.operands[0], r), first + lane) = bits_of(sum);
    }
}

namespace {

// PTX does not specify which elements of a wmma fragment a lane holds, so no program may rely on it: here element e of
// lane t is matrix element `scattered(t, e)`, which is deliberately unlike the fragments of mma.
int scattered(int lane, int e, int count) { return ((e * 32 + lane) * 37 + 5) % count; }

}  // namespace

/// wmma.load d, [p], stride and wmma.store [p], d, stride, of 16 x 16 elements.
void Grid::wmma_move(const Instruction& in, int first) {
  const bool loads = in.op == Op::wmma_load;
  const Operand &fragment = in.operands[loads ? 0 : 1], &where = in.operands[loads ? 1 : 0];
  const int width = bytes_of(in.type), per_lane = 8, per_register = width == 2 ? 2 : 1;
  for (int lane = 0; lane < warp; ++lane) {
    const std::uint64_t base = address(where, first + lane);
    const std::uint64_t stride = in.num_operands > 2 ? value(in.operands[2], first + lane) & 0xffffffff : 16;
    for (int e = 0; e < per_lane; ++e) {
      const int index = scattered(lane, e, 256);
      const auto row = static_cast<std::uint64_t>(index / 16), column = static_cast<std::uint64_t>(index % 16);
      const std::uint64_t offset = in.mode == column_major ? column * stride + row : row * stride + column;
      unsigned char* bytes = resolve(in, in.space, base + offset * static_cast<std::uint64_t>(width), width,
                                     loads ? AccessKind::read : AccessKind::write, first + lane);
      if (bytes == nullptr) continue;
      std::uint64_t& slot = value(part(fragment, e / per_register), first + lane);
      const int shift = 16 * (e % per_register);
      std::uint64_t bits = slot >> shift;
      if (!loads) {
        std::memcpy(bytes, &bits, static_cast<std::size_t>(width));
        continue;
      }
      bits = 0;
      std::memcpy(&bits, bytes, static_cast<std::size_t>(width));
      slot = per_register == 1 ? bits : (slot & ~(std::uint64_t{0xffff} << shift)) | bits << shift;
    }
  }
}

/// d = a b + c, each a fragment of 16 x 16.
void Grid::wmma_mma(const Instruction& in, int first) {
  float a[256], b[256], c[256];
  const Type type = in.type == Type::f32 ? Type::f16 : in.type;
  for (int lane = 0; lane < warp; ++lane)
    for (int e = 0; e < 8; ++e) {
      const int index = scattered(lane, e, 256);
      a[index] = element(value(part(in.operands[1], e / 2), first + lane), e % 2, type);
      b[index] = element(value(part(in.operands[2], e / 2), first + lane), e % 2, type);
      c[index] = as_f32(value(part(in.operands[3], e), first + lane));
    }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 16; ++j) c[i * 16 + j] += a[i * 16 + k] * b[k * 16 + j];
  for (int lane = 0; lane < warp; ++lane)
    for (int e = 0; e < 8; ++e) value(part(in.operands[0], e), first + lane) = bits_of(c[scattered(lane, e, 256)]);
}

}  // namespace choir::simgpu::ptx
