#!/usr/bin/env bash
# An environment for `make gpu` on a machine without a network: PyTorch, CuPy and build tools are there, what else
# vtrain needs comes from .gpu-wheels (`make gpu-wheels`), and the host extension is built with all cores. Where it can't
# be built, for want of Python's headers say, one that `make gpu-wheels` has built for this Python is taken.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
"$python" -c 'import sys, torch; assert sys.version_info >= (3, 11), sys.version' \
  || { echo "make gpu: $python is no Python 3.11 or newer with PyTorch; set PYTHON" >&2; exit 1; }
ls .gpu-wheels/*.whl > /dev/null || { echo "make gpu: .gpu-wheels is empty; run make gpu-wheels where there is a network" >&2; exit 1; }
rm -rf .gpu-venv .gpu-site .gpu-build
"$python" -m pip install --quiet --no-index --no-deps --target .gpu-site .gpu-wheels/*.whl

# the machine's own Python may be a virtual environment, whose packages another one does not see
"$python" -m venv --without-pip .gpu-venv
own=$(.gpu-venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" - > "$own/vtrain.pth" <<'PY'
import os, sys
here = os.getcwd()
print(here, os.path.join(here, ".gpu-site"), sep="\n")
for path in sys.path:
    if path.rstrip("/").endswith("-packages"):
        print(f"import site; site.addsitedir({path!r})")
PY

built=.gpu-build
CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "$python" -m pip wheel --quiet --no-index --no-build-isolation --no-deps --wheel-dir $built . \
  || { echo "make gpu: not built here, trying what was built before" >&2; built=.gpu-wheels/built; }
"$python" - $built <<'PY'
import glob, sys, zipfile
tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
found = glob.glob(f"{sys.argv[1]}/vtrain-*-{tag}-*.whl")
if not found:
    sys.exit(f"make gpu: no extension for {tag} in {sys.argv[1]}")
wheel = zipfile.ZipFile(found[0])
for name in wheel.namelist():
    if name.startswith("vtrain/kernels/_host"):
        wheel.extract(name, ".")
PY
.gpu-venv/bin/python -c 'import trainer.loop, auditor.audit.loop, zarr, jinja2, vtrain.kernels; print("built:", vtrain.kernels.variant())'
.gpu-venv/bin/python -c 'import cupy, pytest, torchvision, transformers' || echo "make gpu: parts that need these will say so" >&2
