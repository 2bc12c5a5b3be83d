// What the manifest says of an engine.

#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "../json.hpp"

namespace skrr {

struct EngineRecord {
  std::string file;
  std::string library;                            // version that built it
  std::vector<std::string> compute_capabilities;  // GPUs it was built for
  std::array<std::int64_t, 2> least;              // batch and sequence that it takes
  std::array<std::int64_t, 2> most;
  bool version_compatible = false;
  bool hardware_compatible = false;
  bool stripped = false;  // of its weights

  // An Error where the manifest's entry is malformed.
  static EngineRecord of(const Json& entry);

  // Errors where the installed library, the GPU at hand, or the size of a batch is not one it can be run with. The
  // title is what NVIDIA calls the library.
  void check_library(const std::string& title, const std::string& version) const;
  void check_gpu(int capability) const;
  void check_size(std::int64_t batch, std::int64_t sequence) const;
};

}  // namespace skrr
