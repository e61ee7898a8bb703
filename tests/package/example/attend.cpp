// Attention over a sequence whose rows lie on several ranks: each rank passes its own rows of Q, K and V, receives the keys and values
// that its rows look at, and gets its own rows of O.  Run it with any number of ranks: mpirun -n 3 attend
#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <longspan/attention.hpp>
#include <longspan/error.hpp>
#include <vector>

namespace {

// Some value for each element, the same whichever rank holds the row.
float noise(int64_t token, int64_t element) { return std::sin(static_cast<float>((token * 31 + element * 17) % 1009)); }

bool attend() {
  // Each query looks at the last 512 keys and at the first four, never ahead; eight query heads share two KV heads.
  const longspan::Shape shape{.tokens = 5000, .heads = 8, .kv_heads = 2, .head_dim = 64, .type = longspan::ElementType::float32};
  longspan::Attention attention(MPI_COMM_WORLD, shape, "causal & (window(511) | sink(4))");

  // The plan says which rows are ours. They lie in memory one after another, each [heads][head_dim].
  const int64_t q_row = shape.heads * shape.head_dim, kv_row = shape.kv_heads * shape.head_dim;
  std::vector<float> q(attention.local_rows() * q_row), k(attention.local_rows() * kv_row), v(k.size());
  std::vector<float> o(q.size()), lse(attention.local_rows() * shape.heads);
  int64_t row = 0;
  for (auto [begin, end] : attention.tokens()) {
    for (int64_t token = begin; token < end; ++token, ++row) {
      for (int64_t x = 0; x < q_row; ++x) q[row * q_row + x] = noise(token, x);
      for (int64_t x = 0; x < kv_row; ++x) k[row * kv_row + x] = noise(token, x + 1000);
      for (int64_t x = 0; x < kv_row; ++x) v[row * kv_row + x] = noise(token, x + 2000);
    }
  }

  // Planned once, attended often. With Q = 0 all keys weigh the same, so exp(LSE) is the number of keys that a row looks at.
  const std::vector<float> zeros(q.size());
  attention.forward({zeros.data()}, {k.data()}, {v.data()}, {o.data()}, lse.data());
  bool good = true;
  row = 0;
  for (auto [begin, end] : attention.tokens())
    for (int64_t token = begin; token < end; ++token, ++row)
      for (int head = 0; head < shape.heads; ++head)
        good &= std::abs(lse[row * shape.heads + head] - std::log(std::min<float>(token + 1, 516))) < 1e-4f;

  // The first token sees only itself, whatever Q says: its output is its own value, head h reading KV head h / (8 / 2).
  attention.forward({q.data()}, {k.data()}, {v.data()}, {o.data()});
  if (longspan::contains(attention.tokens(), 0))
    for (int head = 0; head < shape.heads; ++head)
      for (int d = 0; d < shape.head_dim; ++d)
        good &= std::abs(o[head * shape.head_dim + d] - v[shape.kv_head_of(head) * shape.head_dim + d]) < 1e-6f;

  std::printf("%lld rows, %lld bytes of keys and values from other ranks, %s\n", static_cast<long long>(attention.local_rows()),
              static_cast<long long>(attention.bytes_received()), good ? "as expected" : "WRONG");
  return good && attention.bytes_received() == attention.bytes_needed();
}

}  // namespace

int main(int argc, char** argv) {
  int threads_allowed;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &threads_allowed);  // Longspan's own threads make no MPI calls
  int code = 0;
  try {
    code = attend() ? 0 : 1;  // the Attention is gone before MPI_Finalize
  } catch (const longspan::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());  // the same on every rank, such as a misspelt pattern
    code = static_cast<int>(error.code());
  }
  MPI_Finalize();
  return code;
}
