// What each thread does by itself, for all lanes of a warp that are at the same instruction. PTX ISA 9.0, chapter 9.7;
// operations marked approximate there are exact here except for the rounding of the C library.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "tests/simgpu/ptx_block.h"
#include "tests/simgpu/ptx_values.h"

namespace choir::simgpu::ptx {
namespace {

using Bits = std::uint64_t;
using Wide = unsigned __int128;

/// Applies a function to each half of a packed register.
template <class Operation>
Bits each_half(Type type, Bits a, Bits b, Bits c, Operation operation) {
  const Type half = type == Type::f32x2 ? Type::f32 : type == Type::bf16x2 ? Type::bf16 : Type::f16;
  const int width = 8 * bytes_of(half);
  Bits result = 0;
  for (int shift = 0; shift < 2 * width; shift += width) {
    const auto part = [&](Bits bits) { return to_double(bits >> shift & low_bits(width), half); };
    result |= from_double(operation(part(a), part(b), part(c)), half) << shift;
  }
  return result;
}

/// operation(a, b, c) in the type of the instruction.
template <class Operation>
Bits in_float(Type type, Bits a, Bits b, Bits c, Operation operation) {
  if (type == Type::f32) return bits_of(operation(as_f32(a), as_f32(b), as_f32(c)));
  if (type == Type::f64) return bits_of(operation(as_f64(a), as_f64(b), as_f64(c)));
  if (is_packed(type)) return each_half(type, a, b, c, operation);
  return from_double(operation(to_double(a, type), to_double(b, type), to_double(c, type)), type);
}

bool counts_as_float(Type type) { return is_float(type) || is_packed(type); }

template <class F>
F smaller(F a, F b, bool nan_wins) {
  if (std::isnan(a) || std::isnan(b)) return nan_wins ? static_cast<F>(NAN) : std::isnan(a) ? b : a;
  return std::signbit(a) != std::signbit(b) ? (std::signbit(a) ? a : b) : std::min(a, b);
}
template <class F>
F larger(F a, F b, bool nan_wins) {
  return -smaller(-a, -b, nan_wins);
}

Bits minimum_or_maximum(const Instruction& in, Bits a, Bits b) {
  const bool wants_minimum = in.op == Op::minimum;
  if (counts_as_float(in.type))
    return in_float(in.type, a, b, 0, [&](auto x, auto y, auto) {
      return wants_minimum ? smaller(x, y, in.nan_wins) : larger(x, y, in.nan_wins);
    });
  const bool less = is_signed(in.type) ? sign_extended(a, in.type) < sign_extended(b, in.type)
                                       : zero_extended(a, in.type) < zero_extended(b, in.type);
  return zero_extended(less == wants_minimum ? a : b, in.type);
}

/// The full product, of which `multiply` returns the low half, the high half or, if it is wide, all.
Bits product(const Instruction& in, Bits a, Bits b) {
  const Type type = in.type;
  const int width = 8 * bytes_of(type);
  if (in.mode == plain) return zero_extended(a * b, type);
  const auto whole =
      is_signed(type)
          ? static_cast<unsigned __int128>(static_cast<__int128>(sign_extended(a, type)) * sign_extended(b, type))
          : static_cast<unsigned __int128>(zero_extended(a, type)) * zero_extended(b, type);
  if (in.mode == high) return zero_extended(static_cast<Bits>(whole >> width), type);
  return static_cast<Bits>(whole) & low_bits(2 * width);
}

Bits quotient_or_remainder(const Instruction& in, Bits a, Bits b) {
  const bool wants_quotient = in.op == Op::divide;
  if (zero_extended(b, in.type) == 0) return zero_extended(wants_quotient ? ~Bits{0} : a, in.type);
  if (is_signed(in.type)) {
    const std::int64_t x = sign_extended(a, in.type), y = sign_extended(b, in.type);
    if (y == -1) return wants_quotient ? zero_extended(0 - a, in.type) : 0;
    return zero_extended(static_cast<Bits>(wants_quotient ? x / y : x % y), in.type);
  }
  const Bits x = zero_extended(a, in.type), y = zero_extended(b, in.type);
  return wants_quotient ? x / y : x % y;
}

double rounded_to_integer(double value, Mode mode) {
  switch (mode) {
    case toward_zero:
      return std::trunc(value);
    case toward_minus:
      return std::floor(value);
    case toward_plus:
      return std::ceil(value);
    default:
      return std::nearbyint(value);
  }
}

/// A float as an integer of `type`, limited to its range; NaN is 0.
Bits to_integer(double value, Type type) {
  if (std::isnan(value)) return 0;
  const int bits = 8 * bytes_of(type);
  const double low = is_signed(type) ? -std::ldexp(1.0, bits - 1) : 0;
  const double high = std::ldexp(1.0, is_signed(type) ? bits - 1 : bits);  // one too many
  if (value >= high) return is_signed(type) ? low_bits(bits - 1) : low_bits(bits);
  if (value <= low) return zero_extended(is_signed(type) ? Bits{1} << (bits - 1) : 0, type);
  return zero_extended(is_signed(type) ? static_cast<Bits>(static_cast<std::int64_t>(value)) : static_cast<Bits>(value),
                       type);
}

/// If `mode` is plain: to nearest. Narrowing toward zero cuts the mantissa.
Bits float_to_float(const Instruction& in, Bits bits) {
  double value = to_double(bits, in.from);
  const bool narrows = bytes_of(in.type) < bytes_of(in.from);
  if (in.type == Type::b32) {  // tf32: ties away from zero, removes 13 bits of the mantissa
    return std::isnan(value) ? 0x7fffffff : (bits + 0x1000) & 0xffffe000;
  }
  if (in.mode != plain && !narrows) value = rounded_to_integer(value, in.mode);
  if (in.saturate) value = std::isnan(value) ? 0 : std::min(std::max(value, 0.0), 1.0);
  if (in.mode == toward_zero && narrows && in.type == Type::bf16) return bits_of(static_cast<float>(value)) >> 16;
  return from_double(value, in.type);
}

Bits converted(const Instruction& in, Bits bits) {
  const bool to_float = is_float(in.type) || in.type == Type::b32, from_float = is_float(in.from);
  if (from_float && to_float) return float_to_float(in, bits);
  if (from_float) return to_integer(rounded_to_integer(to_double(bits, in.from), in.mode), in.type);
  const std::int64_t integer =
      is_signed(in.from) ? sign_extended(bits, in.from) : static_cast<std::int64_t>(zero_extended(bits, in.from));
  const bool beyond_signed = !is_signed(in.from) && integer < 0;  // of 64 bits
  if (!to_float) {
    if (in.saturate)
      return to_integer(beyond_signed ? static_cast<double>(static_cast<Bits>(integer)) : static_cast<double>(integer),
                        in.type);
    return zero_extended(static_cast<Bits>(integer), in.type);
  }
  if (in.type == Type::f32)
    return bits_of(beyond_signed ? static_cast<float>(static_cast<Bits>(integer)) : static_cast<float>(integer));
  return from_double(beyond_signed ? static_cast<double>(static_cast<Bits>(integer)) : static_cast<double>(integer),
                     in.type);
}

Bits compared(Type type, const Relation& relation, Bits a, Bits b) {
  if (is_float(type)) return holds(relation, to_double(a, type), to_double(b, type));
  if (is_signed(type)) return holds(relation, sign_extended(a, type), sign_extended(b, type));
  return holds(relation, zero_extended(a, type), zero_extended(b, type));
}

/// sign_extended() for one type: what depends on the type is computed once, not in every lane.
auto as_signed(Type type) {
  return [unused = 64 - 8 * bytes_of(type)](Bits bits) { return static_cast<std::int64_t>(bits << unused) >> unused; };
}

Bits permuted(Bits a, Bits b, Bits selector) {
  const Bits bytes = zero_extended(a, Type::b32) | zero_extended(b, Type::b32) << 32;
  Bits result = 0;
  for (int i = 0; i < 4; ++i) {
    const Bits choice = selector >> (4 * i) & 15;
    Bits byte = bytes >> (8 * (choice & 7)) & 255;
    if ((choice & 8) != 0) byte = (byte & 128) != 0 ? 255 : 0;  // its sign, in all bits
    result |= byte << (8 * i);
  }
  return result;
}

Bits looked_up(Bits a, Bits b, Bits c, Bits table) {
  Bits result = 0;
  for (unsigned i = 0; i < 8; ++i)
    if ((table >> i & 1) != 0) result |= ((i & 4) != 0 ? a : ~a) & ((i & 2) != 0 ? b : ~b) & ((i & 1) != 0 ? c : ~c);
  return zero_extended(result, Type::b32);
}

Bits extracted(Type type, Bits a, Bits position, Bits length) {
  position &= 255;
  length &= 255;
  a = zero_extended(a, type);
  const auto width = static_cast<Bits>(8 * bytes_of(type));
  Bits field = position >= width ? 0 : a >> position;
  if (length == 0) return 0;
  if (length < width) field &= low_bits(static_cast<int>(length));
  if (is_signed(type)) {
    const Bits last = std::min(position + length - 1, width - 1);
    if ((a >> last & 1) != 0 && length < 64)
      field |= ~Bits{0} << std::min<Bits>(length, last >= position ? last - position + 1 : 0);
  }
  return zero_extended(field, type);
}

Bits inserted(Type type, Bits field, Bits into, Bits position, Bits length) {
  position &= 255;
  length &= 255;
  if (position >= 64) return into;
  const Bits mask = low_bits(static_cast<int>(std::min<Bits>(length, 64))) << position;
  return zero_extended((into & ~mask) | (field << position & mask), type);
}

Bits found_bit(const Instruction& in, Bits a) {
  const int width = 8 * bytes_of(in.type);
  if (is_signed(in.type) && sign_extended(a, in.type) < 0) a = ~a;
  a = zero_extended(a, in.type);
  if (a == 0) return 0xffffffff;
  const int highest = 63 - __builtin_clzll(a);
  return static_cast<Bits>(in.mode == shift_amount ? width - 1 - highest : highest);
}

Bits reversed(Type type, Bits a) {
  Bits result = 0;
  for (int i = 0, width = 8 * bytes_of(type); i < width; ++i) result |= (a >> i & 1) << (width - 1 - i);
  return result;
}

Bits funnel(const Instruction& in, Bits low, Bits high_part, Bits by) {
  const Bits amount = in.mode == clamp ? std::min<Bits>(by & 0xffffffff, 32) : by & 31;
  const Bits both = zero_extended(low, Type::b32) | high_part << 32;
  const Bits moved = in.op == Op::funnel_left ? (amount == 0 ? both >> 32 : both >> (32 - amount)) : both >> amount;
  return moved & 0xffffffff;
}

}  // namespace

/// Runs one instruction in each of `lanes`. The frequent ones have code for each type, so that their loops vectorise.
/// `flatten`: the functions that it calls are compiled for the same processor.
VECTORISED [[gnu::flatten]] void Grid::compute(const Instruction& in, int warp_index, Lanes lanes) {
  Bits* const results = row(in.operands[0].reg, warp_index);
  const auto operand = [&](int i) -> const Bits* { return row(in.operands[i].reg, warp_index); };
  const Bits *const a = operand(1), *const b = operand(2), *const c = operand(3), *const d = operand(4);
  const auto put = [&](auto function) {  // results[lane] = function(lane)
    if (lanes == ~Lanes{0}) {
#pragma GCC ivdep  // rows of registers do not overlap
      for (int lane = 0; lane < warp; ++lane) results[lane] = function(lane);
    } else {
      each_lane(lanes, [&](int lane) { results[lane] = function(lane); });
    }
  };
  const Type type = in.type;
  const auto floats = [&](auto function) {  // of up to three operands, in the type of the instruction
    if (type == Type::f32)
      put([&](int i) { return bits_of(function(as_f32(a[i]), as_f32(b[i]), as_f32(c[i]))); });
    else
      put([&](int i) { return in_float(type, a[i], b[i], c[i], function); });
  };
  const auto approximate = [&](auto function) {  // of f32
    put([&](int i) { return bits_of(static_cast<float>(function(static_cast<double>(as_f32(a[i]))))); });
  };
  const auto put_sum = [&](int width, auto function) {  // reads the carry of the last instruction and sets a new one
    Bits* const carries = row(carry_flag, warp_index);
    put([&](int i) {
      const Wide sum = function(i, in.carry_in ? carries[i] : 0);
      if (in.carry_out) carries[i] = static_cast<Bits>(sum >> width) & 1;
      return static_cast<Bits>(sum) & low_bits(width);
    });
  };
  const bool in_floats = counts_as_float(type);
  const Bits mask = zero_extended(~Bits{0}, type);
  switch (in.op) {
    case Op::move: {
      const Operand &to = in.operands[0], &from = in.operands[1];
      const int width = 8 * bytes_of(type) / std::max<int>(1, std::max(to.count, from.count));
      if (to.count > 0) {
        each_lane(lanes, [&](int lane) {
          const Bits packed = a[lane];
          for (int i = 0; i < to.count; ++i)
            row(part(to, i).reg, warp_index)[lane] = packed >> (width * i) & low_bits(width);
        });
      } else if (from.count > 0) {
        put([&](int lane) {
          Bits packed = 0;
          for (int i = 0; i < from.count; ++i)
            packed |= (row(part(from, i).reg, warp_index)[lane] & low_bits(width)) << (width * i);
          return packed;
        });
      } else {
        put([&](int i) { return a[i] & mask; });
      }
      break;
    }
    case Op::convert: {
      const bool between_integers = !is_float(type) && type != Type::b32 && !is_float(in.from) && !in.saturate;
      if (is_packed(type)) {
        const Type half = type == Type::bf16x2 ? Type::bf16 : Type::f16;
        put([&](int i) {
          return from_double(to_double(a[i], Type::f32), half) << 16 | from_double(to_double(b[i], Type::f32), half);
        });
      } else if (between_integers && is_signed(in.from)) {
        put([&, sign_extend = as_signed(in.from)](int i) { return static_cast<Bits>(sign_extend(a[i])) & mask; });
      } else if (between_integers) {
        const Bits kept = mask & zero_extended(~Bits{0}, in.from);
        put([&](int i) { return a[i] & kept; });
      } else {
        put([&](int i) { return converted(in, a[i]); });
      }
      break;
    }
    case Op::to_generic:
    case Op::from_generic: {
      const bool in_local = in.space == Space::local;
      const Bits base = in.space == Space::shared ? reinterpret_cast<std::uintptr_t>(shared_)
                        : in_local                ? reinterpret_cast<std::uintptr_t>(local_.data())
                                                  : 0;
      const Bits of_a_thread = in_local ? static_cast<Bits>(kernel_.local_bytes) : 0;
      put([&](int i) {
        const Bits begin = base + static_cast<Bits>(warp_index * warp + i) * of_a_thread;
        return in.op == Op::to_generic ? a[i] + begin : a[i] - begin;
      });
      break;
    }
    case Op::is_space: {
      const auto shared_begin = reinterpret_cast<std::uintptr_t>(shared_),
                 local_begin = reinterpret_cast<std::uintptr_t>(local_.data());
      put([&](int i) -> Bits {
        const bool in_shared = a[i] - shared_begin < static_cast<Bits>(shared_bytes_),
                   in_local = a[i] - local_begin < local_.size();
        return in.space == Space::shared ? in_shared : in.space == Space::local ? in_local : !in_shared && !in_local;
      });
      break;
    }
    case Op::add:
      if (in_floats)
        floats([](auto x, auto y, auto) { return x + y; });
      else if (in.carry_in || in.carry_out)
        put_sum(8 * bytes_of(type), [&](int i, Bits carry) { return Wide{a[i] & mask} + (b[i] & mask) + carry; });
      else
        put([&](int i) { return (a[i] + b[i]) & mask; });
      break;
    case Op::subtract:
      if (in_floats)
        floats([](auto x, auto y, auto) { return x - y; });
      else if (in.carry_in || in.carry_out)
        put_sum(8 * bytes_of(type), [&](int i, Bits carry) { return Wide{a[i] & mask} - (b[i] & mask) - carry; });
      else
        put([&](int i) { return (a[i] - b[i]) & mask; });
      break;
    case Op::multiply:
      if (in_floats)
        floats([](auto x, auto y, auto) { return x * y; });
      else if (in.mode == plain)
        put([&](int i) { return a[i] * b[i] & mask; });
      else
        put([&](int i) { return product(in, a[i], b[i]); });
      break;
    case Op::multiply_add: {
      const int width = 8 * bytes_of(type) * (in.mode == wide ? 2 : 1);
      if (in_floats)
        floats([](auto x, auto y, auto z) { return std::fma(x, y, z); });
      else if (in.carry_in || in.carry_out)
        put_sum(width,
                [&](int i, Bits carry) { return Wide{product(in, a[i], b[i])} + (c[i] & low_bits(width)) + carry; });
      else if (in.mode == plain)
        put([&](int i) { return (a[i] * b[i] + c[i]) & mask; });
      else
        put([&](int i) { return (product(in, a[i], b[i]) + c[i]) & low_bits(width); });
      break;
    }
    case Op::fused_multiply_add:
      floats([](auto x, auto y, auto z) { return std::fma(x, y, z); });
      break;
    case Op::divide:
      if (in_floats)
        floats([](auto x, auto y, auto) { return x / y; });
      else
        put([&](int i) { return quotient_or_remainder(in, a[i], b[i]); });
      break;
    case Op::remainder:
      put([&](int i) { return quotient_or_remainder(in, a[i], b[i]); });
      break;
    case Op::minimum:
    case Op::maximum:
      put([&](int i) {
        const Bits result = minimum_or_maximum(in, a[i], b[i]);
        return in.num_operands > 3 ? minimum_or_maximum(in, result, c[i]) : result;
      });
      break;
    case Op::negate:
      if (in_floats)
        floats([](auto x, auto, auto) { return -x; });
      else
        put([&](int i) { return (0 - a[i]) & mask; });
      break;
    case Op::absolute:
      if (in_floats)
        floats([](auto x, auto, auto) { return std::fabs(x); });
      else
        put([&](int i) { return static_cast<Bits>(std::abs(sign_extended(a[i], type))) & mask; });
      break;
    case Op::bit_and:
      put([&](int i) { return a[i] & b[i]; });
      break;
    case Op::bit_or:
      put([&](int i) { return a[i] | b[i]; });
      break;
    case Op::bit_xor:
      put([&](int i) { return a[i] ^ b[i]; });
      break;
    case Op::bit_not:
      put([&](int i) { return ~a[i] & mask; });
      break;
    case Op::shift_left: {
      const auto width = static_cast<Bits>(8 * bytes_of(type));
      put([&](int i) {
        const Bits by = b[i] & 0xffffffff;
        return by >= width ? 0 : a[i] << by & mask;
      });
      break;
    }
    case Op::shift_right: {
      const auto width = static_cast<Bits>(8 * bytes_of(type));
      if (is_signed(type))
        put([&, sign_extend = as_signed(type)](int i) {
          return static_cast<Bits>(sign_extend(a[i]) >> std::min(b[i] & 0xffffffff, width - 1)) & mask;
        });
      else
        put([&](int i) {
          const Bits by = b[i] & 0xffffffff;
          return by >= width ? 0 : (a[i] & mask) >> by;
        });
      break;
    }
    case Op::funnel_left:
    case Op::funnel_right:
      put([&](int i) { return funnel(in, a[i], b[i], c[i]); });
      break;
    case Op::bit_insert:
      put([&](int i) { return inserted(type, a[i], b[i], c[i], d[i]); });
      break;
    case Op::bit_extract:
      put([&](int i) { return extracted(type, a[i], b[i], c[i]); });
      break;
    case Op::permute:
      put([&](int i) { return permuted(a[i], b[i], c[i]); });
      break;
    case Op::lop3:
      put([&](int i) { return looked_up(a[i], b[i], c[i], d[i]); });
      break;
    case Op::population:
      put([&](int i) { return static_cast<Bits>(__builtin_popcountll(a[i] & mask)); });
      break;
    case Op::leading_zeros:
      put([&](int i) {
        const int width = 8 * bytes_of(type);
        return static_cast<Bits>((a[i] & mask) == 0 ? width : __builtin_clzll(a[i] & mask) - (64 - width));
      });
      break;
    case Op::find_bit:
      put([&](int i) { return found_bit(in, a[i]); });
      break;
    case Op::reverse_bits:
      put([&](int i) { return reversed(type, a[i]); });
      break;
    case Op::copy_sign:  // from the first to the second
      floats([](auto sign, auto magnitude, auto) { return std::copysign(magnitude, sign); });
      break;
    case Op::test_finite:
      put([&](int i) -> Bits { return std::isfinite(to_double(a[i], type)); });
      break;
    case Op::set_predicate: {
      const bool has_second = in.num_operands == (in.mode == plain ? 4 : 5);
      const int first = has_second ? 2 : 1;
      const Bits *const x = operand(first), *const y = operand(first + 1);
      const Relation relation = relation_of(in.compare);
      Bits outcomes[warp];  // of all lanes, whether they take part or not
      const auto compare = [&](auto as_number) {
        for (int i = 0; i < warp; ++i) outcomes[i] = holds(relation, as_number(x[i]), as_number(y[i]));
      };
      if (type == Type::f32)
        compare([](Bits bits) { return as_f32(bits); });
      else if (is_float(type))
        compare([&](Bits bits) { return to_double(bits, type); });
      else if (is_signed(type))
        compare(as_signed(type));
      else
        compare([&](Bits bits) { return bits & mask; });
      if (in.mode == plain && !has_second) {
        put([&](int i) { return outcomes[i]; });
        break;
      }
      Bits* const opposites = row(has_second ? in.operands[1].reg : unwanted, warp_index);
      const Bits* const others = in.mode == plain ? x : operand(first + 2);
      const bool negated = in.mode != plain && in.operands[first + 2].negated;
      each_lane(lanes, [&](int i) {
        const bool outcome = outcomes[i] != 0, other = ((others[i] & 1) != 0) != negated;
        const auto combined = [&](bool result) {
          return in.mode == plain         ? result
                 : in.mode == combine_and ? result && other
                 : in.mode == combine_or  ? result || other
                                          : result != other;
        };
        results[i] = combined(outcome);
        opposites[i] = combined(!outcome);
      });
      break;
    }
    case Op::set: {  // .type is that of the result, .from that of what is compared
      const Bits yes = type == Type::f32 ? bits_of(1.0f) : mask;
      const Relation relation = relation_of(in.compare);
      put([&](int i) { return compared(in.from, relation, a[i], b[i]) != 0 ? yes : 0; });
      break;
    }
    case Op::select: {
      const bool negated = in.operands[3].negated;
      put([&](int i) { return ((c[i] & 1) != 0) != negated ? a[i] : b[i]; });
      break;
    }
    case Op::exp2:
      approximate([](double x) { return std::exp2(x); });
      break;
    case Op::log2:
      approximate([](double x) { return std::log2(x); });
      break;
    case Op::sine:
      approximate([](double x) { return std::sin(x); });
      break;
    case Op::cosine:
      approximate([](double x) { return std::cos(x); });
      break;
    case Op::tanh:
      approximate([](double x) { return std::tanh(x); });
      break;
    case Op::reciprocal:
      floats([](auto x, auto, auto) { return 1 / x; });
      break;
    case Op::square_root:
      floats([](auto x, auto, auto) { return std::sqrt(x); });
      break;
    case Op::reciprocal_root:
      put([&](int i) { return from_double(1 / std::sqrt(to_double(a[i], type)), type); });
      break;
    default:
      stop("trap", in, warp_index * warp + std::countr_zero(lanes), "an instruction that is not simulated");
  }
}

void Grid::move_to(int warp_index, Lanes lanes, std::int32_t pc) {
  Thread* const threads = &threads_[static_cast<std::size_t>(warp_index * warp)];
  each_lane(lanes, [&](int lane) { threads[lane].pc = pc; });
}

/// Runs `turn` until all of its lanes wait or have exited, those that are furthest behind first.
void Grid::run_turn(Turn turn) {
  const auto [warp_index, lanes] = turn;
  const Thread* const threads = &threads_[static_cast<std::size_t>(warp_index * warp)];
  while (const Lanes running = lanes & warps_[static_cast<std::size_t>(warp_index)].running()) {
    std::int32_t pc = std::numeric_limits<std::int32_t>::max(), others = pc;
    Lanes active = 0;
    each_lane(running, [&](int lane) {
      const std::int32_t at = threads[lane].pc;
      if (at < pc) {
        others = pc;
        pc = at;
        active = 0;
      }
      if (at == pc)
        active |= Lanes{1} << lane;
      else
        others = std::min(others, at);
    });
    run_together(warp_index, active, pc, others);
  }
}

/// Runs the lanes `active`, which are all at `pc`, until they diverge, wait, exit, or reach the next of `others`.
void Grid::run_together(int warp_index, Lanes active, std::int32_t pc, std::int32_t others) {
  WarpState& state = warps_[static_cast<std::size_t>(warp_index)];
  const int count = std::popcount(active);
  for (; pc < others; ++pc) {
    if (active == ~Lanes{0}) pc = run_frequent(warp_index, pc);
    const Instruction& in = kernel_.code[static_cast<std::size_t>(pc)];
    result_.instructions += count;
    Lanes lanes = active;
    if (in.guard >= 0) {
      lanes = active & (lanes_that_hold(row(in.guard, warp_index)) ^ (in.guard_negated ? ~Lanes{0} : 0));
      if (lanes == 0) continue;
    }
    const Lanes skipping = active & ~lanes;
    switch (in.op) {
      case Op::branch:
        if (skipping == 0) {
          pc = in.target - 1;
          continue;
        }
        move_to(warp_index, lanes, in.target);
        return move_to(warp_index, skipping, pc + 1);
      case Op::branch_table: {
        const auto& table = kernel_.tables[static_cast<std::size_t>(in.target)];
        each_lane(lanes, [&](int lane) {
          const std::uint64_t entry = value(in.operands[0], warp_index * warp + lane) & 0xffffffff;
          move_to(warp_index, Lanes{1} << lane, table[std::min<std::size_t>(entry, table.size() - 1)]);
        });
        return move_to(warp_index, skipping, pc + 1);
      }
      case Op::leave:
        each_lane(lanes, [&](int lane) { land_copies(in, warp_index * warp + lane, -1); });
        state.alive &= ~lanes;
        exited_ += std::popcount(lanes);
        finish_warp_operations(warp_index, state.at_warp_operation);  // operations do not wait for exited lanes
        return move_to(warp_index, skipping, pc + 1);
      case Op::block_barrier:
      case Op::block_vote:
        state.at_block_barrier |= lanes;
        move_to(warp_index, lanes, pc);
        return move_to(warp_index, skipping, pc + 1);
      case Op::warp_barrier:
      case Op::shuffle:
      case Op::vote:
      case Op::match:
      case Op::warp_reduce:
      case Op::load_matrix:
      case Op::mma:
      case Op::wmma_load:
      case Op::wmma_store:
      case Op::wmma_mma:
        if (runs_at_once(in, warp_index, lanes)) break;
        move_to(warp_index, lanes, pc);
        move_to(warp_index, skipping, pc + 1);
        return finish_warp_operations(warp_index, lanes);
      case Op::active_mask:  // any mask that contains the lane itself is legal; this is the real one
        each_lane(lanes, [&](int lane) { value(in.operands[0], warp_index * warp + lane) = lanes; });
        break;
      default:
        run_alone(in, warp_index, lanes);
    }
  }
  move_to(warp_index, active, pc);
}

/// The instructions that each lane runs by itself and that do not wait.
void Grid::run_alone(const Instruction& in, int warp_index, Lanes lanes) {
  const auto each_thread = [&](auto&& body) { each_lane(lanes, [&](int lane) { body(warp_index * warp + lane); }); };
  switch (in.op) {
    case Op::trap:
      stop("trap", in, warp_index * warp + std::countr_zero(lanes),
           "the kernel traps, or calls a function that is not in line (an assertion?)");
    case Op::load:
      return load(in, warp_index, lanes);
    case Op::store:
      return store(in, warp_index, lanes);
    case Op::atomic:
    case Op::reduce:
      return each_thread([&](int thread) { atomic(in, thread); });
    case Op::fence:
      return;
    case Op::copy_async:
      return each_thread([&](int thread) { copy_async(in, thread); });
    case Op::copy_commit:
      return each_thread([&](int thread) {
        auto& copies = threads_[static_cast<std::size_t>(thread)].copies;
        if (copies.empty()) copies.emplace_back();
        copies.emplace_back();
      });
    case Op::copy_wait:
      return each_thread([&](int thread) {
        land_copies(in, thread, in.num_operands > 0 ? static_cast<std::int64_t>(value(in.operands[0], thread)) : -1);
      });
    default:
      return compute(in, warp_index, lanes);
  }
}

}  // namespace choir::simgpu::ptx
