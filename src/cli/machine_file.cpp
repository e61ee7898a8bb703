#include "cli/machine_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "bench/row_link.hpp"
#include "longspan/error.hpp"

namespace longspan::cli {

namespace {

using nlohmann::ordered_json;

// Reads figures of one file; every problem names the key.
class Reader {
 public:
  Reader(std::string file, bool worst) : file_(std::move(file)), worst_(worst) {}

  // A positive number, or a spread of which the typical or the worst one counts; nothing where it is null or missing.
  std::optional<double> figure(const ordered_json& object, const std::string& key, bool more_is_better) const {
    const ordered_json& value = at(object, key);
    if (value.is_null()) return std::nullopt;
    if (value.is_number()) return positive(value, key);
    const char* which = !worst_ ? "median" : more_is_better ? "min" : "max";
    const ordered_json& chosen = at(value, which);
    return chosen.is_null() ? std::nullopt : std::optional(positive(chosen, key + "." + which));
  }
  // Null where the key is missing or the object is null.
  const ordered_json& at(const ordered_json& object, const std::string& key) const {
    static const ordered_json none;
    if (object.is_null()) return none;
    if (!object.is_object()) refuse("a part of the machine is no object", object.dump().substr(0, 40), "an object with " + key);
    const auto found = object.find(key);
    return found == object.end() ? none : *found;
  }
  [[noreturn]] void refuse(const std::string& what, const std::string& seen, const std::string& expected) const {
    throw Error({.code = ExitCode::input,
                 .what = what,
                 .seen = seen,
                 .expected = expected,
                 .from = file_ + ", option --machine",
                 .mend = "write it with longspan doctor --save"});
  }

 private:
  double positive(const ordered_json& value, const std::string& key) const {
    const double number = value.is_number() ? value.get<double>() : 0;
    if (!value.is_number() || !std::isfinite(number) || number < 0)
      refuse("a rate makes no sense: " + key, value.dump(), "a number above 0");
    return number;
  }

