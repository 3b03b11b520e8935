// Parses PTX to ptx::Program. Grammar: PTX ISA 9.0, the part that nvcc emits.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <unordered_map>

#include "tests/simgpu/ptx_program.h"

namespace choir::simgpu::ptx {
namespace {

std::string_view trim(std::string_view text) {
  constexpr std::string_view blanks = " \t\n\r";
  const std::size_t begin = text.find_first_not_of(blanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(blanks) - begin + 1);
}

/// The first word of `text`, which is removed from it.
std::string_view take_word(std::string_view& text) {
  text = trim(text);
  const std::string_view word = text.substr(0, text.find_first_of(" \t\n"));
  text = trim(text.substr(word.size()));
  return word;
}

/// At `separator`, but not inside brackets.
std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  int depth = 0;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    depth += (c == '{' || c == '[' || c == '(') - (c == '}' || c == ']' || c == ')');
    if (c != separator || depth != 0) continue;
    parts.push_back(trim(text.substr(begin, i - begin)));
    begin = i + 1;
  }
  if (const std::string_view last = trim(text.substr(begin)); !last.empty()) parts.push_back(last);
  return parts;
}

Type type_named(std::string_view word) {
  static const std::unordered_map<std::string_view, Type> types = {
      {"pred", Type::pred},    {"b8", Type::b8},       {"u8", Type::u8},    {"s8", Type::s8},
      {"b16", Type::b16},      {"u16", Type::u16},     {"s16", Type::s16},  {"f16", Type::f16},
      {"b32", Type::b32},      {"u32", Type::u32},     {"s32", Type::s32},  {"f32", Type::f32},
      {"b64", Type::b64},      {"u64", Type::u64},     {"s64", Type::s64},  {"f64", Type::f64},
      {"bf16", Type::bf16},    {"f16x2", Type::f16x2}, {"tf32", Type::b32}, {"f32x2", Type::f32x2},
      {"bf16x2", Type::bf16x2}};
  const auto found = types.find(word);
  return found == types.end() ? Type::none : found->second;
}

const std::unordered_map<std::string_view, std::int32_t>& special_registers() {
  static const std::unordered_map<std::string_view, std::int32_t> specials = {
      {"%tid.x", tid_x},
      {"%tid.y", tid_y},
      {"%tid.z", tid_z},
      {"%ntid.x", ntid_x},
      {"%ntid.y", ntid_y},
      {"%ntid.z", ntid_z},
      {"%ctaid.x", ctaid_x},
      {"%ctaid.y", ctaid_y},
      {"%ctaid.z", ctaid_z},
      {"%nctaid.x", nctaid_x},
      {"%nctaid.y", nctaid_y},
      {"%nctaid.z", nctaid_z},
      {"%laneid", laneid},
      {"%warpid", warpid},
      {"%lanemask_lt", lanemask_lt},
      {"%lanemask_le", lanemask_le},
      {"%lanemask_gt", lanemask_gt},
      {"%lanemask_ge", lanemask_ge},
      {"%lanemask_eq", lanemask_eq},
      {"%clock", clock},
      {"%clock64", clock},
      {"%globaltimer", clock},
      {"%nwarpid", nwarpid},
      {"%smid", smid},
      {"%dynamic_smem_size", dynamic_smem_size}};
  return specials;
}

