"""The code that a kernel is compiled from changes with everything that the kernel uses, and with nothing else."""

from __future__ import annotations

from functools import partial

import pytest

from tests.kernels.compiled.code import code_of, source_of
from tests.kernels.interpreted.mutations import MUTATIONS, Mutation

KERNELS = {
    "backward": ("delta_kernel", "key_kernel", "query_kernel"),
    "bias_gradient": ("bias_kernel",),
    "decoding": ("split_kernel", "combine_kernel"),
    "forward": ("forward_kernel",),
    "hopper.forward": ("forward_kernel",),
    "hopper.backward": ("key_kernel", "query_kernel"),
}
PREFIX = "attnbench.kernels"
HOST = ("call.py", "launch.py")  # decide what is launched: a changed argument is a part of the digest itself


def changed(file: str, right: str, wrong: str) -> set[str]:
    """The kernels whose code differs when a text of a file is replaced."""

    def sources(module: str) -> str:
        text = source_of(module)
        return text.replace(right, wrong) if module == f"{PREFIX}.{file}" else text

    assert right in source_of(f"{PREFIX}.{file}")
    return {
        f"{module}.{name}"
        for module, names in KERNELS.items()
        for name in names
        if code_of(f"{PREFIX}.{module}", name) != code_of(f"{PREFIX}.{module}", name, sources)
    }


IN_KERNELS = [mutation for mutation in MUTATIONS.values() if mutation.file not in HOST]


@pytest.mark.parametrize("mutation", IN_KERNELS, ids=lambda mutation: mutation.wrong)
def test_a_bug_changes_the_code_of_a_kernel(mutation: Mutation) -> None:
    assert changed(mutation.file.removesuffix(".py"), mutation.right, mutation.wrong)


def test_a_helper_counts_for_the_kernels_that_use_it() -> None:
    of_logits = changed("tile", "s -= rule.slope", "s += rule.slope")
    assert of_logits >= {
        "forward.forward_kernel",
        "backward.key_kernel",
        "backward.query_kernel",
        "decoding.split_kernel",
    }
    assert of_logits.isdisjoint({"backward.delta_kernel", "decoding.combine_kernel", "hopper.forward.forward_kernel"})
    # From one file by way of another.
    assert "bias_gradient.bias_kernel" in changed("backward", "p * (dp - delta)", "p * dp")
    assert "decoding.split_kernel" in changed("forward", "total_Q * decay_Q", "total_Q")
    assert changed("hopper.warps", "ROWS = gl.constexpr(64)", "ROWS = gl.constexpr(128)") == {
        "hopper.forward.forward_kernel", "hopper.backward.key_kernel", "hopper.backward.query_kernel"
    }  # fmt: skip


def test_constants_fields_and_decorators_count() -> None:
    in_tile = partial(changed, "tile")
    assert "decoding.combine_kernel" in in_tile("LN2 = tl.constexpr(0.69", "LN2 = tl.constexpr(0.70")
    assert "forward.forward_kernel" in in_tile(
        "    low: tl.tensor\n    high: tl.tensor\n", "    high: tl.tensor\n    low: tl.tensor\n"
    )
    assert changed("forward", "@triton.jit", "@triton.jit(noinline=True)")


def test_modules_that_are_used_as_a_whole_count() -> None:
    assert "def forward_kernel(" in code_of(f"{PREFIX}.launch", "forward_call")


def test_comments_lines_and_docstrings_do_not_count() -> None:
    assert changed("tile", "\n\n\n@triton.jit", "\n\n\n# Another remark.\n\n\n@triton.jit") == set()
    assert changed("tile", '    """Whether dropout keeps', '    """If dropout keeps') == set()
