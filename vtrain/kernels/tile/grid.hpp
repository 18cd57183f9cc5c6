// A persistent grid, with a body for each target: a fixed number of blocks that share pieces of work out among themselves. No result may depend on which
// block does which piece, or on their number.
//
//   grid.each(count, f)            f(piece, memory) for each piece in [0, count), a block each; memory: the block's scratch
//   grid.warps(count, each, f)     f(piece) for each piece, a warp each; `each` elements of work a piece
#pragma once
#include "../config.hpp"
#include VT_BODY(grid)
