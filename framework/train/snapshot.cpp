#include "framework/train/snapshot.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <map>

#include "framework/optim/schedule.h"

namespace choir {
namespace {

Piece piece_of(const ParameterPart& part, const std::string& name, float* data) {
  const Parameter& p = *part.parameter;
  return {.name = name,
          .shape = p.shape,
          .row_begin = p.held.row_begin,
          .row_end = p.held.row_end,
          .column_begin = p.held.column_begin,
          .column_end = p.held.column_end,
          .begin = part.begin,
          .end = part.end,
          .data = data};
}

enum class Direction { save, load };

/// The first element of a tensor, as f32 in host memory.
float* host_array(Trainer& trainer, const Tensor& array, Snapshot& snapshot) {
  Device& device = trainer.runtime().device;
  const bool f32 = array.dtype() == DType::f32;
  if (device.kind() == DeviceKind::cpu && f32) return array.data<float>();
  snapshot.copies.push_back({array, std::vector<float>(static_cast<std::size_t>(array.count()))});
  std::vector<float>& host = snapshot.copies.back().host;
  // A load overwrites what it reads. Elements that do not belong to a parameter stay as they are; in weights they are
  // zero.
  if (f32) device.download(array.raw(), host.data(), array.bytes());
  if (array.dtype() == DType::bf16) {
    std::vector<bf16> values(host.size());
    device.download(array.raw(), values.data(), array.bytes());
    std::copy(values.begin(), values.end(), host.begin());
  }
  return host.data();
}

/// What this rank counts (saved) or updates (loaded), in the order of the parameters.
void add_weights(Trainer& trainer, Direction direction, Snapshot& snapshot) {
  const Shards& shards = trainer.shards();
  const bool save = direction == Direction::save;
  std::map<std::int64_t, float*> host;  // by the first element of Bucket::updated
  for (const Bucket& bucket : shards.buckets())
    host[bucket.updated.begin] = host_array(trainer, bucket.master ? bucket.master : bucket.value, snapshot);
  for (const ParameterPart& part : parts_in(trainer.parameters(), save ? shards.counted() : shards.updated(), save)) {
    const auto& [begin, weights] = *std::prev(host.upper_bound(part.flat_begin));
    snapshot.pieces.push_back(piece_of(part, part.parameter->name, weights + (part.flat_begin - begin)));
  }
}

void add_state(Trainer& trainer, Direction direction, Snapshot& snapshot) {
  const Optimizer& optimizer = trainer.optimizer();
  const bool save = direction == Direction::save;
  const std::vector<FlatRange> ranges = save ? trainer.shards().counted() : trainer.shards().updated();
  for (const Optimizer::StateArray& array : optimizer.state()) {
    float* values = host_array(trainer, array.values, snapshot);
    for (const ParameterPart& part : parts_in(trainer.parameters(), ranges, save))
      snapshot.pieces.push_back(piece_of(part, "optimizer." + array.name + "." + part.parameter->name,
                                         values + optimizer.state_offset(part.flat_begin)));
  }
}

std::string to_hex(const std::string& bytes) {
  constexpr char digits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(bytes.size() * 2);
  for (const unsigned char byte : bytes) {
    hex += digits[byte >> 4];
    hex += digits[byte & 15];
  }
  return hex;
}

std::string from_hex(const std::string& hex, const std::string& owner) {
  std::string bytes;
  bytes.reserve(hex.size() / 2);
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    unsigned value = 0;
    const auto [end, error] = std::from_chars(hex.data() + i, hex.data() + i + 2, value, 16);
    if (error != std::errc{} || end != hex.data() + i + 2)
      throw ConfigError(Problem{.what = owner + ": the tokenizer in its state is not hexadecimal"});
    bytes += static_cast<char>(value);
  }
  return bytes;
}

/// "loss norm loss norm ..." with all bits.
std::string to_text(const std::vector<SpikePoint>& window) {
  std::string text;
  for (const auto& [loss, norm] : window) text += fmt::format("{}{:a} {:a}", text.empty() ? "" : " ", loss, norm);
  return text;
}

std::vector<SpikePoint> spike_window_of(const std::string& text) {
  std::vector<SpikePoint> window;
  const char* at = text.c_str();
  for (char* end = nullptr; *at != 0; at = end) {
    SpikePoint point;
    point.loss = std::strtod(at, &end);
    point.norm = std::strtod(end, &end);
    if (end == at) break;
    window.push_back(point);
  }
  return window;
}

std::string state_value(const CheckpointReader& reader, const std::string& key) {
  const auto found = reader.state().find(key);
  if (found == reader.state().end())
    throw ConfigError(Problem{.what = reader.path() + " has no \"" + key + "\" in its state",
                              .why = "it was not written by `choir train`"});
  return found->second;
}

bool begins_with_any(const std::string& key, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(), [&](const std::string& p) { return key.starts_with(p); });
}

