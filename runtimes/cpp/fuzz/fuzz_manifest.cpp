// A manifest, and the bundle around it: any bytes give a bundle or an Error that is one line and names the bundle. What
// its pipeline does to rows stays within them.

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "backends/engine_record.hpp"
#include "bundle.hpp"
#include "error.hpp"
#include "rows.hpp"

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

void take_rows(const skrr::Pipeline& pipeline) {
  const skrr::Ids ids{2, 3, {}, {1, 1, 0, 0, 0, 1}};
  const skrr::Rows rows = skrr::rows_of(pipeline, ids.batch, ids.sequence, ids.attention_mask);
  skrr::Tensor output{"hidden_states", {2, 2, 3, 1}, std::vector<float>(12, 1.0F)};
  skrr::take(pipeline, rows, output);
  if (output.values.size() != static_cast<std::size_t>(4 * rows.count)) std::abort();
  skrr::read_rows(pipeline, ids);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Directory directory;
  std::ofstream(directory.path() + "/manifest.json", std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const skrr::Bundle bundle(directory.path());
    take_rows(bundle.manifest().pipeline);
    take_rows(skrr::for_negatives(bundle.manifest().pipeline));
    for (const auto& [target, entry] : bundle.manifest().targets) skrr::EngineRecord::of(entry);
  } catch (const skrr::Error& error) {
    const std::string message = error.what();
    if (message.find('\n') != std::string::npos) std::abort();
  }
  return 0;
}
