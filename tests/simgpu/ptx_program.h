// A kernel in the form that the interpreter runs: instructions whose operands are register numbers and constants.
//
// Registers are 64-bit slots; the low bytes hold the value. Special registers (%tid.x ...) and constants are ordinary
// registers that are set before a thread starts, so that every operand is a register.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace choir::simgpu::ptx {

// clang-format off
enum class Type : std::uint8_t {
  none, pred, b8, u8, s8, b16, u16, s16, f16, bf16, b32, u32, s32, f32, f16x2, bf16x2, b64, u64, s64, f64, f32x2
};
// clang-format on

constexpr int bytes_of(Type type) {
  switch (type) {
    case Type::none:
    case Type::pred:
    case Type::b8:
    case Type::u8:
    case Type::s8:
      return 1;
    case Type::b16:
    case Type::u16:
    case Type::s16:
    case Type::f16:
    case Type::bf16:
      return 2;
    case Type::b64:
    case Type::u64:
    case Type::s64:
    case Type::f64:
    case Type::f32x2:
      return 8;
    default:
      return 4;
  }
}
constexpr bool is_signed(Type type) {
  return type == Type::s8 || type == Type::s16 || type == Type::s32 || type == Type::s64;
}
constexpr bool is_float(Type type) {
  return type == Type::f16 || type == Type::bf16 || type == Type::f32 || type == Type::f64;
}
constexpr bool is_packed(Type type) { return type == Type::f16x2 || type == Type::bf16x2 || type == Type::f32x2; }

// clang-format off
enum class Op : std::uint8_t {
  nothing, move, load, store, convert, to_generic, from_generic, is_space,
  add, subtract, multiply, multiply_add, fused_multiply_add, divide, remainder, minimum, maximum, negate, absolute,
  bit_and, bit_or, bit_xor, bit_not, shift_left, shift_right, funnel_left, funnel_right, bit_insert, bit_extract,
  permute, lop3, population, leading_zeros, find_bit, reverse_bits, copy_sign, test_finite,
  set_predicate, set, select, branch, branch_table, leave, trap,
  exp2, log2, reciprocal, square_root, reciprocal_root, sine, cosine, tanh,
  atomic, reduce, fence, copy_async, copy_commit, copy_wait,
  // At the following operations threads wait, for the block or for the lanes of a mask.
  block_barrier, block_vote, warp_barrier, shuffle, vote, match, warp_reduce, active_mask, load_matrix, mma, wmma_load,
  wmma_store, wmma_mma
};
// clang-format on

// clang-format off
/// Instructions that whole warps run often, in one form each: ptx_frequent.cpp runs them without further decoding.
enum class Frequent : std::uint8_t {
  none, move, add, subtract, multiply, multiply_add, multiply_wide, multiply_wide_signed, multiply_add_wide,
  multiply_add_wide_signed, bit_and, bit_or, bit_xor, bit_not, shift_left, shift_right, shift_right_signed,
  add_f32, subtract_f32, multiply_f32, fused_multiply_add_f32, convert, convert_signed,
  compare, compare_signed, compare_f32, select, shuffle, branch
};
// clang-format on

enum class Space : std::uint8_t { generic, global, shared, local, parameter, constant };

enum class Compare : std::uint8_t { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, number, nan };

// clang-format off
/// What `mode` means for the operations that have variants.
enum Mode : std::uint8_t {
  plain = 0,
  // multiply, multiply_add
  wide, high,
  // convert: rounding to an integer in a float or integer type; to_zero also of a narrower float
  nearest_integer, toward_zero, toward_minus, toward_plus,
  // set_predicate: combination with a third predicate
  combine_and, combine_or, combine_xor,
  // shuffle
  up, down, butterfly, indexed,
  // vote, block_vote, match
  all, any, uniform, ballot, population_count,
  // atomic, reduce, warp_reduce
  atomic_add, atomic_min, atomic_max, exchange, compare_and_swap, atomic_and, atomic_or, atomic_xor, increment,
  decrement,
  // find_bit, funnel shifts
  shift_amount, clamp,
  // wmma
  row_major, column_major
};
// clang-format on

// clang-format off
/// The registers that are set before a thread starts, and one for discarded results.
enum Special : std::int32_t {
  tid_x, tid_y, tid_z, ntid_x, ntid_y, ntid_z, ctaid_x, ctaid_y, ctaid_z, nctaid_x, nctaid_y, nctaid_z, laneid, warpid,
  lanemask_lt, lanemask_le, lanemask_gt, lanemask_ge, lanemask_eq, clock, nwarpid, smid, dynamic_smem_size,
  carry_flag, unwanted, num_specials
};
// clang-format on

/// A register, or `count` operands of Kernel::vectors from index `value` on.
struct Operand {
  std::int32_t reg = unwanted;
  std::uint8_t count = 0;
  bool negated = false;    ///< of a predicate: !%p
  std::int64_t value = 0;  ///< of an address: added to the register
};

struct Instruction {
  Op op = Op::nothing;
  Frequent frequent = Frequent::none;
  Type type = Type::none, from = Type::none;
  Space space = Space::generic;
  Mode mode = plain, second_mode = plain;
  Compare compare = Compare::eq;
  bool saturate = false, nan_wins = false, carry_in = false, carry_out = false;
  bool guard_negated = false;
  std::uint8_t num_operands = 0;
  std::int32_t guard = -1;    ///< predicate register, or -1
  std::int32_t target = -1;   ///< instruction of a branch; index into Kernel::tables of branch_table
  std::int32_t shape_k = 16;  ///< of mma
  std::int32_t line = 0;      ///< of the PTX text
  std::int32_t source = -1;   ///< index into Program::sources
  Operand operands[6];        ///< destination first
};

/// Where dynamic shared memory begins in the shared address space: after any static shared memory.
inline constexpr std::int64_t dynamic_shared_begin = 64 << 10;

struct Kernel {
  std::string name;
  std::vector<Instruction> code;  ///< the last one exits
  std::vector<Operand> vectors;
  std::vector<std::vector<std::int32_t>> tables;  ///< instructions of branch_table
  std::int32_t num_registers = num_specials;
  std::map<std::int64_t, std::int32_t> constants;                 ///< the register of each
  std::vector<std::pair<std::int64_t, std::int64_t>> parameters;  ///< offset, bytes
  std::int64_t parameter_bytes = 0, static_shared_bytes = 0, local_bytes = 0;
  int max_threads = 1024;
};

struct SourceLine {
  std::int32_t file = 0, line = 0;
  auto operator<=>(const SourceLine&) const = default;
};

struct Program {
  std::string target;
  std::map<std::string, Kernel> kernels;
  std::map<std::int32_t, std::string> files;
  std::vector<SourceLine> sources;
  std::map<std::string, std::vector<unsigned char>> globals;  ///< .global and .const variables

  /// "kernels/cuda/norm.cu:41 (ptx line 310)"
  std::string where(const Instruction&) const;
};

/// The form of an instruction with all of its operands.
Frequent frequent_form(const Instruction&);

/// Throws std::runtime_error "ptx line N: ..." on anything that is not understood.
Program parse(std::string_view text);

}  // namespace choir::simgpu::ptx
