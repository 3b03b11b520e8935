// What one thread does by itself. PTX ISA 9.0, chapter 9.7; operations marked approximate there are exact here but for
// the rounding of the C library.
#include <algorithm>
#include <cmath>

#include "tests/simgpu/ptx_block.h"
#include "tests/simgpu/ptx_values.h"

namespace choir::simgpu::ptx {
namespace {

using Bits = std::uint64_t;

/// Both halves of a packed register by themselves.
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

/// The full product, of which `multiply` takes the low half, the high half or, where it is wide, all.
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

/// Where `mode` is plain: to nearest. Narrowing toward zero cuts the mantissa.
Bits float_to_float(const Instruction& in, Bits bits) {
  double value = to_double(bits, in.from);
  const bool narrows = bytes_of(in.type) < bytes_of(in.from);
  if (in.type == Type::b32) {  // tf32: ties away from zero, 13 bits of the mantissa go
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

template <class V>
bool holds(Compare compare, V a, V b, bool unordered) {
  switch (compare) {
    case Compare::eq:
      return !unordered && a == b;
    case Compare::ne:
      return !unordered && a != b;
    case Compare::lt:
      return !unordered && a < b;
    case Compare::le:
      return !unordered && a <= b;
    case Compare::gt:
      return !unordered && a > b;
    case Compare::ge:
      return !unordered && a >= b;
    case Compare::equ:
      return unordered || a == b;
    case Compare::neu:
      return unordered || a != b;
    case Compare::ltu:
      return unordered || a < b;
    case Compare::leu:
      return unordered || a <= b;
    case Compare::gtu:
      return unordered || a > b;
    case Compare::geu:
      return unordered || a >= b;
    case Compare::number:
      return !unordered;
    case Compare::nan:
      break;
  }
  return unordered;
}

bool compared(Type type, Compare compare, Bits a, Bits b) {
  if (is_float(type)) {
    const double x = to_double(a, type), y = to_double(b, type);
    return holds(compare, x, y, std::isnan(x) || std::isnan(y));
  }
  if (is_signed(type)) return holds(compare, sign_extended(a, type), sign_extended(b, type), false);
  return holds(compare, zero_extended(a, type), zero_extended(b, type), false);
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

Bits shifted_right(Type type, Bits a, Bits by) {
  const auto width = static_cast<Bits>(8 * bytes_of(type));
  by &= 0xffffffff;
  if (is_signed(type)) return zero_extended(static_cast<Bits>(sign_extended(a, type) >> std::min(by, width - 1)), type);
  return by >= width ? 0 : zero_extended(a, type) >> by;
}

Bits funnel(const Instruction& in, Bits low, Bits high_part, Bits by) {
  const Bits amount = in.mode == clamp ? std::min<Bits>(by & 0xffffffff, 32) : by & 31;
  const Bits both = zero_extended(low, Type::b32) | high_part << 32;
  const Bits moved = in.op == Op::funnel_left ? (amount == 0 ? both >> 32 : both >> (32 - amount)) : both >> amount;
  return moved & 0xffffffff;
}

}  // namespace

void Grid::compute(const Instruction& in, std::uint64_t* r, int thread) {
  const auto v = [&](int i) {
    const Operand& o = in.operands[i];
    return o.reg >= 0 ? r[o.reg] : static_cast<Bits>(o.value);
  };
  const auto put = [&](Bits bits) {
    if (in.operands[0].reg >= 0) r[in.operands[0].reg] = bits;
  };
  const auto f32 = [&](auto function) {
    put(bits_of(static_cast<float>(function(static_cast<double>(as_f32(v(1)))))));
  };
  const Type type = in.type;
  switch (in.op) {
    case Op::move: {
      const Operand &to = in.operands[0], &from = in.operands[1];
      if (to.count > 0) {
        const int width = 8 * bytes_of(type) / to.count;
        for (int i = 0; i < to.count; ++i)
          if (part(to, i).reg >= 0) r[part(to, i).reg] = v(1) >> (width * i) & low_bits(width);
      } else if (from.count > 0) {
        const int width = 8 * bytes_of(type) / from.count;
        Bits packed = 0;
        for (int i = 0; i < from.count; ++i) packed |= (value(part(from, i), thread) & low_bits(width)) << (width * i);
        put(packed);
      } else {
        put(zero_extended(v(1), type));
      }
      break;
    }
    case Op::convert:
      if (is_packed(type)) {
        const Type half = type == Type::bf16x2 ? Type::bf16 : Type::f16;
        put(from_double(to_double(v(1), Type::f32), half) << 16 | from_double(to_double(v(2), Type::f32), half));
      } else {
        put(converted(in, v(1)));
      }
      break;
    case Op::to_generic:
    case Op::from_generic: {
      const Bits base = in.space == Space::shared ? reinterpret_cast<std::uintptr_t>(shared_)
                        : in.space == Space::local
                            ? reinterpret_cast<std::uintptr_t>(local_.data() + thread * kernel_.local_bytes)
                            : 0;
      put(in.op == Op::to_generic ? v(1) + base : v(1) - base);
      break;
    }
    case Op::is_space: {
      const auto shared_begin = reinterpret_cast<std::uintptr_t>(shared_),
                 local_begin = reinterpret_cast<std::uintptr_t>(local_.data());
      const bool in_shared = v(1) - shared_begin < static_cast<Bits>(shared_bytes_),
                 in_local = v(1) - local_begin < local_.size();
      put(in.space == Space::shared ? in_shared : in.space == Space::local ? in_local : !in_shared && !in_local);
      break;
    }
    case Op::add:
    case Op::subtract: {
      const Bits a = v(1), b = v(2);
      if (type == Type::f32) {
        put(bits_of(in.op == Op::add ? as_f32(a) + as_f32(b) : as_f32(a) - as_f32(b)));
      } else if (counts_as_float(type)) {
        put(in_float(type, a, b, 0, [&](auto x, auto y, auto) { return in.op == Op::add ? x + y : x - y; }));
      } else {
        const Bits carry = in.carry_in ? r[carry_flag] : 0, x = zero_extended(a, type), y = zero_extended(b, type);
        const auto wide_sum = in.op == Op::add ? static_cast<unsigned __int128>(x) + y + carry
                                               : static_cast<unsigned __int128>(x) - y - carry;
        if (in.carry_out) r[carry_flag] = static_cast<Bits>(wide_sum >> (8 * bytes_of(type))) & 1;
        put(zero_extended(static_cast<Bits>(wide_sum), type));
      }
      break;
    }
    case Op::multiply:
      if (type == Type::f32)
        put(bits_of(as_f32(v(1)) * as_f32(v(2))));
      else if (counts_as_float(type))
        put(in_float(type, v(1), v(2), 0, [](auto x, auto y, auto) { return x * y; }));
      else
        put(product(in, v(1), v(2)));
      break;
    case Op::multiply_add: {
      if (counts_as_float(type)) {
        put(in_float(type, v(1), v(2), v(3), [](auto x, auto y, auto z) { return std::fma(x, y, z); }));
        break;
      }
      const int width = 8 * bytes_of(type) * (in.mode == wide ? 2 : 1);
      const Bits carry = in.carry_in ? r[carry_flag] : 0;
      const auto sum = static_cast<unsigned __int128>(product(in, v(1), v(2))) + (v(3) & low_bits(width)) + carry;
      if (in.carry_out) r[carry_flag] = static_cast<Bits>(sum >> width) & 1;
      put(static_cast<Bits>(sum) & low_bits(width));
      break;
    }
    case Op::fused_multiply_add:
      if (type == Type::f32)
        put(bits_of(std::fmaf(as_f32(v(1)), as_f32(v(2)), as_f32(v(3)))));
      else
        put(in_float(type, v(1), v(2), v(3), [](auto x, auto y, auto z) { return std::fma(x, y, z); }));
      break;
    case Op::divide:
      if (counts_as_float(type))
        put(in_float(type, v(1), v(2), 0, [](auto x, auto y, auto) { return x / y; }));
      else
        put(quotient_or_remainder(in, v(1), v(2)));
      break;
    case Op::remainder:
      put(quotient_or_remainder(in, v(1), v(2)));
      break;
    case Op::minimum:
    case Op::maximum: {
      Bits result = minimum_or_maximum(in, v(1), v(2));
      if (in.num_operands > 3) result = minimum_or_maximum(in, result, v(3));
      put(result);
      break;
    }
    case Op::negate:
      put(counts_as_float(type) ? in_float(type, v(1), 0, 0, [](auto x, auto, auto) { return -x; })
                                : zero_extended(0 - v(1), type));
      break;
    case Op::absolute:
      put(counts_as_float(type) ? in_float(type, v(1), 0, 0, [](auto x, auto, auto) { return std::fabs(x); })
                                : zero_extended(static_cast<Bits>(std::abs(sign_extended(v(1), type))), type));
      break;
    case Op::bit_and:
      put(v(1) & v(2));
      break;
    case Op::bit_or:
      put(v(1) | v(2));
      break;
    case Op::bit_xor:
      put(v(1) ^ v(2));
      break;
    case Op::bit_not:
      put(zero_extended(~v(1), type));
      break;
    case Op::shift_left: {
      const Bits by = v(2) & 0xffffffff;
      put(by >= static_cast<Bits>(8 * bytes_of(type)) ? 0 : zero_extended(v(1) << by, type));
      break;
    }
    case Op::shift_right:
      put(shifted_right(type, v(1), v(2)));
      break;
    case Op::funnel_left:
    case Op::funnel_right:
      put(funnel(in, v(1), v(2), v(3)));
      break;
    case Op::bit_insert:
      put(inserted(type, v(1), v(2), v(3), v(4)));
      break;
    case Op::bit_extract:
      put(extracted(type, v(1), v(2), v(3)));
      break;
    case Op::permute:
      put(permuted(v(1), v(2), v(3)));
      break;
    case Op::lop3:
      put(looked_up(v(1), v(2), v(3), v(4)));
      break;
    case Op::population:
      put(static_cast<Bits>(__builtin_popcountll(zero_extended(v(1), type))));
      break;
    case Op::leading_zeros: {
      const Bits a = zero_extended(v(1), type);
      const int width = 8 * bytes_of(type);
      put(static_cast<Bits>(a == 0 ? width : __builtin_clzll(a) - (64 - width)));
      break;
    }
    case Op::find_bit:
      put(found_bit(in, v(1)));
      break;
    case Op::reverse_bits:
      put(reversed(type, v(1)));
      break;
    case Op::copy_sign:  // of the first onto the second
      put(in_float(type, v(1), v(2), 0,
                   [](auto sign, auto magnitude, auto) { return std::copysign(magnitude, sign); }));
      break;
    case Op::test_finite:
      put(std::isfinite(to_double(v(1), type)));
      break;
    case Op::set_predicate: {
      const bool has_second = in.num_operands == (in.mode == plain ? 4 : 5);
      const int a = has_second ? 2 : 1;
      bool result = compared(type, in.compare, v(a), v(a + 1));
      bool second = !result;
      if (in.mode != plain) {
        const bool other = predicate(in.operands[a + 2], r);
        const auto combine = [&](bool x) {
          return in.mode == combine_and ? x && other : in.mode == combine_or ? x || other : x != other;
        };
        result = combine(result);
        second = combine(second);
      }
      if (has_second && in.operands[1].reg >= 0) r[in.operands[1].reg] = second;
      put(result);
      break;
    }
    case Op::set: {  // .type is that of the result, .from that of what is compared
      const bool result = compared(in.from, in.compare, v(1), v(2));
      put(!result ? 0 : type == Type::f32 ? bits_of(1.0f) : low_bits(8 * bytes_of(type)));
      break;
    }
    case Op::select:
      put(predicate(in.operands[3], r) ? v(1) : v(2));
      break;
    case Op::exp2:
      f32([](double x) { return std::exp2(x); });
      break;
    case Op::log2:
      f32([](double x) { return std::log2(x); });
      break;
    case Op::sine:
      f32([](double x) { return std::sin(x); });
      break;
    case Op::cosine:
      f32([](double x) { return std::cos(x); });
      break;
    case Op::tanh:
      f32([](double x) { return std::tanh(x); });
      break;
    case Op::reciprocal:
      put(in_float(type, v(1), 0, 0, [](auto x, auto, auto) { return 1 / x; }));
      break;
    case Op::square_root:
      put(in_float(type, v(1), 0, 0, [](auto x, auto, auto) { return std::sqrt(x); }));
      break;
    case Op::reciprocal_root:
      put(from_double(1 / std::sqrt(to_double(v(1), type)), type));
      break;
    default:
      stop("trap", in, thread, "an instruction that is not simulated");
  }
}

void Grid::exit_thread(int index) {
  threads_[static_cast<std::size_t>(index)].state = State::exited;
  warps_[static_cast<std::size_t>(index / warp)].alive &= ~(1u << (index % warp));
  ++exited_;
}

void Grid::run_thread(int index) {
  Thread& thread = threads_[static_cast<std::size_t>(index)];
  Bits* r = registers_of(index);
  const Instruction* code = kernel_.code.data();
  const auto end = static_cast<std::int32_t>(kernel_.code.size());
  std::int32_t pc = thread.pc;
  std::int64_t executed = 0;
  while (thread.state == State::running) {
    if (pc >= end) {
      exit_thread(index);
      break;
    }
    const Instruction& in = code[pc];
    ++executed;
    if (in.guard >= 0 && ((r[in.guard] & 1) != 0) == in.guard_negated) {
      ++pc;
      continue;
    }
    switch (in.op) {
      case Op::branch:
        pc = in.target;
        continue;
      case Op::branch_table: {
        const auto& table = kernel_.tables[static_cast<std::size_t>(in.target)];
        pc = table[std::min<std::size_t>(value(in.operands[0], index) & 0xffffffff, table.size() - 1)];
        continue;
      }
      case Op::leave:
        land_copies(in, thread, index, -1);
        exit_thread(index);
        continue;
      case Op::trap:
        stop("trap", in, index, "the kernel traps, or calls a function that is not in line (an assertion?)");
      case Op::load:
        load(in, index);
        break;
      case Op::store:
        store(in, index);
        break;
      case Op::atomic:
      case Op::reduce:
        atomic(in, index);
        break;
      case Op::fence:
        break;
      case Op::copy_async:
        copy_async(in, index);
        break;
      case Op::copy_commit:
        if (thread.copies.empty()) thread.copies.emplace_back();
        thread.copies.emplace_back();
        break;
      case Op::copy_wait:
        land_copies(in, thread, index,
                    in.num_operands > 0 ? static_cast<std::int64_t>(value(in.operands[0], index)) : -1);
        break;
      case Op::active_mask:  // of threads that run one by one, each is alone: any answer is legal, this one is honest
        r[in.operands[0].reg] = r[lanemask_eq];
        break;
      case Op::block_barrier:
      case Op::block_vote:
        thread.pc = pc;
        thread.state = State::at_block_barrier;
        continue;
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
        thread.pc = pc;
        arrive_at_warp_operation(in, index);
        pc = thread.pc;  // further on where this thread was the last one
        continue;
      default:
        compute(in, r, index);
        break;
    }
    ++pc;
  }
  if (thread.state == State::exited) thread.pc = pc;
  result_.instructions += executed;
}

}  // namespace choir::simgpu::ptx
