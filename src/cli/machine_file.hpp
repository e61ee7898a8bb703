// The measured rates of a machine as files keep them: "machine" of a JSON record, written by `longspan doctor --save` and by
// `longspan bench scaleout --json`, read by `longspan plan --machine`. Base units: seconds, bytes, bytes and FLOP per second; null for what
// was not measured. A spread is {"min", "median", "max", "rank_of_worst"} over the ranks.
//
//   ranks, hosts, ranks_per_host; device "cpu" or "cuda"; target; threads of a rank
//   compute      [{type, head_dim, full: {seconds_per_quarter}, partial: {seconds_per_quarter,
//                seconds_per_tile, seconds_per_row}, flop_per_second}], spreads
//   row_seconds_per_state, row_read_seconds_per_state, row_write_seconds_per_state, row_both_ways_slowdown, list_seconds_per_row,
//   list_seconds_per_entry, key_load_bytes_per_second, key_row_bytes_per_second, compute_seconds_per_moved_byte,
//   exchange_seconds_per_moved_byte, link_slowdown:
//                as plan::Rates has them (state, state_in, state_out, both_ways, list_row, list_entry, key_bytes_per_second,
//                row_bytes_per_second, hidden_byte, exposed_byte, link_slowdown)
//   memory       {read_bytes_per_second, copy_bytes_per_second, free_bytes}, spreads
//   gpu_memory   {copy_…, to_gpu_…, from_gpu_…, both_ways_bytes_per_second, free_bytes}, spreads
//   links        {within_host, across_hosts: {latency_seconds, bytes_per_second, …}}, spreads
//   disk         {write_bytes_per_second, read_bytes_per_second, …} of all ranks together
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "longspan/shape.hpp"
#include "plan/cost_model.hpp"

namespace longspan::cli {

struct MachineRates {
  plan::Rates typical;  // medians over the ranks that were measured
  plan::Rates worst;    // of the slowest of them in each respect
  bool on_gpu = false;
  std::string measured_on;           // "8 ranks on 2 hosts, AVX3_ZEN4, 2 threads each"
  std::vector<std::string> remarks;  // what had to be assumed
};

// Rates for the type and head_dim of `shape` and results of `output_type`; another head_dim is scaled from the nearest one. Throws
// Error(input) when the file is no such record, Error(io) when it cannot be read.
MachineRates read_machine(const std::string& file, const Shape& shape, ElementType output_type);

struct MeasuredOn {
  int ranks = 1, hosts = 1, threads = 1;
  std::string device, target;
};
// The other way, as far as `rates` go: spreads are of one value.
nlohmann::ordered_json machine_json(const plan::Rates& rates, const Shape& shape, const MeasuredOn& on);

}  // namespace longspan::cli
