"""The commands that edit an image without any training: `var edit inpaint|outpaint|class|upscale IMAGE`."""

from var.cli.edit.verbs import edit_class, inpaint, outpaint, upscale
from var.cli.run import Group

EDIT = Group(
    "edit",
    """Edit an image: fill a masked part, continue it beyond its edges, put something of a class into it, enlarge it.

    Examples:
      var edit inpaint photo.jpg --box 80,60,180,200
      var edit class photo.jpg --mask mask.png --class "king penguin"
      var edit upscale small.png
    """,
    {"inpaint": inpaint, "outpaint": outpaint, "class": edit_class, "upscale": upscale},
)
