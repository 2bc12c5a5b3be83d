// Drives a fuzzer where there is no libFuzzer: mutates a corpus, as its options of the same names say.
//
//   fuzz_manifest [-max_total_time=SECONDS] [-seed=N] CORPUS...
//
// CORPUS are files and directories of files. The last input is kept in memory only: a crash is found again by its seed.

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Clock = std::chrono::steady_clock;

// clang-format off
const std::vector<std::string> kTokens = {
    "null", "true", "false", "{}", "[]", "\"\"", "{", "}", "[", "]", ",", ":", "\"", "-1", "0", "1e999", "-0", "1.5",
    "NaN", "\\ud800", "\\u0000", "..", "/", "../x", "batch", "18446744073709551616", "18446744073709551615",
    "9223372036854775808", "9223372036854775807", "4294967296", "\"file\"", "\"shape\"", "\"data_offsets\"", "\"dtype\"",
    "\"files\"", "\"targets\"", "\"bytes\"", "\"F32\"", "\xff", "\xed\xa0\x80", "\xEF\xBB\xBF"};
// clang-format on
constexpr std::size_t kMaxSize = std::size_t{1} << 16;
constexpr int kNested = 100'000;

class Mutator {
 public:
  Mutator(std::vector<std::string> corpus, std::uint64_t seed) : corpus_(std::move(corpus)), random_(seed) {}

  std::string next() {
    std::string input = any(corpus_);
    for (std::size_t times = 1 + below(4); times > 0; --times) mutate(input);
    if (input.size() > kMaxSize && below(100) != 0) input.resize(kMaxSize);
    return input;
  }

 private:
  std::size_t below(std::size_t limit) { return std::uniform_int_distribution<std::size_t>(0, limit - 1)(random_); }
  std::size_t place(const std::string& text) { return below(text.size() + 1); }
  const std::string& any(const std::vector<std::string>& texts) { return texts[below(texts.size())]; }

  void mutate(std::string& input) {
    const std::size_t at = place(input);
    switch (below(8)) {
      case 0:
        if (at < input.size()) input[at] = static_cast<char>(input[at] ^ (1 << below(8)));
        break;
      case 1:
        input.resize(at);
        break;
      case 2:
        input.erase(at, 1 + below(16));
        break;
      case 3:
        input.insert(at, any(kTokens));
        break;
      case 4:
        input.replace(at, 1 + below(8), any(kTokens));
        break;
      case 5:
        splice(input, at);
        break;
      case 6:
        swap_number(input, at);
        break;
      default:
        if (below(200) == 0) input.insert(at, std::string(kNested, below(2) == 0 ? '[' : '{'));
    }
  }

  void splice(std::string& input, std::size_t at) {
    const std::string& other = any(corpus_);
    const std::size_t begin = place(other);
    input.replace(at, below(64), other.substr(begin, below(256)));
  }

  void swap_number(std::string& input, std::size_t at) {
    const std::size_t begin = input.find_first_of("0123456789", at);
    if (begin == std::string::npos) return;
    const std::size_t end = std::min(input.find_first_not_of("0123456789", begin), input.size());
    input.replace(begin, end - begin, below(2) == 0 ? std::to_string(random_()) : any(kTokens));
  }

  std::vector<std::string> corpus_;
  std::mt19937_64 random_;
};

void read_corpus(const std::filesystem::path& path, std::vector<std::string>& corpus) {
  if (std::filesystem::is_directory(path)) {
    for (const auto& entry : std::filesystem::directory_iterator(path)) read_corpus(entry.path(), corpus);
    return;
  }
  std::ifstream file(path, std::ios::binary);
  corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

void run(const std::string& input) {
  // Exactly as large as the input, so that the sanitizer sees a read past its end.
  const std::vector<std::uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> corpus;
  std::uint64_t seed = 1;
  double seconds = 10;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const std::string value = argument.substr(argument.find('=') + 1);
    if (argument.rfind("-seed=", 0) == 0) {
      seed = std::stoull(value);
    } else if (argument.rfind("-max_total_time=", 0) == 0) {
      seconds = std::stod(value);
    } else {
      read_corpus(argument, corpus);
    }
  }
  if (corpus.empty()) {
    std::cerr << "usage: " << argv[0] << " [-max_total_time=SECONDS] [-seed=N] CORPUS...\n";
    return 2;
  }
  for (const std::string& input : corpus) run(input);
  Mutator mutator(corpus, seed);
  std::uint64_t runs = corpus.size();
  for (const auto begin = Clock::now(); std::chrono::duration<double>(Clock::now() - begin).count() < seconds; ++runs) {
    run(mutator.next());
  }
  std::cout << runs << " runs, no crash (seed " << seed << ")\n";
  return 0;
}
