// Runs a bundle's ONNX graph with ONNX Runtime, over weights that stay mapped.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <vector>

#include "../backend.hpp"
#include "../error.hpp"
#include "../widen.hpp"

namespace skrr {
namespace {

// Optimizers that would keep fp32 copies of half-precision weights. In mapped mode such a copy shall live from just
// before its use to just after: the first and the last would make all of them at load, the second would merge, and so
// hold, those of a re-used weight. (Its header says that a comma separates them; it is a semicolon.)
constexpr char kHoldCasts[] = "ConstantFolding;CommonSubexpressionElimination;FuseFp16InitializerToFp32NodeTransformer";

std::string version_of_library() { return OrtGetApiBase()->GetVersionString(); }

void check_library(const std::string& device) {
  if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr) {
    throw missing_dependency("ONNX Runtime " + version_of_library() + " is too old; this build of skrr needs 1." +
                             std::to_string(ORT_API_VERSION) + " or later");
  }
  const std::vector<std::string> providers = Ort::GetAvailableProviders();
  if (device == "cuda" && std::find(providers.begin(), providers.end(), "CUDAExecutionProvider") == providers.end()) {
    throw missing_dependency("the ONNX Runtime " + version_of_library() +
                             " that skrr is linked with cannot run on cuda: take a build of it for GPUs");
  }
}

// A graph, and the precision it computes in.
struct Graph {
  std::string path;
  std::string dtype;
};

Graph choose_graph(const Bundle& bundle, const std::string& device) {
  const Json& entry = bundle.target("onnx");
  const std::string& dtype = bundle.manifest().dtype;
  if (device != "cpu" || dtype == "fp32") return {bundle.path(as_text(member(entry, "file"))), dtype};
  const Json* cpu = optional_member(entry, "cpu");
  if (cpu == nullptr) {
    throw bad_bundle(bundle.directory() + " has no ONNX graph for processors, which lack " + dtype +
                     " kernels: export again, or use the device cuda");
  }
  return {bundle.path(as_text(member(*cpu, "file"))), "fp32"};
}

Ort::SessionOptions session_options(const Bundle& bundle, const Options& options, const Graph& graph) {
  Ort::SessionOptions session;
  session.AddConfigEntry("session.model_external_initializers_file_folder_path", bundle.directory().c_str());
  if (!options.prepacked) {
    session.AddConfigEntry("session.disable_prepacking", "1");
    if (graph.dtype != bundle.manifest().dtype) {
      session.AddConfigEntry("optimization.disable_specified_optimizers", kHoldCasts);
    }
  }
  if (options.threads > 0) session.SetIntraOpNumThreads(options.threads);
  if (options.device == "cuda") session.AppendExecutionProvider_CUDA(OrtCUDAProviderOptions{});
  return session;
}

class OnnxBackend final : public Backend {
 public:
  OnnxBackend(const Bundle& bundle, const Options& options, const Graph& graph)
      : Backend("ONNX Runtime " + version_of_library(), graph.dtype),
        environment_(ORT_LOGGING_LEVEL_FATAL, "skrr"),  // what goes wrong is thrown, and need not be printed too
        session_(environment_, graph.path.c_str(), session_options(bundle, options, graph)) {
    for (const OutputEntry& output : bundle.manifest().outputs) output_types_.push_back(find_type(output.name));
  }

  void run(const Feed& feed, const std::vector<Place>& outputs) override {
    const std::vector<std::int64_t> shape = {feed.batch, feed.sequence};
    const std::array<const char*, 2> input_names = {"input_ids", "attention_mask"};
    std::vector<Ort::Value> inputs;
    for (const std::int64_t* ids : {feed.input_ids, feed.attention_mask}) {
      // ONNX Runtime only reads its inputs, but has no type that says so.
      if (ids != nullptr) inputs.push_back(tensor(const_cast<std::int64_t*>(ids), feed.size(), shape));
    }
    // The outputs' memory is ours, so that fp32 is written where the caller wants it.
    std::vector<const char*> names;
    std::vector<std::vector<std::uint16_t>> halves(outputs.size());
    std::vector<Ort::Value> results;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const Place& output = outputs[i];
      names.push_back(output.name);
      if (output_types_[i] == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
        results.push_back(tensor(output.values, output.size(), output.shape));
      } else {
        halves[i].resize(output.size());
        results.push_back(Ort::Value::CreateTensor(memory_, halves[i].data(), output.size() * sizeof(std::uint16_t),
                                                   output.shape.data(), output.shape.size(), output_types_[i]));
      }
    }
    try {
      session_.Run(Ort::RunOptions(), input_names.data(), inputs.data(), inputs.size(), names.data(), results.data(),
                   results.size());
    } catch (const Ort::Exception& error) {
      throw failed("ONNX Runtime cannot run this batch: " + first_line(error.what()));
    }
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const bool bf16 = output_types_[i] == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
      widen(halves[i].data(), halves[i].size(), bf16, outputs[i].values);
    }
  }

 private:
  template <typename T>
  Ort::Value tensor(T* data, std::size_t count, const std::vector<std::int64_t>& shape) const {
    return Ort::Value::CreateTensor<T>(memory_, data, count, shape.data(), shape.size());
  }

  ONNXTensorElementDataType find_type(const std::string& output) const {
    Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
      if (session_.GetOutputNameAllocated(i, allocator).get() != output) continue;
      const auto type = session_.GetOutputTypeInfo(i).GetTensorTypeAndShapeInfo().GetElementType();
      if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ||
          type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16) {
        return type;
      }
    }
    throw bad_bundle("the ONNX graph has no floating-point output " + output);
  }

  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Env environment_;
  Ort::Session session_;
  std::vector<ONNXTensorElementDataType> output_types_;  // in the manifest's order
};

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const Bundle& bundle, const Options& options) {
  check_library(options.device);
  const Graph graph = choose_graph(bundle, options.device);
  try {
    return std::make_unique<OnnxBackend>(bundle, options, graph);
  } catch (const Ort::Exception& error) {
    throw bad_bundle("ONNX Runtime cannot load " + graph.path + ": " + first_line(error.what()));
  }
}

}  // namespace skrr
