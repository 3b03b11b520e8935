// The rows of a source whose samples have several texts each. Of n texts, sequence n i + t of a micro-batch is text t
// of sample i, of the global batch too: so the texts of a sample stay on one rank, position beside position, and what
// is keyed by (sequence, position) is the same in every layout.
#pragma once

#include <vector>

#include "framework/core/rows.h"
#include "framework/core/runtime.h"

namespace choir {

/// Those of one text of each sample, of `rows` with `texts` of them.
Rows rows_of_a_text(const Rows& rows, std::int64_t texts);

/// Of x [N, width], the rows of text `text` of each sample: [N / texts, width]. `rows` are those of all texts.
Tensor text_rows(Runtime&, const Tensor& x, const Rows& rows, std::int64_t texts, std::int64_t text);
/// The way back: [N, width] of the rows of each text.
Tensor join_texts(Runtime&, const std::vector<Tensor>& texts, const Rows& rows);

}  // namespace choir
