// Texts with their classes, a line each, to a token file with labels.
#pragma once

#include "framework/data/prepare_lines.h"

namespace choir {

struct PrepareLabelledResult {
  PrepareResult text;
  std::vector<std::string> class_names;          ///< by label, sorted
  std::vector<std::int64_t> documents_of_class;  ///< by label
};

/// A line is the class, a tab and the text, which makes one document. There are `most_classes` classes at most.
///
/// The documents are written in an order drawn at random, always the same one, so that any stretch of them has all
/// classes. Memory: all the text. Throws ConfigError for files that cannot be read, lines without a class or a text,
/// and more classes (all problems at once), and for a tokenizer that cannot be made; Error if the disk is full or
/// fails.
PrepareLabelledResult prepare_labelled(const PrepareLinesOptions&, std::int64_t most_classes,
                                       const std::function<void(const PrepareProgress&)>& progress);

}  // namespace choir
