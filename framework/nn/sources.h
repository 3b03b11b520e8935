// The streams of tokens that an attention with several sources reads.
//
//   target   the residual stream of the tokens that a decoder writes
//   source   what an encoder gives of another sequence
//
// {target, source, source} is cross-attention. {target, target, source} compares tokens with each other and reads of a
// second sequence what stands at the places found; {target, source, target} looks for places in the second sequence and
// reads what the first has there. In these two the streams are aligned: row j of the keys and row j of the values
// belong together, so that both sequences have the same length, and positions of queries and keys can be compared.
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
