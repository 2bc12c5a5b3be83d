#include "gpu.hpp"

#ifdef SKRR_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace skrr {

#ifdef SKRR_WITH_CUDA

bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

#else

bool has_gpu() { return false; }  // no engine runs in this build

#endif

}  // namespace skrr
