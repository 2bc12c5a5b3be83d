#include "skrr/skrr.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "error.hpp"
#include "json.hpp"
#include "limits.hpp"
#include "skrr/encoder.hpp"

struct skrr_encoder {
  skrr::Encoder encoder;
  std::string info;
};

struct skrr_tensor : skrr::Tensor {};

struct skrr_output {
  explicit skrr_output(skrr::Output&& result)
      : output(std::move(result)), rows{std::move(output.rows)}, pooled{std::move(output.pooled)} {}

  skrr::Output output;  // but for its tensors
  skrr_tensor rows;
  skrr_tensor pooled;
};

namespace {

// A fixed buffer, so that saying why a call failed cannot fail itself.
constexpr std::size_t kMessageBytes = 4096;
thread_local char last_error[kMessageBytes] = "";

void remember(const char* message) noexcept {
  std::size_t size = std::min(std::strlen(message), kMessageBytes - 1);
  const auto is_continuation = [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; };
  while (size > 0 && is_continuation(message[size])) --size;  // not within a character
  std::memcpy(last_error, message, size);
  last_error[size] = '\0';
}

skrr_status status_of(skrr::ErrorKind kind) {
  switch (kind) {
    case skrr::ErrorKind::bad_input:
      return SKRR_BAD_INPUT;
    case skrr::ErrorKind::bad_bundle:
      return SKRR_BAD_BUNDLE;
    case skrr::ErrorKind::missing_dependency:
      return SKRR_MISSING_DEPENDENCY;
    case skrr::ErrorKind::failed:
      return SKRR_FAILED;
  }
  return SKRR_FAILED;
}

// Every function that can fail runs in this: no exception may reach a caller that is not C++.
template <typename Function>
skrr_status guarded(Function function) noexcept {
  remember("");
  try {
    function();
    return SKRR_OK;
  } catch (const skrr::Error& error) {
    remember(error.what());
    return status_of(error.kind());
  } catch (const std::bad_alloc&) {
    remember("out of memory");
    return SKRR_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    remember(error.what());
  } catch (...) {
    remember("unknown error");
  }
  return SKRR_FAILED;
}

void require(const void* pointer, const char* name) {
  if (pointer == nullptr) throw skrr::bad_input(std::string(name) + " is NULL");
}

// Makes sure that there is a place for a result, and that nothing is left there if there will be none.
template <typename T>
void require_result(T** result, const char* name) {
  require(result, name);
  *result = nullptr;
}

skrr::Role read_role(skrr_role role) {
  if (role == SKRR_PROMPT) return skrr::Role::prompt;
  if (role == SKRR_NEGATIVE_PROMPT) return skrr::Role::negative_prompt;
  throw skrr::bad_input("role must be SKRR_PROMPT or SKRR_NEGATIVE_PROMPT, not " + std::to_string(role));
}

const skrr_tensor* if_there(const skrr_tensor& tensor) { return tensor.shape.empty() ? nullptr : &tensor; }

bool as_switch(int32_t value, const char* name) {
  if (value != 0 && value != 1)
    throw skrr::bad_input(std::string(name) + " must be 0 or 1, not " + std::to_string(value));
  return value == 1;
}

skrr::Options read_options(const skrr_options* given) {
  if (given == nullptr) return {};
  // A caller that was compiled with another version has fewer members, which are then 0, or more, which must be.
  const std::size_t size = given->struct_size;
  constexpr std::size_t kFirst = offsetof(skrr_options, reserved) + sizeof(int32_t);  // of the first version
  constexpr std::size_t kMost = 4096;
  if (size < kFirst || size > kMost) throw skrr::bad_input("struct_size of the options is " + std::to_string(size));
  skrr_options known = SKRR_OPTIONS_INIT;
  std::memcpy(&known, given, std::min(size, sizeof known));
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  if (std::any_of(bytes + std::min(size, sizeof known), bytes + size, [](unsigned char byte) { return byte != 0; })) {
    throw skrr::bad_input("the options are of a later version of skrr, and say what this one does not know");
  }
  if (known.reserved != 0) throw skrr::bad_input("reserved must be 0");
  skrr::Options options;
  if (known.target != nullptr) options.target = known.target;
  if (known.device != nullptr) options.device = known.device;
  options.threads = known.threads;
  options.prepacked = as_switch(known.prepacked, "prepacked");
  options.check_weights = as_switch(known.check_weights, "check_weights");
  return options;
}

std::string describe(const skrr::Info& info) {
  const auto or_null = [](const std::optional<std::int64_t>& size) { return size ? skrr::Json(*size) : skrr::Json(); };
  skrr::Json outputs = skrr::Json::array();
  for (const skrr::OutputInfo& output : info.outputs) {
    skrr::Json shape = skrr::Json::array();
    for (const std::int64_t size : output.shape) shape.push_back(size < 0 ? skrr::Json() : skrr::Json(size));
    outputs.push_back({{"name", output.name}, {"pooled", output.pooled}, {"shape", std::move(shape)}});
  }
  return skrr::Json{{"family", info.family},
                    {"pipeline", info.pipeline},
                    {"dtype", info.dtype},
                    {"target", info.target},
                    {"device", info.device},
                    {"library", info.library},
                    {"computes_in", info.computes_in},
                    {"outputs", std::move(outputs)},
                    {"hidden_size", info.hidden_size},
                    {"vocab_size", info.vocab_size},
                    {"max_length", info.max_length},
                    {"batch", or_null(info.batch)},
                    {"sequence", or_null(info.sequence)},
                    {"pads_to_max_length", info.pads_to_max_length},
                    {"masked", info.masked},
                    {"tokenizes", info.tokenizes},
                    {"clean", info.clean.empty() ? skrr::Json() : skrr::Json(info.clean)},
                    {"unconditional", info.unconditional},
                    {"unconditional_text", info.unconditional_text}}
      .dump();
}

std::vector<std::string> read_prompts(const char* const* prompts, std::size_t count) {
  require(prompts, "prompts");
  skrr::check_size(count, 1);
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < count; ++i) {
    require(prompts[i], "a prompt");
    texts.emplace_back(prompts[i]);
  }
  return texts;
}

}  // namespace

