// What does not fit together in what a model reads: vocabulary, masks of tokens, images, pairs, sources of attention.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <numeric>

#include "framework/config/table.h"
#include "framework/config/validator.h"

namespace choir {

void Validator::check_tokenizer() {
  if (config_.model.family == ModelFamily::vision) return;
  if (!are_sound({"model.vocabulary", "data.tokenizer.kind", "data.tokenizer.vocabulary"})) return;
  constexpr std::int64_t byte_tokens = 257;  // one per byte, and the end of a document
  const TokenizerConfig& t = config_.data.tokenizer;
  const bool bytes = t.kind == TokenizerKind::bytes;
  if (bytes && t.vocabulary != 0 && t.vocabulary != byte_tokens)
    add(fmt::format("data.tokenizer.vocabulary = {} with data.tokenizer.kind = bytes", t.vocabulary),
        fmt::format("the byte tokenizer has {} tokens: one per byte, and the end of a document", byte_tokens),
        fmt::format("set data.tokenizer.vocabulary to 0 or {}", byte_tokens));
  const std::int64_t tokens = bytes ? byte_tokens : t.vocabulary;
  const ModelConfig& m = config_.model;
  if (tokens <= m.text_vocabulary()) return;
  const std::string whose =
      bytes ? std::string("data.tokenizer.kind = bytes") : fmt::format("data.tokenizer.vocabulary = {}", t.vocabulary);
  if (tokens > m.vocabulary)
    add(fmt::format("model.vocabulary = {} is below the {} tokens of the tokenizer ({})", m.vocabulary, tokens, whose),
        "a token without a row in the embedding cannot be read",
        fmt::format("set model.vocabulary to {} or more", tokens + m.vocabulary - m.text_vocabulary()));
  else
    add(fmt::format("model.vocabulary = {} leaves no id for the mask token beside the {} tokens of the tokenizer ({})",
                    m.vocabulary, tokens, whose),
        "the last id of an encoder is its mask token, which is not a token of text",
        fmt::format("set model.vocabulary to {} or more", tokens + 1));
}

void Validator::refuse_changed(const std::vector<std::string>& prefixes, const std::string& why, const char* family) {
  for (const Difference& changed : differences(Config{}, config_))
    if (std::any_of(prefixes.begin(), prefixes.end(), [&](const std::string& p) { return changed.key.starts_with(p); }))
      add(fmt::format("{} = {} with model.family = {}", changed.key, changed.right, name_of(config_.model.family)), why,
          fmt::format("delete {}, or set model.family to {}", changed.key, family));
}

void Validator::check_masked() {
  const MaskedConfig& masked = config_.data.masked;
  if (config_.model.family != ModelFamily::encoder)
    return refuse_changed({"data.masked."}, "only an encoder has masked tokens", "encoder");
  if (!are_sound({"data.masked.mask_token", "data.masked.random_token"})) return;
  if (masked.mask_token + masked.random_token > 1)
    add(fmt::format("data.masked.mask_token = {} and data.masked.random_token = {} are together more than 1",
                    masked.mask_token, masked.random_token),
        "both are shares of the targets, and a target is read as one of them or as it is",
        "set them to numbers whose sum is 1 or less");
}

// The squares of an image are the positions of its sequence.
void Validator::check_images() {
  const ModelConfig& m = config_.model;
  if (!m.is_classifier())
    refuse_changed({"model.classes", "model.pool"}, "only classifiers and vision models tell classes apart",
                   "classifier or vision");
  if (m.family != ModelFamily::vision) {
    if (is_2d(m.attention.position))
      add(fmt::format("model.attention.position = {} with model.family = {}", name_of(m.attention.position),
                      name_of(m.family)),
          "only the squares of images have rows and columns",
          fmt::format("set model.attention.position to {}", is_rotary(m.attention.position) ? "rotary" : "learned"));
    return refuse_changed({"model.image.", "data.augment."}, "only a vision model reads images", "vision");
  }
  if (!are_sound({"model.image.height", "model.image.width", "model.image.patch", "model.context"})) return;
  const ImageConfig& i = m.image;
  if (i.height % i.patch != 0 || i.width % i.patch != 0)
    return add(
        fmt::format("model.image.patch = {} does not divide images of {} x {} pixels", i.patch, i.height, i.width),
        "an image is cut into whole squares",
        fmt::format("set model.image.patch to one of {}", fmt::join(divisors(std::gcd(i.height, i.width)), ", ")));
  if (i.is_convolved() && (i.patch < 2 || !std::has_single_bit(static_cast<std::uint64_t>(i.patch))))
    add(fmt::format("model.image.patch = {} with model.image.stem = convolution", i.patch),
        "each convolution halves the sides of a square, until it is one pixel",
        "set model.image.patch to a power of two that divides height and width, or model.image.stem to patch");
  if (m.context != m.image_positions())
    add(fmt::format("model.context = {}, but images of {} x {} pixels in squares of {} have {} positions{}", m.context,
                    i.height, i.width, i.patch, m.image_positions(),
                    m.pool == Pool::class_token ? " with the class token" : ""),
        "every square is a position", fmt::format("set model.context to {}", m.image_positions()));
}

void Validator::check_pairs() {
  const ModelConfig& m = config_.model;
  if (!m.has_source())
    return refuse_changed({"model.encoder_layers", "model.source_context", "model.attention.sources.", "generate.beam"},
                          "only an encoder-decoder reads a source", "encoder_decoder");
  refuse_changed({"generate.temperature", "generate.top_k", "generate.top_p", "generate.seed"},
                 "the likeliest text is searched for, none is drawn", "decoder");
  if (m.attention.documents == DocumentBorders::separate)
    add("model.attention.documents = separate with model.family = encoder_decoder",
        "a sample of an encoder-decoder is one pair of texts", "delete model.attention.documents");
  check_sources();
}

void Validator::check_sources() {
  const ModelConfig& m = config_.model;
  const Sources& s = m.attention.sources;
  const std::string given =
      fmt::format("model.attention.sources = {{{}, {}, {}}}", name_of(s.queries), name_of(s.keys), name_of(s.values));
  if (s.queries != TokenStream::target)
    add(fmt::format("model.attention.sources.queries = {}", name_of(s.queries)),
        "what a query reads is added to the stream of its own tokens, and only those of the target have a loss",
        "set model.attention.sources.queries to target");
  if (!s.read(TokenStream::source))
    add(given,
        s.read(TokenStream::second_source) ? "nothing of the decoder would read the first source"
                                           : "nothing of the decoder would read the source",
        "set model.attention.sources.keys or model.attention.sources.values to source");
  if (s.are_aligned() && are_sound({"model.context", "model.source_context"}) && m.source_length() != m.context)
    add(fmt::format("{} with model.source_context = {} and model.context = {}", given, m.source_context, m.context),
        "keys of one sequence and values of the other belong together by their positions, so that both are equally "
        "long",
        fmt::format("set model.source_context to {}, or to 0", m.context));
}

}  // namespace choir
