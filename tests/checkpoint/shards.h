// Tensors cut in many ways, and folders for checkpoints of them.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "framework/checkpoint/publish.h"
#include "framework/checkpoint/rank_file.h"
#include "framework/checkpoint/reader.h"

namespace choir::tests {

namespace fs = std::filesystem;

/// A temporary folder, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "choir-checkpoint-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  explicit TemporaryFolder(std::string path) : path_(std::move(path)) { fs::create_directories(path_); }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

struct NamedShape {
  std::string name;
  Shape shape;
};

/// Deliberately ragged: one row, one column, one element, fewer rows than ranks.
inline const std::vector<NamedShape>& shapes() {
  static const std::vector<NamedShape> all = {{"blocks.0.attention.q.weight", {7, 5}},
                                              {"one.row", {1, 9}},
                                              {"one.column", {13, 1}},
                                              {"norm.weight", {11}},
                                              {"one.element", {1}},
                                              {"wide.weight", {3, 64}},
                                              {"optimizer.first.wide.weight", {300, 257}}};
  return all;
}

/// The value at global index i of a tensor after `step` steps: different for each of the three, and exact.
inline float value_at(const std::string& name, std::int64_t index, std::int64_t step) {
  return static_cast<float>(index) + 0.25f * static_cast<float>(name.size()) + 1e6f * static_cast<float>(step % 8);
}

enum class Cut { rows, columns, flat, columns_then_flat, first_rank, rows_of_odd_ranks };
inline constexpr Cut all_cuts[] = {Cut::rows,       Cut::columns,          Cut::flat, Cut::columns_then_flat,
                                   Cut::first_rank, Cut::rows_of_odd_ranks};

struct Shard {
  Piece piece;
  std::vector<float> values;
};

/// What `rank` of `ranks` holds of every tensor, filled with values of `step`; or with NaN, to be read into, for -1.
inline std::vector<Shard> cut(Cut how, int rank, int ranks, std::int64_t step,
                              const std::vector<NamedShape>& tensors = shapes()) {
  const auto share = [](std::int64_t n, int r, int of) { return n * r / of; };
  std::vector<Shard> shards;
  for (const auto& [name, shape] : tensors) {
    const std::int64_t rows = shape[0], width = width_of(shape);
    Piece p{.name = name, .shape = shape, .row_begin = 0, .row_end = rows, .column_begin = 0, .column_end = width};
    bool whole = true;
    switch (how) {
      case Cut::rows:
        p.row_begin = share(rows, rank, ranks), p.row_end = share(rows, rank + 1, ranks);
        break;
      case Cut::columns:
        p.column_begin = share(width, rank, ranks), p.column_end = share(width, rank + 1, ranks);
        break;
      case Cut::flat:
        p.begin = share(rows * width, rank, ranks), p.end = share(rows * width, rank + 1, ranks);
        whole = false;
        break;
      case Cut::columns_then_flat: {  // two groups of columns, each cut into stretches: tensor = 2 with ZeRO
        const int groups = ranks >= 2 ? 2 : 1, group = rank % groups,
                  members = ranks / groups + (group < ranks % groups);
        p.column_begin = share(width, group, groups), p.column_end = share(width, group + 1, groups);
        const std::int64_t count = rows * (p.column_end - p.column_begin);
        p.begin = share(count, rank / groups, members), p.end = share(count, rank / groups + 1, members);
        whole = false;
        break;
      }
      case Cut::first_rank:
        if (rank > 0) p.row_end = 0;
        break;
      case Cut::rows_of_odd_ranks:  // even ranks own nothing, unless there is one rank only
        if (ranks > 1) {
          p.row_begin = rank % 2 == 0 ? 0 : share(rows, rank / 2, ranks / 2);
          p.row_end = rank % 2 == 0 ? 0 : share(rows, rank / 2 + 1, ranks / 2);
        }
        break;
    }
    if (whole) p.end = (p.row_end - p.row_begin) * (p.column_end - p.column_begin);
    Shard shard{p, std::vector<float>(static_cast<std::size_t>(p.count()), std::nanf(""))};
    if (step >= 0)
      for_each_common_run(p.extent(), p.extent(), width,
                          [&](std::int64_t global, std::int64_t local, auto, std::int64_t n) {
                            for (std::int64_t i = 0; i < n; ++i)
                              shard.values[static_cast<std::size_t>(local + i)] = value_at(name, global + i, step);
                          });
    shards.push_back(std::move(shard));
  }
  return shards;
}

/// The pieces of shards, which must not move in memory.
inline std::vector<Piece> pieces_of(std::vector<Shard>& shards) {
  std::vector<Piece> pieces;
  for (Shard& shard : shards) {
    shard.piece.data = shard.values.data();
    pieces.push_back(shard.piece);
  }
  return pieces;
}

/// The number of elements that are not value_at(.., step).
inline std::int64_t wrong_elements(const std::vector<Shard>& shards, std::int64_t step) {
  std::int64_t wrong = 0;
  for (const Shard& s : shards) {
    const Extent extent = s.piece.extent();
    for_each_common_run(
        extent, extent, width_of(s.piece.shape), [&](std::int64_t global, std::int64_t local, auto, std::int64_t n) {
          for (std::int64_t i = 0; i < n; ++i)
            wrong += s.values[static_cast<std::size_t>(local + i)] != value_at(s.piece.name, global + i, step);
        });
  }
  return wrong;
}

/// Writes all rank files one after the other, and publishes, like a CheckpointWriter on each of `ranks` ranks.
inline std::string write_checkpoint(const std::string& folder, std::int64_t step, Cut how, int ranks,
                                    const State& state = {{"data.position", "12"}},
                                    const std::vector<NamedShape>& tensors = shapes()) {
  const std::string temporary = folder + "/" + step_name(step) + ".tmp";
  fs::create_directories(temporary);
  std::vector<Manifest> reports;
  for (int rank = 0; rank < ranks; ++rank) {
    std::vector<Shard> shards = cut(how, rank, ranks, step, tensors);
    const std::vector<Piece> pieces = pieces_of(shards);
    std::vector<std::uint64_t> digests;
    for (const Piece& piece : pieces) digests.push_back(digest_of(piece));
    reports.push_back(write_rank_file(temporary, rank, pieces, digests));
  }
  Manifest whole = merge(std::move(reports));
  whole.step = step;
  whole.ranks = ranks;
  whole.state = state;
  publish(folder, temporary, std::move(whole));
  return folder + "/" + step_name(step);
}

/// The number of wrong elements after reading `path` as `ranks` ranks that cut by `how`, one after the other.
inline std::int64_t wrong_after_reading(const std::string& path, std::int64_t step, Cut how, int ranks,
                                        const std::vector<NamedShape>& tensors = shapes()) {
  const CheckpointReader reader(path);
  std::int64_t wrong = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    std::vector<Shard> shards = cut(how, rank, ranks, -1, tensors);
    reader.read(pieces_of(shards));
    wrong += wrong_elements(shards, step);
  }
  return wrong;
}

inline std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void set_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

inline void flip_bit(const std::string& path, std::size_t byte, int bit = 0) {
  std::string bytes = bytes_of(path);
  bytes.at(byte) = static_cast<char>(bytes[byte] ^ (1 << bit));
  set_bytes(path, bytes);
}

/// The names in a folder, sorted, separated by spaces.
inline std::string listing(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

}  // namespace choir::tests
