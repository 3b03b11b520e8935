// What does not fit together in a model: heads, masks, kinds of attention.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "framework/config/table.h"
#include "framework/config/validator.h"

namespace choir {

void Validator::check_heads() {
  const ModelConfig& m = config_.model;
  const AttentionConfig& a = m.attention;
  if (are_sound({"model.attention.heads", "model.attention.kv_heads"}) && a.heads % m.kv_heads() != 0)
    add(fmt::format("model.attention.kv_heads = {} does not divide model.attention.heads = {}", a.kv_heads, a.heads),
        "each key/value head serves the same number of query heads",
        fmt::format("set model.attention.kv_heads to one of {}", fmt::join(divisors(a.heads), ", ")));

  if (!are_sound({"model.width", "model.attention.heads", "model.attention.head_width"})) return;
  if (a.head_width == 0 && m.width % a.heads != 0)
    add(fmt::format("model.width = {} does not divide by model.attention.heads = {}", m.width, a.heads),
        "without model.attention.head_width a head is model.width / heads wide",
        fmt::format("set model.width to {}, or give model.attention.head_width", nearest_multiples(m.width, a.heads)));
  else if (const std::int64_t step = is_2d(a.position) ? 4 : 2; is_rotary(a.position) && m.head_width() % step != 0)
    add(fmt::format(
            "model.attention.position = {} with heads of width {}{}", name_of(a.position), m.head_width(),
            a.head_width > 0 ? "" : fmt::format(" (model.width = {} / model.attention.heads = {})", m.width, a.heads)),
        is_2d(a.position)
            ? "a row and a column turn half of the features each, in pairs, so that the width of a head divides by 4"
            : "rotary positions turn pairs of features, so that the width of a head is even",
        fmt::format("set model.attention.head_width to {}", m.head_width() / step * step + step));
}

void Validator::check_attention_mask() {
  const ModelConfig& m = config_.model;
  if (m.is_classifier() && m.attention.documents == DocumentBorders::separate)
    add(fmt::format("model.attention.documents = separate with model.family = {}", name_of(m.family)),
        "a sample of a classifier is one text or one image", "delete model.attention.documents");
  if (m.attention.prefix == 0 || !are_sound({"model.attention.prefix", "model.context"})) return;
  const std::string given = fmt::format("model.attention.prefix = {}", m.attention.prefix);
  if (m.family != ModelFamily::decoder)
    add(fmt::format("{} with model.family = {}", given, name_of(m.family)),
        "only a decoder has tokens that do not see each other", "delete model.attention.prefix");
  if (m.attention.prefix >= m.context)
    add(fmt::format("{} leaves no target in model.context = {}", given, m.context),
        "the tokens of the prefix see each other, so that the first target is the one after it",
        fmt::format("set model.attention.prefix to {} or less", m.context - 1));
  if (m.attention.documents == DocumentBorders::separate)
    add(fmt::format("{} with model.attention.documents = separate", given),
        "the prefix is that of a sequence, and a sequence of several documents would have it in the first one only",
        "set model.attention.prefix to 0, or model.attention.documents to joined");
}

// The queries of a routed head stand at positions that only the router knows.
void Validator::check_head_routing() {
  const AttentionConfig& a = config_.model.attention;
  const HeadRoutingConfig& r = a.routing;
  const ParallelConfig& p = config_.parallel;
  if (!are_sound({"model.attention.heads", "model.attention.routing.chosen", "model.attention.routing.always"})) return;
  const std::string given = fmt::format("model.attention.routing.chosen = {}", r.chosen);
  if (r.chosen == 0) {
    if (r.always > 0)
      add(fmt::format("model.attention.routing.always = {} with {}", r.always, given),
          "without a choice every token has all heads",
          "set model.attention.routing.chosen to 1 or more, or delete model.attention.routing.always");
    return;
  }
  if (r.always + r.chosen > a.heads)
    add(fmt::format("{} and model.attention.routing.always = {} are more than model.attention.heads = {}", given,
                    r.always, a.heads),
        "a token chooses different heads, of those that are not always on",
        fmt::format("set model.attention.routing.chosen and model.attention.routing.always to numbers whose sum is {} "
                    "or less",
                    a.heads));
  if (a.position == Position::alibi)
    add(fmt::format("model.attention.position = alibi with {}", given),
        "the kernels of ALiBi know the positions of queries from their numbers, and a head that is chosen has queries "
        "anywhere",
        "set model.attention.position to rotary or learned");
  if (a.dropout > 0)
    add(fmt::format("model.attention.dropout = {} with {}", value_text(&config_.model.attention.dropout), given),
        "probabilities are dropped by the positions of their queries, and a head that is chosen has queries anywhere",
        "delete model.attention.dropout; model.dropout works");
  if (p.context > 1 && (p.context_kind == ContextKind::ring || p.context_kind == ContextKind::heads))
    add(fmt::format("parallel.context_kind = {} with {}", name_of(p.context_kind), given),
        "the queries of a head that is chosen need the keys of all positions at once",
        "set parallel.context_kind to gather or auto");
}

// A state of fixed size holds no single key: what picks, caps or drops keys has no meaning in it.
void Validator::check_linear_attention() {
  const ModelConfig& m = config_.model;
  const AttentionConfig& a = m.attention;
  if (a.kind == AttentionKind::softmax) {
    if (a.softmax_every > 0)
      add(fmt::format("model.attention.softmax_every = {} with model.attention.kind = softmax", a.softmax_every),
          "every block has softmax",
          "set model.attention.softmax_every to 0, or model.attention.kind to linear or delta");
    return;
  }
  const auto refuse = [&](bool given, const std::string& what, const std::string& why, const std::string& fix) {
    if (given)
      add(fmt::format("{} with model.attention.kind = {}", what, name_of(a.kind)), why,
          fix + ", or set model.attention.kind to softmax");
  };
  refuse(a.window > 0, fmt::format("model.attention.window = {}", a.window),
         "a token leaves the state by its decay, not at a distance", "set model.attention.window to 0");
  refuse(a.position == Position::alibi, "model.attention.position = alibi",
         "the decay of each head stands for the distance; there is no score to which a slope can be added",
         "set model.attention.position to rotary, learned or none");
  refuse(a.sinks, "model.attention.sinks = true", "there is no softmax whose sum a logit could join",
         "set model.attention.sinks to false");
  refuse(a.soft_cap > 0, fmt::format("model.attention.soft_cap = {}", value_text(&config_.model.attention.soft_cap)),
         "products of q and k are not computed one by one", "set model.attention.soft_cap to 0");
  refuse(a.prefix > 0, fmt::format("model.attention.prefix = {}", a.prefix),
         "a state holds what is before a token or what is behind it, and tokens of a prefix see a part of that",
         "set model.attention.prefix to 0");
  refuse(a.dropout > 0, fmt::format("model.attention.dropout = {}", value_text(&config_.model.attention.dropout)),
         "there are no probabilities of single keys", "set model.attention.dropout to 0");
  refuse(a.routing.chosen > 0, fmt::format("model.attention.routing.chosen = {}", a.routing.chosen),
         "the state of a head takes up every token", "set model.attention.routing.chosen to 0");
  refuse(are_sound({"model.attention.kv_heads", "model.attention.heads"}) && m.kv_heads() != a.heads,
         fmt::format("model.attention.kv_heads = {} and model.attention.heads = {}", a.kv_heads, a.heads),
         "generation keeps a state of each query head and no keys, so that fewer key/value heads would save nothing",
         "set model.attention.kv_heads to 0");
}

}  // namespace choir
