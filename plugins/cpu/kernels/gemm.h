// Small matrix products: c[row][n] += Σ_k a[row][k] · b[k][n], n a multiple of 16.
#pragma once

#include <type_traits>

#include "cpu/kernels/simd.h"

namespace gear::cpu::GEAR_ISA {

struct Matrix {
  float* at;
  int stride;  // elements between rows
};

struct ConstMatrix {
  const float* at;
  int stride;
};

// Rows and registers of c that one pass keeps in registers.
inline constexpr int kGemmRows = kWidth == 16 ? 8 : 4;
inline constexpr int kGemmRegisters = 2;

template <int kRows, int kRegisters>
static inline void multiply_block(ConstMatrix a, ConstMatrix b, Matrix c, int depth) {
  Floats sums[kRows][kRegisters];
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kRegisters; ++i) {
      sums[row][i] = load_floats(c.at + row * c.stride + i * kWidth);
    }
  }
  for (int k = 0; k < depth; ++k) {
    Floats columns[kRegisters];
    for (int i = 0; i < kRegisters; ++i) columns[i] = load_floats(b.at + k * b.stride + i * kWidth);
    for (int row = 0; row < kRows; ++row) {
      const float factor = a.at[row * a.stride + k];
      for (int i = 0; i < kRegisters; ++i) sums[row][i] += factor * columns[i];
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kRegisters; ++i) {
      store(c.at + row * c.stride + i * kWidth, sums[row][i]);
    }
  }
}

template <int kRows>
static inline void multiply_rows(ConstMatrix a, ConstMatrix b, Matrix c, int depth, int columns) {
  int n = 0;
  for (; n + kGemmRegisters * kWidth <= columns; n += kGemmRegisters * kWidth) {
    multiply_block<kRows, kGemmRegisters>(a, {b.at + n, b.stride}, {c.at + n, c.stride}, depth);
  }
  for (; n < columns; n += kWidth) {
    multiply_block<kRows, 1>(a, {b.at + n, b.stride}, {c.at + n, c.stride}, depth);
  }
}

// Calls body(count) with count as a compile-time constant in 1..kMost; nothing for 0.
template <int kMost, typename Body>
static inline void with_count(int count, Body&& body) {
  if (count == kMost) return body(std::integral_constant<int, kMost>());
  if constexpr (kMost > 1) with_count<kMost - 1>(count, body);
}

// Splits rows into blocks of kMost and one of the rest: body(first row, block size).
template <int kMost, typename Body>
static inline void for_row_blocks(int rows, Body&& body) {
  int row = 0;
  for (; row + kMost <= rows; row += kMost) body(row, std::integral_constant<int, kMost>());
  with_count<kMost>(rows - row, [&](auto count) { body(row, count); });
}

static inline void multiply(ConstMatrix a, ConstMatrix b, Matrix c, int rows, int depth,
                            int columns) {
  for_row_blocks<kGemmRows>(rows, [&](int row, auto count) {
    multiply_rows<decltype(count)::value>({a.at + row * a.stride, a.stride}, b,
                                          {c.at + row * c.stride, c.stride}, depth, columns);
  });
}

}  // namespace gear::cpu::GEAR_ISA
