"""Train a stage: `python train.py configs/RECIPE.yaml [key=value ...]`, or through `accelerate launch`."""

from var.cli.train import main

if __name__ == "__main__":
    main()
