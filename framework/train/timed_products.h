// train.time_products: which of cuBLASLt's algorithms is the fastest for each product of a step, found by measurement.
//
// When the first step is done, rank 0 times the products that any rank has computed, on scratch memory, and all ranks
// take its choices: equal products have equal algorithms on every rank. The choices are kept in the run folder and in
// every checkpoint, so that a run that goes on computes the bits that it would have computed.
#pragma once

#include <map>
#include <string>

#include "framework/train/trainer.h"

namespace choir {

struct ProductChoices {
  std::string place;                              ///< place_of_products() when they were made; empty: there are none
  std::map<std::string, std::string> algorithms;  ///< by product: names of kernels/matmul_choices.h

  /// The place, then a line for each product. parse() gives no choices if the text is not of this form.
  std::string text() const;
  static ProductChoices parse(const std::string&);
};

// The functions below are of builds with CUDA (train/cuda/timed_products.cpp).

/// What the choices depend on: "NVIDIA H200, cuBLASLt 130002, tensor 2, data 4, micro-batches of 8". Of a GPU.
std::string place_of_products(Trainer&);

/// Times the products so far of all ranks, and uses the fastest algorithms from now on. Of a GPU. `report`: a line that
/// says what was done. Returns no choices if the ranks' places differ. Collective.
ProductChoices time_products(Trainer&, std::string& report);

/// Uses these from now on. Throws Failure (kernels/cuda/failure.h) if cuBLASLt refuses one.
void use_products(Trainer&, const ProductChoices&);

}  // namespace choir
