"""Who takes part: each contender is a process of its own, named by library, setting and precision."""

from typing import NamedTuple


class Contender(NamedTuple):
    """A library, a way of using it, and a precision class."""

    library: str
    setting: str
    precision: str

    @property
    def name(self) -> str:
        """As flags and results have it, such as pytorch-compiled-bfloat16."""
        return "-".join(filter(None, self))

    @classmethod
    def parse(cls, name: str) -> "Contender":
        """The contender of that name."""
        library, *setting, precision = name.split("-")
        return cls(library, "".join(setting), precision)

    @property
    def is_ours(self) -> bool:
        return self.library == "ours"

    def arrangements(self, row: str) -> tuple[str, ...]:
        """How a row's texts are computed together, where it takes part; see inputs.groups.

        What this project makes of a padded batch is its graph's affair; peers' batches are also sorted for
        them. Streams compute one text each.
        """
        if self.setting == "streams":
            return {"mixed": ("quarters", "cuts", "singly"), "uniform": ("singly",)}.get(row, ())
        return ("padded", "quarters", "cuts") if row == "mixed" and not self.is_ours else ("padded",)


CONTENDERS = {
    contender.name: contender
    for contender in (
        *(Contender("ours", "", precision) for precision in ("float32", "bfloat16", "int8")),
        *(Contender("openvino", "", precision) for precision in ("float32", "bfloat16", "int8")),
        *(Contender("openvino", "streams", precision) for precision in ("float32", "bfloat16", "int8")),
        *(Contender("onnxruntime", "", precision) for precision in ("float32", "int8")),
        *(Contender("pytorch", "eager", precision) for precision in ("float32", "bfloat16", "int8")),
        *(Contender("pytorch", "compiled", precision) for precision in ("float32", "bfloat16")),
        *(Contender("kerashub", "graph", precision) for precision in ("float32", "bfloat16")),
        *(Contender("kerashub", "xla", precision) for precision in ("float32", "bfloat16")),
    )
}
LOWER = ("float32", "bfloat16")
FIXED = ("ours-", "ours-jit-", "pytorch-eager-", "pytorch-compiled-", "kerashub-graph-", "kerashub-xla-")
# Those that train, for each row; transformers is its Trainer, with batches in random order and grouped.
TRAINERS = {
    "finetuning": ("ours-", "transformers-random-", "transformers-grouped-"),
    "finetuning-128": FIXED,
    "pretraining": FIXED,
}
# float32 must agree with the reference in every probability; what is less exact is reported, and still
# has to be the same model.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.3}
