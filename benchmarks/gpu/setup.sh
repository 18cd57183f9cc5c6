#!/usr/bin/env bash
# An environment for `make gpu` on a machine without a network: PyTorch, CuPy and build tools are there, what else
# vtrain needs comes from .gpu-wheels (`make gpu-wheels`), and the host extension is built with all cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf .gpu-venv .gpu-site .gpu-build
"$python" -m pip install --quiet --no-index --no-deps --target .gpu-site .gpu-wheels/*.whl
# the machine's own Python may be a virtual environment, whose packages another one does not see
"$python" -m venv --without-pip .gpu-venv
printf '%s\n%s\nimport site; site.addsitedir("%s")\n' "$PWD" "$PWD/.gpu-site" "$site" > "$(.gpu-venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vtrain.pth"
CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "$python" -m pip wheel --quiet --no-index --no-build-isolation --no-deps --wheel-dir .gpu-build .
"$python" - <<'PY'
import glob, zipfile
wheel = zipfile.ZipFile(glob.glob(".gpu-build/vtrain-*.whl")[0])
for name in wheel.namelist():
    if name.startswith("vtrain/kernels/_host"):
        wheel.extract(name, ".")
PY
.gpu-venv/bin/python -c 'import trainer.loop, auditor.audit.loop, zarr, jinja2, vtrain.kernels; print("built:", vtrain.kernels.variant())'
