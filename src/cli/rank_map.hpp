// Where the ranks run, for the head of a command's output and for its record.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "comm/communicator.hpp"
#include "kernels/gpus.hpp"
#include "launch/binding.hpp"

namespace longspan::cli {

// Binds the ranks to cores unless `bind` is false, and finds each one's share of its host.
struct Launch {
  launch::Share share;
  launch::Place place;  // this rank's
};
// `threads`: what the user asks for, else the share's. Near `gpu`, if there is one. Collective.
Launch launch_ranks(const comm::Communicator& ranks, bool bind, std::optional<int> threads, const std::optional<kernels::Gpu>& gpu);

// All ranks' places on rank 0, in order; empty elsewhere. Collective.
std::vector<launch::Place> gather_places(const comm::Communicator& ranks, const launch::Place& mine);

// {"host", "cpus": "0-3", "numa_nodes": "0", "threads", "bound": "no" | "launcher" | "longspan", "device": null or a name}
nlohmann::ordered_json place_json(const launch::Place& place);

// A text for users whose launcher leaves most of a host idle, as Open MPI does with the threads of one or two ranks; empty when all is
// well. On rank 0, whose host stands for all.
std::string binding_remark(const std::vector<launch::Place>& places, const launch::Allotment& allotment, int host_cpus);

}  // namespace longspan::cli
