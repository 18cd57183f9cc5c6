"""Run by Python as it starts, where this folder is on its path: the tests' device, before torch does anything."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "tests" / "emulated"))
import emulated
import torch

emulated.for_a_process()
torch.__future__.set_swap_module_params_on_conversion(True)  # a model that is moved keeps its ties, as on CUDA
