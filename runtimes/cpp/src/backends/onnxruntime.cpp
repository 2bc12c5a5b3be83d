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

constexpr char kOutput[] = "last_hidden_state";

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
        session_(environment_, graph.path.c_str(), session_options(bundle, options, graph)),
        output_type_(find_output_type()) {}

  void run(const Feed& feed, float* last_hidden_state) override {
    const std::array<std::int64_t, 2> shape = {feed.batch, feed.sequence};
    const std::array<std::int64_t, 3> output_shape = {feed.batch, feed.sequence, feed.hidden_size};
    const std::array<const char*, 2> input_names = {"input_ids", "attention_mask"};
    std::vector<Ort::Value> inputs;
    for (const std::int64_t* ids : {feed.input_ids, feed.attention_mask}) {
      // ONNX Runtime only reads its inputs, but has no type that says so.
      if (ids != nullptr) inputs.push_back(tensor(const_cast<std::int64_t*>(ids), feed.size(), shape));
    }
    const std::size_t count = feed.size() * static_cast<std::size_t>(feed.hidden_size);
    const bool wide = output_type_ == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    std::vector<std::uint16_t> halves(wide ? 0 : count);
    // The output's memory is ours, so that the result is written where the caller wants it.
    Ort::Value output = wide ? tensor(last_hidden_state, count, output_shape)
                             : Ort::Value::CreateTensor(memory_, halves.data(), count * sizeof(std::uint16_t),
                                                        output_shape.data(), output_shape.size(), output_type_);
    const char* output_name = kOutput;
    try {
      session_.Run(Ort::RunOptions(), input_names.data(), inputs.data(), inputs.size(), &output_name, &output, 1);
    } catch (const Ort::Exception& error) {
      throw failed("ONNX Runtime cannot run this batch: " + first_line(error.what()));
    }
    if (!wide) widen(halves.data(), count, output_type_ == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, last_hidden_state);
  }

 private:
  template <typename T, std::size_t Rank>
  Ort::Value tensor(T* data, std::size_t count, const std::array<std::int64_t, Rank>& shape) const {
    return Ort::Value::CreateTensor<T>(memory_, data, count, shape.data(), shape.size());
  }

  ONNXTensorElementDataType find_output_type() const {
    Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
      if (std::string_view(session_.GetOutputNameAllocated(i, allocator).get()) != kOutput) continue;
      const auto type = session_.GetOutputTypeInfo(i).GetTensorTypeAndShapeInfo().GetElementType();
      if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ||
          type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16) {
        return type;
      }
    }
    throw bad_bundle(std::string("the ONNX graph has no floating-point output ") + kOutput);
  }

  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Env environment_;
  Ort::Session session_;
  ONNXTensorElementDataType output_type_;
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
