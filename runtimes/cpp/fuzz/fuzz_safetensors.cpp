// The header of a safetensors file: any bytes give a header or an Error, and every tensor lies within the file.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "error.hpp"
#include "safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto header = skrr::parse_safetensors("weights.safetensors", {reinterpret_cast<const char*>(data), size});
    for (const auto& [name, tensor] : header.tensors) {
      if (tensor.offset > size || tensor.bytes > size - tensor.offset) std::abort();
    }
  } catch (const skrr::Error&) {
  }
  return 0;
}
