// What `choir inspect` writes of an Inspection: a page for people, and an HDF5 file for tools.
//
//   attributes of /            format_version, title, layers, heads, tile, layer_names (one a line)
//   /measures/<name>           [samples, layers, heads] f32: the HeadMeasures; NaN: not defined
//   /similarity                [layers * heads, layers * heads] f32; NaN between layers of different stacks
//   /samples/<n>               attribute label
//   /samples/<n>/maps          [layers, heads, rows, columns] f32: rows are queries; a cell is a tile of positions.
//                              Of an encoder-decoder encoder_maps, decoder_maps and cross_maps; with two sources
//                              also second_source_maps, what the encoder does in the second one
//   /samples/<n>/ids           [length] i32: of text
//   /samples/<n>/tokens        [length] text of fixed length: the bytes that the ids stand for
//   /samples/<n>/source_ids    [length of the source] i32, and source_tokens: of encoder-decoders; with two sources
//                              also second_source_ids and second_source_tokens
//   /samples/<n>/pixels        [channels, height, width] u8: of images
#pragma once

#include <string>
#include <vector>

#include "framework/train/inspect.h"

namespace choir {

/// What is written, and what people read about it.
struct InspectionReport {
  const ModelConfig& model;
  const std::vector<InspectedSample>& samples;
  const Inspection& inspection;
  std::string title;                             ///< "runs/quickstart, step 240"
  std::vector<std::string> labels;               ///< of the samples
  std::vector<std::vector<std::string>> tokens;  ///< of the samples: the bytes of each token; empty for images
  /// Likewise, of what an encoder reads.
  std::vector<std::vector<std::string>> source_tokens, second_source_tokens;
};

/// The bytes of the HDF5 file. Makes HDF5 calls.
std::string inspection_hdf5(const InspectionReport&);
/// One HTML file without a network.
std::string inspection_page(const InspectionReport&);

}  // namespace choir
