"""One thread: the models here are so small that threads only wait for one another, above all on a busy machine."""

import torch

torch.set_num_threads(1)
