// Text inside of SVG.
#pragma once

#include <string>

namespace longspan::report {

std::string escaped_for_svg(const std::string& text);  // a < b & "c" -> a &lt; b &amp; &quot;c&quot;

}  // namespace longspan::report
