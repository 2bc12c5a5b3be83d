// Runs a bundle's engine on a GPU with TensorRT or TensorRT-RTX, whose interfaces are one: this file is compiled for
// each against its own headers, for TensorRT-RTX with SKRR_TENSORRT_RTX and with the namespace nvinfer1 renamed, since
// the two versions of one class may differ. The library is opened at run time, by its name: both bring the same
// symbols, and a machine without them can still use the other targets.

#include <NvInfer.h>
#include <dlfcn.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "../backend.hpp"
#include "../files.hpp"
#include "../widen.hpp"
#include "cuda.hpp"
#include "engine_record.hpp"
#include "gpu.hpp"

#define SKRR_TEXT_OF(value) #value
#define SKRR_TEXT(value) SKRR_TEXT_OF(value)

namespace skrr {
namespace {

#ifdef SKRR_TENSORRT_RTX
constexpr char kTarget[] = "tensorrt-rtx";
constexpr char kTitle[] = "TensorRT-RTX";
constexpr char kLibrary[] = "libtensorrt_rtx.so." SKRR_TEXT(NV_TENSORRT_MAJOR);
#else
constexpr char kTarget[] = "tensorrt";
constexpr char kTitle[] = "TensorRT";
constexpr char kLibrary[] = "libnvinfer.so." SKRR_TEXT(NV_TENSORRT_MAJOR);
#endif

// Keeps the first error, which says why something failed. May be called from any of TensorRT's threads.
class Log final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      if (first_.empty()) first_ = first_line(message);
    } catch (...) {  // out of memory: the error goes unsaid
    }
  }

  std::string why() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return first_.empty() ? "it does not say why" : std::exchange(first_, {});
  }

 private:
  std::mutex mutex_;
  std::string first_;
};

// The shared library; it stays in the process.
class Library {
 public:
  Library() : handle_(dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) throw missing_dependency(std::string(kTitle) + " does not load: " + first_line(dlerror()));
  }

  std::string version() const {
    std::string text;
    for (const char* part : {"Major", "Minor", "Patch", "Build"}) {
      const auto number = function<int32_t()>("getInferLib" + std::string(part) + "Version");
      text += (text.empty() ? "" : ".") + std::to_string(number());
    }
    return text;
  }

  std::unique_ptr<nvinfer1::IRuntime> make_runtime(Log& log) const {
    const auto create = function<void*(void*, int32_t)>("createInferRuntime_INTERNAL");
    return std::unique_ptr<nvinfer1::IRuntime>(static_cast<nvinfer1::IRuntime*>(create(&log, NV_TENSORRT_VERSION)));
  }

 private:
  template <typename Signature>
  Signature* function(const std::string& name) const {
    void* found = dlsym(handle_, name.c_str());
    if (found == nullptr) throw missing_dependency(std::string(kLibrary) + " lacks " + name);
    return reinterpret_cast<Signature*>(found);
  }

  void* handle_;
};

class EngineBackend final : public Backend {
 public:
  EngineBackend(const Bundle& bundle, EngineRecord record, int gpu, const Library& opened)
      : Backend(std::string(kTitle) + " " + opened.version(), bundle.manifest().dtype),
        record_(std::move(record)),
        gpu_(gpu),
        runtime_(opened.make_runtime(log_)) {
    const std::string path = bundle.path(record_.file);
    if (!runtime_) throw failed(std::string(kTitle) + " cannot start: " + log_.why());
    if (record_.version_compatible) runtime_->setEngineHostCodeAllowed(true);
    const MappedFile content(path);
    engine_.reset(runtime_->deserializeCudaEngine(content.bytes().data(), content.bytes().size()));
    if (!engine_) throw refused(path + " cannot be loaded");
    for (const OutputEntry& output : bundle.manifest().outputs) {
      results_.emplace_back();
      results_.back().type = find_type(path, output.name);
    }
    context_.reset(engine_->createExecutionContext());
    if (!context_) throw refused(path + " cannot be made ready to run");
    // Its only profile, 0, is chosen already.
  }

