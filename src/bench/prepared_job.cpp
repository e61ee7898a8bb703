#include "bench/prepared_job.hpp"

#include <cmath>
#include <limits>

#include "plan/memory.hpp"

namespace longspan::bench {

PreparedJob::PreparedJob(const comm::Communicator& ranks, Job job) : job_(std::move(job)) {
  ranks.agreed([&] {
    pattern_.emplace(job_.pattern, job_.shape.heads, job_.shape.kv_heads, job_.documents, job_.sources);
    blocks_.emplace(job_.documents);
    plan::Options options;
    options.partition = job_.partition;
    options.exchange = job_.exchange;
    options.output_type = job_.output_type;
    options.keys_can_be_read_again = false;
    options.stripes = 1;
    options.on_gpu = job_.on_gpu;
    options.rows_are_copied = job_.rows_are_copied;
    options.share_keys = job_.share_keys;
    if (job_.through_host_memory) options.step_bytes = job_.host_memory / 4;
    options.exact_tiles = std::numeric_limits<int64_t>::max();
    // All keys of the sequence and all rows of a rank twice over are more than any plan uses; pages that are not touched cost nothing.
    const int64_t keys = blocks_->count() * job_.shape.kv_heads * kernels::unit_bytes(job_.shape.type, job_.shape.head_dim);
    const int64_t rows = (blocks_->count() + 1) * plan::block_row_bytes(job_.shape, job_.output_type);
    options.memory = job_.memory.value_or(4 * (keys + rows) + (int64_t{1} << 30));
    shared_.emplace(plan::make_shared(*pattern_, *blocks_, job_.shape, ranks.size(), options));
  });
  engine_.emplace(ranks, *pattern_, *blocks_, *shared_, plan::make_rank_plan(*shared_, *pattern_, *blocks_, ranks.rank()));
  for (const Interval& run : engine_->plan().own) append(tokens_, {blocks_->tokens(run.begin).begin, blocks_->tokens(run.end - 1).end});
}

engine::RunOptions PreparedJob::run_options() const {
  engine::RunOptions options;
  options.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(job_.shape.head_dim)));
  options.timeout = job_.timeout;
  options.keep = job_.keep;
  options.share_keys = job_.share_keys;
  return options;
}

engine::Record PreparedJob::run(const JobRows& rows, kernels::Device& device, comm::Transport& transport, bool keys_into_pool) {
  engine::RunOptions options = run_options();
  options.keys_into_pool = keys_into_pool;
  return engine_->forward(*rows.input, *rows.output, device, transport, options);
}

engine::ExchangeTimes PreparedJob::exchange(engine::Input& input, kernels::Device& device, comm::Transport& transport, int times) {
  return engine_->exchange(input, device, transport, run_options(), times);
}

}  // namespace longspan::bench
