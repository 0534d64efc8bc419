// The low-rank factors of one side's quantization error.
#pragma once

#include "cpu/kernels/side.h"

namespace gear::cpu::GEAR_ISA {

// Fits factors to scratch.error [V, L], stores them in the page, and adds what the stored factors
// stand for to scratch.approximation [V, L].
void correct_low_rank(const Side& side, CompressScratch& scratch, int32_t* page);

}  // namespace gear::cpu::GEAR_ISA
