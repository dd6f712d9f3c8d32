"""Commands that measure: `var evaluate generate|reference|score|tokenizer|likelihood|classification`."""

from var.cli.evaluation.classification import classification
from var.cli.evaluation.generate import generate
from var.cli.evaluation.likelihood import likelihood
from var.cli.evaluation.reference import reference
from var.cli.evaluation.score import score
from var.cli.evaluation.tokenizer import tokenizer
from var.cli.run import Group

EVALUATE = Group(
    "evaluate",
    """Generate sets of images and measure them, a tokenizer, or a model's likelihood and accuracy.

    Examples:
      var evaluate generate --model var-mini --num-per-class 50 --out samples
      var evaluate score --images samples --reference reference.npz
      var evaluate likelihood --data imagenet
    """,
    {
        "generate": generate,
        "reference": reference,
        "score": score,
        "tokenizer": tokenizer,
        "likelihood": likelihood,
        "classification": classification,
    },
)
