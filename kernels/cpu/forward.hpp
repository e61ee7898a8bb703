// The forward pass on CPU threads: which thread takes what, and the walk over an item's tiles. Knows no instruction set.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/panel.hpp"
#include "kernels/cpu/scratch.hpp"
#include "kernels/kernel.hpp"

namespace longspan::kernels::cpu {

// What a thread takes at a time: some rows of a Work item for some of its heads. Each row of each head is computed by itself, so that the
// bits do not depend on how an item is cut.
struct Piece {
  int64_t work = 0;                    // index in Step::work
  int32_t first_head = 0, heads = 0;   // of the item's heads; at most kHeadGroup
  int32_t first_row = 0, end_row = 0;  // of the item's rows; first_row is a multiple of kMostPanel
};

// All of a step, dearest first; the last ones are cut finer the more threads there are, so that none is left alone with much.
std::vector<Piece> cut_into_pieces(const Step& step, int threads);

void attend_piece(const Step& step, const Piece& piece, const PanelKernel& kernel, const Scratch& scratch);

}  // namespace longspan::kernels::cpu
