#include "framework/train/replay.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "framework/checkpoint/agreement.h"
#include "framework/model/joined_rows.h"
#include "framework/ops/elementwise.h"

namespace choir {
namespace {

std::vector<float> on_host(Runtime& runtime, const Tensor& x) {
  const Tensor flat = ops::contiguous(runtime, x);
  std::vector<float> values(static_cast<std::size_t>(flat.count()));
  if (flat.dtype() == DType::bf16) {
    std::vector<bf16> narrow(values.size());
    ops::download(runtime, flat, narrow.data());
    std::copy(narrow.begin(), narrow.end(), values.begin());
  } else {
    ops::download(runtime, flat, values.data());
  }
  return values;
}

std::optional<std::size_t> first_not_finite(const std::vector<float>& values) {
  const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  if (bad == values.end()) return std::nullopt;
  return static_cast<std::size_t>(bad - values.begin());
}

/// An element of a parameter, by its place in the global tensor.
struct Element {
  const Parameter* parameter;
  std::int64_t row, column;
};

Element element_of(const ParameterPart& part, std::size_t index) {
  const Parameter& p = *part.parameter;
  const std::int64_t i = part.begin + static_cast<std::int64_t>(index), columns = p.held.columns();
  return {&p, p.held.row_begin + i / columns, p.held.column_begin + i % columns};
}

/// The attention head that an element belongs to: a row of q, k and v, a column of the output projection. -1: none.
std::int64_t head_of(const Element& e, std::int64_t head_width) {
  const std::string& name = e.parameter->name;
  if (name.find(".attention.") == std::string::npos) return -1;
  for (const char* of_rows : {".q.", ".k.", ".v."})
    if (name.find(of_rows) != std::string::npos) return e.row / head_width;
  return name.ends_with(".out.weight") ? e.column / head_width : -1;
}

/// "layer 3, head 1", "layer 3" or "".
std::string place_of(const std::string& name, std::int64_t head) {
  constexpr std::string_view block = "blocks.";
  const std::size_t at = name.find(block);
  std::string text;
  if (at != std::string::npos) text = fmt::format("layer {}", std::atoi(name.c_str() + at + block.size()));
  if (head >= 0) text += fmt::format(", head {}", head);
  return text;
}

std::string describe(const Element& e, std::int64_t head_width) {
  const std::string place = place_of(e.parameter->name, head_of(e, head_width));
  return fmt::format("{} (row {}, column {}{}{})", e.parameter->name, e.row, e.column, place.empty() ? "" : "; ",
                     place);
}

/// The first thing that is not finite on this rank, by its place in the order of the computation.
class First {
 public:
  void offer(std::int64_t order, const std::function<std::string()>& text) {
    if (order >= order_) return;
    order_ = order;
    text_ = text();
  }
  /// Of all ranks, of which the lowest is named; "" if everything is finite. Collective.
  std::string of_all(Communicator& host) const {
    Agreement ranks(host);
    const auto mine = static_cast<std::int32_t>(order_);
    const std::int32_t first = none - ranks.largest(none - mine, "replay");
    if (first == none) return "";
    return ranks.first(mine == first ? fmt::format("{}, on rank {}", text_, ranks.rank()) : "", "replay");
  }

 private:
  static constexpr std::int32_t none = std::numeric_limits<std::int32_t>::max();
  std::int64_t order_ = none;
  std::string text_;
};

class Replay {
 public:
  Replay(Trainer& trainer, const std::function<std::int64_t(std::int64_t)>& sample_of)
      : trainer_(trainer),
        runtime_(trainer.runtime()),
        sample_of_(sample_of),
        model_(all_parameters(trainer.config().model)),
        parts_(trainer.parts_here()),
        sample_squares_(static_cast<std::size_t>(trainer.config().train.batch)) {
    for (const Parameter& p : model_.parameters()) places_[p.name] = std::ssize(places_);
  }

