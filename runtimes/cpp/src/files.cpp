#include "files.hpp"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>
#include <new>
#include <system_error>
#include <utility>
#include <vector>

namespace skrr {
namespace {

constexpr std::size_t kBlock = std::size_t{1} << 16;

[[noreturn]] void refuse(const std::string& path) { throw std::system_error(errno, std::generic_category(), path); }

class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : path_(path), number_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (number_ < 0) refuse(path_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { close(number_); }

  int number() const noexcept { return number_; }

  std::size_t size() const {
    struct stat status{};
    if (fstat(number_, &status) != 0) refuse(path_);
    return static_cast<std::size_t>(status.st_size);
  }

  // 0 at the end of the file.
  std::size_t read_into(char* buffer, std::size_t size) const {
    ssize_t count = 0;
    do {
      count = read(number_, buffer, size);
    } while (count < 0 && errno == EINTR);
    if (count < 0) refuse(path_);
    return static_cast<std::size_t>(count);
  }

 private:
  std::string path_;
  int number_;
};

}  // namespace

std::string read_file(const std::string& path) {
  const Descriptor file(path);
  std::string content;
  std::vector<char> block(kBlock);
  while (const std::size_t count = file.read_into(block.data(), block.size())) content.append(block.data(), count);
  return content;
}

std::string sha256_of(const std::string& path) {
  const Descriptor file(path);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  bool good = context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  std::vector<char> block(kBlock);
  while (const std::size_t count = file.read_into(block.data(), block.size())) {
    good = good && EVP_DigestUpdate(context.get(), block.data(), count) == 1;
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  if (!good || EVP_DigestFinal_ex(context.get(), digest.data(), &size) != 1) throw std::bad_alloc();
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    constexpr char kDigits[] = "0123456789abcdef";
    text += {kDigits[digest[i] >> 4], kDigits[digest[i] & 0xF]};
  }
  return text;
}

MappedFile::MappedFile(const std::string& path) {
  const Descriptor file(path);
  size_ = file.size();
  if (size_ == 0) return;  // which cannot be mapped
  data_ = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.number(), 0);
  if (data_ == MAP_FAILED) refuse(path);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace skrr
