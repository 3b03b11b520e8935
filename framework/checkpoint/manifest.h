// The manifest of a checkpoint: its contents, the place of each part of each tensor, and the digests that verify them.
//
// JSON, one file or tensor a line, sealed: the last key, "end", is the digest of all text before it. A rank's report on
// the file it wrote is a manifest too, with one file and its own parts; their union is the checkpoint's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/checkpoint/checkpoint.h"
#include "framework/checkpoint/durable.h"

namespace choir {

/// Elements of a tensor that one rank wrote, and where.
struct StoredPart {
  int rank = 0;              ///< of the file rank-N.h5
  Extent extent;             ///< which elements
  std::int64_t offset = 0;   ///< of the first, in bytes from the start of the file
  std::uint64_t digest = 0;  ///< of these elements (tensor_digest.h)
};

struct TensorEntry {
  std::string name;
  Shape shape;
  std::uint64_t digest = 0;  ///< the sum over the parts: the same for every layout
  std::vector<StoredPart> parts;
};

struct Manifest {
  static constexpr std::int64_t version = 1;

  std::int64_t step = 0;
  int ranks = 0;
  State state;
  std::vector<FileEntry> files;  ///< rank-0.h5, rank-1.h5, ..., checkpoint.h5
  std::vector<TensorEntry> tensors;

  const TensorEntry* find(const std::string& name) const;
};

std::string rank_file_name(std::int64_t rank);  ///< "rank-3.h5"
/// The datasets of a tensor's parts, in their rank files: the tensor's name; "name#1", ... for further parts of a rank.
std::vector<std::string> dataset_names(const TensorEntry& tensor);

/// One manifest of all reports' files and parts, without step, ranks and state. Throws Error if two ranks disagree
/// on a shape.
Manifest merge(std::vector<Manifest> reports);

/// For each rank file, the byte ranges of elements of tensors, ascending.
std::vector<std::vector<ByteRange>> element_ranges(const Manifest& manifest);

/// Checks all that can be checked without the files: names, shapes, each element in exactly one part, parts that lie
/// inside their files and do not overlap, digests that add up. Returns "" or the first thing that is wrong.
std::string inconsistency(const Manifest& manifest);

std::string to_text(const Manifest& manifest);
/// `body` and the last line: the digest of it.
std::string seal(std::string body);
/// Throws ConfigError for text that is torn, changed or not a manifest, and Error for a whole manifest of another
/// version. Does not check consistency, because a report is a manifest, too.
Manifest parse_manifest(const std::string& text);

}  // namespace choir
