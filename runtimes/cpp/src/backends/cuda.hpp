// CUDA's memory and streams as objects.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "../error.hpp"

namespace skrr {

inline void check_cuda(cudaError_t status) {
  if (status != cudaSuccess) throw failed(std::string("CUDA: ") + cudaGetErrorString(status));
}

class Stream {
 public:
  Stream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }

  cudaStream_t get() const noexcept { return stream_; }
  void wait() const { check_cuda(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

// Memory on the GPU that grows with what it is asked to hold.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(data_); }

  void* hold(std::size_t bytes) {
    if (bytes > capacity_) {
      cudaFree(data_);
      data_ = nullptr;
      capacity_ = 0;
      check_cuda(cudaMalloc(&data_, bytes));
      capacity_ = bytes;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  std::size_t capacity_ = 0;
};

}  // namespace skrr
