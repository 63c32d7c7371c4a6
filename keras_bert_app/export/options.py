"""What `run.py export` can be asked for, and what of it doesn't fit."""

from dataclasses import dataclass

from keras_bert_app.errors import UserError

# How far answers computed elsewhere may be from those at the export, of logits and probabilities alike: where
# products are rounded, another processor or another order of sums rounds other ones.
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-1, "int8": 1e-1}
PRECISIONS = tuple(TOLERANCES)


@dataclass(frozen=True)
class ExportOptions:
    """top_k, abstain: as AnswerOptions. calibrate: fit its temperature, as `abstain` does, or thresholds.

    precision: of the weights, one of PRECISIONS. max_loss: accuracy that it may cost, 0.01 being a point.
    keep: so many versions stay; None: all.

    Raises:
        UserError: a value that can't be.
    """

    top_k: int | None = None
    calibrate: bool = False
    abstain: float | None = None
    precision: str = "float32"
    max_loss: float = 0.01
    keep: int | None = None

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise UserError(f"--precision is {self.precision!r}; it takes one of {', '.join(PRECISIONS)}")
        if self.abstain is not None and not 0 < self.abstain < 1:
            raise UserError(f"--abstain is {self.abstain:g}; it takes a probability between 0 and 1")
        if not 0 <= self.max_loss <= 1:
            raise UserError(
                f"--max_loss is {self.max_loss:g}; it takes 0 to 1, 0.01 for one point of accuracy"
            )
        if self.keep is not None and self.keep < 1:
            raise UserError(f"--keep is {self.keep}; it takes at least 1, the version just written")

    def check_labels(self, num_labels: int, several: bool) -> None:
        """Refuse more labels than there are, and to abstain where a text may have several or none.

        Raises:
            UserError: `top_k` isn't from 1 to `num_labels`, or `abstain` is set and `several` too.
        """
        if several and self.abstain is not None:
            raise UserError(
                "--abstain is for one label a text; this run gives those over their thresholds, or none, "
                "and --calibrate fits the thresholds"
            )
        if self.top_k is not None and not 1 <= self.top_k <= num_labels:
            raise UserError(
                f"--top_k is {self.top_k}; the run has {num_labels} labels, so it takes 1 to {num_labels}"
            )

    @property
    def measured(self) -> list[str]:
        """The flags that take examples to fit and measure."""
        asked = {
            "--calibrate": self.calibrate,
            "--abstain": self.abstain is not None,
            "--precision": self.precision != "float32",
        }
        return [flag for flag, is_asked in asked.items() if is_asked]


# A bundle of the run as it is.
PLAIN = ExportOptions()