const std::unordered_map<std::string_view, Op>& operations() {
  static const std::unordered_map<std::string_view, Op> names = {
      {"mov", Op::move},
      {"ld", Op::load},
      {"ldu", Op::load},
      {"st", Op::store},
      {"cvt", Op::convert},
      {"isspacep", Op::is_space},
      {"add", Op::add},
      {"addc", Op::add},
      {"sub", Op::subtract},
      {"subc", Op::subtract},
      {"mul", Op::multiply},
      {"mad", Op::multiply_add},
      {"madc", Op::multiply_add},
      {"fma", Op::fused_multiply_add},
      {"div", Op::divide},
      {"rem", Op::remainder},
      {"min", Op::minimum},
      {"max", Op::maximum},
      {"neg", Op::negate},
      {"abs", Op::absolute},
      {"and", Op::bit_and},
      {"or", Op::bit_or},
      {"xor", Op::bit_xor},
      {"not", Op::bit_not},
      {"shl", Op::shift_left},
      {"shr", Op::shift_right},
      {"bfi", Op::bit_insert},
      {"bfe", Op::bit_extract},
      {"prmt", Op::permute},
      {"lop3", Op::lop3},
      {"popc", Op::population},
      {"clz", Op::leading_zeros},
      {"bfind", Op::find_bit},
      {"brev", Op::reverse_bits},
      {"copysign", Op::copy_sign},
      {"testp", Op::test_finite},
      {"setp", Op::set_predicate},
      {"set", Op::set},
      {"selp", Op::select},
      {"bra", Op::branch},
      {"ret", Op::leave},
      {"exit", Op::leave},
      {"trap", Op::trap},
      {"call", Op::trap},
      {"ex2", Op::exp2},
      {"lg2", Op::log2},
      {"rcp", Op::reciprocal},
      {"sqrt", Op::square_root},
      {"rsqrt", Op::reciprocal_root},
      {"sin", Op::sine},
      {"cos", Op::cosine},
      {"tanh", Op::tanh},
      {"atom", Op::atomic},
      {"red", Op::reduce},
      {"membar", Op::fence},
      {"fence", Op::fence},
      {"shfl", Op::shuffle},
      {"vote", Op::vote},
      {"match", Op::match},
      {"redux", Op::warp_reduce},
      {"activemask", Op::active_mask},
      {"ldmatrix", Op::load_matrix},
      {"mma", Op::mma},
      {"prefetch", Op::nothing},
      {"prefetchu", Op::nothing},
      {"applypriority", Op::nothing},
      {"discard", Op::nothing},
      {"nanosleep", Op::nothing},
      {"brkpt", Op::nothing},
      {"griddepcontrol", Op::nothing},
      {"pmevent", Op::nothing},
  };
  return names;
}

