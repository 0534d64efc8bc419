// The kernels of the instruction set that this file is compiled for (see Kernels).
#pragma once

#include "cpu/kernels.h"

namespace gear::cpu::GEAR_ISA {

void attend(const Sequence& sequence, const Share& share, AttendScratch& scratch);
void attend_partly(const Sequence& sequence, const Share& share, AttendScratch& scratch,
                   const Partial& partial);
void merge(const Sequence& sequence, int num_rows, const Partial* partials, int count);
void compress_page(const PageShape& shape, const void* keys, const void* values, int32_t* page,
                   CompressScratch& scratch);
int64_t find_beyond(const void* elements, DataType type, int64_t count, float limit);
void convert_elements(const void* source, DataType source_type, void* target, DataType target_type,
                      int count);

extern const Kernels kKernels;

}  // namespace gear::cpu::GEAR_ISA
