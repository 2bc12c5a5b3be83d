// Encodes prompts with a bundle, and tests, checks and measures it.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>

#include "bench.hpp"
#include "npy.hpp"
#include "skrr/encoder.hpp"

namespace {

constexpr int kDone = 0;
constexpr int kTestFailed = 1;
constexpr int kBadInput = 2;

constexpr char kExamples[] = R"(Examples:
  skrr-encode t5.bundle --prompt "a cat" --prompt "two dogs" -o embeddings.npy
  skrr-encode t5.bundle --prompts prompts.txt -o embeddings.npy --json
  skrr-encode clip.bundle --prompt "a cat" -o rows.npy --pooled pooled.npy
  skrr-encode t5.bundle --self-test
  skrr-encode t5.bundle --bench --batch 1 --sequence 77 --runs 50

Exit status: 0 done, 1 the self-test failed, 2 bad input.)";

struct Arguments {
  std::string bundle;
  std::vector<std::string> prompts;
  std::string prompts_file;
  bool negative = false;
  std::string output;
  std::string pooled;
  skrr::Options options;
  BenchOptions bench_options;
  bool self_test = false;
  bool check = false;
  bool bench = false;
  bool json = false;
};

// What is printed at the end, if all went well: lines for people, or one JSON object.
class Report {
 public:
  explicit Report(bool json) : json_(json) {}

  void add(const char* name, nlohmann::ordered_json value, const std::string& line) {
    document_[name] = std::move(value);
    lines_ += line + '\n';
  }
  void print() const { std::cout << (json_ ? document_.dump(1) + '\n' : lines_); }

 private:
  bool json_;
  std::string lines_;
  nlohmann::ordered_json document_ = nlohmann::ordered_json::object();
};

void add_options(CLI::App& app, Arguments& arguments) {
  app.set_version_flag("--version", std::string("skrr ") + skrr::version());
  app.add_option("bundle", arguments.bundle, "Directory that skrr-export wrote")->required();
  app.add_option("--prompt", arguments.prompts, "Prompt; may be given several times")->allow_extra_args(false);
  app.add_option("--prompts", arguments.prompts_file, "File of prompts, one a line");
  app.add_flag("--negative", arguments.negative, "Take them as negative prompts, around which some put no text");
  app.add_option("-o,--output", arguments.output, "Write the rows, a row a token, to this .npy file, as fp32");
  app.add_option("--pooled", arguments.pooled, "Write the pooled rows, a row a prompt, to this .npy file, as fp32");
  app.add_option("--target", arguments.options.target, "tensorrt, tensorrt-rtx, onnx or aoti; default: the best");
  app.add_option("--device", arguments.options.device, "cpu or cuda; default: as the target wants");
  app.add_option("--threads", arguments.options.threads, "Threads of ONNX Runtime")->check(CLI::Range(1, 4096));
  app.add_flag("--prepacked", arguments.options.prepacked, "Copy the weights, for speed, instead of mapping them");
  app.add_flag("--self-test", arguments.self_test,
               "Compare with the test vectors in the bundle; hashes the weights too");
  app.add_flag("--check", arguments.check, "Compare the hash of every file, the weights included");
  auto* bench = app.add_flag("--bench", arguments.bench, "Measure time and memory, on random ids");
  app.add_option("--batch", arguments.bench_options.batch, "Of --bench")->needs(bench)->check(CLI::Range(1, 1 << 20));
  app.add_option("--sequence", arguments.bench_options.sequence, "Of --bench")
      ->needs(bench)
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--runs", arguments.bench_options.runs, "Of --bench; default: 10")
      ->needs(bench)
      ->check(CLI::Range(1, 1 << 20));
  app.add_flag("--json", arguments.json, "Print JSON");
  app.footer(kExamples);
}

// A prompt a line, as skrr-export reads them: an empty line is the empty prompt.
std::vector<std::string> read_prompts(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::vector<std::string> prompts;
  for (std::string line; std::getline(file, line); prompts.push_back(line)) {
    if (prompts.empty() && line.rfind("\xEF\xBB\xBF", 0) == 0) line.erase(0, 3);  // the mark of Windows editors
    if (!line.empty() && line.back() == '\r') line.pop_back();
  }
  if (!file.is_open() || file.bad()) {
    throw std::runtime_error("cannot read the prompts in " + path + ": " + std::generic_category().message(errno));
  }
  if (prompts.empty()) throw std::runtime_error(path + " holds no prompts");
  return prompts;
}

nlohmann::ordered_json to_json(const skrr::SelfTest& result) {
  nlohmann::ordered_json ids_equal;
  if (result.ids_equal) ids_equal = *result.ids_equal;
  nlohmann::ordered_json outputs = nlohmann::ordered_json::object();
  for (const auto& distance : result.distances) {
    outputs[distance.output] = {{"relative_l2", distance.relative_l2}, {"cosine_distance", distance.cosine_distance}};
  }
  return {{"passed", result.passed},
          {"vectors", result.vectors},
          {"ids_equal", ids_equal},
          {"outputs", std::move(outputs)},
          {"nonfinite", result.nonfinite}};
}

