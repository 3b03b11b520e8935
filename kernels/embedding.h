// Token and position embeddings.
//
// A rank may hold only the tokens [first_token, first_token + num_tokens) of the vocabulary: ids outside give rows of
// zeros in forward and are skipped in backward, so that the sum over ranks is the embedding.
#pragma once

#include <cstdint>

#include "kernels/rows.h"
#include "kernels/types.h"

namespace choir::kernels {

/// y[r] = table[ids[r] - first_token], or zeros.
template <class T>
struct EmbeddingForward {
  const std::int32_t* ids;  ///< [rows]
  const T* table;           ///< [num_tokens, width]
  T* y;                     ///< [rows, width]
  std::int64_t rows, width, first_token, num_tokens;
};

/// dtable[ids[r] - first_token] += dy[r], rows in ascending order for each token, so that the bits repeat.
template <class T>
struct EmbeddingBackward {
  const std::int32_t* ids;
  const T* dy;            ///< [rows, width]
  Accumulate<T>* dtable;  ///< [num_tokens, width]
  std::int64_t rows, width, first_token, num_tokens;
};

/// y[r] = x[r] + table[positions[r]], or table[map.position(r)] if `positions` is null. y may be x.
template <class T>
struct PositionForward {
  const T* x;      ///< [rows, width]
  const T* table;  ///< [positions, width]
  T* y;            ///< [rows, width]
  std::int64_t rows, width;
  RowMap map;
  const std::int32_t* positions = nullptr;  ///< [rows]
};

/// dtable[map.position(r)] += dy[r], rows in ascending order.
template <class T>
struct PositionBackward {
  const T* dy;            ///< [rows, width]
  Accumulate<T>* dtable;  ///< [positions, width]
  std::int64_t rows, width;
  RowMap map;
};

template <class T>
void embedding_forward(Cpu, const EmbeddingForward<T>&);
template <class T>
void embedding_forward(Cuda, const EmbeddingForward<T>&);
template <class T>
void embedding_backward(Cpu, const EmbeddingBackward<T>&);
template <class T>
void embedding_backward(Cuda, const EmbeddingBackward<T>&);
template <class T>
void position_forward(Cpu, const PositionForward<T>&);
template <class T>
void position_forward(Cuda, const PositionForward<T>&);
template <class T>
void position_backward(Cpu, const PositionBackward<T>&);
template <class T>
void position_backward(Cuda, const PositionBackward<T>&);

}  // namespace choir::kernels
