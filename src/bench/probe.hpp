// The rates of a rank's device that the cost model asks for, measured by small jobs of one rank each, all ranks at work at once: they
// share cores and memory as in a real job.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "bench/prepared_job.hpp"
#include "bench/row_link.hpp"
#include "bench/rows.hpp"
#include "comm/communicator.hpp"
#include "comm/transport.hpp"
#include "kernels/device.hpp"
#include "longspan/shape.hpp"
#include "plan/cost_model.hpp"

namespace longspan::bench {

// Measures the compute part of plan::Rates for the heads, head_dim and type of `shape` (its tokens do not matter) by four jobs: one of
// full tiles only, one of partial tiles only, one of lists of many entries, one of short runs of full tiles. And, if asked to, what compute
// loses to keys that move beside it, by one job of all ranks and its like of each rank alone.
class Probe {
 public:
  // Collective, as are the others. Makes each job as large as takes about `seconds`, on rows where the job to predict has its own. The
  // references must outlive the probe.
  Probe(const comm::Communicator& ranks, const Shape& shape, ElementType output_type, kernels::Device& device, double seconds,
        RowsIn rows = RowsIn::host);
  ~Probe();
  // Collective. From now on samples have plan::Rates::hidden_byte too (0 on one rank). Messages are made and moved as those of `like`.
  void also_move(const Job& like, comm::Transport& transport);

  // Runs the jobs once. Between the runs of what is to be predicted, so that both see the same moods of the machine.
  void sample();
  // Medians over samples and ranks, the same on all ranks.
  plan::Rates rates() const;
  // plan::Rates::link_slowdown: how many times longer a job's keys were on their way than `rates`, whose links are those of ranks at rest,
  // say. 1 without also_move().
  double slowdown_of_links(const plan::Rates& rates) const;
  // plan::Rates::exposed_byte: what ranks waited longer for a job's keys than `rates`, now with the slowdown of links, say. 0 without
  // also_move().
  double exposed_byte(const plan::Rates& rates) const;

 private:
  class SelfJob;
  class MovingJob;

  const comm::Communicator& ranks_;
  kernels::Device& device_;
  double seconds_;
  double query_bytes_, result_bytes_;  // of a row and query head
  std::unique_ptr<RowSource> rows_;
  std::unique_ptr<SelfJob> full_, partial_, listed_, short_;
  std::vector<plan::StepWork> partial_work_;          // of the last three,
  std::vector<std::vector<double>> partial_seconds_;  // and what they took, by sample
  std::unique_ptr<MovingJob> moving_;
  std::unique_ptr<RowLink> row_link_;  // of a GPU whose rows are in host memory
  std::vector<double> full_quarter_, state_, state_in_, state_out_, link_in_, link_out_, both_ways_, list_row_, entry_, load_, in_rows_;
};

}  // namespace longspan::bench