  void run(const Feed& feed, const std::vector<Place>& outputs) override {
    record_.check_size(feed.batch, feed.sequence);
    const std::lock_guard<std::mutex> lock(mutex_);
    check_cuda(cudaSetDevice(gpu_));  // which is set for each thread
    bool ready = set_input("input_ids", feed, feed.input_ids, ids_);
    if (feed.attention_mask != nullptr) ready = set_input("attention_mask", feed, feed.attention_mask, mask_) && ready;
    for (std::size_t i = 0; i < outputs.size(); ++i) ready = set_output(outputs[i], results_[i]) && ready;
    if (!ready || !context_->enqueueV3(stream_.get())) throw cannot_run();
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      Result& result = results_[i];
      void* host = result.is_wide() ? static_cast<void*>(outputs[i].values) : result.halves.data();
      const std::size_t bytes = outputs[i].size() * result.item_bytes();
      check_cuda(cudaMemcpyAsync(host, result.device->hold(bytes), bytes, cudaMemcpyDeviceToHost, stream_.get()));
    }
    stream_.wait();
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const Result& result = results_[i];
      widen(result.halves.data(), result.halves.size(), result.type == nvinfer1::DataType::kBF16, outputs[i].values);
    }
  }

 private:
  // What the engine writes of an output.
  struct Result {
    nvinfer1::DataType type = nvinfer1::DataType::kFLOAT;
    std::unique_ptr<DeviceBuffer> device = std::make_unique<DeviceBuffer>();
    std::vector<std::uint16_t> halves;  // on their way to fp32

    bool is_wide() const { return type == nvinfer1::DataType::kFLOAT; }
    std::size_t item_bytes() const { return is_wide() ? sizeof(float) : sizeof(std::uint16_t); }
  };

  bool set_output(const Place& output, Result& result) {
    const nvinfer1::Dims shape = context_->getTensorShape(output.name);
    if (!std::equal(shape.d, shape.d + std::max(shape.nbDims, 0), output.shape.begin(), output.shape.end()))
      return false;
    if (!result.is_wide()) result.halves.resize(output.size());
    return context_->setTensorAddress(output.name, result.device->hold(output.size() * result.item_bytes()));
  }

  bool set_input(const char* name, const Feed& feed, const std::int64_t* values, DeviceBuffer& buffer) {
    const std::size_t bytes = feed.size() * sizeof(std::int64_t);
    void* device = buffer.hold(bytes);
    check_cuda(cudaMemcpyAsync(device, values, bytes, cudaMemcpyHostToDevice, stream_.get()));
    return context_->setInputShape(name, nvinfer1::Dims2(feed.batch, feed.sequence)) &&
           context_->setTensorAddress(name, device);
  }

  nvinfer1::DataType find_type(const std::string& path, const std::string& output) const {
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      if (engine_->getIOTensorName(i) != output) continue;
      const nvinfer1::DataType type = engine_->getTensorDataType(output.c_str());
      const bool known =
          type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF || type == nvinfer1::DataType::kBF16;
      if (known) return type;
    }
    throw bad_bundle(path + " has no floating-point output " + output);
  }

  Error refused(const std::string& what) { return bad_bundle(what + ": " + library + ": " + log_.why()); }
  Error cannot_run() { return failed(std::string(kTitle) + " cannot run " + record_.file + ": " + log_.why()); }

  EngineRecord record_;
  int gpu_;
  std::mutex mutex_;
  Log log_;
  // What was made by another stands after it, so that it goes first.
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  Stream stream_;
  DeviceBuffer ids_;
  DeviceBuffer mask_;
  std::vector<Result> results_;  // in the manifest's order
};

int current_gpu(const EngineRecord& record) {
  if (!has_gpu()) throw bad_input("no GPU: " + record.file + " runs on an NVIDIA GPU, CUDA sees none");
  int gpu = 0;
  check_cuda(cudaGetDevice(&gpu));
  return gpu;
}

int capability_of(int gpu) {
  int major = 0;
  int minor = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, gpu));
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, gpu));
  return 10 * major + minor;
}

std::unique_ptr<Backend> open_engine(const Bundle& bundle) {
  EngineRecord record = EngineRecord::of(bundle.target(kTarget));
  if (record.stripped) {
    throw bad_bundle(record.file +
                     " was built without its weights, and only the Python runtime can fill them in: "
                     "export again without --strip-weights");
  }
  const Library library;
  record.check_library(kTitle, library.version());
  const int gpu = current_gpu(record);
  record.check_gpu(capability_of(gpu));
  return std::make_unique<EngineBackend>(bundle, std::move(record), gpu, library);
}

}  // namespace

#ifdef SKRR_TENSORRT_RTX
std::unique_ptr<Backend> open_tensorrt_rtx(const Bundle& bundle, const Options&) { return open_engine(bundle); }
#else
std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const Options&) { return open_engine(bundle); }
#endif

}  // namespace skrr
