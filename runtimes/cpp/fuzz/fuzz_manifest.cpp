// A manifest, and the bundle around it: any bytes give a bundle or an Error that is one line and names the bundle.

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "backends/engine_record.hpp"
#include "bundle.hpp"
#include "error.hpp"

namespace {

// A directory that is removed at the end.
class Directory {
 public:
  Directory() {
    std::string path = (std::filesystem::temp_directory_path() / "skrr-fuzz-XXXXXX").string();
    if (mkdtemp(path.data()) == nullptr) std::abort();
    path_ = path;
    std::ofstream(path_ + "/weights.safetensors") << "weights";
    std::ofstream(path_ + "/model.onnx") << "graph";
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Directory directory;
  std::ofstream(directory.path() + "/manifest.json", std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const skrr::Bundle bundle(directory.path());
    for (const auto& [target, entry] : bundle.manifest().targets) skrr::EngineRecord::of(entry);
  } catch (const skrr::Error& error) {
    const std::string message = error.what();
    if (message.find('\n') != std::string::npos) std::abort();
  }
  return 0;
}
