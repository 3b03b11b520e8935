// Documents that share a sequence: attention stays within one, and positions begin again at its first token.
//
// For each position of each sequence there is the range of positions of its document. So a query finds the keys that it
// sees, and a key the queries that see it, by one read; and since ranges ascend, so do tiles of them.
//
// Heads may have ranges of their own: if each has queries of other positions (kernels/head_routing.h), the ranges are
// all that is left of the mask.
#pragma once

#include <cstdint>

#include "kernels/band.h"

namespace choir::kernels {

using DocumentRange = IndexRange<std::int32_t>;

/// The documents of one call of attention. Query i stands at position first_query + i, key j at first_key + j.
struct Documents {
  bool separate = false;                  ///< false: a sequence is one document
  const DocumentRange* ranges = nullptr;  ///< [batch, heads, length]: by position, of the sequence
  std::int64_t length = 0;
  std::int64_t first_query = 0, first_key = 0;
  std::int64_t heads = 1;  ///< 1: all heads have the same ranges

  /// The keys of the document of query `query` of sequence `batch`: of them, those that this call has.
  template <class Index>
  constexpr IndexRange<Index> keys_of(std::int64_t batch, std::int64_t head, Index query) const {
    return shifted<Index>(of(batch, head)[first_query + query], first_key);
  }
  /// The queries of the document of a key.
  template <class Index>
  constexpr IndexRange<Index> queries_of(std::int64_t batch, std::int64_t head, Index key) const {
    return shifted<Index>(of(batch, head)[first_key + key], first_query);
  }

 private:
  constexpr const DocumentRange* of(std::int64_t batch, std::int64_t head) const {
    return ranges + (batch * heads + (heads > 1 ? head : 0)) * length;
  }
  template <class Index>
  static constexpr IndexRange<Index> shifted(DocumentRange range, std::int64_t first) {
    return {static_cast<Index>(range.begin - first), static_cast<Index>(range.end - first)};
  }
};

}  // namespace choir::kernels
