#include <sentencepiece_processor.h>

#include <system_error>

#include "../error.hpp"
#include "../files.hpp"
#include "text_model.hpp"

namespace skrr {
namespace {

class SentencePiece final : public TextModel {
 public:
  explicit SentencePiece(const std::string& path) {
    try {
      const auto status = processor_.LoadFromSerializedProto(read_file(path));
      if (!status.ok()) throw bad_bundle("SentencePiece cannot load " + path + ": " + first_line(status.ToString()));
    } catch (const std::system_error& error) {
      throw bad_bundle("cannot read " + path + ": " + error.code().message());
    }
  }

  std::vector<std::int64_t> encode(std::string_view text) const override {
    std::vector<int> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    if (!status.ok()) throw failed("SentencePiece cannot encode a prompt: " + first_line(status.ToString()));
    return {ids.begin(), ids.end()};
  }

 private:
  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace

std::unique_ptr<TextModel> open_sentencepiece(const std::string& model) {
  return std::make_unique<SentencePiece>(model);
}

}  // namespace skrr
