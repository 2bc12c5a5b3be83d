// Runs a bundle's AOTInductor package with libtorch, over weights that stay mapped.

#include <ATen/ATen.h>
#include <ATen/Version.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <unordered_map>

#include "../backend.hpp"
#include "../error.hpp"
#include "../safetensors.hpp"
#include "../text.hpp"

namespace skrr {
namespace {

using Weights = std::unordered_map<std::string, at::Tensor>;

// What torch says of x86 processors, each of which runs code for those before it.
constexpr std::array<const char*, 3> kCapabilities = {"DEFAULT", "AVX2", "AVX512"};

bool runs(const std::string& compiled_for, const std::string& here) {
  const auto* of_code = std::find(kCapabilities.begin(), kCapabilities.end(), compiled_for);
  const auto* of_machine = std::find(kCapabilities.begin(), kCapabilities.end(), here);
  if (of_code == kCapabilities.end() || of_machine == kCapabilities.end()) return compiled_for == here;
  return of_code <= of_machine;
}

// The package for a device, of which the manifest knows whether it runs here.
std::string choose_package(const Bundle& bundle, const std::string& device) {
  const Json& entry = bundle.target("aoti");
  const Json& packages = as_object(member(entry, "packages"));
  if (device == "cuda" && !at::hasCUDA()) {
    throw bad_input(std::string("no GPU: libtorch ") + TORCH_VERSION + " sees none; use the device cpu");
  }
  if (!packages.contains(device)) {
    std::vector<std::string> known;
    for (const auto& [name, file] : packages.items()) known.push_back(name);
    throw bad_bundle(bundle.directory() + " was compiled for " + join(known) + ", not for " + device);
  }
  const std::string& compiled_for = as_text(member(entry, "cpu"));
  const std::string here = at::get_cpu_capability();
  if (!runs(compiled_for, here)) {
    throw bad_bundle(bundle.directory() + " was compiled for processors with " + compiled_for + ", this one has " +
                     here + "; export again");
  }
  return bundle.path(as_text(packages[device]));
}

at::ScalarType type_of(const StoredTensor& tensor) {
  if (tensor.code == "F32") return at::kFloat;
  if (tensor.code == "F16") return at::kHalf;
  if (tensor.code == "BF16") return at::kBFloat16;
  throw bad_bundle("the weights are " + tensor.code + ", which no encoder has");
}

class PackageBackend final : public Backend {
 public:
  PackageBackend(const Bundle& bundle, const std::string& package, const std::string& device)
      : Backend(std::string("libtorch ") + TORCH_VERSION, bundle.manifest().dtype),
        device_(device),
        file_(bundle.weights()),
        loader_(package) {
    // The package borrows its weights: on a CPU they stay in the file's pages.
    for (const std::string& name : loader_.get_constant_fqns()) {
      const auto found = file_.tensors().find(name);
      if (found == file_.tensors().end()) throw bad_bundle(bundle.weights() + " has no tensor '" + name + "'");
      // torch has no read-only tensors; nothing writes to this one.
      void* data = const_cast<char*>(file_.data(found->second));
      weights_[name] = at::from_blob(data, found->second.shape, type_of(found->second)).to(device_);
    }
    loader_.load_constants(weights_, /*use_inactive=*/false, /*check_full_update=*/true, /*user_managed=*/true);
  }

  void run(const Feed& feed, const std::vector<Place>& outputs) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const c10::InferenceMode guard;
    std::vector<at::Tensor> inputs;
    for (const std::int64_t* ids : {feed.input_ids, feed.attention_mask}) {
      if (ids == nullptr) continue;
      void* data = const_cast<std::int64_t*>(ids);  // likewise
      inputs.push_back(at::from_blob(data, {feed.batch, feed.sequence}, at::kLong).to(device_));
    }
    const std::vector<at::Tensor> results = loader_.run(inputs);  // in the manifest's order
    if (results.size() != outputs.size()) throw failed("the package does not give the manifest's outputs");
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (results[i].sizes() != at::IntArrayRef(outputs[i].shape)) {
        throw failed(std::string("the package's ") + outputs[i].name + " is not of the manifest's shape");
      }
      at::from_blob(outputs[i].values, outputs[i].shape, at::kFloat).copy_(results[i]);
    }
  }

 private:
  std::mutex mutex_;
  at::Device device_;
  // The weights lie in the file, and the package borrows them.
  Safetensors file_;
  Weights weights_;
  torch::inductor::AOTIModelPackageLoader loader_;
};

}  // namespace

std::unique_ptr<Backend> open_aot_inductor(const Bundle& bundle, const Options& options) {
  std::string package;
  try {
    package = choose_package(bundle, options.device);
  } catch (const Malformed& error) {
    throw bad_bundle(std::string("the manifest's package is malformed: ") + error.what());
  }
  const c10::InferenceMode guard;
  try {
    return std::make_unique<PackageBackend>(bundle, package, options.device);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    const Json& entry = bundle.target("aoti");
    const std::string made = entry.value("torch", Json()).is_string() ? as_text(entry["torch"]) : "of unknown release";
    throw bad_bundle(std::string("libtorch ") + TORCH_VERSION + " cannot load " + package +
                     " (it was compiled with torch " + made + "): " + first_line(error.what()));
  }
}

}  // namespace skrr
