// Stand-alone test and benchmark of the Hopper forward kernel: hopper_bench [--check | --time | --repeat N] [--rows] [--only WORDS]
// LIBRARY… With --rows all is also done with keys that lie in rows. Each LIBRARY is a build of the kernel with
// tests/kernels/cuda/hopper_entry.cu (where the command stands), so that variants are timed side by side, interleaved, in one process.
#include <dlfcn.h>

#include <map>

#include "hopper_problem.cuh"

using Forward = void (*)(const DeviceStep*, cudaStream_t);

// Relative error of O and absolute one of LSE on sampled rows; negative if something is unwritten or written past the end.
std::pair<double, double> error_of(Problem& p, int samples) {
  const Case& c = p.what;
  const bool bf = c.type == ElementType::bfloat16;
  std::vector<uint16_t> out(p.out.count);
  std::vector<float> lse(p.lse.count);
  CHECK(cudaMemcpy(out.data(), p.out.data, out.size() * 2, cudaMemcpyDeviceToHost));
  CHECK(cudaMemcpy(lse.data(), p.lse.data, lse.size() * 4, cudaMemcpyDeviceToHost));
  const size_t written = size_t(c.tokens) * c.heads * c.head_dim;
  size_t wrong = 0;
  for (size_t i = 0; i < out.size(); ++i) wrong += (out[i] == 0xffff) != (i >= written);
  for (size_t i = 0; i < lse.size(); ++i) wrong += std::isnan(lse[i]) != (i >= size_t(c.tokens) * c.heads);
  if (wrong) {
    std::printf("[%zu elements unwritten or overwritten] ", wrong);
    return {-1, -1};
  }
  std::mt19937_64 random(5);
  std::vector<int64_t> rows(samples);
  std::vector<int> heads(samples);
  for (int i = 0; i < samples; ++i) {
    rows[i] = i == 0 ? c.tokens - 1 : i == 1 ? 0 : static_cast<int64_t>(random() % c.tokens);
    heads[i] = static_cast<int>(random() % c.heads);
  }
  Device<int64_t> rows_d(rows);
  Device<int> heads_d(heads);
  Device<double> scratch(samples * c.tokens), o(samples * c.head_dim), l(samples);
  reference<<<samples, 512>>>(p.q.data, p.pool.data, p.slots.data, p.blocks, c.tokens, c.heads, c.kv_heads, c.head_dim,
                              1 / std::sqrt(double(c.head_dim)), bf, p.pattern, rows_d.data, heads_d.data, scratch.data, o.data, l.data);
  CHECK(cudaDeviceSynchronize());
  std::vector<double> o_host(o.count), l_host(l.count);
  CHECK(cudaMemcpy(o_host.data(), o.data, o.count * 8, cudaMemcpyDeviceToHost));
  CHECK(cudaMemcpy(l_host.data(), l.data, l.count * 8, cudaMemcpyDeviceToHost));
  double difference = 0, size = 0, worst = 0;
  for (int i = 0; i < samples; ++i) {
    for (int d = 0; d < c.head_dim; ++d) {
      const uint16_t raw = out[(rows[i] * c.heads + heads[i]) * c.head_dim + d];
      const double x = bf ? float_from_bfloat16(raw) : float_from_float16(raw), y = o_host[i * c.head_dim + d];
      if (std::isfinite(y))
        difference += (x - y) * (x - y), size += y * y;
      else if (std::isfinite(x))
        difference = INFINITY;
    }
    const double a = lse[rows[i] * c.heads + heads[i]], b = l_host[i];
    if (a != b) worst = std::max(worst, std::isfinite(a - b) ? std::abs(a - b) : 1e9);
  }
  return {size > 0 ? std::sqrt(difference / size) : difference, worst};
}

