"""The commands that measure: `var evaluate generate|reference|score|tokenizer|likelihood`."""

from var.cli.evaluation.generate import generate
from var.cli.evaluation.likelihood import likelihood
from var.cli.evaluation.reference import reference
from var.cli.evaluation.score import score
from var.cli.evaluation.tokenizer import tokenizer
from var.cli.run import Group

EVALUATE = Group(
    "evaluate",
    "Draw sets of pictures and measure them, a tokenizer, or a model's likelihood.",
    {
        "generate": generate,
        "reference": reference,
        "score": score,
        "tokenizer": tokenizer,
        "likelihood": likelihood,
    },
)
