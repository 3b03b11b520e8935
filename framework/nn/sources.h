// The streams of tokens that an attention with several sources reads.
//
//   target                   the residual stream of the tokens that a decoder writes
//   source, second_source    what an encoder gives of another sequence, and of a third one
//
// {target, source, source} is cross-attention. {target, source, second_source} finds places in one sequence and reads
// what another one has there: row j of the keys and row j of the values belong together. So they do if one is of
// target: {target, target, source} compares tokens with each other, {target, source, target} looks for places in the
// source. In these two, target and source are aligned: they are equally long, and positions of queries and keys can be
// compared.
#pragma once

#include <array>

#include "framework/core/names.h"

namespace choir {

enum class TokenStream { target, source, second_source };
template <>
inline constexpr auto names<TokenStream> = std::array{"target", "source", "second_source"};

struct Sources {
  TokenStream queries = TokenStream::target, keys = TokenStream::source, values = TokenStream::source;

  bool are_aligned() const { return keys == TokenStream::target || values == TokenStream::target; }
  bool read(TokenStream stream) const { return keys == stream || values == stream; }

  bool operator==(const Sources&) const = default;
};

}  // namespace choir