  std::string file_;
  bool worst_;
};

struct ComputeRow {
  double full = 0, partial = 0, partial_tile = 0, tile_row = 0;
  int head_dim = 0;
};

ComputeRow compute_row(const Reader& reader, const ordered_json& machine, const Shape& shape) {
  const ordered_json& rows = reader.at(machine, "compute");
  ComputeRow best;
  for (const ordered_json& row : rows.is_array() ? rows : ordered_json::array()) {
    if (reader.at(row, "type") != std::string(name_of(shape.type))) continue;
    const ordered_json& head_dim = reader.at(row, "head_dim");
    if (!head_dim.is_number_integer()) continue;
    const int dim = head_dim.get<int>();
    const auto full = reader.figure(reader.at(row, "full"), "seconds_per_quarter", false);
    if (!full || *full <= 0 || dim < 1) continue;
    if (best.head_dim != 0 && std::abs(dim - shape.head_dim) >= std::abs(best.head_dim - shape.head_dim)) continue;
    const ordered_json& partial = reader.at(row, "partial");
    best = {*full, reader.figure(partial, "seconds_per_quarter", false).value_or(*full),
            reader.figure(partial, "seconds_per_tile", false).value_or(0), reader.figure(partial, "seconds_per_row", false).value_or(0),
            dim};
  }
  if (best.head_dim == 0)
    reader.refuse(fmt::format("the machine was not measured for {}", name_of(shape.type)), "no such row in \"compute\"",
                  fmt::format("a row with \"type\": \"{}\" and seconds_per_quarter of full tiles", name_of(shape.type)));
  return best;
}

std::optional<plan::LinkRates> link(const Reader& reader, const ordered_json& link) {
  const auto rate = reader.figure(link, "bytes_per_second", true);
  if (!rate || *rate <= 0) return std::nullopt;
  return plan::LinkRates{reader.figure(link, "latency_seconds", false).value_or(0), *rate};
}

plan::Rates rates_of(const Reader& reader, const ordered_json& machine, const Shape& shape, ElementType output_type,
                     std::vector<std::string>& remarks) {
  plan::Rates rates;
  const ComputeRow row = compute_row(reader, machine, shape);
  const double scale = static_cast<double>(shape.head_dim) / row.head_dim;
  rates.full_quarter = row.full * scale;
  rates.partial_quarter = row.partial * scale;
  rates.partial_tile = row.partial_tile;  // its mask and its entry, whatever head_dim
  rates.tile_row = row.tile_row;
  if (row.head_dim != shape.head_dim)
    remarks.push_back(fmt::format("compute rates are those of head_dim {}, scaled to {}", row.head_dim, shape.head_dim));

  const bool on_gpu = reader.at(machine, "device") == "cuda";
  const ordered_json& gpu = reader.at(machine, "gpu_memory");
  const auto copy = reader.figure(on_gpu ? gpu : reader.at(machine, "memory"), "copy_bytes_per_second", true);
  const auto element = static_cast<double>(size_of(shape.type)), result = static_cast<double>(size_of(output_type));
  // What was not measured itself goes by the rate of memory: queries are copied, states cleared, read, and results written and copied.
  const double state_bytes = shape.head_dim * (2 * element + 4 + 4 + 3 * result);
  const auto state = reader.figure(machine, "row_seconds_per_state", false);
  rates.state = state ? *state : copy && *copy > 0 ? state_bytes / *copy : 0;
  const auto to_gpu = reader.figure(gpu, "to_gpu_bytes_per_second", true), from_gpu = reader.figure(gpu, "from_gpu_bytes_per_second", true);
  const double in = to_gpu && *to_gpu > 0 ? shape.head_dim * element / *to_gpu : 0;
  const double out = from_gpu && *from_gpu > 0 ? (shape.head_dim * result + 4) / *from_gpu : 0;
  const auto both = reader.figure(gpu, "both_ways_bytes_per_second", true);
  rates.both_ways = reader.figure(machine, "row_both_ways_slowdown", false)
                        .value_or(bench::RowLinkRates{to_gpu.value_or(0), from_gpu.value_or(0), both.value_or(0)}.slowdown());
  if (rates.both_ways > 0) rates.both_ways = std::clamp(rates.both_ways, 1.0, 2.0);
  rates.state_in = reader.figure(machine, "row_read_seconds_per_state", false).value_or(in);
  rates.state_out = reader.figure(machine, "row_write_seconds_per_state", false).value_or(out);
  auto load = reader.figure(machine, "key_load_bytes_per_second", true);
  if (!load) load = to_gpu;
  if (load && *load > 0)
    rates.key_bytes_per_second = *load;
  else if (copy && *copy > 0)
    rates.key_bytes_per_second = *copy / 4;  // copied twice, read and written each time
  rates.row_bytes_per_second = reader.figure(machine, "key_row_bytes_per_second", true).value_or(0);
  rates.list_row = reader.figure(machine, "list_seconds_per_row", false).value_or(0);
  rates.list_entry = reader.figure(machine, "list_seconds_per_entry", false).value_or(0);
  rates.lists_beside = on_gpu;
  rates.hidden_byte = reader.figure(machine, "compute_seconds_per_moved_byte", false).value_or(0);
  rates.exposed_byte = reader.figure(machine, "exchange_seconds_per_moved_byte", false).value_or(0);
  rates.link_slowdown = std::max(1.0, reader.figure(machine, "link_slowdown", false).value_or(1));

  const ordered_json& per_host = reader.at(machine, "ranks_per_host");
  if (per_host.is_number_integer()) rates.ranks_per_host = std::max(1, per_host.get<int>());
  const ordered_json& links = reader.at(machine, "links");
  const auto within = link(reader, reader.at(links, "within_host")), across = link(reader, reader.at(links, "across_hosts"));
  if (!within && !across) remarks.push_back("no link was measured (one rank): messages count as free");
  if (within && !across) remarks.push_back("one host was measured: the way to others counts as fast as inside it");
  rates.within_host = within ? *within : across.value_or(plan::LinkRates{});
  rates.across_hosts = across ? *across : within.value_or(plan::LinkRates{});
  return rates;
}

}  // namespace

MachineRates read_machine(const std::string& file, const Shape& shape, ElementType output_type) {
  std::ifstream stream(file);
  if (!stream) throw Error({.code = ExitCode::io, .what = "cannot read the machine's rates", .from = file + ", option --machine"});
  const ordered_json record = ordered_json::parse(stream, nullptr, false);
  const Reader typical(file, false), worst(file, true);
  if (record.is_discarded() || !record.is_object()) typical.refuse("the file is no JSON object", "", "{\"machine\": {...}}");
  const ordered_json& machine = typical.at(record, "machine");
  if (!machine.is_object()) typical.refuse("the file tells no rates", "no object \"machine\"", "\"machine\": {...}");
  MachineRates result;
  std::vector<std::string> again;
  result.typical = rates_of(typical, machine, shape, output_type, result.remarks);
  result.worst = rates_of(worst, machine, shape, output_type, again);

  const auto number = [&](const char* key) {
    const ordered_json& value = typical.at(machine, key);
    return value.is_number_integer() ? value.get<int>() : 1;
  };
  const ordered_json& target = typical.at(machine, "target");
  result.on_gpu = result.typical.lists_beside;
  result.measured_on = fmt::format("{} rank{} on {} host{}, {}, {} thread{} each", number("ranks"), number("ranks") == 1 ? "" : "s",
                                   number("hosts"), number("hosts") == 1 ? "" : "s", target.is_string() ? target.get<std::string>() : "?",
                                   number("threads"), number("threads") == 1 ? "" : "s");
  // A disk is shared: each rank has its part of what all of them got together.
  const ordered_json& disk = typical.at(machine, "disk");
  for (plan::Rates* rates : {&result.typical, &result.worst}) {
    const auto read = typical.figure(disk, "read_bytes_per_second", true), write = typical.figure(disk, "write_bytes_per_second", true);
    if (read && *read > 0) rates->read_bytes_per_second = *read;
    if (write && *write > 0) rates->write_bytes_per_second = *write;
  }
  if (disk.is_null()) result.remarks.emplace_back("no disk was measured: reading and writing count as free");
  return result;
}

ordered_json machine_json(const plan::Rates& rates, const Shape& shape, const MeasuredOn& on) {
  const auto spread = [](double value) -> ordered_json {
    if (!(value > 0) || !std::isfinite(value)) return nullptr;
    return {{"min", value}, {"median", value}, {"max", value}, {"rank_of_worst", 0}};
  };
  const auto number = [](double value) -> ordered_json { return value > 0 && std::isfinite(value) ? ordered_json(value) : nullptr; };
  const auto link = [&](const plan::LinkRates& link) -> ordered_json {
    if (!std::isfinite(link.bytes_per_second)) return nullptr;
    return {{"latency_seconds", spread(link.latency)}, {"bytes_per_second", spread(link.bytes_per_second)}};
  };
  return {{"ranks", on.ranks},
          {"hosts", on.hosts},
          {"ranks_per_host", rates.ranks_per_host},
          {"device", on.device},
          {"target", on.target},
          {"threads", on.threads},
          {"compute", ordered_json::array({{{"type", name_of(shape.type)},
                                            {"head_dim", shape.head_dim},
                                            {"full", {{"seconds_per_quarter", spread(rates.full_quarter)}}},
                                            {"partial",
                                             {{"seconds_per_quarter", spread(rates.partial_quarter)},
                                              {"seconds_per_tile", spread(rates.partial_tile)},
                                              {"seconds_per_row", spread(rates.tile_row)}}},
                                            {"flop_per_second", spread(4.0 * 64 * 64 * shape.head_dim / rates.full_quarter)}}})},
          {"row_seconds_per_state", number(rates.state)},
          {"row_read_seconds_per_state", number(rates.state_in)},
          {"row_write_seconds_per_state", number(rates.state_out)},
          {"row_both_ways_slowdown", number(rates.both_ways)},
          {"list_seconds_per_row", number(rates.list_row)},
          {"list_seconds_per_entry", number(rates.list_entry)},
          {"key_load_bytes_per_second", number(rates.key_bytes_per_second)},
          {"key_row_bytes_per_second", rates.row_bytes_per_second > 0 ? number(rates.row_bytes_per_second) : nullptr},
          {"compute_seconds_per_moved_byte", number(rates.hidden_byte)},
          {"exchange_seconds_per_moved_byte", number(rates.exposed_byte)},
          {"link_slowdown", rates.link_slowdown},
          {"memory", nullptr},
          {"links", {{"within_host", link(rates.within_host)}, {"across_hosts", link(rates.across_hosts)}}},
          {"disk", nullptr}};
}

}  // namespace longspan::cli
