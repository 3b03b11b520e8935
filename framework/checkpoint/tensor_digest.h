// Digests of tensors that do not depend on how the tensor is cut.
//
//   digest = sum over elements of mix(bits of element i, i)  mod 2^64,  i its row-major index in the global tensor
//
// Sums over the parts of any sharding add up to the same value, so N writers and M readers agree. For a given index the
// mix is a bijection of the bits: a change of one element is always detected. Not cryptographic.
#pragma once

#include <cstdint>

#include "framework/checkpoint/checkpoint.h"

namespace choir {

/// digest_of(piece). If `copy` is not null, the elements are also copied to it, in the same pass over memory.
std::uint64_t digest_and_copy(const Piece& piece, float* copy);

}  // namespace choir
