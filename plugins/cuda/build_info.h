#pragma once

namespace gear::cuda {

// JSON: version, layout hash, compiler, architectures.
const char* build_info();

}  // namespace gear::cuda
