// What this program was built from and with.
#pragma once

#include <string>

namespace longspan::report {

std::string version();     // "0.1.0"
std::string git_commit();  // 12 hex digits, with "+changes" when tracked files differed; "unknown" outside git
std::string compiler();    // "GNU 12.2.0"
std::string build_type();  // "Release"

}  // namespace longspan::report
