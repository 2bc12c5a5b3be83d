// A bundle on disk.

#pragma once

#include <string>

#include "manifest.hpp"

namespace skrr {

class Bundle {
 public:
  // Checks that each file is there with its size, and the hashes of all but the weights: a server that maps them would
  // not want to read them whole.
  explicit Bundle(const std::string& directory);

  // Compares every hash, at 1 to 2 GB/s, and reads the header of the weights.
  void check_hashes() const;

  const std::string& directory() const noexcept { return directory_; }
  const Manifest& manifest() const noexcept { return manifest_; }
  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  std::string weights() const { return path(kWeightsFile); }

  // What the manifest says of a target; an Error where the bundle was not exported to it.
  const Json& target(const std::string& name) const;

 private:
  std::string directory_;
  Manifest manifest_;
};

}  // namespace skrr
