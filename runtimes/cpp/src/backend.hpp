// What every target is: opened from a bundle, run on a batch of ids.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bundle.hpp"
#include "skrr/encoder.hpp"

namespace skrr {

// A batch that was checked.
struct Feed {
  std::int64_t batch = 0;
  std::int64_t sequence = 0;
  const std::int64_t* input_ids = nullptr;
  const std::int64_t* attention_mask = nullptr;  // nullptr: the graph has no such input

  std::size_t size() const { return static_cast<std::size_t>(batch * sequence); }
};

// Where an output of the graph is wanted.
struct Place {
  const char* name = nullptr;
  std::vector<std::int64_t> shape;
  float* values = nullptr;

  std::size_t size() const {
    std::size_t size = 1;
    for (const std::int64_t each : shape) size *= static_cast<std::size_t>(each);
    return size;
  }
};

class Backend {
 public:
  // What runs the target, with its version, and the precision it computes in.
  Backend(std::string its_library, std::string its_precision)
      : library(std::move(its_library)), computes_in(std::move(its_precision)) {}
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  // Writes every output of the manifest, in its order, as fp32. Safe to call from many threads.
  virtual void run(const Feed& feed, const std::vector<Place>& outputs) = 0;

  const std::string library;
  const std::string computes_in;
};

// Opens the bundle's target that the options name, or the first that runs here; fills target and device in.
std::unique_ptr<Backend> open_backend(const Bundle& bundle, Options& options);

// The backends. One that is compiled in is defined in its own file.
std::unique_ptr<Backend> open_onnxruntime(const Bundle& bundle, const Options& options);
std::unique_ptr<Backend> open_aot_inductor(const Bundle& bundle, const Options& options);
std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const Options& options);
std::unique_ptr<Backend> open_tensorrt_rtx(const Bundle& bundle, const Options& options);

}  // namespace skrr
