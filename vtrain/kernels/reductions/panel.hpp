// Tiles of matrix products, with a body for each target.
//
//   PanelTile<Acc> tile(m, n, batch, grid)    how an m x n result is cut
//   tile.tiles()                              pieces
//   tile.run(t, a, b, k, out, memory)         the chains of piece t over k terms of a and b, finished and stored
#pragma once
#include "../tile/grid.hpp"
#include "operand.hpp"
#include VT_BODY(panel)
