// Which backends this build has, and which of them a bundle is opened with.

#include <algorithm>
#include <array>

#include "../backend.hpp"
#include "../error.hpp"
#include "../text.hpp"
#include "gpu.hpp"

namespace skrr {
namespace {

using Open = std::unique_ptr<Backend> (*)(const Bundle&, const Options&);

struct Kind {
  const char* target;
  const char* title;
  const char* setting;  // that brings it into a build
  bool needs_gpu;
  Open open;  // nullptr: not in this build
};

#ifdef SKRR_WITH_TENSORRT
constexpr Open kTensorrt = open_tensorrt;
#else
constexpr Open kTensorrt = nullptr;
#endif
#ifdef SKRR_WITH_TENSORRT_RTX
constexpr Open kTensorrtRtx = open_tensorrt_rtx;
#else
constexpr Open kTensorrtRtx = nullptr;
#endif
#ifdef SKRR_WITH_ONNXRUNTIME
constexpr Open kOnnxRuntime = open_onnxruntime;
#else
constexpr Open kOnnxRuntime = nullptr;
#endif
#ifdef SKRR_WITH_AOTI
constexpr Open kAotInductor = open_aot_inductor;
#else
constexpr Open kAotInductor = nullptr;
#endif

// In the order in which they are preferred: engines are the fastest, ONNX Runtime runs everywhere.
constexpr std::array<Kind, 4> kKinds = {{
    {"tensorrt", "TensorRT", "TENSORRT_ROOT", true, kTensorrt},
    {"tensorrt-rtx", "TensorRT-RTX", "TENSORRT_RTX_ROOT", true, kTensorrtRtx},
    {"onnx", "ONNX Runtime", "ONNXRUNTIME_ROOT", false, kOnnxRuntime},
    {"aoti", "libtorch", "Torch_ROOT", false, kAotInductor},
}};

const Kind& named(const Bundle& bundle, const std::string& target) {
  const auto* kind =
      std::find_if(kKinds.begin(), kKinds.end(), [&](const Kind& each) { return each.target == target; });
  if (kind == kKinds.end()) {
    if (target == "pt2") throw bad_input("the target pt2 runs in Python only");
    throw bad_input("unknown target '" + target + "'; known: tensorrt, tensorrt-rtx, onnx, aoti");
  }
  bundle.target(target);  // an Error where there is none
  if (kind->open == nullptr) {
    throw missing_dependency(std::string("this build of skrr has no ") + kind->title + "; configure it with -D" +
                             kind->setting + "=DIRECTORY");
  }
  return *kind;
}

const Kind& first_that_runs(const Bundle& bundle, const std::string& device) {
  std::vector<std::string> lacking;
  for (const Kind& kind : kKinds) {
    if (bundle.manifest().targets.count(kind.target) == 0) continue;
    if (kind.open == nullptr) {
      lacking.push_back(std::string(kind.target) + " needs " + kind.title + ": configure skrr with -D" + kind.setting +
                        "=DIRECTORY");
    } else if (kind.needs_gpu && (device == "cpu" || !has_gpu())) {
      lacking.push_back(std::string(kind.target) + " needs an NVIDIA GPU");
    } else {
      return kind;
    }
  }
  throw missing_dependency("none of the targets of " + bundle.directory() + " runs here" +
                           (lacking.empty() ? "" : ": " + join(lacking)));
}

}  // namespace

std::unique_ptr<Backend> open_backend(const Bundle& bundle, Options& options) {
  if (!options.device.empty() && options.device != "cpu" && options.device != "cuda") {
    throw bad_input("unknown device '" + options.device + "'; known: cpu, cuda");
  }
  if (options.threads < 0) {
    throw bad_input("the number of threads must be at least 1, not " + std::to_string(options.threads));
  }
  const Kind& kind = options.target.empty() ? first_that_runs(bundle, options.device) : named(bundle, options.target);
  options.target = kind.target;
  if (options.device.empty()) options.device = kind.needs_gpu ? "cuda" : "cpu";
  if (kind.needs_gpu && options.device != "cuda") {
    throw bad_input("engines run on an NVIDIA GPU, not on " + options.device + ": use the device cuda");
  }
  if (options.target != "onnx" && (options.prepacked || options.threads != 0)) {
    throw bad_input("prepacking and threads are ONNX Runtime's; the target " + options.target + " has none");
  }
  return kind.open(bundle, options);
}

}  // namespace skrr
