#include "cpu/kernels/table.h"

#define GEAR_TEXT_OF(name) #name
#define GEAR_TEXT(name) GEAR_TEXT_OF(name)

namespace gear::cpu::GEAR_ISA {

const Kernels kKernels = {GEAR_TEXT(GEAR_ISA), &attend,      &attend_partly,   &merge,
                          &compress_page,      &find_beyond, &convert_elements};

}  // namespace gear::cpu::GEAR_ISA
