// What a run is trained and evaluated on: samples as the family of its model reads them, from the file data.path.
// Evaluations read the same in training and in `choir evaluate`.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "framework/checkpoint/reader.h"
#include "framework/config/config.h"
#include "framework/data/left_out.h"
#include "framework/model/sample.h"

namespace choir {

struct HeldOut {
  std::int64_t all = 0;      ///< held-out samples there are
  std::int64_t samples = 0;  ///< of them are read, spread evenly, so that a few represent all
  ReadSample read;           ///< sample 0 to samples - 1; refers to the dataset
};

class Dataset {
 public:
  Dataset() = default;
  virtual ~Dataset() = default;
  Dataset(const Dataset&) = delete;
  Dataset& operator=(const Dataset&) = delete;

  /// Why the model cannot be trained on this data.
  virtual std::vector<Problem> check_model() const = 0;
  /// True if the run of the checkpoint was trained on this data, or the checkpoint does not say.
  virtual bool is_that_of(const CheckpointReader&) const = 0;
  /// Why the weights of a checkpoint cannot be used with this data.
  virtual std::vector<Problem> check_weights(const CheckpointReader&) const = 0;
  /// Divides the data into samples for training and held-out ones: as the run of the checkpoint `from` did, if it was
  /// trained on the same data, else by data.held_out. Call it once, before what follows. Throws ConfigError if
  /// nothing is left for training.
  virtual void split(const CheckpointReader* from) = 0;

  /// Samples of a step, of which the first is sample `first` of the run. Refers to the dataset.
  virtual ReadSample training(std::int64_t first) const = 0;
  /// train.evaluate_sequences of the held-out samples, or all if that is 0 or there are fewer.
  virtual HeldOut held_out() const = 0;

  /// The first token, or image, that is held out: a run keeps it.
  virtual std::int64_t first_held_out() const = 0;
  /// Adds to the state of a checkpoint what identifies the data, and what else is needed to use the model.
  virtual void add_to(State&) const = 0;
  /// "corpus.h5: 3 tokens, ..."
  virtual std::string describe() const = 0;
};

/// The samples of a step: those of the run from `first` on, without those that are left out. Refers to the dataset.
ReadSample training_batch(const Dataset&, std::int64_t first, const LeftOut& left_out);

/// Opens data.path. Throws ConfigError if it cannot be read.
std::unique_ptr<Dataset> open_dataset(const Config&);

std::unique_ptr<Dataset> open_text(const Config&);           // decoders and encoders: text_dataset.cpp
std::unique_ptr<Dataset> open_pairs(const Config&);          // encoder-decoders: pair_dataset.cpp
std::unique_ptr<Dataset> open_labelled_text(const Config&);  // classifiers: labelled_dataset.cpp
std::unique_ptr<Dataset> open_images(const Config&);         // vision models: image_dataset.cpp

}  // namespace choir
