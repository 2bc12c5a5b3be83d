// The plug-in libskrr_openvino.so, which is opened when a bundle tokenises by OpenVINO Tokenizers: whoever has no such
// bundle neither loads nor needs OpenVINO.

#include <mutex>
#include <openvino/core/extension.hpp>
#include <openvino/openvino.hpp>

#include "../error.hpp"
#include "plugin.hpp"

// Of OpenVINO Tokenizers, which has no header: the operations that a converted tokenizer is made of.
OPENVINO_EXTENSION_C_API void create_extensions(std::vector<ov::Extension::Ptr>& extensions);

namespace skrr {
namespace {

ov::InferRequest load(const std::string& graph, const std::string& vocabulary) {
  std::vector<ov::Extension::Ptr> operations;
  create_extensions(operations);
  ov::Core core;
  core.add_extension(operations);
  return core.compile_model(core.read_model(graph, vocabulary), "CPU", ov::inference_num_threads(1))
      .create_infer_request();
}

class OpenVino final : public TextModel {
 public:
  OpenVino(const std::string& graph, const std::string& vocabulary) {
    try {
      request_ = load(graph, vocabulary);
    } catch (const ov::Exception& error) {
      throw bad_bundle("OpenVINO Tokenizers cannot load " + graph + ": " + first_line(error.what()));
    }
  }

  std::vector<std::int64_t> encode(std::string_view text) const override {
    std::string content(text);
    const std::lock_guard<std::mutex> turn(mutex_);  // a prompt takes microseconds
    try {
      request_.set_input_tensor(ov::Tensor(ov::element::string, {1}, &content));
      request_.infer();
      const ov::Tensor ids = request_.get_tensor("input_ids");
      const auto* begin = ids.data<const std::int64_t>();
      return {begin, begin + ids.get_size()};
    } catch (const ov::Exception& error) {
      throw failed("OpenVINO Tokenizers cannot encode a prompt: " + first_line(error.what()));
    }
  }

 private:
  mutable std::mutex mutex_;
  mutable ov::InferRequest request_;
};

}  // namespace
}  // namespace skrr

void skrr_open_text_model(const char* graph, const char* vocabulary, std::unique_ptr<skrr::TextModel>& model) {
  model = std::make_unique<skrr::OpenVino>(graph, vocabulary);
}
