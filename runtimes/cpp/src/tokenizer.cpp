#include "tokenizer.hpp"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <system_error>

#include "error.hpp"
#include "files.hpp"
#include "limits.hpp"
#include "text.hpp"

namespace skrr {

// Keeps SentencePiece's header out of ours.
class Tokenizer::Model {
 public:
  explicit Model(const std::string& path) {
    try {
      const auto status = processor_.LoadFromSerializedProto(read_file(path));
      if (!status.ok()) throw bad_bundle("SentencePiece cannot load " + path + ": " + first_line(status.ToString()));
    } catch (const std::system_error& error) {
      throw bad_bundle("cannot read " + path + ": " + error.code().message());
    }
  }

  std::vector<int> encode(std::string_view text) const {
    std::vector<int> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    if (!status.ok()) throw failed("SentencePiece cannot encode a prompt: " + first_line(status.ToString()));
    return ids;
  }

 private:
  sentencepiece::SentencePieceProcessor processor_;
};

namespace {

const TokenizerEntry& entry_of(const Bundle& bundle) {
  if (!bundle.manifest().tokenizer) {
    throw bad_bundle(bundle.directory() +
                     " carries no tokenizer, so it takes token ids only; "
                     "export again with --tokenizer DIRECTORY to give it one");
  }
  return *bundle.manifest().tokenizer;
}

}  // namespace

Tokenizer::Tokenizer(const Bundle& bundle)
    : pipeline_(bundle.manifest().pipeline),
      entry_(entry_of(bundle)),
      model_(std::make_unique<Model>(bundle.path(entry_.file))) {}

Tokenizer::~Tokenizer() = default;

Ids Tokenizer::operator()(const std::vector<std::string>& prompts) const {
  if (prompts.empty()) throw bad_input("no prompt given");
  std::vector<std::vector<std::int64_t>> rows;
  std::size_t length = 0;
  for (const std::string& prompt : prompts) {
    rows.push_back(encode(prompt));
    length = std::max(length, rows.back().size());
  }
  if (pipeline_.pads_to_max_length) length = static_cast<std::size_t>(pipeline_.max_length);
  check_size(rows.size(), length);

  Ids ids{static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(length), {}, {}};
  ids.input_ids.reserve(rows.size() * length);
  ids.attention_mask.reserve(rows.size() * length);
  for (const auto& row : rows) {
    ids.input_ids.insert(ids.input_ids.end(), row.begin(), row.end());
    ids.input_ids.resize(ids.input_ids.size() + length - row.size(), entry_.pad);
    ids.attention_mask.resize(ids.attention_mask.size() + row.size(), 1);
    ids.attention_mask.resize(ids.attention_mask.size() + length - row.size(), 0);
  }
  return ids;
}

std::vector<std::int64_t> Tokenizer::encode(const std::string& prompt) const {
  if (!is_utf8(prompt)) throw bad_input("a prompt is not UTF-8 text");
  const std::string text = pipeline_.lowercase ? std::string(strip(lower(prompt))) : prompt;
  for (const std::string& token : entry_.special) {
    if (!token.empty() && text.find(token) != std::string::npos) {
      throw bad_input(
          "a prompt holds '" + token +
          "', which transformers reads as a token and SentencePiece as text: take it out, or pass token ids");
    }
  }
  const std::vector<int> pieces = model_->encode(text);
  const std::size_t room = static_cast<std::size_t>(pipeline_.max_length) - entry_.prefix.size() - entry_.suffix.size();
  std::vector<std::int64_t> ids = entry_.prefix;
  ids.insert(ids.end(), pieces.begin(), pieces.begin() + static_cast<std::ptrdiff_t>(std::min(room, pieces.size())));
  ids.insert(ids.end(), entry_.suffix.begin(), entry_.suffix.end());
  return ids;
}

}  // namespace skrr
