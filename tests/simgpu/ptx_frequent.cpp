// The frequent instructions of a warp whose 32 lanes are all at the same instruction: most of what a kernel executes.
//
// One loop runs them until an instruction of another kind, or one that only some of the lanes run. What it computes is
// what compute() in ptx_thread.cpp does.
#include <algorithm>
#include <cmath>

#include "tests/simgpu/ptx_block.h"
#include "tests/simgpu/ptx_values.h"

namespace choir::simgpu::ptx {
namespace {

using Bits = std::uint64_t;

bool has_vector(const Instruction& in) { return in.operands[0].count > 0 || in.operands[1].count > 0; }

Frequent of_floats(const Instruction& in) {
  switch (in.op) {
    case Op::add:
      return Frequent::add_f32;
    case Op::subtract:
      return Frequent::subtract_f32;
    case Op::multiply:
      return Frequent::multiply_f32;
    case Op::multiply_add:
    case Op::fused_multiply_add:
      return Frequent::fused_multiply_add_f32;
    case Op::move:
      return Frequent::move;
    case Op::set_predicate:
      return Frequent::compare_f32;
    default:
      return Frequent::none;
  }
}

Frequent of_integers(const Instruction& in) {
  const bool wide_32 = in.mode == wide && bytes_of(in.type) == 4;
  if (in.carry_in || in.carry_out) return Frequent::none;
  switch (in.op) {
    case Op::move:
      return Frequent::move;
    case Op::add:
      return Frequent::add;
    case Op::subtract:
      return Frequent::subtract;
    case Op::multiply:
      if (wide_32) return is_signed(in.type) ? Frequent::multiply_wide_signed : Frequent::multiply_wide;
      return in.mode == plain ? Frequent::multiply : Frequent::none;
    case Op::multiply_add:
      if (wide_32) return is_signed(in.type) ? Frequent::multiply_add_wide_signed : Frequent::multiply_add_wide;
      return in.mode == plain ? Frequent::multiply_add : Frequent::none;
    case Op::bit_and:
      return Frequent::bit_and;
    case Op::bit_or:
      return Frequent::bit_or;
    case Op::bit_xor:
      return Frequent::bit_xor;
    case Op::bit_not:
      return Frequent::bit_not;
    case Op::shift_left:
      return Frequent::shift_left;
    case Op::shift_right:
      return is_signed(in.type) ? Frequent::shift_right_signed : Frequent::shift_right;
    case Op::set_predicate:
      return is_signed(in.type) ? Frequent::compare_signed : Frequent::compare;
    default:
      return Frequent::none;
  }
}

}  // namespace

Frequent frequent_form(const Instruction& in) {
  if (in.op == Op::branch) return Frequent::branch;
  if (in.op == Op::select) return Frequent::select;
  if (in.op == Op::shuffle) return Frequent::shuffle;
  if (has_vector(in)) return Frequent::none;
  if (in.op == Op::set_predicate && (in.mode != plain || in.num_operands != 3)) return Frequent::none;
  if (in.op == Op::convert) {
    if (is_float(in.type) || is_packed(in.type) || in.type == Type::b32 || is_float(in.from) || in.saturate)
      return Frequent::none;
    return is_signed(in.from) ? Frequent::convert_signed : Frequent::convert;
  }
  const bool arithmetic_of_pairs = in.type == Type::f32x2 && in.op != Op::move && in.op != Op::set_predicate;
  if (in.type == Type::f32 || arithmetic_of_pairs) return of_floats(in);
  return is_float(in.type) || is_packed(in.type) ? Frequent::none : of_integers(in);
}

/// Runs the instructions from `pc` on that are frequent and that all lanes run, and returns the first other one.
VECTORISED [[gnu::flatten]] std::int32_t Grid::run_frequent(int warp_index, std::int32_t pc) {
  const Instruction* const code = kernel_.code.data();
  Bits* const registers = row(0, warp_index);
  std::int64_t count = 0;
  for (;; ++pc) {
    const Instruction& in = code[pc];
    if (in.frequent == Frequent::none) break;
    const auto operand = [&](int i) { return registers + std::int64_t{in.operands[i].reg} * warp; };
    if (in.guard >= 0) {
      const Lanes lanes =
          lanes_that_hold(registers + std::int64_t{in.guard} * warp) ^ (in.guard_negated ? ~Lanes{0} : 0);
      if (lanes != 0 && lanes != ~Lanes{0}) break;
      if (lanes == 0) {
        ++count;
        continue;
      }
    }
    Bits* const results = operand(0);
    const Bits *const a = operand(1), *const b = operand(2), *const c = operand(3);
    const Bits mask = zero_extended(~Bits{0}, in.type);
    const auto put = [&](auto function) {  // results[lane] = function(lane)
#pragma GCC ivdep                          // rows of registers do not overlap
      for (int lane = 0; lane < warp; ++lane) results[lane] = function(lane);
    };
    // A register of f32 is two floats, the upper of no meaning: to compute it as well is faster than to leave it out.
    const auto put_f32 = [&](auto function) {
      using Float [[gnu::may_alias]] = float;
      auto* const f = reinterpret_cast<Float*>(results);
      const auto *const x = reinterpret_cast<const Float*>(a), *const y = reinterpret_cast<const Float*>(b),
                        *const z = reinterpret_cast<const Float*>(c);
#pragma GCC ivdep
      for (int i = 0; i < 2 * warp; ++i) f[i] = function(x[i], y[i], z[i]);
    };
    const auto as_s32 = [](Bits bits) { return static_cast<std::int64_t>(static_cast<std::int32_t>(bits)); };
    const auto as_u32 = [](Bits bits) { return Bits{static_cast<std::uint32_t>(bits)}; };
    const auto sign_extend = [unused = 64 - 8 * bytes_of(in.op == Op::convert ? in.from : in.type)](Bits bits) {
      return static_cast<std::int64_t>(bits << unused) >> unused;
    };
    const auto width = static_cast<Bits>(8 * bytes_of(in.type));
    switch (in.frequent) {
      case Frequent::move:
        put([&](int i) { return a[i] & mask; });
        break;
      case Frequent::add:
        put([&](int i) { return (a[i] + b[i]) & mask; });
        break;
      case Frequent::subtract:
        put([&](int i) { return (a[i] - b[i]) & mask; });
        break;
      case Frequent::multiply:
        put([&](int i) { return a[i] * b[i] & mask; });
        break;
      case Frequent::multiply_add:
        put([&](int i) { return (a[i] * b[i] + c[i]) & mask; });
        break;
      case Frequent::multiply_wide:
        put([&](int i) { return as_u32(a[i]) * as_u32(b[i]); });
        break;
      case Frequent::multiply_wide_signed:
        put([&](int i) { return static_cast<Bits>(as_s32(a[i]) * as_s32(b[i])); });
        break;
      case Frequent::multiply_add_wide:
        put([&](int i) { return as_u32(a[i]) * as_u32(b[i]) + c[i]; });
        break;
      case Frequent::multiply_add_wide_signed:
        put([&](int i) { return static_cast<Bits>(as_s32(a[i]) * as_s32(b[i])) + c[i]; });
        break;
      case Frequent::bit_and:
        put([&](int i) { return a[i] & b[i]; });
        break;
      case Frequent::bit_or:
        put([&](int i) { return a[i] | b[i]; });
        break;
      case Frequent::bit_xor:
        put([&](int i) { return a[i] ^ b[i]; });
        break;
      case Frequent::bit_not:
        put([&](int i) { return ~a[i] & mask; });
        break;
      case Frequent::shift_left:
        put([&](int i) {
          const Bits by = b[i] & 0xffffffff;
          return by >= width ? 0 : a[i] << by & mask;
        });
        break;
      case Frequent::shift_right:
        put([&](int i) {
          const Bits by = b[i] & 0xffffffff;
          return by >= width ? 0 : (a[i] & mask) >> by;
        });
        break;
      case Frequent::shift_right_signed:
        put([&](int i) {
          return static_cast<Bits>(sign_extend(a[i]) >> std::min(b[i] & 0xffffffff, width - 1)) & mask;
        });
        break;
      case Frequent::add_f32:
        put_f32([](float x, float y, float) { return x + y; });
        break;
      case Frequent::subtract_f32:
        put_f32([](float x, float y, float) { return x - y; });
        break;
      case Frequent::multiply_f32:
        put_f32([](float x, float y, float) { return x * y; });
        break;
      case Frequent::fused_multiply_add_f32:
        put_f32([](float x, float y, float z) { return std::fma(x, y, z); });
        break;
      case Frequent::convert: {
        const Bits kept = mask & zero_extended(~Bits{0}, in.from);
        put([&](int i) { return a[i] & kept; });
        break;
      }
      case Frequent::convert_signed:
        put([&](int i) { return static_cast<Bits>(sign_extend(a[i])) & mask; });
        break;
      case Frequent::compare:
        put([&, relation = relation_of(in.compare)](int i) { return holds(relation, a[i] & mask, b[i] & mask); });
        break;
      case Frequent::compare_signed:
        put([&, relation = relation_of(in.compare)](int i) {
          return holds(relation, sign_extend(a[i]), sign_extend(b[i]));
        });
        break;
      case Frequent::compare_f32:
        put([&, relation = relation_of(in.compare)](int i) { return holds(relation, as_f32(a[i]), as_f32(b[i])); });
        break;
      case Frequent::select: {
        const Bits wanted = in.operands[3].negated ? 0 : 1;
        put([&](int i) { return (c[i] & 1) == wanted ? a[i] : b[i]; });
        break;
      }
      case Frequent::shuffle: {                 // shuffle() in ptx_warp.cpp, of all lanes
        const int first = in.num_operands - 4;  // 2 if there is a predicate for lanes that read inside their segment
        const Bits *const distances = operand(first + 1), *const clamps = operand(first + 2),
                          *const masks = operand(first + 3);
        Lanes in_all = ~Lanes{0};
        for (int lane = 0; lane < warp; ++lane) in_all &= static_cast<Lanes>(masks[lane]);
        if (in_all != ~Lanes{0}) {
          result_.instructions += count * warp;
          return pc;
        }
        Bits values[warp];
        std::copy_n(operand(first), warp, values);
        Bits* const was_inside = registers + std::int64_t{first == 2 ? in.operands[1].reg : unwanted} * warp;
        Bits sources[warp];
        for (int lane = 0; lane < warp; ++lane) {
          const auto by = static_cast<int>(distances[lane] & 31), clamp = static_cast<int>(clamps[lane]);
          const int segment = clamp >> 8 & 31, begin = lane & segment, limit = begin | (clamp & 31 & ~segment);
          const int source = in.mode == up          ? lane - by
                             : in.mode == down      ? lane + by
                             : in.mode == butterfly ? lane ^ by
                                                    : begin | (by & ~segment);
          const bool inside = in.mode == up ? source >= limit : source <= limit;
          was_inside[lane] = inside;
          sources[lane] = static_cast<Bits>(inside ? source : lane);
        }
        put([&](int lane) { return values[sources[lane]] & 0xffffffff; });
        break;
      }
      case Frequent::branch:
        pc = in.target - 1;
        break;
      case Frequent::none:
        break;
    }
    ++count;
  }
  result_.instructions += count * warp;
  return pc;
}

}  // namespace choir::simgpu::ptx
