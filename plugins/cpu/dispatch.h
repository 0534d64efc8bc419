// Which instruction set the kernels run with.
#pragma once

#include <string>
#include <vector>

#include "gear/attention.h"

namespace gear::cpu {

// Names that this machine can run, the best one last.
std::vector<std::string> available_instruction_sets();

// Replaces the choice made by GEAR_CPU and the machine. Not while kernels run.
Error use_instruction_set(const std::string& name);

}  // namespace gear::cpu
