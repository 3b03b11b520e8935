// Pairs of texts, a source and its target, to a token file of pairs; or triples, of two sources and a target.
#pragma once

#include "framework/data/prepare_lines.h"

namespace choir {

/// Files with a pair on each line. If the name of a file ends with .jsonl or .json, a line is an object with the
/// strings "source" and "target"; else it is the source, a tab and the target. With two `sources` there is a
/// "second_source", and a column of it between source and target. One tokenizer serves all of them.
///
/// The pairs are written in an order drawn at random, always the same one, so that any stretch of them is like the
/// whole. Memory: all the text. Throws ConfigError for files that cannot be read and lines that are no pair of two
/// texts (all problems at once), and for a tokenizer that cannot be made; Error if the disk is full or fails. The
/// result counts two documents for each pair, three for each triple.
PrepareResult prepare_pairs(const PrepareLinesOptions&, std::int64_t sources,
                            const std::function<void(const PrepareProgress&)>& progress);

}  // namespace choir
