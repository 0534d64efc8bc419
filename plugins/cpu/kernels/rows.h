// Rows of head_dim elements: conversion, transposition, rotation.
#pragma once

#include "core/rotate.h"
#include "cpu/kernels.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/simd.h"

namespace gear::cpu::GEAR_ISA {

static inline int element_size(DataType type) { return type == DataType::kFloat32 ? 4 : 2; }

static inline const void* element_at(const void* base, DataType type, int64_t index) {
  return static_cast<const char*>(base) + index * element_size(type);
}

static inline void* element_at(void* base, DataType type, int64_t index) {
  return static_cast<char*>(base) + index * element_size(type);
}

static inline Floats load_any(const void* source, DataType type, int64_t index) {
  const void* element = element_at(source, type, index);
  switch (type) {
    case DataType::kFloat16:
      return load_halves(element);
    case DataType::kBFloat16:
      return load_bfloat16(element);
    default:
      return load<Floats>(element);
  }
}

// FP16 saturates.
static inline void store_any(void* target, DataType type, int64_t index, Floats x) {
  void* element = element_at(target, type, index);
  switch (type) {
    case DataType::kFloat16:
      return store(element, to_halves(x));
    case DataType::kBFloat16:
      return store(element, to_bfloat16(x));
    default:
      return store(element, x);
  }
}

// `count` is a multiple of 16.
static inline void convert(const void* source, DataType source_type, void* target,
                           DataType target_type, int count) {
  if (source_type == target_type) {
    memcpy(target, source, count * element_size(source_type));
    return;
  }
  for (int i = 0; i < count; i += kWidth) {
    store_any(target, target_type, i, load_any(source, source_type, i));
  }
}

// Offset of a query or output row (token · group + head).
static inline int64_t row_offset(const Sequence& sequence, int row) {
  return row / sequence.group * sequence.query_stride +
         row % sequence.group * static_cast<int64_t>(sequence.shape->config.head_dim);
}

static inline void store_row(const Sequence& sequence, int row, const float* source) {
  void* target = element_at(sequence.output, sequence.data_type, row_offset(sequence, row));
  convert(source, DataType::kFloat32, target, sequence.data_type, sequence.shape->config.head_dim);
}

// target[column][row] = source[row][column]; both counts are multiples of 16.
static inline void transpose_matrix(ConstMatrix source, Matrix target, int rows, int columns) {
  Floats square[kWidth];
  for (int row = 0; row < rows; row += kWidth) {
    for (int column = 0; column < columns; column += kWidth) {
      for (int i = 0; i < kWidth; ++i) {
        square[i] = load_floats(source.at + (row + i) * source.stride + column);
      }
      transpose(square);
      for (int i = 0; i < kWidth; ++i) {
        store(target.at + (column + i) * target.stride + row, square[i]);
      }
    }
  }
}

// Butterflies between lanes kDistance apart: low + high in the lower, low − high in the upper.
template <int kDistance>
static inline Floats butterfly(Floats x) {
  const Floats swapped = swap_lanes<kDistance>(x);
  Floats sign;
  for (int i = 0; i < kWidth; ++i) sign[i] = i & kDistance ? -1.0f : 1.0f;
  return swapped + sign * x;
}

static inline Floats butterflies_inside(Floats x) {
  x = butterfly<1>(x);
  x = butterfly<2>(x);
  if constexpr (kWidth > 4) x = butterfly<4 % kWidth>(x);
  if constexpr (kWidth > 8) x = butterfly<8 % kWidth>(x);
  return x;
}

// Multiplies a row with the normalized block-Hadamard matrix, in the reference's order: widths 1,
// 2, 4, ..., then the factor. Blocks have at least 16 channels.
static inline void rotate_row(float* row, int head_dim) {
  for (int i = 0; i < head_dim; i += kWidth) {
    store(row + i, butterflies_inside(load_floats(row + i)));
  }
  const int block = hadamard_block(head_dim);
  for (int width = kWidth; width < block; width *= 2) {
    for (int pair = 0; pair < head_dim; pair += 2 * width) {
      for (int i = pair; i < pair + width; i += kWidth) {
        const Floats low = load_floats(row + i);
        const Floats high = load_floats(row + i + width);
        store(row + i, low + high);
        store(row + i + width, low - high);
      }
    }
  }
  const float norm = 1.0f / __builtin_sqrtf(static_cast<float>(block));
  for (int i = 0; i < head_dim; i += kWidth) store(row + i, load_floats(row + i) * norm);
}

static inline void rotate_rows(float* rows, int count, int head_dim) {
  for (int row = 0; row < count; ++row) rotate_row(rows + row * head_dim, head_dim);
}

}  // namespace gear::cpu::GEAR_ISA