/// Keys of the model that say how it is trained, and which experts and heads have room for a token, but not what its
/// weights are.
bool may_change(const Difference& d) {
  if (d.key == "model.experts.balance") return d.left != "bias" && d.right != "bias";  // biases are weights
  return begins_with_any(d.key, {"model.dropout", "model.attention.dropout", "model.initial_deviation",
                                 "model.experts.capacity", "model.experts.balance_weight", "model.experts.bias_step",
                                 "model.attention.routing.capacity", "model.attention.routing.balance_weight"});
}

std::vector<Problem> model_problems(const Config& theirs, const Config& ours, const std::string& owner) {
  std::vector<Problem> problems;
  for (const Difference& d : differences(theirs, ours))
    if (begins_with_any(d.key, {"model."}) && !may_change(d))
      problems.push_back({.what = d.key + " = " + d.right + ", but " + d.left + " in " + owner,
                          .why = "the checkpoint is of another model",
                          .fix = "set " + d.key + "=" + d.left + ", or name another checkpoint"});
  return problems;
}

void finish_loading(Trainer& trainer, const Snapshot& snapshot) {
  for (const auto& [array, host] : snapshot.copies) write(trainer.runtime(), host.data(), array);
  trainer.shards().round(trainer.runtime());
  Context all = trainer.context();
  trainer.shards().publish(all);
}

}  // namespace

Snapshot owned_snapshot(Trainer& trainer) {
  Snapshot snapshot;
  add_weights(trainer, Direction::save, snapshot);
  add_state(trainer, Direction::save, snapshot);
  return snapshot;
}

void add_tokens(const TokenFile& file, State& state) {
  state["tokens_digest"] = file.tokens_digest();
  state["tokenizer_digest"] = file.tokenizer().digest();
  state["tokenizer_kind"] = file.tokenizer().kind();
  state["tokenizer_model"] = to_hex(file.tokenizer().serialized());
}

State run_state(const Config& config, const RunPosition& position, const Dataset& data) {
  State state = {{"config", print(config)},
                 {"run", position.run},
                 {"step", std::to_string(position.step)},
                 {"samples", std::to_string(position.samples)},
                 {"optimizer_origin", std::to_string(position.optimizer_origin)},
                 {"data_path", std::filesystem::absolute(config.data.path).lexically_normal().string()}};
  data.add_to(state);
  if (position.first_held_out) state["first_held_out_token"] = std::to_string(*position.first_held_out);
  if (!position.left_out.text().empty()) state["left_out"] = position.left_out.text();
  if (!position.spike_window.empty()) state["spike_window"] = to_text(position.spike_window);
  if (position.held_out_loss) state["held_out_loss"] = fmt::format("{}", *position.held_out_loss);
  return state;
}

RunPosition position_of(const CheckpointReader& reader) {
  const auto integer = [&](const char* key) -> std::optional<std::int64_t> {
    const auto found = reader.state().find(key);
    if (found == reader.state().end()) return std::nullopt;
    std::int64_t value = 0;
    const std::string& text = found->second;
    if (std::from_chars(text.data(), text.data() + text.size(), value).ptr != text.data() + text.size())
      throw ConfigError(
          Problem{.what = fmt::format("{}: {} = '{}' in its state is not a number", reader.path(), key, text)});
    return value;
  };
  const auto text = [&](const char* key) {
    const auto found = reader.state().find(key);
    return found == reader.state().end() ? std::string() : found->second;
  };
  const std::optional<LeftOut> left_out = LeftOut::parse(text("left_out"));
  if (!left_out)
    throw ConfigError(Problem{.what = fmt::format("{}: left_out = '{}' in its state is not a list of samples",
                                                  reader.path(), text("left_out"))});
  return {.step = reader.step(),
          .samples = integer("samples").value_or(0),
          .optimizer_origin = integer("optimizer_origin").value_or(0),
          .first_held_out = integer("first_held_out_token"),
          .held_out_loss = std::nullopt,
          .run = {},
          .left_out = *left_out,
          .spike_window = spike_window_of(text("spike_window"))};
}

