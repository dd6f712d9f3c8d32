"""Train a stage: `python train.py configs/RECIPE.yaml [key=value ...]`, or with `accelerate launch` on several devices."""

from var.cli.train import main

if __name__ == "__main__":
    main()
