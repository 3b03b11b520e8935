// Separate documents: what the parts of a model need to know of the borders in a micro-batch.
#pragma once

#include <vector>

#include "framework/comm/context.h"
#include "kernels/documents.h"

namespace choir {

/// `ranges` [B, T] of all positions of the sequences of `rows`, on the device. On device `count` none are read.
SeparateDocuments upload_documents(Runtime&, const std::vector<kernels::DocumentRange>& ranges, const Rows& rows);

}  // namespace choir
