#include "npy.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <stdexcept>
#include <string_view>
#include <system_error>

namespace {

constexpr std::size_t kAlignment = 64;  // of the data, as the format wants it
constexpr mode_t kReadable = 0666;

std::string header_of(const std::vector<std::int64_t>& shape) {
  std::string text = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (const std::int64_t size : shape) text += std::to_string(size) + ",";
  text += "), }";
  constexpr std::size_t kPrefix = 10;  // magic, version and the length of the text
  text.append(kAlignment - 1 - (kPrefix + text.size()) % kAlignment, ' ');
  text += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += {static_cast<char>(text.size() & 0xFF), static_cast<char>(text.size() >> 8)};
  return header + text;
}

// A file that is written beside another, and takes its place or vanishes.
class StagedFile {
 public:
  explicit StagedFile(std::string path) : path_(std::move(path)), staged_(path_ + ".XXXXXX") {
    descriptor_ = mkstemp(staged_.data());
    if (descriptor_ < 0) refuse();
    const mode_t mask = umask(0);  // mkstemp lets nobody else read, and the mask can only be asked for by setting it
    umask(mask);
    fchmod(descriptor_, kReadable & ~mask);
  }
  StagedFile(const StagedFile&) = delete;
  StagedFile& operator=(const StagedFile&) = delete;
  ~StagedFile() {
    close(descriptor_);
    if (!committed_) unlink(staged_.c_str());
  }

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) refuse();
      bytes.remove_prefix(static_cast<std::size_t>(count));
    }
  }

  void commit() {
    if (fsync(descriptor_) != 0 || rename(staged_.c_str(), path_.c_str()) != 0) refuse();
    committed_ = true;
    // The new name is on the disk once its directory is.
    const std::string parent = std::filesystem::path(path_).parent_path().string();
    const int directory = open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory >= 0) {
      fsync(directory);
      close(directory);
    }
  }

 private:
  [[noreturn]] void refuse() const {
    throw std::runtime_error("cannot write " + path_ + ": " + std::generic_category().message(errno));
  }

  std::string path_;
  std::string staged_;
  int descriptor_ = -1;
  bool committed_ = false;
};

}  // namespace

void write_npy(const std::string& path, const std::vector<std::int64_t>& shape, const std::vector<float>& values) {
  StagedFile file(path);
  file.write(header_of(shape));
  file.write({reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)});
  file.commit();
}
