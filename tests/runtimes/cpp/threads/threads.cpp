// threads BUNDLE: many threads use one encoder at once; exit 1 if one of them
// gets another result than a thread alone.

#include <atomic>
#include <iostream>
#include <skrr/encoder.hpp>
#include <thread>

int main(int, char** argv) {
  constexpr int kThreads = 8;
  constexpr int kRounds = 12;
  const std::vector<std::vector<std::string>> batches = {
      {"a cat"}, {"", "two dogs on a hill"}, {"a red cube", "b", "c"}};
  skrr::Options options;
  options.threads = 1;  // with more, the order of a sum, and so its last bit,
                        // may depend on who is idle
  const skrr::Encoder encoder(argv[1], options);
  std::vector<skrr::Output> alone;
  for (const auto& batch : batches) alone.push_back(encoder.encode(batch));

  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int round = 0; round < kRounds; ++round) {
        const std::size_t batch = static_cast<std::size_t>(thread + round) % batches.size();
        const skrr::Output output = encoder.encode(batches[batch]);
        if (output.input_ids != alone[batch].input_ids || output.rows.values != alone[batch].rows.values) ++wrong;
        try {
          encoder.encode(skrr::Ids{1, 1, {-1}, {}});  // an error in one thread is nobody else's
          ++wrong;
        } catch (const skrr::Error&) {
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  std::cout << kThreads * kRounds << " batches, " << wrong << " wrong\n";
  return wrong == 0 ? 0 : 1;
}