  Replayed run(std::int64_t step, const ReadSample& read) {
    look_at(&Bucket::master, 0, "the weight");
    const WatchParts watch = [this](bool backward, std::size_t part, const Tensor& result, Context& context) {
      if (result) look_between(backward, parts_[part], result, context);
    };
    trainer_.set_watch(&watch);
    Replayed replayed{.result = trainer_.step(step, read)};
    trainer_.set_watch(nullptr);
    look_at(&Bucket::gradient, std::ssize(places_) + 2 * most_parts, "the gradient of");
    replayed.finding = first_.of_all(*trainer_.mesh().host);
    if (replayed.finding.empty()) replayed.finding = describe_largest();
    return replayed;
  }

 private:
  static constexpr std::int64_t most_parts = 1 << 20;

  std::int64_t head_width() const { return trainer_.config().model.head_width(); }
  std::vector<ParameterPart> counted() const {
    return parts_in(trainer_.parameters(), trainer_.shards().counted(), true);
  }
  std::vector<float> values(const ParameterPart& part, const Tensor Bucket::*tensor) {
    return on_host(runtime_, trainer_.shards().at(part.flat(), tensor));
  }

  void look_at(const Tensor Bucket::*tensor, std::int64_t first_order, const char* what) {
    for (const ParameterPart& part : counted()) {
      const std::vector<float> elements = values(part, tensor);
      if (const auto bad = first_not_finite(elements))
        first_.offer(first_order + places_.at(part.parameter->name), [&] {
          return fmt::format("{} {} is {}", what, describe(element_of(part, *bad), head_width()), elements[*bad]);
        });
    }
  }

  /// What `part` gives forward, or backward.
  void look_between(bool backward, const std::pair<std::string, std::int64_t>& part, const Tensor& result,
                    Context& context) {
    if (context.source.rows.count() > 0)
      look_at_rows(backward, part, source_rows(result, context), context.source.rows,
                   {" of the source", " of the second source"});
    look_at_rows(backward, part, target_rows(result, context), context.rows, {""});
  }

  /// `whose`: the position, of each text that a sample has in these rows.
  void look_at_rows(bool backward, const std::pair<std::string, std::int64_t>& part, const Tensor& result,
                    const Rows& rows, const std::vector<const char*>& whose) {
    const auto& [name, place] = part;
    const RowShare share = rows.share();
    const std::vector<float> elements = on_host(runtime_, result);
    const std::int64_t width = result.width(), texts = whose.size() > 1 ? source_texts(trainer_.config().model) : 1;
    for (std::int64_t row = 0; row < std::min(share.end - share.begin, result.rows()); ++row) {
      const auto at = rows.share_map().place(row);
      const std::int64_t in_batch = (rows.first_sample + at.sequence) / texts;
      const char* text = whose[static_cast<std::size_t>((rows.first_sample + at.sequence) % texts)];
      for (std::int64_t i = 0; i < width; ++i) {
        const float value = elements[static_cast<std::size_t>(row * width + i)];
        if (backward && place == 1)
          sample_squares_[static_cast<std::size_t>(in_batch)] += static_cast<double>(value) * value;
        if (std::isfinite(value)) continue;
        first_.offer(std::ssize(places_) + (backward ? 2 * most_parts - 1 - place : place), [&] {
          return fmt::format(
              "{} {} is {} for sample {} of the run (place {} of the batch, position {}{}, feature {}){}",
              backward ? "the gradient of the input of" : "the output of", name, value, sample_of_(in_batch), in_batch,
              at.position, text, i, largest_weight(name));
        });
      }
    }
  }

  /// Of the weights of a part that this rank counts: an overflow mostly begins there.
  std::string largest_weight(const std::string& part_name) {
    std::optional<Element> largest;
    float size = 0;
    for (const ParameterPart& part : counted()) {
      if (!part.parameter->name.starts_with(part_name + ".")) continue;
      const std::vector<float> elements = values(part, &Bucket::master);
      for (std::size_t i = 0; i < elements.size(); ++i)
        if (std::abs(elements[i]) > size) {
          size = std::abs(elements[i]);
          largest = element_of(part, i);
        }
    }
    if (!largest) return "";
    return fmt::format("; the largest weight of this part is that of {}: {:.3g}", describe(*largest, head_width()),
                       size);
  }

