#include "cli/job_time.hpp"

namespace longspan::cli {

nlohmann::ordered_json job_time_json(const plan::JobTime& time) {
  nlohmann::ordered_json json = {{"seconds", time.seconds},
                                 {"step_seconds", time.step_seconds},
                                 {"exposed", time.exposed},
                                 {"imbalance", time.imbalance},
                                 {"slowest_rank", time.slowest_rank},
                                 {"memory", time.memory},
                                 {"busiest_sender_seconds", time.busiest_sender}};
  for (const JobTimeSection& section : kJobTimeSections)
    json["sections"][section.key] = {{"mean", time.mean.*section.seconds}, {"slowest", time.slowest.*section.seconds}};
  return json;
}

}  // namespace longspan::cli
