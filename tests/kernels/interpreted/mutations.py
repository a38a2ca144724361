"""Seeded bugs: each is put into a copy of the kernels, and a few quick checks must notice it.

`python -m tests.kernels.interpreted.mutations` tries them all and prints, as JSON, what the checks said of each. With
`pairs` behind it, the pairwise cover that `make test` runs takes the place of the quick checks.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]


class Mutation(NamedTuple):
    """Text of a file of attnbench/kernels, and the bug that takes its place wherever it stands."""

    check: str  # of `quick`, which runs first: it is known to notice the bug
    file: str
    right: str
    wrong: str


MUTATIONS = {
    "diagonal off by one": Mutation(
        "scores", "tile.py", "tl.minimum(diagonal_Q + right + 1, seq_kv)", "tl.minimum(diagonal_Q + right, seq_kv)"
    ),
    "window off by one": Mutation(
        "masks", "tile.py", "tl.maximum(diagonal_Q - left, 0)", "tl.maximum(diagonal_Q - left + 1, 0)"
    ),
    "causal aligned to the top left": Mutation("scores", "tile.py", "rows_Q + (seq_kv - seq_q)", "rows_Q"),
    "accumulator not rescaled": Mutation("blocks", "forward.py", "acc_QE * decay_Q[:, None]", "acc_QE"),
    "sum not rescaled": Mutation("blocks", "forward.py", "total_Q * decay_Q", "total_Q"),
    "lse without the highest logit": Mutation(
        "blocks", "forward.py", "(peak_Q + tl.log2(total_Q)) * LN2", "tl.log2(total_Q) * LN2"
    ),
    "wrong key head": Mutation("masks", "forward.py", "kv_head = head // GROUP", "kv_head = head % (heads // GROUP)"),
    "swapped strides": Mutation(
        "an_empty_cache",
        "call.py",
        "return Operand(tensor, *tensor.stride()[:3])",
        "return Operand(tensor, tensor.stride(0), tensor.stride(2), tensor.stride(1))",
    ),
    "whole tiles reach too far": Mutation(
        "scores",
        "tile.py",
        "tl.where(seeing_Q, seen.high, last), 0) // BLOCK_KV",
        "tl.where(seeing_Q, seen.high, last) + BLOCK_KV - 1, 0) // BLOCK_KV",
    ),
    "end of the keys not masked": Mutation("masks", "launch.py", "or seq_kv % tiling.block_kv != 0,", ","),
    "softcap without its derivative": Mutation("scores", "backward.py", "ds = ds * (1.0 - capped * capped)", "ds = ds"),
    "delta not subtracted": Mutation("blocks", "backward.py", "p * (dp - delta)", "p * dp"),
    "dk without the scale": Mutation("blocks", "backward.py", "dk_KD * scale", "dk_KD"),
    "dropout of backward for other pairs": Mutation(
        "scores",
        "backward.py",
        "survives(rule, row + row_in, key + key_in)",
        "survives(rule, key + key_in, row + row_in)",
    ),
    "dropout of backward not amplified": Mutation(
        "scores", "backward.py", "dp = tl.where(keep, dp * rule.amplify, 0.0)", "dp = tl.where(keep, dp, 0.0)"
    ),
    "slope of the wrong sign": Mutation("scores", "tile.py", "s -= rule.slope * LOG2E", "s += rule.slope * LOG2E"),
    "bias in base e": Mutation("listed", "tile.py", "s += biases.to(tl.float32) * LOG2E", "s += biases.to(tl.float32)"),
    "blind rows read as any": Mutation(
        "masks", "backward.py", 'tl.where(lse_Q == float("-inf"), float("inf"), lse_Q * LOG2E)', "lse_Q * LOG2E"
    ),
    "gradient of the lse forgotten": Mutation(
        "masks", "backward.py", "delta_Q -= tl.load(dlse_ptr", "delta_Q += 0.0 * tl.load(dlse_ptr"
    ),
    "sink in every split": Mutation("decoding", "decoding.py", "split == 0", "split >= 0"),
    "splits weigh alike": Mutation(
        "an_empty_cache",
        "decoding.py",
        "weight_S = tl.exp2((lse_S - pivot) * LOG2E)",
        "weight_S = tl.where(lse_S > -1e30, 1.0, 0.0)",
    ),
    "a split without keys weighs": Mutation(
        "an_empty_cache",
        "decoding.py",
        'tl.where(filled_R, (peak_R + tl.log2(total_R)) * LN2, float("-inf"))',
        "tl.where(filled_R, (peak_R + tl.log2(total_R)) * LN2, 0.0)",
    ),
    "page of the next key": Mutation(
        "decoding", "decoding.py", "table + keys_K // PAGE", "table + (keys_K + 1) // PAGE"
    ),
    "packed rows of the wrong head": Mutation("decoding", "decoding.py", "packed_R // each", "packed_R % GROUP"),
    "tiles of a request begin with its rows": Mutation(
        "requests", "decoding.py", "tl.int64) * GROUP // BLOCK_R + request", "tl.int64) * GROUP // BLOCK_R"
    ),
    "queries of the first request": Mutation(
        "requests",
        "decoding.py",
        "first_query = tl.cast(tl.load(starts_q_ptr + batch)",
        "first_query = tl.cast(tl.load(starts_q_ptr)",
    ),
    "keys of the next request": Mutation(
        "requests",
        "decoding.py",
        "tl.cast(tl.load(starts_ptr + batch), tl.int64) * cache.row",
        "tl.cast(tl.load(starts_ptr + batch + 1), tl.int64) * cache.row",
    ),
    "queries of all requests are new ones": Mutation(
        "requests",
        "decoding.py",
        "_visible_keys(rows, length, queries, left, right)",
        "_visible_keys(rows, length, seq_q, left, right)",
    ),
    "tail of the first columns": Mutation(
        "requests", "decoding.py", "_cached(k, k_base + HEAD_DIM,", "_cached(k, k_base,"
    ),
    "the keys behind a shared prefix are its own": Mutation(
        "requests", "launch.py", "table=cache.table[:, prefix.table.shape[1] :]", "table=cache.table"
    ),
    "wrong key head in the backward pass": Mutation("masks", "backward.py", "kv_head = share // parts", "kv_head = 0"),
    "rows that see a key cut short": Mutation(
        "listed", "backward.py", "tl.where(seeing, rows + 1, 0)", "tl.where(seeing, rows, 0)"
    ),
    "intervals of the first sequence for all": Mutation(
        "listed", "tile.py", "listed.pointer + batch * listed.batch", "listed.pointer"
    ),
    "bias of one head given one head's gradient": Mutation(
        "listed", "bias_gradient.py", "batches // bias_batches * sharing_heads", "batches // bias_batches"
    ),
    "booleans of the first head for all": Mutation(
        "listed",
        "call.py",
        "Pairs(booleans, *_shared_strides(booleans))",
        "Pairs(booleans, *_shared_strides(booleans[:, :1]))",
    ),
    "dropout without its amplification": Mutation("scores", "forward.py", "acc_QE *= amplify", "acc_QE *= 1.0"),
    "blocks of a key tile from the list of rows": Mutation(
        "blocks", "call.py", "from_keys = kernel is Kernel.BACKWARD_KV", "from_keys = False"
    ),
}


def main() -> int:
    """Try every mutation, and none; print which were caught, as JSON."""
    os.environ["TRITON_INTERPRET"] = "1"
    # Imported once: the children only fork.
    import hypothesis.strategies  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import triton.language
    import triton.runtime.interpreter  # noqa: F401

    torch.set_num_threads(1)
    found = {"": _tried(None)} | {name: _tried(mutation) for name, mutation in MUTATIONS.items()}
    print(json.dumps(found))
    return 0


def _tried(mutation: Mutation | None) -> str:
    """What the quick checks say of a copy with that bug: `right`, `mismatch`, or what else went wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package in ("attnbench", "tests/kernels/interpreted"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "tests" / "pairwise.py", folder / "tests")
        if mutation:
            path = folder / "attnbench" / "kernels" / mutation.file
            text = path.read_text(encoding="utf-8")
            if mutation.right not in text:
                return f"{mutation.file} does not hold {mutation.right!r}: write this mutation anew"
            path.write_text(text.replace(mutation.right, mutation.wrong), encoding="utf-8")
        child = os.fork()
        if child == 0:
            os._exit(_checked(folder, mutation.check if mutation else ""))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "crash" if code < 0 else {0: "right", 1: "mismatch"}.get(code, f"exit code {code}")


def _checked(folder: Path, first: str) -> int:
    """In the child: the quick checks, on the copy; the check `first` before the others."""
    try:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] in ("attnbench", "tests")]:
            del sys.modules[name]
        if len(sys.argv) > 1:
            return int(importlib.import_module(f"tests.kernels.interpreted.{sys.argv[1]}").main())
        return int(importlib.import_module("tests.kernels.interpreted.quick").main(first))
    except Exception:
        traceback.print_exc()
        return 2


if __name__ == "__main__":
    sys.exit(main())