  void sum_over_ranks(std::vector<double>& sums) {
    const Tensor device = ops::to_device(runtime_, sums, DType::f64);
    trainer_.mesh().world->all_reduce(device, Reduce::sum, runtime_.device.compute(), "replay");
    ops::download(runtime_, device, sums.data());
  }

  /// Everything is finite. Collective.
  std::string describe_largest() {
    std::vector<double> squares(places_.size());
    for (const ParameterPart& part : counted())
      for (const float value : values(part, &Bucket::gradient))
        if (!part.parameter->sign_step)
          squares[static_cast<std::size_t>(places_.at(part.parameter->name))] += static_cast<double>(value) * value;
    sum_over_ranks(squares);
    const auto largest = std::max_element(squares.begin(), squares.end());
    double all = 0;
    for (const double square : squares) all += square;
    const Parameter& tensor = model_.parameters()[static_cast<std::size_t>(largest - squares.begin())];

    std::vector<double> heads(static_cast<std::size_t>(trainer_.config().model.attention.heads));
    float largest_here = 0;
    for (const ParameterPart& part : counted()) {
      if (part.parameter->name != tensor.name) continue;
      const std::vector<float> elements = values(part, &Bucket::gradient);
      for (std::size_t i = 0; i < elements.size(); ++i) {
        largest_here = std::max(largest_here, std::abs(elements[i]));
        const std::int64_t head = head_of(element_of(part, i), head_width());
        if (head >= 0) heads[static_cast<std::size_t>(head)] += static_cast<double>(elements[i]) * elements[i];
      }
    }
    sum_over_ranks(heads);
    const auto head = std::max_element(heads.begin(), heads.end());
    const std::string place = place_of(tensor.name, *head > 0 ? head - heads.begin() : -1);

    Agreement ranks(*trainer_.mesh().host);
    const auto size = std::bit_cast<std::int32_t>(largest_here);  // in the order of the numbers
    const bool is_mine = size == ranks.largest(size, "replay");
    const std::string rank = ranks.first(is_mine ? std::to_string(ranks.rank()) : "", "replay");

    sum_over_ranks(sample_squares_);
    const auto sample = std::max_element(sample_squares_.begin(), sample_squares_.end());
    double of_samples = 0;
    for (const double square : sample_squares_) of_samples += square;
    return fmt::format(
        "everything is finite; the largest gradient is that of {}{}{}{}: {:.0f} % of the squared norm; its largest "
        "element is on rank {}\nthe sample with the largest gradient is sample {} of the run (place {} of the batch): "
        "{:.0f} % of the sum of squares over the batch, where an equal share is {:.1f} %",
        tensor.name, place.empty() ? "" : " (", place, place.empty() ? "" : ")", all > 0 ? 100 * *largest / all : 0,
        rank, sample_of_(sample - sample_squares_.begin()), sample - sample_squares_.begin(),
        of_samples > 0 ? 100 * *sample / of_samples : 0, 100.0 / static_cast<double>(sample_squares_.size()));
  }

  Trainer& trainer_;
  Runtime& runtime_;
  const std::function<std::int64_t(std::int64_t)>& sample_of_;
  const ParameterStore model_;
  const std::vector<std::pair<std::string, std::int64_t>> parts_;
  std::map<std::string, std::int64_t> places_;  // of the parameters, in the order of the model
  std::vector<double> sample_squares_;          // of the gradient of the output of the model's first part
  First first_;
};

}  // namespace

Replayed replay(Trainer& trainer, std::int64_t step, const ReadSample& read,
                const std::function<std::int64_t(std::int64_t place)>& sample_of) {
  return Replay(trainer, sample_of).run(step, read);
}

}  // namespace choir
