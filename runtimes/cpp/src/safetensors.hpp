// The safetensors format: a length, a JSON header, then the data.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "files.hpp"

namespace skrr {

struct StoredTensor {
  std::string code;  // element type in the safetensors spelling, for example BF16
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0;  // bytes from the start of the file
  std::uint64_t bytes = 0;
};

struct SafetensorsHeader {
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> metadata;
};

// Reads the header of a file, given whole, and makes sure that it tells the truth about the data; reads no data. The
// path is for messages.
SafetensorsHeader parse_safetensors(const std::string& path, std::string_view file);

// A file whose tensors stay in its pages.
class Safetensors {
 public:
  explicit Safetensors(const std::string& path);

  const std::map<std::string, StoredTensor>& tensors() const noexcept { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const noexcept { return header_.metadata; }
  const char* data(const StoredTensor& tensor) const noexcept { return file_.bytes().data() + tensor.offset; }

 private:
  MappedFile file_;
  SafetensorsHeader header_;
};

}  // namespace skrr