// One of the tensors, and its file, if it is to have one.
struct Written {
  const skrr::Tensor& tensor;
  const std::string& path;
};

std::string describe(const Written& written) {
  std::ostringstream line;
  line << written.tensor.name << ": fp32 [";
  for (std::size_t axis = 0; axis < written.tensor.shape.size(); ++axis) {
    line << (axis == 0 ? "" : ", ") << written.tensor.shape[axis];
  }
  line << "]" << (written.path.empty() ? "" : ", written to " + written.path);
  return line.str();
}

void encode(const skrr::Encoder& encoder, const std::vector<std::string>& prompts, const Arguments& arguments,
            Report& report) {
  const skrr::Output output =
      encoder.encode(prompts, arguments.negative ? skrr::Role::negative_prompt : skrr::Role::prompt);
  nlohmann::ordered_json outputs = nlohmann::ordered_json::object();
  std::string lines;
  for (const Written& written : {Written{output.rows, arguments.output}, Written{output.pooled, arguments.pooled}}) {
    const skrr::Tensor& tensor = written.tensor;
    if (tensor.shape.empty()) continue;
    if (!written.path.empty()) write_npy(written.path, tensor.shape, tensor.values);
    outputs[tensor.name]["shape"] = tensor.shape;
    if (!written.path.empty()) outputs[tensor.name]["file"] = written.path;
    lines += (lines.empty() ? "" : "\n") + describe(written);
  }
  report.add("outputs", outputs, lines);
}

// What asks for a file of an output that the bundle lacks.
void check_outputs(const skrr::Info& info, const Arguments& arguments) {
  for (const bool pooled : {false, true}) {
    const bool asked = !(pooled ? arguments.pooled : arguments.output).empty();
    const bool has = std::any_of(info.outputs.begin(), info.outputs.end(),
                                 [&](const skrr::OutputInfo& output) { return output.pooled == pooled; });
    if (asked && !has) {
      const std::string option = pooled ? "--pooled" : "--output";
      throw std::runtime_error(option + ": the bundle has no output with a row a " + (pooled ? "prompt" : "token") +
                               ", only " + info.outputs[0].name);
    }
  }
}

int run(const Arguments& arguments) {
  std::vector<std::string> prompts = arguments.prompts;
  if (!arguments.prompts_file.empty()) {
    const std::vector<std::string> more = read_prompts(arguments.prompts_file);
    prompts.insert(prompts.end(), more.begin(), more.end());
  }
  const bool writes = !arguments.output.empty() || !arguments.pooled.empty();
  if (prompts.empty() && writes) throw std::runtime_error("no prompt given");
  const bool opens = !prompts.empty() || arguments.self_test || arguments.bench;
  if (!opens && !arguments.check) {
    throw std::runtime_error("nothing to do: give --prompt, --prompts, --self-test, --check or --bench");
  }
  Report report(arguments.json);
  if (!opens) {
    skrr::check_bundle(arguments.bundle);
    report.add("check", true, "every file is as it was exported");
    report.print();
    return kDone;
  }

  skrr::Options options = arguments.options;
  options.check_weights = arguments.check || arguments.self_test;
  const auto begin = std::chrono::steady_clock::now();
  const skrr::Encoder encoder(arguments.bundle, options);
  const double load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const skrr::Info& info = encoder.info();
  check_outputs(info, arguments);
  report.add("target", info.target,
             info.target + " on " + info.device + ", " + info.library + ", computes in " + info.computes_in);
  report.add("device", info.device, "weights: " + info.dtype);
  report.add("library", info.library, "pipeline: " + info.pipeline);

  int status = kDone;
  if (arguments.check) report.add("check", true, "every file is as it was exported");
  if (arguments.self_test) {
    const skrr::SelfTest result = encoder.self_test();
    report.add("self_test", to_json(result), result.line);
    if (!result.passed) status = kTestFailed;
  }
  if (!prompts.empty()) encode(encoder, prompts, arguments, report);
  if (arguments.bench) {
    const BenchResult result = run_bench(encoder, load_seconds, arguments.bench_options);
    report.add("bench", to_json(result), to_text(result));
  }
  report.print();
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Encodes prompts with a bundle of skrr-export, and tests, checks and measures it.", "skrr-encode");
  add_options(app, arguments);
  try {
    app.parse(argc, argv);
    return run(arguments);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help and --version
    std::cerr << "error: " << error.what() << " (see skrr-encode --help)\n";
  } catch (const std::bad_alloc&) {
    std::cerr << "error: out of memory\n";
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
  }
  return kBadInput;
}