/// Reads one kernel after another; the state of the current kernel is in the members below `kernel_`.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Program parse() {
    while (at_ < text_.size()) module_statement();
    return std::move(program_);
  }

 private:
  struct Variable {
    std::string name;
    Type type = Type::none;
    std::int64_t bytes = 0, alignment = 1;
    bool unsized = false;
  };

  [[noreturn]] void fail(std::string_view what) const {
    throw std::runtime_error("ptx line " + std::to_string(line_) + ": not understood: " + std::string(what));
  }

  // --- characters

  void skip_comment_or_blank() {
    while (at_ < text_.size()) {
      if (text_.substr(at_, 2) == "//") {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else if (text_.substr(at_, 2) == "/*") {
        const std::size_t end = text_.find("*/", at_);
        line_ += static_cast<int>(std::count(text_.begin() + static_cast<std::ptrdiff_t>(at_),
                                             text_.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
        at_ = end + 2;
      } else if (std::isspace(static_cast<unsigned char>(text_[at_])) != 0) {
        line_ += text_[at_++] == '\n';
      } else {
        return;
      }
    }
  }

  /// The text up to one of `ends` outside of brackets and quotes; comments become blanks. Consumes the end.
  std::string take_until(std::string_view ends, char& end) {
    std::string taken;
    int depth = 0;
    bool quoted = false;
    for (; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (c == '\n') ++line_;
      if (c == '"') quoted = !quoted;
      if (!quoted && text_.substr(at_, 2) == "//") {
        at_ = text_.find('\n', at_) - 1;
        continue;
      }
      // "::" belongs to a modifier, as in L2::128B; a single colon ends a label.
      const bool part_of_word = c == ':' && (text_[at_ - 1] == ':' || text_.substr(at_ + 1, 1) == ":");
      if (!quoted && depth == 0 && !part_of_word && ends.find(c) != std::string_view::npos) {
        ++at_;
        end = c;
        return taken;
      }
      depth += (c == '(' || c == '[' || c == '{') - (c == ')' || c == ']' || c == '}');
      taken += c;
    }
    end = '\0';
    return taken;
  }

  std::string take_line() {
    const std::size_t end = std::min(text_.find('\n', at_), text_.size());
    std::string line(text_.substr(at_, end - at_));
    at_ = end;
    return line;
  }

  bool starts(std::string_view word) const { return text_.substr(at_, word.size()) == word; }

  void skip_braces() {
    int depth = 0;
    do {
      const char c = text_[at_++];
      line_ += c == '\n';
      depth += (c == '{') - (c == '}');
    } while (depth > 0 && at_ < text_.size());
  }

  // --- module level

  void module_statement() {
    skip_comment_or_blank();
    if (at_ >= text_.size()) return;
    if (starts(".version") || starts(".address_size")) return static_cast<void>(take_line());
    if (starts(".target")) {
      const std::string line = take_line();
      std::string_view rest = std::string_view(line).substr(7);
      program_.target = std::string(take_word(rest));
      if (program_.target.back() == ',') program_.target.pop_back();
      return;
    }
    if (starts(".file")) return file_statement(take_line());
    if (starts(".section")) {
      at_ = text_.find('{', at_);
      return skip_braces();
    }
    if (starts("}") || starts(";")) return static_cast<void>(++at_);
    char end = 0;
    const std::string head = take_until("{;", end);
    if (head.find(".entry") != std::string::npos) {
      if (end == '{') kernel(head);
    } else if (head.find(".func") != std::string::npos) {
      if (end == '{') --at_, skip_braces();  // every function that kernels use is inlined; a call stops the kernel
    } else if (head.find(".shared") != std::string::npos) {
      module_shared(head);
    } else if (head.find(".global") != std::string::npos || head.find(".const") != std::string::npos) {
      module_variable(end == '{' ? head + initializer() : head);
    } else {
      fail(head);
    }
  }

  /// "{1, 2}", of which the first brace is already consumed.
  std::string initializer() {
    --at_;
    char end = 0;
    return take_until(";", end);
  }

  void file_statement(const std::string& line) {
    std::string_view rest = line;
    take_word(rest);
    const int number = std::stoi(std::string(take_word(rest)));
    const std::size_t begin = rest.find('"') + 1;
    program_.files[number] = std::string(rest.substr(begin, rest.find('"', begin) - begin));
  }

  /// ".shared .align 4 .b8 name[128]"
  Variable variable(std::string_view statement) const {
    Variable v;
    bool aligned = false;
    while (!statement.empty()) {
      const std::string_view word = take_word(statement);
      if (word == ".align") {
        v.alignment = std::stoll(std::string(take_word(statement)));
        aligned = true;
      } else if (word.starts_with('.')) {
        if (const Type type = type_named(word.substr(1)); type != Type::none) v.type = type;
      } else {
        const std::size_t bracket = word.find('[');
        v.name = std::string(word.substr(0, bracket));
        v.bytes = bytes_of(v.type);
        if (bracket != std::string_view::npos) {
          v.unsized = word.substr(bracket + 1).starts_with(']');
          v.bytes = v.unsized ? 0 : v.bytes * std::stoll(std::string(word.substr(bracket + 1)));
        }
        if (!aligned) v.alignment = bytes_of(v.type);
        return v;
      }
    }
    fail("a variable without a name");
  }

  void module_shared(const std::string& head) {
    const Variable v = variable(head);
    if (v.unsized)
      symbols_[v.name] = dynamic_shared_begin;
    else
      module_shared_.push_back(v);
  }

  void module_variable(const std::string& statement) {
    const std::size_t equals = statement.find('=');
    const Variable v = variable(std::string_view(statement).substr(0, equals));
    std::vector<unsigned char>& bytes = program_.globals[v.name];
    bytes.assign(static_cast<std::size_t>(v.bytes) + 16, 0);
    if (equals != std::string::npos) {
      std::string_view values = trim(std::string_view(statement).substr(equals + 1));
      if (values.starts_with('{')) values = values.substr(1, values.rfind('}') - 1);
      const auto width = static_cast<std::size_t>(bytes_of(v.type));
      std::size_t to = 0;
      for (const std::string_view value : split(values, ',')) {
        const auto number = static_cast<std::uint64_t>(constant(value));
        std::memcpy(&bytes[to], &number, width);
        to += width;
      }
    }
    symbols_[v.name] = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(bytes.data()));
  }

  // --- a kernel

  void kernel(const std::string& head) {
    kernel_ = Kernel{};
    scopes_.clear();
    labels_.clear();
    branches_.clear();
    local_symbols_.clear();
    source_ = -1;
    const std::size_t open = head.find('('), close = head.find(')');
    std::string_view name = std::string_view(head).substr(0, open);
    while (!name.empty()) {
      const std::string_view word = take_word(name);
      if (!word.starts_with('.')) kernel_.name = std::string(word);
    }
    if (open != std::string::npos)
      for (const std::string_view parameter : split(std::string_view(head).substr(open + 1, close - open - 1), ','))
        add_parameter(variable(without_pointer_alignment(parameter)));
    std::string_view directives = std::string_view(head).substr(close == std::string::npos ? head.size() : close + 1);
    while (!directives.empty()) {
      const std::string_view word = take_word(directives);
      if (word != ".maxntid" && word != ".reqntid") continue;
      kernel_.max_threads = 1;
      while (!directives.empty() && directives[0] != '.') {
        const std::string number(take_word(directives));
        kernel_.max_threads *= std::stoi(number);
      }
    }
    for (const Variable& v : module_shared_) add_shared(v);
    body();
    kernel_.code.push_back({.op = Op::leave, .line = line_, .source = source_});
    finish_branches();
    for (Instruction& in : kernel_.code) in.frequent = frequent_form(in);
    program_.kernels[kernel_.name] = std::move(kernel_);
  }

  /// ".param .u64 .ptr .align 1 name": the alignment is that of what the pointer points to.
  static std::string without_pointer_alignment(std::string_view parameter) {
    std::string text(parameter);
    if (const std::size_t pointer = text.find(".ptr"); pointer != std::string::npos) {
      const std::size_t align = text.find(".align", pointer);
      if (align != std::string::npos) {
        std::string_view rest = std::string_view(text).substr(align);
        take_word(rest);
        take_word(rest);
        text = text.substr(0, pointer) + std::string(rest);
      }
    }
    return text;
  }

  static std::int64_t aligned(std::int64_t offset, std::int64_t alignment) {
    return (offset + alignment - 1) / alignment * alignment;
  }

  void add_parameter(const Variable& v) {
    const std::int64_t offset = aligned(kernel_.parameter_bytes, v.alignment);
    kernel_.parameters.emplace_back(offset, v.bytes);
    local_symbols_[v.name] = offset;
    kernel_.parameter_bytes = offset + v.bytes;
  }

  void add_shared(const Variable& v) {
    const std::int64_t offset = aligned(kernel_.static_shared_bytes, v.alignment);
    local_symbols_[v.name] = offset;
    kernel_.static_shared_bytes = offset + v.bytes;
  }

  void body() {
    scopes_.emplace_back();
    while (!scopes_.empty()) {
      skip_comment_or_blank();
      if (at_ >= text_.size()) fail("the end of the text inside a kernel");
      if (starts(".loc\t") || starts(".loc ")) {
        location(take_line());
      } else if (starts("{")) {
        ++at_;
        scopes_.emplace_back();
      } else if (starts("}")) {
        ++at_;
        scopes_.pop_back();
      } else {
        const int line = line_;
        char end = 0;
        const std::string statement = take_until(";:", end);
        const std::string_view words = trim(statement);
        if (end == ':') {
          labels_[std::string(words)] = static_cast<std::int32_t>(kernel_.code.size());
          last_label_ = std::string(words);
        } else {
          std::swap(line_of_statement_, line_);
          line_ = line;
          body_statement(words);
          std::swap(line_of_statement_, line_);
        }
      }
    }
  }

  /// ".loc 1 23 9, function_name $L__info_string0, inlined_at 1 99 3"
  void location(std::string_view text) {
    take_word(text);
    SourceLine source;
    source.file = std::stoi(std::string(take_word(text)));
    source.line = std::stoi(std::string(take_word(text)));
    if (program_.sources.empty() || program_.sources.back() != source) program_.sources.push_back(source);
    source_ = static_cast<std::int32_t>(program_.sources.size()) - 1;
  }

  void body_statement(std::string_view statement) {
    if (statement.empty()) return;
    if (statement.starts_with(".reg")) return declare_registers(statement.substr(4));
    if (statement.starts_with(".shared")) {
      const Variable v = variable(statement);
      return v.unsized ? static_cast<void>(symbols_[v.name] = dynamic_shared_begin) : add_shared(v);
    }
    if (statement.starts_with(".local")) {
      const Variable v = variable(statement);
      const std::int64_t offset = aligned(kernel_.local_bytes, v.alignment);
      local_symbols_[v.name] = offset;
      kernel_.local_bytes = offset + v.bytes;
      return;
    }
    if (statement.starts_with(".branchtargets")) {
      table_targets_[last_label_] = {};
      for (const std::string_view label : split(statement.substr(14), ','))
        table_targets_[last_label_].emplace_back(label);
      return;
    }
    if (statement.starts_with(".param")) {  // of a call
      local_symbols_[variable(statement).name] = 0;
      return;
    }
    if (statement.starts_with('.')) return;  // .pragma and the like
    instruction(statement);
  }

  void declare_registers(std::string_view rest) {
    take_word(rest);
    for (const std::string_view name : split(rest, ',')) {
      const std::size_t angle = name.find('<');
      if (angle == std::string_view::npos) {
        scopes_.back()[std::string(name)] = kernel_.num_registers++;
        continue;
      }
      const int count = std::stoi(std::string(name.substr(angle + 1)));
      for (int i = 0; i < count; ++i)
        scopes_.back()[std::string(name.substr(0, angle)) + std::to_string(i)] = kernel_.num_registers++;
    }
  }

  void finish_branches() {
    const auto index_of = [&](const std::string& label) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) fail("label " + label);
      return found->second;
    };
    for (const auto& [index, label] : branches_) {
      Instruction& in = kernel_.code[static_cast<std::size_t>(index)];
      if (in.op == Op::branch) {
        in.target = index_of(label);
        continue;
      }
      in.target = static_cast<std::int32_t>(kernel_.tables.size());
      kernel_.tables.emplace_back();
      for (const std::string& target : table_targets_[label]) kernel_.tables.back().push_back(index_of(target));
    }
  }

  // --- operands

  std::int32_t find_register(std::string_view name) const {
    if (const auto special = special_registers().find(name); special != special_registers().end())
      return special->second;
    const std::string key(name);
    for (std::size_t i = scopes_.size(); i-- > 0;)
      if (const auto found = scopes_[i].find(key); found != scopes_[i].end()) return found->second;
    return -1;
  }

  std::int64_t constant(std::string_view text) const {
    const std::string word(text);
    if (word.starts_with("0f") || word.starts_with("0F") || word.starts_with("0d") || word.starts_with("0D"))
      return static_cast<std::int64_t>(std::stoull(word.substr(2), nullptr, 16));
    if (word == "WARP_SZ") return 32;
    if (word.starts_with('-')) return std::stoll(word, nullptr, 0);
    if (std::isdigit(static_cast<unsigned char>(word[0])) != 0)
      return static_cast<std::int64_t>(std::stoull(word, nullptr, 0));
    if (const auto found = local_symbols_.find(word); found != local_symbols_.end()) return found->second;
    if (const auto found = symbols_.find(word); found != symbols_.end()) return found->second;
    fail("operand " + word);
  }

  std::int32_t register_of_constant(std::int64_t value) {
    const auto [entry, is_new] = kernel_.constants.emplace(value, kernel_.num_registers);
    kernel_.num_registers += is_new;
    return entry->second;
  }

  Operand operand(std::string_view text) {
    if (text.empty()) fail("an empty operand");
    if (text[0] == '{') {
      std::vector<Operand> parts;
      for (const std::string_view part : split(text.substr(1, text.size() - 2), ',')) parts.push_back(operand(part));
      const Operand vector{.count = static_cast<std::uint8_t>(parts.size()),
                           .value = static_cast<std::int64_t>(kernel_.vectors.size())};
      kernel_.vectors.insert(kernel_.vectors.end(), parts.begin(), parts.end());
      return vector;
    }
    if (text[0] == '[') return address(trim(text.substr(1, text.size() - 2)));
    if (text[0] == '!') {
      Operand result = operand(text.substr(1));
      result.negated = true;
      return result;
    }
    if (text == "_") return {};  // a result that is discarded
    if (const std::int32_t reg = find_register(text); reg >= 0) return {.reg = reg};
    if (text[0] == '%') fail("register " + std::string(text));
    return {.reg = register_of_constant(constant(text))};
  }

  /// "%rd1+16", "name-4", "name"
  Operand address(std::string_view text) {
    const std::size_t sign = text.find_first_of("+-", 1);
    const std::string_view base = trim(text.substr(0, sign));
    Operand result;
    if (sign != std::string_view::npos) {
      std::string offset(trim(text.substr(sign)));
      if (offset[0] == '+') offset = std::string(trim(offset.substr(1)));
      result.value = std::stoll(offset, nullptr, 0);
    }
    result.reg = find_register(base);
    if (result.reg < 0) result.reg = register_of_constant(constant(base));
    return result;
  }

  // --- instructions

  struct Words {
    std::vector<std::string_view> all;
    bool has(std::string_view word) const { return std::find(all.begin(), all.end(), word) != all.end(); }
  };

  void instruction(std::string_view statement) {
    Instruction in;
    in.line = line_;
    in.source = source_;
    if (statement[0] == '@') {
      std::string_view predicate = take_word(statement).substr(1);
      if (predicate[0] == '!') {
        in.guard_negated = true;
        predicate = predicate.substr(1);
      }
      in.guard = find_register(predicate);
      if (in.guard < 0) fail(predicate);
    }
    std::string_view rest = statement;
    const std::string_view full_name = take_word(rest);
    Words words{split(full_name, '.')};
    const std::string_view name = words.all[0];
    words.all.erase(words.all.begin());
    // nvcc writes "::" inside modifiers: L2::128B, shared::cta.
    for (std::string_view& word : words.all) word = word.substr(0, word.find("::"));
    for (const std::string_view word : words.all) {
      const Type type = type_named(word);
      if (type == Type::none) continue;
      if (in.type == Type::none)
        in.type = type;
      else if (in.from == Type::none)
        in.from = type;
    }
    decode(in, name, words, statement);
    if (in.op == Op::nothing) return;
    if (name == "call") {
      kernel_.code.push_back(in);
      return;
    }
    if (in.op == Op::branch) {
      branches_.emplace_back(static_cast<int>(kernel_.code.size()), std::string(trim(rest)));
      kernel_.code.push_back(in);
      return;
    }
    std::vector<std::string_view> operands = split(rest, ',');
    if (in.op == Op::branch_table) {
      branches_.emplace_back(static_cast<int>(kernel_.code.size()), std::string(operands.at(1)));
      operands.resize(1);
    }
    for (const std::string_view text : operands) {
      // "%r1|%p1": two results
      const std::size_t bar = text[0] == '{' ? std::string_view::npos : text.find('|');
      add_operand(in, text.substr(0, bar));
      if (bar != std::string_view::npos) add_operand(in, text.substr(bar + 1));
    }
    kernel_.code.push_back(in);
  }

  void add_operand(Instruction& in, std::string_view text) {
    if (in.num_operands == std::size(in.operands)) fail("too many operands");
    in.operands[in.num_operands++] = operand(trim(text));
  }

  static Space space_of(const Words& words) {
    if (words.has("global")) return Space::global;
    if (words.has("shared")) return Space::shared;
    if (words.has("local")) return Space::local;
    if (words.has("param")) return Space::parameter;
    if (words.has("const")) return Space::constant;
    return Space::generic;
  }

  static Mode atomic_mode(const Words& words) {
    for (const auto& [word, mode] : std::initializer_list<std::pair<std::string_view, Mode>>{{"add", atomic_add},
                                                                                             {"min", atomic_min},
                                                                                             {"max", atomic_max},
                                                                                             {"exch", exchange},
                                                                                             {"cas", compare_and_swap},
                                                                                             {"and", atomic_and},
                                                                                             {"or", atomic_or},
                                                                                             {"xor", atomic_xor},
                                                                                             {"inc", increment},
                                                                                             {"dec", decrement}})
      if (words.has(word)) return mode;
    return plain;
  }

  void decode(Instruction& in, std::string_view name, const Words& words, std::string_view statement) const {
    in.space = space_of(words);
    in.saturate = words.has("sat") || words.has("satfinite");
    in.nan_wins = words.has("NaN");
    in.carry_in = name == "addc" || name == "subc" || name == "madc";
    in.carry_out = words.has("cc");
    if (name == "bar" || name == "barrier") {
      in.op = words.has("warp") ? Op::warp_barrier : words.has("red") ? Op::block_vote : Op::block_barrier;
      if (words.has("arrive") || words.has("cluster")) fail(statement);
      in.mode = words.has("and") ? all : words.has("or") ? any : population_count;
      return;
    }
    if (name == "cp") {
      if (!words.has("async") || words.has("bulk") || words.has("mbarrier")) fail(statement);
      in.op = words.has("commit_group")                          ? Op::copy_commit
              : words.has("wait_group") || words.has("wait_all") ? Op::copy_wait
                                                                 : Op::copy_async;
      return;
    }
    if (name == "cvta") {
      in.op = words.has("to") ? Op::from_generic : Op::to_generic;
      return;
    }
    if (name == "shf") {
      in.op = words.has("l") ? Op::funnel_left : Op::funnel_right;
      in.mode = words.has("clamp") ? clamp : plain;
      return;
    }
    if (name == "brx") {
      in.op = Op::branch_table;
      return;
    }
    if (name == "wmma") return decode_wmma(in, words, statement);
    if (name == "createpolicy") {
      in.op = Op::move;  // a hint for the cache: the value does not matter
      return;
    }
    const auto found = operations().find(name);
    if (found == operations().end()) fail(statement);
    in.op = found->second;
    decode_variant(in, words, statement);
  }

  void decode_variant(Instruction& in, const Words& words, std::string_view statement) const {
    switch (in.op) {
      case Op::multiply:
      case Op::multiply_add:
        in.mode = words.has("wide") ? wide : words.has("hi") ? high : plain;
        break;
      case Op::convert:
        in.mode = words.has("rni")                      ? nearest_integer
                  : words.has("rzi") || words.has("rz") ? toward_zero
                  : words.has("rmi") || words.has("rm") ? toward_minus
                  : words.has("rpi") || words.has("rp") ? toward_plus
                                                        : plain;
        if (words.has("relu") || words.has("rs")) fail(statement);
        if (words.has("tf32")) in.mode = nearest_integer;  // cvt.rna.tf32.f32: the mantissa loses 13 bits
        break;
      case Op::set_predicate:
      case Op::set:
        decode_compare(in, words, statement);
        break;
      case Op::shuffle:
        in.mode = words.has("up") ? up : words.has("down") ? down : words.has("bfly") ? butterfly : indexed;
        break;
      case Op::vote:
      case Op::match:
        in.mode = words.has("all") ? all : words.has("any") ? any : words.has("uni") ? uniform : ballot;
        break;
      case Op::atomic:
      case Op::reduce:
      case Op::warp_reduce:
        in.mode = atomic_mode(words);
        if (in.mode == plain || words.has("v2") || words.has("v4")) fail(statement);
        break;
      case Op::find_bit:
        in.mode = words.has("shiftamt") ? shift_amount : plain;
        break;
      case Op::load_matrix:
        in.mode = words.has("trans") ? column_major : row_major;
        if (!words.has("m8n8") || !words.has("b16")) fail(statement);
        break;
      case Op::mma:
        in.shape_k = words.has("m16n8k16") ? 16 : words.has("m16n8k8") ? 8 : words.has("m16n8k4") ? 4 : 0;
        in.type = words.has("bf16")   ? Type::bf16
                  : words.has("tf32") ? Type::f32
                  : words.has("f16")  ? Type::f16
                                      : Type::none;
        if (in.shape_k == 0 || in.type == Type::none || words.all.back() != "f32") fail(statement);
        break;
      case Op::test_finite:
        if (!words.has("finite")) fail(statement);
        break;
      case Op::lop3:
        if (words.has("or") || words.has("and")) fail(statement);
        break;
      default:
        break;
    }
  }

  void decode_compare(Instruction& in, const Words& words, std::string_view statement) const {
    static const std::unordered_map<std::string_view, Compare> names = {
        {"eq", Compare::eq},      {"ne", Compare::ne},   {"lt", Compare::lt},   {"lo", Compare::lt},
        {"le", Compare::le},      {"ls", Compare::le},   {"gt", Compare::gt},   {"hi", Compare::gt},
        {"ge", Compare::ge},      {"hs", Compare::ge},   {"equ", Compare::equ}, {"neu", Compare::neu},
        {"ltu", Compare::ltu},    {"leu", Compare::leu}, {"gtu", Compare::gtu}, {"geu", Compare::geu},
        {"num", Compare::number}, {"nan", Compare::nan}};
    const auto found = words.all.empty() ? names.end() : names.find(words.all[0]);
    if (found == names.end()) fail(statement);
    in.compare = found->second;
    in.mode = words.has("and") ? combine_and : words.has("or") ? combine_or : words.has("xor") ? combine_xor : plain;
  }

  void decode_wmma(Instruction& in, const Words& words, std::string_view statement) const {
    if (!words.has("m16n16k16") || (!words.has("bf16") && !words.has("f16") && !words.has("f32"))) fail(statement);
    in.op = words.has("load") ? Op::wmma_load : words.has("store") ? Op::wmma_store : Op::wmma_mma;
    // load and store: the layout of the matrix; mma: those of a and b, in this order.
    const auto layout = [](std::string_view word) {
      return word == "row" ? row_major : word == "col" ? column_major : plain;
    };
    for (const std::string_view word : words.all) {
      if (layout(word) == plain) continue;
      (in.mode == plain ? in.mode : in.second_mode) = layout(word);
    }
    in.type = words.has("bf16") ? Type::bf16 : words.has("f16") ? Type::f16 : Type::f32;
    // Which of the operands a load fills: the layouts in memory differ.
    in.from = words.has("a") ? Type::b8 : words.has("b") ? Type::b16 : Type::b32;
  }

  std::string_view text_;
  std::size_t at_ = 0;
  int line_ = 1, line_of_statement_ = 1;
  Program program_;
  std::unordered_map<std::string, std::int64_t> symbols_;  // of the module
  std::vector<Variable> module_shared_;                    // every kernel has them

  Kernel kernel_;
  std::vector<std::unordered_map<std::string, std::int32_t>> scopes_;
  std::unordered_map<std::string, std::int64_t> local_symbols_;
  std::unordered_map<std::string, std::int32_t> labels_;
  std::vector<std::pair<int, std::string>> branches_;
  std::unordered_map<std::string, std::vector<std::string>> table_targets_;
  std::string last_label_;
  std::int32_t source_ = -1;
};

}  // namespace

Program parse(std::string_view text) { return Parser(text).parse(); }

std::string Program::where(const Instruction& in) const {
  const std::string ptx = "ptx line " + std::to_string(in.line);
  if (in.source < 0) return ptx;
  const SourceLine source = sources[static_cast<std::size_t>(in.source)];
  const auto file = files.find(source.file);
  return (file == files.end() ? "?" : file->second) + ":" + std::to_string(source.line) + " (" + ptx + ")";
}

}  // namespace choir::simgpu::ptx
