"""Bugs to put into the kernel for Hopper, each of which the checks of `checks.notices` must notice."""

from __future__ import annotations

# What is right, and what takes its place wherever it stands.
BUGS: dict[str, tuple[str, str]] = {
    "a slot is filled before it is free": ("    wait(ring.empty.index(slot), (count // slots & 1) ^ 1)\n", ""),
    "the parity of free slots": ("(count // slots & 1) ^ 1)", "count // slots & 1)"),
    "the parity of full slots": (
        ("count // slots & 1)\n    return slot"),
        ("count // slots & 1 ^ 1)\n    return slot"),
    ),
    "a tile is not awaited": ("    wait(ring.full.index(slot), count // slots & 1)\n", ""),
    "bytes of half a tile": ("source.block_type.nbytes)", "source.block_type.nbytes // 2)"),
    "bytes of two tiles": ("source.block_type.nbytes)", "2 * source.block_type.nbytes)"),
    "keys are released while they are read": (
        ("    s_MK = warpgroup_mma_wait(1, deps=(s_MK,))\n    arrive(memory.k.empty.index(slot_k), count=1)\n"),
        ("    arrive(memory.k.empty.index(slot_k), count=1)\n    s_MK = warpgroup_mma_wait(1, deps=(s_MK,))\n"),
    ),
    "values are released while they are read": (
        ("    acc_ME = warpgroup_mma_wait(0, deps=(acc_ME,))\n    arrive(memory.v.empty.index(slot_v), count=1)\n"),
        ("    arrive(memory.v.empty.index(slot_v), count=1)\n    acc_ME = warpgroup_mma_wait(0, deps=(acc_ME,))\n"),
    ),
    "logits are taken before they are there": (
        "    s_MK = warpgroup_mma_wait(1, deps=(s_MK,))\n",
        "    s_MK = warpgroup_mma_wait(2, deps=(s_MK,))\n",
    ),
    "a poll of keys that are released": (
        ("    awaited(memory.v, count + step - 1)\n    acc_ME"),
        ("    awaited(memory.k, count + step)\n    acc_ME"),
    ),
    "keys of one reader": ("of_k = new_ring(STAGES, CONSUMERS, k)", "of_k = new_ring(STAGES, 1, k)"),
    "values of one reader": ("of_v = new_ring(STAGES, CONSUMERS, v)", "of_v = new_ring(STAGES, 1, v)"),
    "queries are not awaited": ("    awaited(memory.q, turn * CONSUMERS + CONSUMER)\n", ""),
    "queries are never released": ("    arrive(memory.q.empty.index(CONSUMER), count=1)\n", ""),
    "the output is overwritten on its way": ("sent(0)\n", "pass\n"),
    "the output leaves without a fence": (("memory.out.dtype))\n    fence_async_shared()\n"), "memory.out.dtype))\n"),
    "barriers without a fence": (("scrubbed)\n    fence_async_shared()\n"), "scrubbed)\n"),
    "zeros without a fence": (
        ("            fence_async_shared()\n            arrive(memory.scrubbed, count=1)\n"),
        "            arrive(memory.scrubbed, count=1)\n",
    ),
    "zeros are not awaited": ("            wait(memory.scrubbed, scrubs & 1)\n", ""),
    "zeros of one consumer alone": ("tile.slice(CONSUMER * share", "tile.slice(0 * share"),
    "no zeros": ("        if (key < walk.first) | (key + block_kv > walk.last):\n", "        if False:\n"),
    "turns never begin": ("(1 if CONSUMER == 0 else 0)", "0"),
    "turns are not passed on": (
        ("        arrive(memory.turn.index((CONSUMER + 1) % CONSUMERS), count=1)\n    s_MK"),
        ("        pass\n    s_MK"),
    ),
    "the values of the tile itself": (
        "before = start_of(step - 1, walk, BLOCK_KV)",
        "before = start_of(step, walk, BLOCK_KV)",
    ),
    "the head of the queries for keys": ("batch, head // GROUP, start_of(0", "batch, head, start_of(0"),
    "tiles of the next program": (
        "gl.program_id(0), gl.cdiv(shape.seq_q, block_q)",
        "0, gl.cdiv(shape.seq_q, block_q)",
    ),
    "the diagonal off by one": (
        "diagonal + shape.right + 1, shape.seq_kv), 0)",
        "diagonal + shape.right, shape.seq_kv), 0)",
    ),
    "a window off by one": (
        "low = gl.maximum(diagonal - shape.left, 0)",
        "low = gl.maximum(diagonal - shape.left + 1, 0)",
    ),
    "edges are not masked": ("CONSUMER, CONSUMERS, True, scrub", "CONSUMER, CONSUMERS, False, scrub"),
    "whole tiles reach too far": ("first_high // BLOCK_KV", "gl.cdiv(first_high, BLOCK_KV)"),
    "whole tiles begin too early": ("gl.cdiv(last_low, BLOCK_KV)", "last_low // BLOCK_KV"),
    "sums do not decay": ("acc_ME * decay_M[:, None], p_MK", "acc_ME, p_MK"),
    "weights do not decay": ("total_M * decay_M + gl", "total_M + gl"),
    "the scale in base e": ("factor = scale * LOG2E", "factor = scale"),
    "lse in base 2": ("(peak_M + gl.log2(total_M) - shift) * LN2", "(peak_M + gl.log2(total_M) - shift)"),
    "rows that see nothing": ("seeing_M = (high_M > low_M) & (total_M > 0.0)", "seeing_M = total_M > 0.0"),
    "counts of tiles start anew": (("        count += steps\n        turn += 1  # noqa"), "        turn += 1  # noqa"),
    "keys are released before ds k": (
        (
            "    dq_MD = warpgroup_mma_wait(0, deps=(warpgroup_mma(ds_MK, _tile(memory.moving_s, slot), "
            "dq_MD, is_async=True),))\n"
            "    arrive(memory.moving_s.empty.index(slot), count=1)\n"
        ),
        (
            "    arrive(memory.moving_s.empty.index(slot), count=1)\n"
            "    dq_MD = warpgroup_mma_wait(0, deps=(warpgroup_mma(ds_MK, _tile(memory.moving_s, slot), "
            "dq_MD, is_async=True),))\n"
        ),
    ),
    "values are not awaited in the pass for dq": (
        ("    awaited(memory.moving_dp, count + step)\n    dp_MK = _product"),
        "    dp_MK = _product",
    ),
    "dp is taken before it is there": (
        "dp_MQ = warpgroup_mma_wait(1, deps=(dp_MQ,))",
        "dp_MQ = warpgroup_mma_wait(2, deps=(dp_MQ,))",
    ),
    "dout of another head": (
        ("count + step, batch, head * GROUP + member, row)\n            count"),
        ("count + step, batch, head * GROUP, row)\n            count"),
    ),
    "delta of dq not subtracted": ("(dp_MK - delta_M[:, None])", "dp_MK"),
    "delta of dk not subtracted": ("(dp_MQ - delta_Q[None, :])", "dp_MQ"),
    "dq without the scale": ("(dq_MD * scale)", "dq_MD"),
    "dk without the scale": ("(dk_MD * scale)", "dk_MD"),
    "dv in the place of dk": (
        "send(dv, [batch, head, key + CONSUMER * ROWS, 0], memory.fixed_dp",
        "send(dv, [batch, head, key + CONSUMER * ROWS, 0], memory.fixed_s",
    ),
    "own tiles are never released": ("        arrive(memory.fixed_dp.empty.index(CONSUMER), count=1)\n", ""),
    "gradients leave without a fence": (
        ("store(dv_ME.to(memory.fixed_s.tiles.dtype))\n        fence_async_shared()\n"),
        "store(dv_ME.to(memory.fixed_s.tiles.dtype))\n",
    ),
    "rows that see nothing weigh something": (
        'gl.where(lse == float("-inf"), float("inf"), lse * LOG2E)',
        "lse * LOG2E",
    ),
    "the diagonal of rows off by one": ("distance_MQ <= shape.right", "distance_MQ < shape.right"),
    "the window of rows off by one": ("distance_MQ >= -shape.left", "distance_MQ > -shape.left"),
    "whole rows begin too early": ("gl.cdiv(full_row, BLOCK_Q)", "full_row // BLOCK_Q"),
    "whole rows reach too far": (
        "gl.minimum(full_last, shape.seq_q) // BLOCK_Q",
        "gl.cdiv(gl.minimum(full_last, shape.seq_q), BLOCK_Q)",
    ),
    "the walk over rows ends too early": (
        "last_key - shift + shape.left + 1, 0), shape.seq_q)",
        "last_key - shift + shape.left - 63, 0), shape.seq_q)",
    ),
    "the walk over rows begins too late": (
        ("first = gl.maximum(key - shift - shape.right, 0)\n    last = gl.minimum(gl.maximum(last_key"),
        ("first = gl.maximum(key - shift - shape.right + 64, 0)\n    last = gl.minimum(gl.maximum(last_key"),
    ),
    "rows are released under ds q": (
        (
            "    dk_MD, dv_ME = warpgroup_mma_wait(0, deps=(dk_MD, dv_ME))\n"
            "    arrive(memory.moving_dp.empty.index(slot), count=1)\n"
            "    arrive(memory.moving_s.empty.index(slot), count=1)\n"
        ),
        (
            "    arrive(memory.moving_dp.empty.index(slot), count=1)\n"
            "    arrive(memory.moving_s.empty.index(slot), count=1)\n"
            "    dk_MD, dv_ME = warpgroup_mma_wait(0, deps=(dk_MD, dv_ME))\n"
        ),
    ),
    "values of 8 bits from other keys": (
        "corner = [batch, head, 0, row] if ACROSS",
        "corner = [batch, head, 0, 0] if ACROSS",
    ),
    "lse of 8 bits without the shift": ("gl.log2(total_M) - shift", "gl.log2(total_M)"),
    "the scale of v of another head": ("descale_ptr + shape.heads + head", "descale_ptr + shape.heads"),
    "the scale of q k left out": ("scale * LOG2E * gl.load(descale_ptr + head)", "scale * LOG2E"),
}
