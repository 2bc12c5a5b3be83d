// Files: read whole, mapped, hashed.

#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace skrr {

// All functions throw std::system_error where the system refuses.

std::string read_file(const std::string& path);

// In hexadecimal.
std::string sha256_of(const std::string& path);

// A file's pages, read-only and shared with every process that maps it.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  std::string_view bytes() const noexcept { return {static_cast<const char*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace skrr