// The lists of every Work cut at random into `parts` steps that continue from states.
unsigned long long run_split(Problem& p, Forward forward, bool in_rows, int parts, uint64_t seed) {
  const Case& c = p.what;
  p.m = Device<float>(c.tokens * c.heads), p.l = Device<float>(c.tokens * c.heads), p.o = Device<float>(c.tokens * c.heads * c.head_dim);
  CHECK(cudaMemset(p.m.data, 0xff, p.m.count * 4));
  CHECK(cudaMemset(p.l.data, 0xff, p.l.count * 4));
  CHECK(cudaMemset(p.o.data, 0xff, p.o.count * 4));
  const auto tiles = p.tiles;
  const auto work = p.work;
  std::mt19937_64 random(seed);
  // The cut positions are the same for a row block in all KV heads: lists are shared. Runs are cut inside.
  std::vector<std::vector<int64_t>> cuts(p.blocks);
  const auto length = [&](const Work& w) {
    int64_t n = 0;
    for (int64_t t = 0; t < w.tile_count; ++t) n += tiles[w.first_tile + t].form == Tile::Form::full ? tiles[w.first_tile + t].count : 1;
    return n;
  };
  for (const Work& w : work) {
    const int64_t n = length(w), b = w.q_row / kTile;
    if (!cuts[b].empty()) continue;
    cuts[b] = {0, n};
    for (int i = 1; i < parts; ++i) cuts[b].push_back(static_cast<int64_t>(random() % (n + 1)));
    std::sort(cuts[b].begin(), cuts[b].end());
  }
  p.poison();
  for (int part = 0; part < parts; ++part) {
    p.tiles.clear();
    for (size_t i = 0; i < work.size(); ++i) {
      const int64_t b = work[i].q_row / kTile, begin = cuts[b][part], end = cuts[b][part + 1];
      Work& w = p.work[i];
      w.first_tile = static_cast<int64_t>(p.tiles.size()), w.begins = part == 0, w.ends = part == parts - 1;
      int64_t at = 0;
      for (int64_t t = 0; t < work[i].tile_count; ++t) {
        Tile tile = tiles[work[i].first_tile + t];
        const int64_t n = tile.form == Tile::Form::full ? tile.count : 1;
        const int64_t from = std::max(begin, at), to = std::min(end, at + n);
        if (from < to) {
          if (tile.form == Tile::Form::full) tile.key += static_cast<int32_t>(from - at), tile.count = to - from;
          p.tiles.push_back(tile);
        }
        at += n;
      }
      w.tile_count = static_cast<int64_t>(p.tiles.size()) - w.first_tile;
    }
    p.upload();
    const DeviceStep step = p.step(in_rows);
    forward(&step, nullptr);
    CHECK(cudaDeviceSynchronize());
  }
  p.tiles = tiles, p.work = work;
  p.upload();
  return p.bits();
}

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IONBF, 0);
  struct Build {
    std::string name;
    Forward forward;
    bool in_rows;
  };
  std::vector<Build> builds;
  bool check = false, time = false, rows = false;
  int repeats = 0;
  std::string only;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    check = check || argument == "--check", time = time || argument == "--time", rows = rows || argument == "--rows";
    if (argument == "--repeat") repeats = std::atoi(argv[++i]);
    if (argument == "--only") only = argv[++i];
    if (argument.rfind("--", 0) != 0) {
      void* library = dlopen(argument.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (!library) return std::printf("%s\n", dlerror()), 1;
      if (builds.empty()) queue_of = reinterpret_cast<decltype(queue_of)>(dlsym(library, "longspan_queue"));
      const auto forward = reinterpret_cast<Forward>(dlsym(library, "longspan_forward_hopper"));
      const std::string name = argument.substr(argument.rfind('/') + 1);
      builds.push_back({name, forward, false});
      if (rows) builds.push_back({name + ", rows", forward, true});
    }
  }
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
  int failures = 0;

  if (check) {
    std::vector<Case> cases;
    for (ElementType type : {ElementType::bfloat16, ElementType::float16})
      for (int D : {128, 64}) {
        const std::string tag = std::string(type == ElementType::bfloat16 ? "bf16" : "fp16") + " D" + std::to_string(D) + " ";
        cases.push_back({tag + "full 1024", 1024, 4, 4, D, type, Pattern::full});
        cases.push_back({tag + "full 1", 1, 2, 1, D, type, Pattern::full});
        cases.push_back({tag + "full 77", 77, 2, 1, D, type, Pattern::full});
        cases.push_back({tag + "causal 2500", 2500, 4, 2, D, type, Pattern::causal});
        cases.push_back({tag + "window 300 of 2500", 2500, 4, 2, D, type, Pattern::window, 300});
        cases.push_back({tag + "window 33 of 1930", 1930, 4, 1, D, type, Pattern::window, 33});
        cases.push_back({tag + "window 300 of 1000 bits", 1000, 4, 2, D, type, Pattern::window, 300, 1, true});
        cases.push_back({tag + "causal 900, NaN in V", 900, 4, 2, D, type, Pattern::causal, 0, 1, false, 300});
        cases.push_back({tag + "window 200 of 900, NaN in V", 900, 4, 2, D, type, Pattern::window, 200, 1, false, 500});
        cases.push_back({tag + "16-blocks 1500, NaN in V", 1500, 4, 2, D, type, Pattern::blocks, 16, 0.1, false, 711});
        cases.push_back({tag + "hashed 700, NaN in V", 700, 4, 2, D, type, Pattern::hashed, 0, 1, false, 333});
        // More items than multiprocessors, most of them with the NaN: its barriers are met again and again, items apart.
        cases.push_back({tag + "causal 6000, NaN in V", 6000, 16, 4, D, type, Pattern::causal, 0, 1, true, 1500});
        cases.push_back({tag + "hashed 700", 700, 4, 2, D, type, Pattern::hashed});
        cases.push_back({tag + "16-blocks 1500", 1500, 4, 2, D, type, Pattern::blocks, 16, 0.1});
        cases.push_back({tag + "64-blocks 20% 5000", 5000, 4, 4, D, type, Pattern::blocks, 64, 0.2});
        cases.push_back({tag + "64-blocks 2% 5000", 5000, 4, 4, D, type, Pattern::blocks, 64, 0.02});
        cases.push_back({tag + "128-blocks 20% 5000", 5000, 4, 4, D, type, Pattern::blocks, 128, 0.2});
      }
    std::map<std::pair<std::string, std::string>, unsigned long long> bits_of;  // of a build's case
    for (size_t i = 0, count = cases.size(); i < count; ++i) {                  // both shapes of the kernel of head_dim 64
      cases[i].halves = 2;
      if (cases[i].head_dim != 64) continue;
      cases.push_back(cases[i]);
      cases.back().halves = 3, cases.back().name += ", 3 halves";
    }
    for (const Case& c : cases) {
      if (!only.empty() && c.name.find(only) == std::string::npos) continue;
      Problem p(c);
      for (auto& [name, forward, in_rows] : builds) {
        p.poison();
        const DeviceStep step = p.step(in_rows);
        forward(&step, nullptr);
        CHECK(cudaDeviceSynchronize());
        const auto [error, lse] = error_of(p, 64);
        const auto bits = p.bits();
        int different = 0;
        const auto [seen, is_new] =
            bits_of.try_emplace({name.substr(0, name.find(", rows")), c.name.substr(0, c.name.find(", 3 halves"))}, bits);
        different += !is_new && seen->second != bits;  // neither the shape of the kernel nor where keys lie changes any
        for (int parts = 2; parts <= 4; ++parts) different += run_split(p, forward, in_rows, parts, parts) != bits;
        const double limit = c.type == ElementType::bfloat16 ? 5e-3 : 7e-4;
        const bool bad = !(error >= 0 && error < limit && lse < 1e-4) || different;
        failures += bad;
        if (bad || argc < 4)
          std::printf("%-34s %-14s error %.2e, LSE %.1e, splits that differ %d%s\n", c.name.c_str(), name.c_str(), error, lse, different,
                      bad ? "   WRONG" : "");
      }
    }
    std::printf("%zu cases, %d wrong\n", cases.size(), failures);
  }

  if (repeats) {
    for (int D : {128, 64}) {
      Problem p({"causal 4000", 4000, 8, 4, D, ElementType::bfloat16, Pattern::causal, 0, 1, false, -1, D == 64 ? 3 : 2});
      Problem r({"64-blocks", 4000, 8, 4, D, ElementType::bfloat16, Pattern::blocks, 64, 0.2});
      for (Problem* problem : {&p, &r})
        for (auto& [name, forward, in_rows] : builds) {
          const DeviceStep step = problem->step(in_rows);
          problem->poison(), forward(&step, nullptr);
          const auto bits = problem->bits();
          int different = 0;
          for (int i = 0; i < repeats; ++i) {
            problem->poison(), forward(&step, nullptr);
            different += problem->bits() != bits;
          }
          std::printf("%s D%d %s: %d repeats, %d differ\n", problem->what.name.c_str(), D, name.c_str(), repeats, different);
          failures += different;
        }
    }
  }

  if (time) {
    const int Ki = 1024;
    const std::vector<Case> cases = {
        {"D128 full 16Ki", 16 * Ki, 16, 16, 128, ElementType::bfloat16, Pattern::full},
        {"D128 causal 32Ki", 32 * Ki, 16, 16, 128, ElementType::bfloat16, Pattern::causal},
        {"D64 64-blocks 20% of 32Ki", 32 * Ki, 16, 16, 64, ElementType::bfloat16, Pattern::blocks, 64, 0.2},
        {"D64 128-blocks 5% of 64Ki", 64 * Ki, 16, 16, 64, ElementType::bfloat16, Pattern::blocks, 128, 0.05},
        {"D64 full 16Ki", 16 * Ki, 32, 32, 64, ElementType::bfloat16, Pattern::full},
        {"D64 causal 32Ki", 32 * Ki, 32, 32, 64, ElementType::bfloat16, Pattern::causal},
        {"D128 window 4096 of 64Ki", 64 * Ki, 16, 16, 128, ElementType::bfloat16, Pattern::window, 4096},
        {"D128 window 1024 of 64Ki 16/4", 64 * Ki, 16, 4, 128, ElementType::bfloat16, Pattern::window, 1024},
        {"D128 window 512 of 256Ki", 256 * Ki, 16, 16, 128, ElementType::bfloat16, Pattern::window, 512},
        {"D64 window 4096 of 64Ki", 64 * Ki, 16, 16, 64, ElementType::bfloat16, Pattern::window, 4096},
        {"D128 128-blocks 20% of 32Ki", 32 * Ki, 16, 16, 128, ElementType::bfloat16, Pattern::blocks, 128, 0.2},
        {"D128 128-blocks 5% of 64Ki", 64 * Ki, 16, 16, 128, ElementType::bfloat16, Pattern::blocks, 128, 0.05},
        {"D128 64-blocks 20% of 32Ki", 32 * Ki, 16, 16, 128, ElementType::bfloat16, Pattern::blocks, 64, 0.2},
        {"D128 64-blocks 5% of 32Ki", 32 * Ki, 16, 16, 128, ElementType::bfloat16, Pattern::blocks, 64, 0.05},
    };
    std::printf("%-36s", "TFLOP/s over allowed pairs");
    for (const Build& build : builds) std::printf(" %20s", build.name.c_str());
    std::printf("   error\n");
    for (const Case& c : cases) {
      if (!only.empty() && c.name.find(only) == std::string::npos) continue;
      Problem p(c);
      std::vector<std::vector<float>> times(builds.size());
      cudaEvent_t begin, end;
      CHECK(cudaEventCreate(&begin));
      CHECK(cudaEventCreate(&end));
      for (int round = 0; round < 11; ++round)
        for (size_t b = 0; b < builds.size(); ++b) {
          const DeviceStep step = p.step(builds[b].in_rows);
          CHECK(cudaEventRecord(begin));
          builds[b].forward(&step, nullptr);
          CHECK(cudaEventRecord(end));
          CHECK(cudaEventSynchronize(end));
          float ms;
          CHECK(cudaEventElapsedTime(&ms, begin, end));
          if (round >= 2) times[b].push_back(ms);
        }
      std::printf("%-36s", c.name.c_str());
      for (auto& t : times) {
        std::sort(t.begin(), t.end());
        std::printf(" %20.1f", p.flops() / t[t.size() / 2] * 1e-9);
      }
      p.poison();
      const DeviceStep step = p.step(builds.back().in_rows);
      builds.back().forward(&step, nullptr);
      CHECK(cudaDeviceSynchronize());
      const auto [error, lse] = error_of(p, 8);
      std::printf("   %.1e %.0e\n", error, lse);
    }
  }
  return failures != 0;
}