Tokenizer tokenizer_of(const CheckpointReader& reader) {
  const std::string kind = state_value(reader, "tokenizer_kind");
  return Tokenizer::load(kind, from_hex(state_value(reader, "tokenizer_model"), reader.path()), reader.path());
}

Config config_of(const CheckpointReader& reader, const std::vector<std::string>& overrides) {
  Config config = parse_config(state_value(reader, "config"), reader.path() + " (its configuration)", overrides);
  const bool overridden = std::any_of(overrides.begin(), overrides.end(),
                                      [](const std::string& word) { return word.starts_with("data.path="); });
  const auto absolute = reader.state().find("data_path");
  if (!overridden && absolute != reader.state().end() && std::filesystem::exists(absolute->second))
    config.data.path = absolute->second;
  return config;
}

std::string load_weights(Trainer& trainer, const CheckpointReader& reader) {
  Config theirs = config_of(reader);
  const ModelConfig& ours = trainer.config().model;
  const bool new_head = ours.family == ModelFamily::classifier && theirs.model.family == ModelFamily::encoder;
  if (new_head) {  // an encoder learns to classify: what only the head knows is ours
    theirs.model.family = ours.family;
    theirs.model.classes = ours.classes;
    theirs.model.pool = ours.pool;
    theirs.model.tied = ours.tied;
  }
  throw_if_any(model_problems(theirs, trainer.config(), reader.path()));
  Snapshot snapshot;
  add_weights(trainer, Direction::load, snapshot);
  if (new_head) std::erase_if(snapshot.pieces, [](const Piece& piece) { return piece.name == "head.weight"; });
  reader.read(snapshot.pieces);
  finish_loading(trainer, snapshot);
  return new_head ? "head.weight" : "";
}

std::string load_all(Trainer& trainer, const CheckpointReader& reader) {
  throw_if_any(model_problems(config_of(reader), trainer.config(), reader.path()));
  std::string lacking;
  for (const Optimizer::StateArray& array : trainer.optimizer().state()) {
    const std::string prefix = "optimizer." + array.name + ".";
    const bool found = std::any_of(reader.tensors().begin(), reader.tensors().end(),
                                   [&](const TensorEntry& tensor) { return tensor.name.starts_with(prefix); });
    if (!found) lacking += (lacking.empty() ? "" : " and ") + array.name;
  }
  Snapshot snapshot;
  add_weights(trainer, Direction::load, snapshot);
  if (lacking.empty()) add_state(trainer, Direction::load, snapshot);
  reader.read(snapshot.pieces);
  finish_loading(trainer, snapshot);
  trainer.optimizer().set_state_origin(lacking.empty() ? position_of(reader).optimizer_origin : reader.step());
  return lacking;
}

std::vector<Problem> check_resume(const Config& then, const Config& now) {
  std::vector<Problem> problems;
  for (const Difference& d : differences(then, now)) {
    const bool fixed =
        begins_with_any(d.key, {"model.", "data.held_out", "data.masked.", "train.seed"}) && !may_change(d);
    if (fixed)
      problems.push_back({.what = d.key + " = " + d.right + ", but the run was started with " + d.left,
                          .why = "a resumed run keeps its model, its tokens, data.held_out, data.masked and train.seed",
                          .fix = "set " + d.key + "=" + d.left + ", or start a new run in another train.folder" +
                                 (d.key.starts_with("model.") ? "" : "; train.from takes the weights of this one")});
  }
  return problems;
}

std::vector<std::string> describe_changes(const Config& then, const Config& now, std::int64_t step) {
  std::vector<std::string> lines;
  for (const Difference& d : differences(then, now))
    if (begins_with_any(d.key, {"optimizer.", "train.batch", "train.steps", "train.precision", "train.time_products",
                                "model.dropout", "model.attention.dropout", "model.attention.routing.",
                                "model.experts.", "data.augment."}))
      lines.push_back(d.key + " = " + d.right + ", was " + d.left);
  const double last_rate = learning_rate(then.optimizer, step, then.train.steps);
  if (step < now.train.steps && learning_rate(now.optimizer, step, now.train.steps) != last_rate) {
    const double rate = learning_rate(now.optimizer, step + 1, now.train.steps);
    const double before = learning_rate(then.optimizer, step + 1, then.train.steps);
    const std::string unchanged = step < then.train.steps ? fmt::format(" ({:.3g} without these changes)", before) : "";
    lines.push_back(fmt::format("the learning rate changes: {:.3g} in step {}, {:.3g} in step {}{}", last_rate, step,
                                rate, step + 1, unchanged));
  }
  return lines;
}

}  // namespace choir