extern "C" {

const char* skrr_version(void) { return skrr::version(); }

const char* skrr_last_error(void) { return last_error; }

skrr_status skrr_encoder_open(const char* bundle, const skrr_options* options, skrr_encoder** encoder) {
  return guarded([&] {
    require_result(encoder, "encoder");
    require(bundle, "bundle");
    skrr::Encoder opened(bundle, read_options(options));
    std::string info = describe(opened.info());
    *encoder = new skrr_encoder{std::move(opened), std::move(info)};
  });
}

void skrr_encoder_close(skrr_encoder* encoder) { delete encoder; }

const char* skrr_encoder_info(const skrr_encoder* encoder) { return encoder == nullptr ? "" : encoder->info.c_str(); }

skrr_status skrr_tokenize(const skrr_encoder* encoder, const char* const* prompts, size_t count, skrr_role role,
                          skrr_output** output) {
  return guarded([&] {
    require_result(output, "output");
    require(encoder, "encoder");
    skrr::Ids ids = encoder->encoder.tokenize(read_prompts(prompts, count), read_role(role));
    skrr::Output tokens;
    tokens.batch = ids.batch;
    tokens.sequence = ids.sequence;
    tokens.input_ids = std::move(ids.input_ids);
    tokens.attention_mask = std::move(ids.attention_mask);
    *output = new skrr_output(std::move(tokens));
  });
}

skrr_status skrr_encode_prompts(const skrr_encoder* encoder, const char* const* prompts, size_t count, skrr_role role,
                                skrr_output** output) {
  return guarded([&] {
    require_result(output, "output");
    require(encoder, "encoder");
    *output = new skrr_output(encoder->encoder.encode(read_prompts(prompts, count), read_role(role)));
  });
}

skrr_status skrr_encode_ids(const skrr_encoder* encoder, const int64_t* input_ids, const int64_t* attention_mask,
                            size_t batch, size_t sequence, skrr_role role, skrr_output** output) {
  return guarded([&] {
    require_result(output, "output");
    require(encoder, "encoder");
    require(input_ids, "input_ids");
    skrr::check_size(batch, sequence);
    const std::size_t size = batch * sequence;
    skrr::Ids ids{
        static_cast<std::int64_t>(batch), static_cast<std::int64_t>(sequence), {input_ids, input_ids + size}, {}};
    if (attention_mask != nullptr) ids.attention_mask.assign(attention_mask, attention_mask + size);
    *output = new skrr_output(encoder->encoder.encode(ids, read_role(role)));
  });
}

skrr_status skrr_self_test(const skrr_encoder* encoder, int32_t* passed, char* line, size_t line_size) {
  return guarded([&] {
    require(passed, "passed");
    *passed = 0;
    if (line != nullptr && line_size > 0) line[0] = '\0';
    require(encoder, "encoder");
    const skrr::SelfTest result = encoder->encoder.self_test();
    *passed = result.passed ? 1 : 0;
    if (line == nullptr || line_size == 0) return;
    line[result.line.copy(line, line_size - 1)] = '\0';
  });
}

size_t skrr_output_batch(const skrr_output* output) {
  return output == nullptr ? 0 : static_cast<size_t>(output->output.batch);
}

size_t skrr_output_sequence(const skrr_output* output) {
  return output == nullptr ? 0 : static_cast<size_t>(output->output.sequence);
}

const int64_t* skrr_output_input_ids(const skrr_output* output) {
  return output == nullptr ? nullptr : output->output.input_ids.data();
}

const int64_t* skrr_output_attention_mask(const skrr_output* output) {
  return output == nullptr ? nullptr : output->output.attention_mask.data();
}

const skrr_tensor* skrr_output_rows(const skrr_output* output) {
  return output == nullptr ? nullptr : if_there(output->rows);
}

const int64_t* skrr_output_rows_mask(const skrr_output* output) {
  return skrr_output_rows(output) == nullptr ? nullptr : output->output.rows_mask.data();
}

const skrr_tensor* skrr_output_pooled(const skrr_output* output) {
  return output == nullptr ? nullptr : if_there(output->pooled);
}

const char* skrr_tensor_name(const skrr_tensor* tensor) { return tensor == nullptr ? "" : tensor->name.c_str(); }

size_t skrr_tensor_rank(const skrr_tensor* tensor) { return tensor == nullptr ? 0 : tensor->shape.size(); }

const int64_t* skrr_tensor_shape(const skrr_tensor* tensor) {
  return tensor == nullptr ? nullptr : tensor->shape.data();
}

const float* skrr_tensor_values(const skrr_tensor* tensor) {
  return tensor == nullptr ? nullptr : tensor->values.data();
}

void skrr_output_free(skrr_output* output) { delete output; }

}  // extern "C"
